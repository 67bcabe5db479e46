"""Model folders, both ways between `UNet` and diffusers, and the refusal of bad ones."""

import inspect
import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DConditionModel, UNet2DModel
from diffusers_twins import (
    SMALL,
    SMALL_CONDITIONAL,
    Settings,
    inputs,
    randomise,
    reference,
    reference_output,
)
from safetensors.torch import load_file, save_file

from ddpm_unet.config import UNetConfig
from ddpm_unet.errors import UserError
from ddpm_unet.models import UNet
from ddpm_unet.models.pretrained import CONDITIONAL, DDPM, DEFAULTS, FIXED, WEIGHTS, read_config

KINDS = {DDPM: UNet2DModel, CONDITIONAL: UNet2DConditionModel}


def assert_same_network(ours: UNet, theirs: torch.nn.Module, settings: Settings) -> None:
    given = inputs(settings, (8, 8), torch.float32)
    with torch.no_grad():
        torch.testing.assert_close(
            ours(**given), reference_output(theirs, given), rtol=1e-4, atol=1e-4
        )


def edit_config(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    reference(SMALL).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize("settings", [SMALL, SMALL_CONDITIONAL])
def test_diffusers_reads_what_we_write(settings: Settings, tmp_path: Path) -> None:
    reference(settings).save_pretrained(tmp_path)
    config = read_config(tmp_path)
    config.layers_per_block, config.mid_block_scale_factor, config.sample_size = 2, 1.5, (8, 8)
    ours = UNet(config)
    randomise(ours)
    ours.save_pretrained(tmp_path / "ours")
    assert read_config(tmp_path / "ours") == config
    kind = UNet2DConditionModel if config.conditional else UNet2DModel
    theirs, info = kind.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(info.values())
    assert_same_network(ours.eval(), theirs, settings)


def test_a_pipeline_folder(tmp_path: Path) -> None:
    ours = UNet(UNetConfig(**SMALL, sample_size=8))
    randomise(ours)
    DDPMPipeline(reference(SMALL), DDPMScheduler()).save_pretrained(tmp_path)
    ours.save_pretrained(tmp_path / "unet")
    theirs = DDPMPipeline.from_pretrained(tmp_path).unet
    again = UNet.from_pretrained(tmp_path)
    assert not again.training
    assert_same_network(again, theirs, SMALL)


def test_other_weights_than_the_networks_own(tmp_path: Path) -> None:
    ours = UNet(UNetConfig(**SMALL))
    average = {k: torch.full_like(v, 0.5) for k, v in ours.state_dict().items()}
    ours.to(memory_format=torch.channels_last).save_pretrained(tmp_path, state_dict=average)
    assert all((p == 0.5).all() for p in UNet.from_pretrained(tmp_path).parameters())
    with pytest.raises(UserError, match=r"state_dict: tensor conv_in.weight is missing"):
        ours.save_pretrained(tmp_path, state_dict={f"module.{k}": v for k, v in average.items()})


def test_a_loaded_network_survives_the_overwriting_of_its_folder(folder: Path) -> None:
    ours = UNet.from_pretrained(folder)
    before = {k: v.clone() for k, v in ours.state_dict().items()}
    with (folder / WEIGHTS).open("r+b") as file:  # in place, as diffusers writes
        file.write(bytes((folder / WEIGHTS).stat().st_size))
    assert all(torch.equal(v, before[k]) for k, v in ours.state_dict().items())
    UNet(ours.config).save_pretrained(folder)
    assert {p.name for p in folder.iterdir()} == {"config.json", "README.md", WEIGHTS}
    ours.train().requires_grad_()
    ours(torch.randn(1, 3, 8, 8), 0).sum().backward()


def test_weights_in_several_files(tmp_path: Path) -> None:
    theirs = reference(SMALL)
    theirs.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    assert_same_network(UNet.from_pretrained(tmp_path), theirs, SMALL)


def test_half_precision_weights_become_float32(tmp_path: Path) -> None:
    theirs = reference(SMALL)
    theirs.half().save_pretrained(tmp_path)
    ours = UNet.from_pretrained(tmp_path)
    assert {p.dtype for p in ours.parameters()} == {torch.float32}
    assert_same_network(ours, theirs.float(), SMALL)


def test_old_names_of_attention_layers(folder: Path) -> None:
    theirs = UNet2DModel.from_pretrained(folder)
    new_to_old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    weights = {}
    for name, tensor in load_file(folder / WEIGHTS).items():
        for new, old in new_to_old.items():
            name = name.replace(new, old)
        weights[name] = tensor
    assert any("proj_attn" in name for name in weights)
    save_file(weights, folder / WEIGHTS)
    assert_same_network(UNet.from_pretrained(folder), theirs, SMALL)


def test_every_key_of_diffusers_is_either_supported_or_fixed() -> None:
    """And what an older config.json lacks is what diffusers takes it for."""
    for name, kind in KINDS.items():
        signature = inspect.signature(kind.__init__).parameters
        ours = {f.name: f.default for f in fields(UNetConfig)} | DEFAULTS[name] | FIXED[name]
        for key, parameter in list(signature.items())[1:]:
            assert ours[key] == parameter.default, key
        assert FIXED[name].keys() <= signature.keys()


def test_config_without_class_name(folder: Path) -> None:
    config = read_config(folder)
    edit_config(folder, _class_name="UNet2DModel", _name_or_path="somewhere")
    assert read_config(folder) == config
    settings = json.loads((folder / "config.json").read_text())
    del settings["_class_name"]
    (folder / "config.json").write_text(json.dumps(settings))
    assert read_config(folder) == config


def test_volumes_are_marked_in_the_config(tmp_path: Path) -> None:
    volume = UNet(UNetConfig(**SMALL, dims=3))
    volume.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["dims"] == 3
    assert UNet.from_pretrained(tmp_path).config.dims == 3
    UNet(UNetConfig(**SMALL)).save_pretrained(tmp_path)
    assert "dims" not in json.loads((tmp_path / "config.json").read_text())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"time_embedding_type": "fourier"}, "time_embedding_type 'fourier' is not supported"),
        ({"addition_embed_type": "text_time"}, "addition_embed_type 'text_time' is not supported"),
        ({"colour": 1}, "unknown key 'colour'"),
        ({"cross_attention_dim": 8}, "unknown key 'cross_attention_dim'"),
        ({"_class_name": "UNet1DModel"}, "_class_name 'UNet1DModel'"),
        ({"norm_num_groups": None}, r"config\.json: norm_num_groups is null"),
        ({"down_block_types": ["SkipDownBlock2D", "DownBlock2D"]}, r"json: .*SkipDownBlock2D"),
    ],
)
def test_unsupported_settings_are_named(change: dict[str, Any], message: str, folder: Path) -> None:
    if "addition_embed_type" in change:
        reference(SMALL_CONDITIONAL).save_pretrained(folder)
    edit_config(folder, **change)
    with pytest.raises(UserError, match=message):
        UNet.from_pretrained(folder)


