"""Programs of torch.export and ONNX files equal the network at every batch and size."""

from __future__ import annotations

import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers_twins import SMALL, SMALL_CONDITIONAL, randomise

from ddpm_unet.config import ClassicConfig, HeadConfig, UNetConfig
from ddpm_unet.errors import UserError
from ddpm_unet.models import UNet, export
from ddpm_unet.models.classic import ClassicUNet
from ddpm_unet.models.segmenter import Segmenter

RESNETS: dict[str, Any] = {
    "down_block_types": ("ResnetDownsampleBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "ResnetUpsampleBlock2D"),
    "upsample_type": "resnet",
    "downsample_padding": 0,
    "num_class_embeds": 4,
}


def unet(**settings: Any) -> UNet:
    network = UNet(UNetConfig(**settings))
    randomise(network)
    return network.eval()


def segmenter(network: UNet, **settings: Any) -> Segmenter:
    model = Segmenter(network, HeadConfig(**settings))
    randomise(model.head)
    return model.eval()


def classic() -> ClassicUNet:
    return ClassicUNet(ClassicConfig(depth=2, base_width=2)).eval()


def denoiser() -> UNet:
    return unet(**SMALL | RESNETS)


def conditional_segmenter() -> Segmenter:
    return segmenter(unet(**SMALL_CONDITIONAL | {"num_class_embeds": 3}), class_label=1)


@pytest.mark.parametrize("network", [denoiser, conditional_segmenter, classic])
def test_a_program_and_an_onnx_file(
    network: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file is run by onnxruntime, where the extra "export" is installed."""
    model = network()
    monkeypatch.setattr(export, "program", cache(export.program))
    difference, largest = export.export(model, tmp_path / "deep" / "model.pt2")
    assert difference <= 1e-5 < 0.1 < largest
    again = torch.export.load(tmp_path / "deep" / "model.pt2").module()
    given = export.example(model, batch=5, scale=6)
    with torch.no_grad():
        torch.testing.assert_close(again(**given), model(**given), rtol=1e-4, atol=1e-5)
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    difference, largest = export.export(model, tmp_path / "model.onnx")
    assert difference < 1e-4
    assert largest > 0.1
    image = runtime.InferenceSession(tmp_path / "model.onnx").get_inputs()[0]
    channels = model.config.in_channels if isinstance(model, UNet) else model.in_channels
    assert image.shape == ["batch", channels, "height", "width"]


def test_arguments() -> None:
    """Those that the network takes, of sides that differ and are not all even."""
    given = export.example(unet(**SMALL_CONDITIONAL, dims=3), batch=2, scale=3)
    assert [value.shape for value in given.values()] == [(2, 3, 7, 9, 11), (2,), (2, 4, 10)]
    timed = export.example(unet(**SMALL, class_embed_type="timestep"), batch=2, scale=3)
    assert timed["class_labels"].shape == (2,)
    embedded = export.example(unet(**SMALL, class_embed_type="identity"), batch=2, scale=3)
    assert embedded["class_labels"].shape == (2, 32)


def test_another_output_is_noticed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    model = classic()
    assert export.largest_difference(model, model)[0] == 0

    def shifted(images: torch.Tensor) -> torch.Tensor:
        return model(images) + (len(images) == 3)

    assert export.largest_difference(model, shifted)[0] == pytest.approx(1, abs=1e-5)
    monkeypatch.setattr(export, "write_onnx", lambda *_: shifted)
    monkeypatch.setattr(export, "program", lambda _: (None, {}))
    with pytest.raises(UserError, match="outputs differ from the network's by 1"):
        export.export(model, tmp_path / "model.onnx")


def test_what_cannot_be_exported(tmp_path: Path) -> None:
    drawn = segmenter(unet(**SMALL), transfer="features", feature_alphas=(0.9, 0.8, 0.7))
    with pytest.raises(UserError, match='"features" draws noise'):
        export.export(drawn, tmp_path / "model.pt2")
    with pytest.raises(UserError, match=r"name a \.onnx or a \.pt2"):
        export.export(classic(), tmp_path / "model.pth")


def test_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    classic().save_pretrained(tmp_path / "classic")
    segmenter(unet(**SMALL)).save_pretrained(tmp_path / "segmenter")
    unet(**SMALL).save_pretrained(tmp_path / "pipeline" / "unet")
    kinds = [export.load(tmp_path / name) for name in ("classic", "segmenter", "pipeline")]
    assert [type(kind) for kind in kinds] == [ClassicUNet, Segmenter, UNet]
    asked = []
    monkeypatch.setattr(export, "export", lambda network, path: asked.append(path) or (1e-6, 2.0))
    out = tmp_path / "model.onnx"
    monkeypatch.setattr(sys, "argv", ["export", str(tmp_path / "segmenter"), str(out)])
    export.main()
    assert asked == [out]
    assert "largest difference to the network 1.0e-06" in capsys.readouterr().out
