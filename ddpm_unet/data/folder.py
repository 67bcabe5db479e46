"""Images of a folder, searched through all its sub-folders, and of tar files (webdataset)."""

from __future__ import annotations

import os
import re
import tarfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import TypeVar

import numpy as np
from typing_extensions import override

from ddpm_unet.config import DataConfig
from ddpm_unet.data.collection import (
    Collection,
    Index,
    infos_of,
    one_at_a_time,
    written,
)
from ddpm_unet.data.images import ImageInfo, faults_named
from ddpm_unet.data.reading import (
    FLAT_EXTENSIONS,
    IMAGE_EXTENSIONS,
    VOLUME_EXTENSIONS,
    Reading,
    is_nifti,
    split_ending,
)
from ddpm_unet.errors import UserError

RACE = 2_000_000_000
"""Nanoseconds within which a folder may change again without another time of change."""
ZARR = ".zarr"
"""The ending of folders that are an image."""


class Folder(Collection):
    """The image files under a folder, in natural order (img2 before img10).

    A file is an image, or with dims 3 a volume, by its extension; hidden files and folders are
    passed over, and files with other extensions are counted in `note`.

    What is known of a large folder is kept in an index, which holds until a folder in it changes:
    starting again, or in further processes, lists and opens no file.
    """

    def __init__(
        self, root: str | Path, reading: Reading | None = None, class_labels: bool = False
    ) -> None:
        """List the files; with `class_labels` the first folder level names the class."""
        self.root, self.reading = Path(root), reading or Reading()
        self._index = Index("folders", 2, self.root.resolve(), self.reading)
        # Paths are encoded in one array: a list of many str grows in every worker, as they count
        # references.
        self._paths, self._places = np.empty(0, "S1"), np.empty((0, 0), np.int64)
        with one_at_a_time(self._index.path):
            if not self._read_index():
                self._list()
        if class_labels:
            self._label()

    def _label(self) -> None:
        paths = list(map(self.key, range(len(self))))
        if lost := [path for path in paths if os.sep not in path]:
            raise UserError(
                f"{self.root / lost[0]}: is in no class folder; move it into a sub-folder of "
                f"{self.root} named after its class, or set class_labels to false"
            )
        owners = [path.split(os.sep, 1)[0] for path in paths]
        self.classes = tuple(sorted(set(owners), key=natural))
        number = {owner: label for label, owner in enumerate(self.classes)}
        self.labels = np.array([number[owner] for owner in owners], dtype=np.int64)

    def _find(self, changed: dict[str, int]) -> tuple[list[str], Counter[str]]:
        """The images, and other files by extension; `changed` gets what was looked through."""
        return list_images(self.root, self.reading.dims, changed)

    def _list(self) -> None:
        """List the files; of a large folder read the headers too, and write the index."""
        start, folders = time.time_ns(), dict[str, int]()
        paths, others = self._find(folders)
        if others:
            largest_first = sorted(others.items(), key=lambda kind: (-kind[1], kind[0]))
            kinds = ", ".join(f"{n} {kind}" for kind, n in largest_first[:4])
            self.note = f"{others.total()} other files passed over ({kinds})"
        self._paths = np.array([os.fsencode(path) for path in paths])
        if len(paths) < Index.smallest:
            return
        del paths
        infos, which = self.infos()
        if max(folders.values()) > start - RACE:
            return
        self._index.save(
            paths=self._paths, places=self._places, note=np.array(self.note), which=which,
            kinds=written(infos), times=np.array(list(folders.values())),
            folders=np.array([os.fsencode(name) for name in folders]),
        )  # fmt: skip
        self._read_index()  # whose arrays the next one shares

    def _read_index(self) -> bool:
        """Take what the index holds, if the folders are as they were."""
        index = self._index.load()
        if index is None:
            return False
        try:
            times = [os.stat(os.fsdecode(bytes(name))).st_mtime_ns for name in index["folders"]]
        except OSError:  # one is gone
            return False
        if times != index["times"].tolist():
            return False
        self._paths, self._places, self.note = index["paths"], index["places"], str(index["note"])
        self._known = infos_of(index["kinds"]), index["which"]
        return True

    @override
    def changed(self, index: int) -> None:
        self._index.path.unlink(missing_ok=True)

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
        return self.reading.read(self.name(index))

    @override
    def encoded_keys(self, indices: np.ndarray | None = None) -> Iterator[bytes]:
        paths = self._paths if indices is None else self._paths[indices]
        return chain.from_iterable(paths[i : i + 4096].tolist() for i in range(0, len(paths), 4096))

    @override
    def _info(self, index: int) -> ImageInfo:
        return self.reading.info(self.name(index), in_pieces=True)

    @override
    def read_window(self, index: int, corner: Sequence[int], size: Sequence[int]) -> np.ndarray:
        return self.reading.window(self.name(index), corner, size)