def test_pickles_are_never_loaded(folder: Path) -> None:
    torch.save(load_file(folder / WEIGHTS), folder / "diffusion_pytorch_model.bin")
    UNet.from_pretrained(folder)
    (folder / WEIGHTS).unlink()
    with pytest.raises(UserError, match=r"model\.bin is a pickle.*convert.*UNet2DModel") as caught:
        UNet.from_pretrained(folder)
    cure = str(caught.value).split("trust it: ")[1]
    assert cure.startswith("diffusers.")
    exec(cure.removeprefix("diffusers."), {"UNet2DModel": UNet2DModel})
    UNet.from_pretrained(folder)


def test_wrong_tensors_are_named(folder: Path) -> None:
    good = load_file(folder / WEIGHTS)
    name = "mid_block.resnets.0.conv1.weight"
    missing = {k: v for k, v in good.items() if k != name}
    ill_shaped = good | {name: good[name][:4].clone()}
    faults = [
        (missing, f"tensor {name} is missing"),
        (ill_shaped, rf"tensor {name} has shape \[4, 16, 3, 3\], not \[16, 16, 3, 3\]"),
        (good | {"mid_block.extra": torch.ones(1)}, r"unexpected tensor mid_block\.extra"),
    ]
    for weights, message in faults:
        save_file(weights, folder / WEIGHTS)
        with pytest.raises(UserError, match=message):
            UNet.from_pretrained(folder)


def test_weights_that_are_not_finite_are_named(folder: Path) -> None:
    weights = load_file(folder / WEIGHTS)
    name = min(weights)
    weights[name].view(-1)[0] = torch.nan
    save_file(weights, folder / WEIGHTS)
    with pytest.raises(UserError, match=f"{name} is not finite"):
        UNet.from_pretrained(folder)


def test_missing_and_damaged_files_are_named(folder: Path) -> None:
    with pytest.raises(UserError, match="nowhere does not exist"):
        UNet.from_pretrained(folder / "nowhere")
    weights = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(weights[:-100])
    with pytest.raises(UserError, match=f"{WEIGHTS} is damaged"):
        UNet.from_pretrained(folder)
    (folder / WEIGHTS).unlink()
    with pytest.raises(UserError, match=f"has no {WEIGHTS}"):
        UNet.from_pretrained(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"config\.json: is not readable"):
        UNet.from_pretrained(folder)
    (folder / "config.json").unlink()
    with pytest.raises(UserError, match=r"has no config\.json"):
        UNet.from_pretrained(folder)
