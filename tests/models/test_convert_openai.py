"""Checkpoints of other toolkits: guided-diffusion and latent-diffusion, and what is refused.

Neither toolkit is on PyPI. guided-diffusion's outputs are compared with an independent
implementation by its module names (`openai_layout`), those of latent-diffusion with diffusers'
reading of the same file.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint
from diffusers_twins import STABLE_DIFFUSION, randomise
from openai_layout import OpenAIUNet, Settings
from safetensors.torch import load_file, save_file

from ddpm_unet.config import CheckpointHints, UNetConfig
from ddpm_unet.errors import UserError
from ddpm_unet.models import UNet
from ddpm_unet.models.attention import Transformer
from ddpm_unet.models.convert import GuidedDiffusion, LatentDiffusion
from ddpm_unet.models.pretrained import CONDITIONAL, DEFAULTS, check_weights

SD = "model.diffusion_model."


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "model.safetensors"


def write(network: torch.nn.Module, file: Path, prefix: str = "") -> dict[str, torch.Tensor]:
    """Save a network with random weights."""
    randomise(network)
    weights = {prefix + name: t for name, t in network.eval().state_dict().items()}
    save_file(weights, file)
    return weights


def stable_diffusion(**settings: Any) -> OpenAIUNet:
    """A network of latent-diffusion, for its names and shapes; it does not run."""
    return OpenAIUNet(
        Settings(in_channels=4, out_channels=4, **settings),
        lambda channels: Transformer(2, channels, 4, 2, 6, groups=32),
    )


GUIDED: list[dict[str, Any]] = [
    {},
    {"num_heads": 4, "channel_mult": (1, 2, 3), "attention_levels": (1, 2), "num_res_blocks": 2},
    {"new_order": True, "attention_levels": (0,)},
    {"scale_shift": True, "resblock_updown": True, "num_classes": 5, "attention_levels": ()},
    {"resblock_updown": True, "out_channels": 6, "num_heads": 1, "attention_levels": (0, 1)},
]


@pytest.mark.parametrize("settings", GUIDED)
def test_guided_diffusion(settings: dict[str, Any], file: Path) -> None:
    theirs = OpenAIUNet(Settings(**settings))
    write(theirs, file)
    order = "qkv_first" if settings.get("new_order") else "heads_first"
    told = CheckpointHints(heads=settings.get("num_heads", 2), qkv_order=order)
    ours = UNet.from_pretrained(file, told)
    x, t = torch.randn(2, 3, 8, 8), torch.tensor([3.0, 700.0])
    labels = torch.tensor([0, 4]) if "num_classes" in settings else None
    with torch.no_grad():
        expected = theirs(x, t, None, labels)
        assert expected.std() > 0.1
        torch.testing.assert_close(ours(x, t, class_labels=labels), expected, rtol=1e-4, atol=1e-4)


def test_head_dim_instead_of_heads(file: Path) -> None:
    write(OpenAIUNet(Settings(channel_mult=(1, 2), attention_levels=(0, 1))), file)

    def read(**told: Any) -> UNet:
        return UNet.from_pretrained(file, CheckpointHints(qkv_order="heads_first", **told))

    assert read(heads=2).config.attention_head_dim == (16, 32)
    assert read(head_dim=16).config.attention_head_dim == 16
    with pytest.raises(
        UserError, match=r"heads 3 does not divide 32 channels; .*1, 2, 4, 8, 16, 32"
    ):
        read(heads=3)
    with pytest.raises(UserError, match="one of the two"):
        read(heads=2, head_dim=16)


@pytest.mark.parametrize(
    "settings", [{}, {"channel_mult": (1, 2, 2), "num_res_blocks": 2, "attention_levels": (0, 1)}]
)
def test_stable_diffusion(settings: dict[str, Any], file: Path, tmp_path: Path) -> None:
    """Names and values as of diffusers' converter, and outputs as of the network it makes."""
    weights = write(stable_diffusion(**settings), file, SD)
    told = CheckpointHints(heads=4)
    ours = UNet.from_pretrained(file, told)
    expected = convert_ldm_unet_checkpoint(
        dict(weights), {"layers_per_block": settings.get("num_res_blocks", 1)}
    )
    assert ours.state_dict().keys() == expected.keys()
    assert all(torch.equal(t, expected[name]) for name, t in ours.state_dict().items())
    ours._write_config(tmp_path / "config")
    theirs = UNet2DConditionModel.from_single_file(str(file), config=str(tmp_path / "config"))
    x, t, context = torch.randn(2, 4, 8, 8), torch.tensor([3.0, 700.0]), torch.randn(2, 3, 6)
    with torch.no_grad():
        output = theirs.eval()(x, t, context).sample
        torch.testing.assert_close(ours(x, t, context), output, rtol=1e-4, atol=1e-4)


