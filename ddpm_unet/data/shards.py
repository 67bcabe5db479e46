"""Images in tar files, such as webdataset's shards, read in any order by their places."""

from __future__ import annotations

import os
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
from typing_extensions import override

from ddpm_unet.data.folder import Folder, natural
from ddpm_unet.data.images import EXTENSIONS, ImageInfo, faults_named, image_info, read_image
from ddpm_unet.errors import UserError

NO_CLASS = -1


def shard_paths(source: str) -> list[str]:
    """The tar files of a source: itself, or those of a folder that holds nothing but them."""
    if source.endswith(".tar"):
        return [source]
    root = Path(source)
    names = sorted(os.listdir(root), key=natural) if root.is_dir() else []
    tars = [str(root / name) for name in names if name.endswith(".tar")]
    images = any(os.path.splitext(name)[1].lower() in EXTENSIONS for name in names)
    return [] if images else tars


class Shards(Folder):
    """The images of tar files, one after the other, as they lie there.

    A sample is what shares a name up to the first dot of its file: an image, and perhaps its class,
    a number in a file of the ending `.cls`; others are passed over and counted. Where each image
    lies is kept in an index, as of a `Folder`.
    """

    def __init__(self, root: str, max_pixels: float, class_labels: bool = False) -> None:
        self.paths = shard_paths(root)
        super().__init__(root, max_pixels, class_labels)

    @override
    def _find(self, changed: dict[str, int]) -> tuple[list[str], Counter[str]]:
        found, places = list[str](), list[list[int]]()
        others: Counter[str] = Counter()
        if self.root.is_dir():
            changed[str(self.root)] = os.stat(self.root).st_mtime_ns
        for number, path in enumerate(self.paths):
            changed[path] = os.stat(path).st_mtime_ns if os.path.exists(path) else 0
            classes, samples = dict[str, int](), list[str]()
            inside = os.path.relpath(path, self.root)
            with faults_named(path), tarfile.open(path, "r:") as tar:
                size = os.path.getsize(path)
                while member := tar.next():
                    tar.members.clear()  # type: ignore[attr-defined]  # which it would keep all
                    folder, name = os.path.split(member.name)
                    ending = os.path.splitext(name)[1].lower()
                    sample = os.path.join(folder, name.split(".", 1)[0])
                    if not member.isreg() or name.startswith("."):
                        continue
                    if member.offset_data + member.size > size or size % tarfile.BLOCKSIZE:
                        raise UserError(f"{path}: is truncated; copy or download it again")
                    if ending in EXTENSIONS:
                        found.append(os.path.normpath(os.path.join(inside, member.name)))
                        places.append([number, member.offset_data, member.size, NO_CLASS])
                        samples.append(sample)
                    elif ending == ".cls":
                        classes[sample] = self._class(path, member)
                    else:
                        others[ending or "without extension"] += 1
            for place, sample in zip(places[len(places) - len(samples) :], samples, strict=True):
                place[3] = classes.get(sample, NO_CLASS)
        if not found:
            known = " ".join(sorted(EXTENSIONS))
            raise UserError(f"{self.paths[0]}: holds no image ({known}); give tar files of images")
        self._places = np.array(places, np.int64)
        return found, others

    def _class(self, path: str, member: tarfile.TarInfo) -> int:
        text = self._bytes(path, member.offset_data, member.size)
        try:
            return int(text)
        except ValueError:
            raise UserError(
                f"{path}/{member.name}: is no class number; write a whole number there"
            ) from None

    @override
    def _label(self) -> None:
        labels = self._places[:, 3]
        if (labels < 0).any():
            raise UserError(
                f"{self.name(int(labels.argmin()))}: has no class beside it (.cls); add one, or "
                "set class_labels to false"
            )
        self.labels, self.classes = labels, tuple(map(str, range(int(labels.max()) + 1)))

    @override
    def file(self, index: int) -> str:
        return self.paths[self._places[index, 0]]

    def _bytes(self, path: str, start: int, size: int) -> bytes:
        with open(path, "rb") as file:
            file.seek(start)
            return file.read(size)

    @override
    def read(self, index: int) -> np.ndarray:
        _, start, size, _ = self._places[index].tolist()
        data = self._bytes(self.file(index), start, size)
        return read_image(self.name(index), self.max_pixels, data=data)

    @override
    def _info(self, index: int) -> ImageInfo:
        _, start, size, _ = self._places[index].tolist()
        data = self._bytes(self.file(index), start, size)
        return image_info(self.name(index), self.max_pixels, data)
