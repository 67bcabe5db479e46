"""Images in tar files are those of the folder they were made from."""

import io
import tarfile
from dataclasses import replace

import numpy as np
import pytest
import tifffile
from PIL import Image

from ddpm_unet.config import ImageDataConfig
from ddpm_unet.data.folder import Shards
from ddpm_unet.data.sources import held_out, open_images, open_stream
from ddpm_unet.errors import UserError


def encoded(number):
    rng = np.random.default_rng(number)
    image = rng.integers(0, 256, (12, 14, 3), np.uint8)
    file = io.BytesIO()
    if number % 5 == 4:
        tifffile.imwrite(file, image, photometric="rgb", compression="zlib")
    else:
        Image.fromarray(image).save(file, "PNG")
    return ("tif" if number % 5 == 4 else "png"), file.getvalue(), image


def write(path, numbers, labels=True):
    with tarfile.open(path, "w") as tar:
        for number in numbers:
            ending, data, _ = encoded(number)
            parts = {f"a/{number:04d}.{ending}": data, f"a/{number:04d}.json": b"{}"}
            if labels:
                parts[f"a/{number:04d}.cls"] = str(number % 3).encode()
            for name, content in parts.items():
                member = tarfile.TarInfo(name)
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))


@pytest.fixture
def tars(tmp_path, cache):
    place = tmp_path / "tars"
    place.mkdir()
    write(place / "b-2.tar", range(10))
    write(place / "b-10.tar", range(10, 30))
    return place


def test_images_and_classes_in_order(tars):
    shards = Shards(str(tars), class_labels=True)
    assert len(shards) == 30
    assert shards.classes == ("0", "1", "2")
    assert shards.labels.tolist() == [number % 3 for number in range(30)]
    assert shards.name(10) == str(tars / "b-10.tar" / "a" / "0010.png")
    assert "30 other files passed over (30 .json)" in shards.note
    again = Shards(str(tars), class_labels=True)  # by the index
    assert (tars.parent / "cache").exists()
    for found in (shards, again, Shards(str(tars / "b-10.tar"))):
        first = 30 - len(found)
        for index in (0, 4, 19):
            np.testing.assert_array_equal(found.read(index), encoded(first + index)[2])
            assert found.info(index).size == (12, 14)
    write(tars / "b-11.tar", [30])
    assert len(Shards(str(tars))) == 31
    write(tars / "b-2.tar", range(5))
    assert len(Shards(str(tars))) == 26


def test_streams_of_tars_are_functions_of_seed_and_position(tars):
    config = ImageDataConfig(source=str(tars), size=8, class_labels=True)
    as_needed, packed = (replace(config, memory_limit=limit) for limit in (0, 99))
    streams = [open_stream(settings, 3) for settings in (as_needed, packed)]
    batches = [stream.__getitems__([0, 77, 5]) for stream in streams]
    assert all((batches[0][key] == batches[1][key]).all() for key in batches[0])
    assert len(open_images(config)) + len(held_out(config).images) == 30
    first = streams[0].images.fingerprint()
    (tars / "b-2.tar").touch()
    assert open_images(as_needed).fingerprint() != first


def test_bad_tars_are_said_in_one_line(tars, tmp_path):
    write(tars / "b-2.tar", range(3), labels=False)
    with pytest.raises(UserError, match=r"0000.png: has no class beside it \(.cls\); add one"):
        Shards(str(tars), class_labels=True)
    for content in (b"", bytes(10240)):
        (tmp_path / "empty.tar").write_bytes(content)
        with pytest.raises(UserError, match=r"empty.tar: (holds no image|is damaged)"):
            Shards(str(tmp_path / "empty.tar"))
    with pytest.raises(UserError, match=r"none.tar: no such file"):
        Shards(str(tmp_path / "none.tar"))
    (tmp_path / "gz.tar").write_bytes(b"\x1f\x8b" + bytes(100))
    with pytest.raises(UserError, match=r"gz.tar: is damaged"):
        Shards(str(tmp_path / "gz.tar"))
    (tmp_path / "odd.tar").write_bytes((tars / "b-10.tar").read_bytes()[:3000])
    with pytest.raises(UserError, match=r"odd.tar: is truncated"):
        Shards(str(tmp_path / "odd.tar"))
    with pytest.raises(UserError, match=r"tar files have images; set data\.dims 2"):
        open_images(ImageDataConfig(source=str(tars), dims=3, size=8))