def test_stable_diffusion_with_head_dim_and_linear_projections(file: Path) -> None:
    """As Stable Diffusion 2.x, whose number of heads grows with the channels."""
    network = OpenAIUNet(
        Settings(attention_levels=(0, 1)),
        lambda channels: Transformer(2, channels, 1, 1, 6, groups=32, linear=True),
    )
    write(network, file, SD)
    config = UNet.from_pretrained(file, CheckpointHints(head_dim=16)).config
    assert config.attention_head_dim == (2, 4)
    assert config.use_linear_projection
    assert config.transformer_layers_per_block == 1


def test_published_sizes() -> None:
    """Stable Diffusion 1.x, and guided-diffusion's network of 256 x 256 pixels: names, shapes and
    architecture, without numbers.
    """
    four = {"in_channels": 4, "out_channels": 4, "model_channels": 320, "num_res_blocks": 2}
    large = {"out_channels": 6, "model_channels": 256, "scale_shift": True, "resblock_updown": True}
    with torch.device("meta"):
        sd = OpenAIUNet(
            Settings(**four, channel_mult=(1, 2, 4, 4), attention_levels=(0, 1, 2)),
            lambda channels: Transformer(2, channels, 8, 1, 768, groups=32),
        )
        large |= {"channel_mult": (1, 1, 2, 2, 4, 4), "num_res_blocks": 2}
        guided = OpenAIUNet(Settings(**large, attention_levels=(3, 4, 5)))
    told = CheckpointHints(heads=8), CheckpointHints(head_dim=64, qkv_order="heads_first")
    for peer, network, hints, parameters in (
        (LatentDiffusion, sd, told[0], 859_520_964),
        (GuidedDiffusion, guided, told[1], 552_814_086),
    ):
        given = peer(Path("x"), network.state_dict(), hints)
        config, weights = given.config(), given.renamed()
        with torch.device("meta"):
            ours = UNet(config)
        check_weights("x", ours.state_dict(), weights)
        assert sum(p.numel() for p in ours.parameters()) == parameters
        if peer is LatentDiffusion:
            published = DEFAULTS[CONDITIONAL] | STABLE_DIFFUSION | {"sample_size": None}
            assert config == UNetConfig(**published)


def test_an_average_beside_the_weights_must_be_chosen(file: Path) -> None:
    weights = write(stable_diffusion(), file, SD)
    average = {
        "model_ema." + name.removeprefix("model.").replace(".", ""): t + 1
        for name, t in weights.items()
    }
    save_file(weights | average | {"model_ema.decay": torch.ones(1)}, file)
    with pytest.raises(UserError, match=r"2 networks; choose by prefix model.*or model_ema"):
        UNet.from_pretrained(file, CheckpointHints(heads=4))
    for prefix, shift in ((SD, 0), ("model_ema.diffusion_model.", 1)):
        read = UNet.from_pretrained(file, CheckpointHints(heads=4, prefix=prefix))
        assert torch.equal(read.conv_in.weight, weights[f"{SD}input_blocks.0.0.weight"] + shift)
    with pytest.raises(UserError, match=r"no U-Net of guided-diffusion, .* at ema"):
        UNet.from_pretrained(file, CheckpointHints(heads=4, prefix="ema."))


