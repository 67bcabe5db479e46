"""Which files of a folder count, in which order, and their classes."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ddpm_unet.data import folder as folder_module
from ddpm_unet.data.folder import Folder
from ddpm_unet.data.image_set import Fit, open_collection
from ddpm_unet.data.images import ImageInfo
from ddpm_unet.errors import UserError


def write(root: Path, *names: str) -> None:
    for value, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (4, 3), value).save(root / name)


def test_natural_order_through_sub_folders(tmp_path: Path) -> None:
    names = ["b/img10.png", "b/img2.PNG", "a/x.jpg", "img1.tif", "b/c/zell kern ü.webp"]
    names.append("b/img02.png")
    write(tmp_path, *names)
    write(tmp_path, ".hidden.png", ".git/a.png", "b/.c/a.png")
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / "README").write_text("no image")
    folder = Folder(tmp_path, 1.0)
    keys = [folder.key(i) for i in range(len(folder))]
    assert keys == [names[i] for i in (2, 4, 5, 1, 0, 3)]
    assert folder.labels is None
    assert folder.note == "2 other files passed over (1 .txt, 1 without extension)"
    assert folder.name(4) == str(tmp_path / "b/img10.png")
    np.testing.assert_array_equal(folder.read(4), np.full((3, 4, 1), names.index("b/img10.png")))
    info = folder.info(0)
    assert (info.height, info.width, info.channels) == (3, 4, 1)


def test_classes_are_the_first_folder_level(tmp_path: Path) -> None:
    write(tmp_path, "grade10/a.png", "grade2/deep/er/b.png", "grade2/c.png")
    folder = Folder(tmp_path, 1.0, class_labels=True)
    assert folder.classes == ("grade2", "grade10")
    assert folder.labels is not None
    assert folder.labels.tolist() == [0, 0, 1]
    write(tmp_path, "lost.png")
    with pytest.raises(UserError, match=r"lost\.png: is in no class folder"):
        Folder(tmp_path, 1.0, class_labels=True)


def test_folders_without_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="none: no such folder"):
        Folder(tmp_path / "none", 1.0)
    with pytest.raises(UserError, match="holds nothing"):
        Folder(tmp_path, 1.0)
    (tmp_path / "a.csv").write_text("1,2")
    with pytest.raises(UserError, match="only 1 other files"):
        Folder(tmp_path, 1.0)
    with pytest.raises(UserError, match=r"a\.csv: is a file"):
        Folder(tmp_path / "a.csv", 1.0)

    def refuse(path: str) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("os.scandir", refuse)
    with pytest.raises(UserError, match="may not be listed"):
        Folder(tmp_path, 1.0)


def test_links_to_folders_are_followed_once(tmp_path: Path) -> None:
    write(tmp_path / "far", "2.png", "deep/3.png")
    write(tmp_path / "root", "1.png")
    for place in ("linked", "again", "far/round"):
        target = tmp_path / "far" if place != "far/round" else tmp_path / "root"
        (tmp_path / ("root" if place != "far/round" else "") / place).symlink_to(target)
    folder = Folder(tmp_path / "root", 1.0)
    keys = [folder.key(i) for i in range(len(folder))]
    assert sorted(keys) == ["1.png", "again/2.png", "again/deep/3.png"]


@pytest.fixture
def _indexed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An index of every folder, also of one that has just changed."""
    monkeypatch.setattr(folder_module, "CACHE", tmp_path / "cache")
    monkeypatch.setattr(folder_module, "INDEXED", 2)
    monkeypatch.setattr(folder_module, "RACE", 0)


@pytest.mark.usefixtures("_indexed")
def test_a_large_folder_is_looked_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "images"
    write(root, "a/img10.png", "a/img2.png", "b/c/x.png")
    (root / "b/notes.txt").write_text("")
    first = Folder(root, 1.0, class_labels=True)

    def refuse(*_: object) -> None:
        raise AssertionError("looked again")

    with monkeypatch.context() as patch:
        patch.setattr(folder_module.Reading, "info", refuse)
        patch.setattr(folder_module, "list_images", refuse)
        again = Folder(root, 1.0, class_labels=True)
        assert [again.name(i) for i in range(3)] == [first.name(i) for i in range(3)]
        assert [again.info(i) for i in range(3)] == [ImageInfo(3, 4, 1, np.dtype("u1"))] * 3
        assert (again.note, again.classes) == (first.note, ("a", "b"))
        for change in (lambda: Folder(root, 2.0), lambda: Folder(root, 1.0, dims=3)):
            with pytest.raises(AssertionError, match="looked again"):
                change()
    write(root, "b/c/y.png")  # a new file in the deepest folder
    assert len(Folder(root, 1.0)) == 4
    (root / "a/img2.png").unlink()
    assert len(Folder(root, 1.0)) == 3
    (root / "empty").mkdir()
    assert len(Folder(root, 1.0)) == 3
    write(root, "empty/z.png")
    assert len(Folder(root, 1.0)) == 4


@pytest.mark.usefixtures("_indexed")
def test_what_the_index_does_not_tell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file written over with another size, a damaged index, a folder that has just changed."""
    root = tmp_path / "images"
    write(root, "a.png", "b.png")
    Folder(root, 1.0)
    Image.new("L", (5, 5)).save(root / "a.png")
    images = open_collection(Folder(root, 1.0), Fit(3), memory_limit=0)
    with pytest.raises(UserError, match=r"a\.png: has changed while it was in use; start again"):
        images[0]
    assert Folder(root, 1.0).info(0).size == (5, 5)
    (path,) = (tmp_path / "cache/folders").iterdir()
    path.write_bytes(path.read_bytes()[:100])
    assert len(Folder(root, 1.0)) == 2
    path.unlink()
    monkeypatch.setattr(folder_module, "RACE", 10**12)
    Folder(root, 1.0)
    assert not path.exists()
