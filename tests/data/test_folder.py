"""Which files of a folder, and of tar files, count, in which order, and their classes."""

import io
import tarfile
from dataclasses import replace

import numpy as np
import pytest
import tifffile
from data_files import refused
from PIL import Image

from ddpm_unet.config import ImageDataConfig
from ddpm_unet.data import folder as folder_module
from ddpm_unet.data.folder import Folder, Shards
from ddpm_unet.data.image_set import open_collection
from ddpm_unet.data.images import ImageInfo
from ddpm_unet.data.pixels import Fit
from ddpm_unet.data.reading import Reading
from ddpm_unet.data.sources import held_out, open_images, open_stream


def write(root, *names):
    for value, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (4, 3), value).save(root / name)


def test_natural_order_through_sub_folders(tmp_path):
    names = ["b/img10.png", "b/img2.PNG", "a/x.jpg", "img1.tif", "b/c/zell kern ü.webp"]
    names.append("b/img02.png")
    write(tmp_path, *names)
    write(tmp_path, ".hidden.png", ".git/a.png", "b/.c/a.png")
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / "README").write_text("no image")
    folder = Folder(tmp_path)
    keys = [folder.key(i) for i in range(len(folder))]
    assert keys == [names[i] for i in (2, 4, 5, 1, 0, 3)]
    assert folder.labels is None
    assert folder.note == "2 other files passed over (1 .txt, 1 without extension)"
    assert folder.name(4) == str(tmp_path / "b/img10.png")
    np.testing.assert_array_equal(folder.read(4), np.full((3, 4, 1), names.index("b/img10.png")))
    info = folder.info(0)
    assert (*info.size, info.channels) == (3, 4, 1)


def test_classes_are_the_first_folder_level(tmp_path):
    write(tmp_path, "grade10/a.png", "grade2/deep/er/b.png", "grade2/c.png")
    folder = Folder(tmp_path, class_labels=True)
    assert folder.classes == ("grade2", "grade10")
    assert folder.labels.tolist() == [0, 0, 1]
    write(tmp_path, "lost.png")
    with refused(r"lost\.png: is in no class folder"):
        Folder(tmp_path, class_labels=True)


def test_folders_without_pictures(tmp_path, monkeypatch):
    with refused("none: no such folder"):
        Folder(tmp_path / "none")
    with refused("holds nothing"):
        Folder(tmp_path)
    (tmp_path / "a.csv").write_text("1,2")
    with refused("only 1 other files"):
        Folder(tmp_path)
    with refused(r"a\.csv: is a file"):
        Folder(tmp_path / "a.csv")

    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("os.scandir", refuse)
    with refused("may not be listed"):
        Folder(tmp_path)


def test_links_to_folders_are_followed_once(tmp_path):
    write(tmp_path / "far", "2.png", "deep/3.png")
    write(tmp_path / "root", "1.png")
    for place in ("linked", "again", "far/round"):
        target = tmp_path / "far" if place != "far/round" else tmp_path / "root"
        (tmp_path / ("root" if place != "far/round" else "") / place).symlink_to(target)
    folder = Folder(tmp_path / "root")
    keys = [folder.key(i) for i in range(len(folder))]
    assert sorted(keys) == ["1.png", "again/2.png", "again/deep/3.png"]


@pytest.mark.usefixtures("cache")
def test_a_large_folder_is_looked_at_once(tmp_path, monkeypatch):
    root = tmp_path / "images"
    write(root, "a/img10.png", "a/img2.png", "b/c/x.png")
    (root / "b/notes.txt").write_text("")
    first = Folder(root, class_labels=True)

    def refuse(*_):
        raise AssertionError("looked again")

    with monkeypatch.context() as patch:
        patch.setattr(folder_module.Reading, "info", refuse)
        patch.setattr(folder_module, "list_images", refuse)
        again = Folder(root, class_labels=True)
        assert [again.name(i) for i in range(3)] == [first.name(i) for i in range(3)]
        assert [again.info(i) for i in range(3)] == [ImageInfo((3, 4), 1, np.dtype("u1"))] * 3
        assert (again.note, again.classes) == (first.note, ("a", "b"))
        for other in (Reading(max_pixels=2.0), Reading(dims=3)):
            with pytest.raises(AssertionError, match="looked again"):
                Folder(root, other)
    write(root, "b/c/y.png")  # a new file in the deepest folder
    assert len(Folder(root)) == 4
    (root / "a/img2.png").unlink()
    assert len(Folder(root)) == 3
    (root / "empty").mkdir()
    assert len(Folder(root)) == 3
    write(root, "empty/z.png")
    assert len(Folder(root)) == 4


@pytest.mark.usefixtures("cache")
def test_what_the_index_does_not_tell(tmp_path, monkeypatch):
    """A file written over with another size, a damaged index, a folder that has just changed."""
    root = tmp_path / "images"
    write(root, "a.png", "b.png")
    Folder(root)
    Image.new("L", (5, 5)).save(root / "a.png")
    images = open_collection(Folder(root), Fit(3), memory_limit=0)
    with refused(r"a\.png: has changed while it was in use; start again"):
        images[0]
    assert Folder(root).info(0).size == (5, 5)
    (path,) = (tmp_path / "cache/folders").iterdir()
    path.write_bytes(path.read_bytes()[:100])
    assert len(Folder(root)) == 2
    path.unlink()
    monkeypatch.setattr(folder_module, "RACE", 10**12)
    Folder(root)
    assert not path.exists()


def encoded(number):
    rng = np.random.default_rng(number)
    image = rng.integers(0, 256, (12, 14, 3), np.uint8)
    file = io.BytesIO()
    if number % 5 == 4:
        tifffile.imwrite(file, image, photometric="rgb", compression="zlib")
    else:
        Image.fromarray(image).save(file, "PNG")
    return ("tif" if number % 5 == 4 else "png"), file.getvalue(), image


def write_tar(path, numbers, labels=True):
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
    write_tar(place / "b-2.tar", range(10))
    write_tar(place / "b-10.tar", range(10, 30))
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
    write_tar(tars / "b-11.tar", [30])
    assert len(Shards(str(tars))) == 31
    write_tar(tars / "b-2.tar", range(5))
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
    write_tar(tars / "b-2.tar", range(3), labels=False)
    with refused(r"0000.png: has no class beside it \(.cls\); add one"):
        Shards(str(tars), class_labels=True)
    for content in (b"", bytes(10240)):
        (tmp_path / "empty.tar").write_bytes(content)
        with refused(r"empty.tar: (holds no image|is damaged)"):
            Shards(str(tmp_path / "empty.tar"))
    with refused(r"none.tar: no such file"):
        Shards(str(tmp_path / "none.tar"))
    (tmp_path / "gz.tar").write_bytes(b"\x1f\x8b" + bytes(100))
    with refused(r"gz.tar: is damaged"):
        Shards(str(tmp_path / "gz.tar"))
    (tmp_path / "odd.tar").write_bytes((tars / "b-10.tar").read_bytes()[:3000])
    with refused(r"odd.tar: is truncated"):
        Shards(str(tmp_path / "odd.tar"))
    with refused(r"tar files have images; set data\.dims 2"):
        open_images(ImageDataConfig(source=str(tars), dims=3, size=8))