def test_all_that_is_not_told_is_asked_for_at_once(file: Path) -> None:
    write(OpenAIUNet(Settings()), file)
    with pytest.raises(UserError, match=r"heads N, or head_dim N .*64.* and qkv_order") as e:
        UNet.from_pretrained(file)
    assert "\n" not in str(e.value)
    UNet.from_pretrained(file, CheckpointHints(heads=1))


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("label_emb.0.0.weight", (128, 9), "label_emb.0.0.weight embeds vectors"),
        ("time_embed.0.weight", (128, 16), "reads 16 sinusoids, .* channels, 32"),
        ("input_blocks.0.0.weight", (32, 3, 3, 3, 3), "not a convolution of images"),
        ("input_blocks.1.0.out_layers.0.weight", None, "out_layers.0.weight is missing"),
        ("input_blocks.1.0.conv9.weight", (3,), "unexpected tensor down_blocks.0.*conv9"),
        ("something.else", (3,), "unexpected tensor something.else"),
        ("input_blocks.2.0.op.weight", None, "downsamplers.0.conv.weight is missing"),
        ("out.2.weight", (3, 16, 3, 3), r"conv_out.weight has shape \[3, 16, 3, 3\]"),
    ],
)
def test_the_first_tensor_that_does_not_fit_is_named(
    name: str, shape: tuple[int, ...] | None, message: str, file: Path
) -> None:
    weights = write(OpenAIUNet(Settings()), file)
    if shape is None:
        del weights[name]
    else:
        weights[name] = torch.zeros(shape)
    save_file(weights, file)
    with pytest.raises(UserError, match=message) as caught:
        UNet.from_pretrained(file, CheckpointHints(heads=1))
    assert "\n" not in str(caught.value)
    assert str(file) in str(caught.value)


def test_a_classifier_and_residual_blocks_beside_transformers_are_refused(file: Path) -> None:
    weights = write(OpenAIUNet(Settings()), file)
    save_file({n: t for n, t in weights.items() if not n.startswith("output_blocks")}, file)
    with pytest.raises(
        UserError, match=r"output_blocks.0.* is missing, which every U-Net of guided"
    ):
        UNet.from_pretrained(file, CheckpointHints(heads=1))
    write(stable_diffusion(resblock_updown=True), file)
    with pytest.raises(UserError, match=r"input_blocks\.2\.0\.in_layers.* halves beside transf"):
        UNet.from_pretrained(file, CheckpointHints(heads=1))


def test_other_files_are_refused(file: Path) -> None:
    save_file({"conv_in.weight": torch.zeros(3)}, file)
    with pytest.raises(UserError, match=r"first tensor is conv_in\.weight; .* name the folder"):
        UNet.from_pretrained(file)
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(UserError, match="damaged"):
        UNet.from_pretrained(file)


def test_a_pickle_is_refused_with_the_command_that_converts_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command is the user's to run; run here, it makes what `from_pretrained` reads."""
    network = OpenAIUNet(Settings())
    randomise(network)
    pickle = tmp_path / "model.ckpt"
    torch.save({"epoch": 3, "state_dict": network.state_dict()}, pickle)
    with pytest.raises(
        UserError, match=r"model\.ckpt is a pickle, which is never loaded"
    ) as caught:
        UNet.from_pretrained(pickle)
    assert "\n" not in str(caught.value)
    exec(str(caught.value).split('python -c "')[1].removesuffix('"'))
    converted = load_file(tmp_path / "model.safetensors")
    assert converted.keys() == network.state_dict().keys()
    UNet.from_pretrained(tmp_path / "model.safetensors", CheckpointHints(heads=1))