def list_images(
    root: Path, dims: int = 2, folders: dict[str, int] | None = None
) -> tuple[list[str], Counter[str]]:
    """Relative paths of the images below root in natural order, and other files by extension.

    `folders` gets each folder that was listed and when it last changed, nanoseconds. No such
    folder, one that may not be read, or no image at all are a UserError.
    """
    if not root.is_dir():
        what = "is a file, not a folder of images" if root.exists() else "no such folder"
        raise UserError(f"{root}: {what}; give a folder of images")
    extensions = VOLUME_EXTENSIONS if dims == 3 else IMAGE_EXTENSIONS
    paths, others = list[str](), Counter[str]()
    for path in visible_files(root, folders):
        ending = split_ending(path)[1].lower()
        if ending in extensions:
            paths.append(path)
        else:
            others[ending or "without extension"] += 1
    if not paths:
        found = f"only {others.total()} other files" if others else "nothing"
        known = " ".join(sorted(e for e in extensions if not e.startswith(".ome")))
        cure = "give a folder of images"
        if VOLUME_EXTENSIONS & others.keys():
            cure = "for volumes set data.dims 3, or take a model of volumes"
        raise UserError(f"{root}: holds {found}, no image ({known}); {cure}")
    paths.sort(key=natural)
    return paths, others


D = TypeVar("D", bound=DataConfig)


def with_dims(config: D, place: str) -> D:
    """The settings of data in a place: null dims are 3 where it holds NIfTI files and no image.

    Raises:
        UserError: They are volumes, and dims is 2.
    """
    if config.dims == 3:
        return config
    volumes = is_nifti(place)
    for path in visible_files(Path(place)) if Path(place).is_dir() else ():
        if split_ending(path)[1].lower() in IMAGE_EXTENSIONS:
            volumes = False
            break
        volumes |= is_nifti(path)
    if volumes and config.dims == 2:
        raise UserError(f"data.dims 2: {place} holds volumes; set it 3, or leave it out")
    return replace(config, dims=3 if volumes else 2)


def natural(path: str) -> str:
    """Sort key by which numbers count as numbers, a folder's files stay together.

    One string, as of a million paths each object counts; what ends a part sorts before all else.
    """
    return f"{_DIGITS.sub(_number, path.casefold()).replace(os.sep, _END)}{_END}{_END}{path}"


def _number(found: re.Match[str]) -> str:
    digits = found.group()
    value = str(int(digits))
    return f"\x01{chr(len(value))}{value}{digits}{_END}"


_DIGITS, _END = re.compile(r"\d+"), "\0"


def visible_files(root: Path, folders: dict[str, int] | None = None) -> Iterator[str]:
    """Relative paths of the files below root, hidden files and folders passed over.

    An OME-Zarr, which is a folder, counts as a file. Links to folders are followed, each folder
    once. `folders` gets each folder with the time of its last change before it was listed.
    """

    def refuse(error: OSError) -> None:
        raise UserError(f"{error.filename}: may not be listed; check its permissions") from error

    seen: set[str] = set()
    folders = {} if folders is None else folders
    folders[str(root)] = os.stat(root).st_mtime_ns
    for folder, subfolders, files in os.walk(root, onerror=refuse, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:
            subfolders.clear()
            continue
        seen.add(real)
        seen_here = [name for name in subfolders if not name.startswith(".")]
        subfolders[:] = sorted(name for name in seen_here if not name.lower().endswith(ZARR))
        files += [name for name in seen_here if name.lower().endswith(ZARR)]
        below = os.path.relpath(folder, root)
        for path in (os.path.join(folder, name) for name in subfolders):
            folders[path] = os.stat(path).st_mtime_ns
        for name in files:
            if not name.startswith("."):
                yield name if below == "." else os.path.join(below, name)


NO_CLASS = -1


def shard_paths(source: str) -> list[str]:
    """The tar files of a source: itself, or those of a folder that holds nothing but them."""
    if source.endswith(".tar"):
        return [source]
    root = Path(source)
    names = sorted(os.listdir(root), key=natural) if root.is_dir() else []
    tars = [str(root / name) for name in names if name.endswith(".tar")]
    images = any(os.path.splitext(name)[1].lower() in FLAT_EXTENSIONS for name in names)
    return [] if images else tars


class Shards(Folder):
    """The images of tar files, one after the other, as they lie there.

    A sample is what shares a name up to the first dot of its file: an image, and perhaps its class,
    a number in a file of the ending `.cls`; others are passed over and counted. Where each image
    lies is kept in an index, as of a `Folder`.
    """

    def __init__(
        self, root: str, reading: Reading | None = None, class_labels: bool = False
    ) -> None:
        self.paths = shard_paths(root)
        super().__init__(root, reading, class_labels)

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
                    if ending in FLAT_EXTENSIONS:
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
            known = " ".join(sorted(FLAT_EXTENSIONS))
            raise UserError(f"{self.paths[0]}: holds no image ({known}); give tar files of images")
        self._places = np.array(places, np.int64)
        return found, others

    def _class(self, path: str, member: tarfile.TarInfo) -> int:
        text = _part(path, member.offset_data, member.size)
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

    @override
    def read(self, index: int) -> np.ndarray:
        return self.reading.read(self.name(index), self._data(index))

    @override
    def _info(self, index: int) -> ImageInfo:
        return self.reading.info(self.name(index), self._data(index))

    def _data(self, index: int) -> bytes:
        _, start, size, _ = self._places[index].tolist()
        return _part(self.file(index), start, size)


def _part(path: str, start: int, size: int) -> bytes:
    with open(path, "rb") as file:
        file.seek(start)
        return file.read(size)
