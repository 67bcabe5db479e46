"""Nothing that comes from outside can run code, fill the memory, or write where it should not."""

import pickle
import re
import struct
import zlib
from pathlib import Path

import pytest
import torch

from ddpm_unet.cli import read_settings
from ddpm_unet.config import DenoiseConfig, UNetConfig
from ddpm_unet.data.reading import read_image
from ddpm_unet.errors import UserError
from ddpm_unet.inference.pipeline import read_pipeline
from ddpm_unet.models import UNet
from ddpm_unet.models.segmenter import load_segmentation_model
from ddpm_unet.training.checkpoint import newest_checkpoint, write_checkpoint
from ddpm_unet.training.run_folder import RunFolder

REPOSITORY = Path(__file__).parents[1]
UNSAFE = re.compile(
    r"^\s*(import|from) (pickle|dill|joblib|shelve|marshal)\b"
    r"|\.extract(all|file)?\("
    r"|^\s*(import|from) zipfile\b(?! import BadZipFile$)"
    r"|torch\.(load\((?!.*weights_only=True)|save\()"
    r"|allow_pickle=True|broadcast_object|gather_object|yaml\.(load|full_load|unsafe_load)\(|\b(eval|exec)\(|os\.system|shell=True"
)


def test_the_code_has_no_way_to_load_a_pickle_or_run_what_it_reads():
    files = [*(REPOSITORY / "ddpm_unet").rglob("*.py"), *(REPOSITORY / "scripts").glob("*.py")]
    assert len(files) > 50
    found = [
        f"{path.name}:{number}: {line.strip()}"
        for path in files
        for number, line in enumerate(path.read_text().splitlines(), start=1)
        if UNSAFE.search(line) and not re.search(r"\.eval\(\)", line)
    ]
    assert found == []


class Writes:
    """Unpickled, it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.fixture
def trap(tmp_path):
    """A pickle, and the file that would be there if it had been loaded."""
    sprung = tmp_path / "sprung"
    bait = pickle.dumps({"weight": Writes(sprung)})
    pickle.loads(bait)
    assert sprung.exists()
    sprung.unlink()
    yield bait
    assert not sprung.exists()


SMALL = UNetConfig(
    block_out_channels=(8,), down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",),
    layers_per_block=1, norm_num_groups=4, attention_head_dim=4,
)  # fmt: skip


@pytest.mark.parametrize(
    "name", ["diffusion_pytorch_model.bin", "model.pt", "diffusion_pytorch_model.safetensors"]
)
def test_a_pickle_for_weights_is_refused(trap, tmp_path, name):
    UNet(SMALL).save_pretrained(tmp_path / "model" / "unet")
    (tmp_path / "model" / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    (tmp_path / "model" / "unet" / name).write_bytes(trap)
    for read in (UNet.from_pretrained, load_segmentation_model, read_pipeline):
        with pytest.raises(UserError) as caught:
            read(tmp_path / "model")
        assert "\n" not in str(caught.value)
    with pytest.raises(UserError):
        UNet.from_pretrained(tmp_path / "model" / "unet")


@pytest.mark.parametrize("file", ["model.safetensors", "optimizer.safetensors", "state.json"])
def test_a_pickle_in_a_checkpoint_is_damage(trap, tmp_path, file):
    tensors = {"model": {"w": torch.ones(3)}, "optimizer": {"w/step": torch.ones(())}}
    for step in (1, 2):
        write_checkpoint(tmp_path / "checkpoints", step, tensors, {"step": step})
    (tmp_path / "checkpoints" / "00000002" / file).write_bytes(trap)
    assert newest_checkpoint(tmp_path / "checkpoints")[1] == {"step": 1}


def test_yaml_makes_no_objects(tmp_path):
    sprung = tmp_path / "sprung"
    made = f"!!python/object/apply:pathlib.Path ['{sprung}']"
    text = f"seed: !!python/object/apply:pathlib.Path.touch [{made}]\n"
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(UserError):
        read_settings(DenoiseConfig, tmp_path / "config.yaml", [])
    with pytest.raises(UserError):
        RunFolder(tmp_path).claim(DenoiseConfig(), "auto")
    assert not sprung.exists()


def test_a_small_file_of_a_huge_picture_is_refused_before_it_is_decoded(tmp_path):
    def chunk(kind: bytes, body: bytes) -> bytes:
        crc = struct.pack(">I", zlib.crc32(kind + body))
        return struct.pack(">I", len(body)) + kind + body + crc

    side = 4000
    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    rows = zlib.compress(bytes((side + 1) * side), 9)
    path = tmp_path / "bomb.png"
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    )
    assert path.stat().st_size < 20_000
    with pytest.raises(UserError, match=r"raise max_pixels"):
        read_image(path, max_pixels=15.9)
    assert read_image(path, max_pixels=16).shape == (side, side, 1)
