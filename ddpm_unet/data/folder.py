"""A folder of pictures, searched through all its sub-folders."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import numpy as np
from typing_extensions import override

from ddpm_unet.data.collection import Collection
from ddpm_unet.data.images import EXTENSIONS, ImageInfo, image_info, read_image
from ddpm_unet.data.volumes import VOLUME_EXTENSIONS, read_volume, volume_info
from ddpm_unet.errors import UserError


class Folder(Collection):
    """The picture files under a folder, in natural order (img2 before img10).

    A file is a picture, or with dims 3 a volume, by its extension; hidden files and folders are
    passed over, and files with other extensions are counted in `note`.
    """

    def __init__(
        self, root: str | Path, max_pixels: float, class_labels: bool = False, dims: int = 2
    ) -> None:
        """List the files; none is opened.

        Args:
            root: The folder.
            max_pixels: Largest picture that will be read, million pixels.
            class_labels: The first folder level below root names the class.
            dims: 2 for pictures, 3 for volumes.

        Raises:
            UserError: No such folder, no picture in it, or a picture without a class.
        """
        self.root, self.max_pixels, self.dims = Path(root), max_pixels, dims
        paths, others = list_images(self.root, dims)
        if others:
            largest_first = sorted(others.items(), key=lambda kind: (-kind[1], kind[0]))
            kinds = ", ".join(f"{n} {kind}" for kind, n in largest_first[:4])
            self.note = f"{others.total()} other files passed over ({kinds})"
        # Encoded in one array: a list of many str grows in every worker as they count references.
        self._paths = np.array([os.fsencode(path) for path in paths])
        if class_labels:
            for path in paths:
                if os.sep not in path:
                    raise UserError(
                        f"{self.root / path}: is in no class folder; move it into a sub-folder of "
                        f"{self.root} named after its class, or set data.class_labels false"
                    )
            owners = [path.split(os.sep, 1)[0] for path in paths]
            self.classes = tuple(sorted(set(owners), key=natural))
            number = {owner: label for label, owner in enumerate(self.classes)}
            self.labels = np.array([number[owner] for owner in owners], dtype=np.int64)

    def __len__(self) -> int:
        return len(self._paths)

    @override
    def key(self, index: int) -> str:
        return os.fsdecode(bytes(self._paths[index]))

    @override
    def name(self, index: int) -> str:
        return os.path.join(self.root, self.key(index))

    @override
    def read(self, index: int) -> np.ndarray:
        read = read_volume if self.dims == 3 else read_image
        return read(self.name(index), self.max_pixels)

    @override
    def info(self, index: int) -> ImageInfo:
        look = volume_info if self.dims == 3 else image_info
        return look(self.name(index), self.max_pixels)


def list_images(root: Path, dims: int = 2) -> tuple[list[str], Counter[str]]:
    """Relative paths of the pictures below root in natural order, and other files by extension.

    Args:
        root: The folder.
        dims: 2 for pictures, 3 for volumes.

    Raises:
        UserError: No such folder, a folder that may not be read, or no picture at all.
    """
    if not root.is_dir():
        what = "is a file, not a folder of images" if root.exists() else "no such folder"
        raise UserError(f"{root}: {what}; give a folder of images")
    extensions = VOLUME_EXTENSIONS if dims == 3 else EXTENSIONS
    paths: list[str] = []
    others: Counter[str] = Counter()
    for path in visible_files(root):
        extension = split_ending(path)[1].lower()
        if extension in extensions:
            paths.append(path)
        else:
            others[extension or "without extension"] += 1
    if not paths:
        found = f"only {others.total()} other files" if others else "nothing"
        known = " ".join(sorted(extensions))
        cure = (
            "set data.dims 3 for volumes"
            if VOLUME_EXTENSIONS & others.keys()
            else "give a folder of images"
        )
        raise UserError(f"{root}: holds {found}, no image ({known}); {cure}")
    return sorted(paths, key=natural), others


def split_ending(path: str | Path) -> tuple[str, str]:
    """A file's path without its ending, and that ending, of which ".nii.gz" is one."""
    stem, ending = os.path.splitext(path)
    if ending.lower() == ".gz":
        stem, inner = os.path.splitext(stem)
        ending = inner + ending
    return stem, ending


def natural(path: str) -> tuple[object, ...]:
    """Sort key by which numbers count as numbers, a folder's files stay together."""
    folder, _, name = path.casefold().rpartition(os.sep)
    return (*_folder_key(folder), _name_key(name), path)


@lru_cache(maxsize=1024)
def _folder_key(folder: str) -> tuple[object, ...]:
    return tuple(map(_name_key, folder.split(os.sep))) if folder else ()


def _name_key(name: str) -> tuple[object, ...]:
    parts: list[object] = _DIGITS.split(name)
    parts[1::2] = [(int(str(digits)), digits) for digits in parts[1::2]]
    return tuple(parts)


_DIGITS = re.compile(r"(\d+)")


def visible_files(root: Path) -> Iterator[str]:
    """Relative paths of the files below root, hidden files and folders passed over.

    Links to folders are followed; a folder that several lead to, or one leads back to, is listed
    once.
    """

    def refuse(error: OSError) -> None:
        raise UserError(f"{error.filename}: may not be listed; check its permissions") from error

    seen: set[str] = set()
    for folder, subfolders, files in os.walk(root, onerror=refuse, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:
            subfolders.clear()
            continue
        seen.add(real)
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        below = os.path.relpath(folder, root)
        for name in files:
            if not name.startswith("."):
                yield name if below == "." else os.path.join(below, name)
