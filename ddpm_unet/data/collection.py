"""Numbered images as their source has them, before anything is done to them."""

from __future__ import annotations

import getpass
import hashlib
import json
import os
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from copy import copy
from dataclasses import asdict
from functools import lru_cache, partialmethod
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar
from zipfile import BadZipFile

import numpy as np
from filelock import FileLock
from tqdm import tqdm
from typing_extensions import override

from ddpm_unet.data.images import ImageInfo, image_array
from ddpm_unet.files import finished

T = TypeVar("T")
CACHE = Path.home() / ".cache" / "ddpm_unet"
Known = tuple[list[ImageInfo], np.ndarray]
"""Shapes and types that differ, and which of them each image has, `int32 [N]`."""


class Collection(ABC):
    """Images that can be read one by one, in any order and by many processes.

    Perhaps with the class of each, `labels` `int64 [N]`, the classes' names, and a `note` to the
    user.
    """

    labels: np.ndarray | None = None
    classes: tuple[str, ...] = ()
    note: str = ""
    _known: Known | None = None

    @abstractmethod
    def __len__(self) -> int:
        """Number of images."""

    @abstractmethod
    def name(self, index: int) -> str:
        """What an error calls the image: its path, where it has one."""

    def key(self, index: int) -> str:
        """What tells the image from the others wherever the collection lies."""
        return str(index)

    def file(self, index: int) -> str:
        """The file that holds the image, if any does."""
        return self.name(index)

    @abstractmethod
    def read(self, index: int) -> np.ndarray:
        """Decode: `[H, W, C]`, or `[D, H, W, C]` of a volume; uint8, uint16 or float32."""

    def info(self, index: int) -> ImageInfo:
        """Shape and type, without decoding where the format allows it."""
        if self._known is None:
            return self._info(index)
        kinds, which = self._known
        return kinds[which[index]]

    def infos(self, indices: np.ndarray | None = None) -> tuple[list[ImageInfo], np.ndarray]:
        """Shapes and types that differ, and which of them each image, or each of these, has."""
        if self._known is None:
            self._known = self._look()
        kinds, which = self._known
        return kinds, which if indices is None else which[indices]

    def _info(self, index: int) -> ImageInfo:
        image = self.read(index)
        return ImageInfo(image.shape[:-1], image.shape[-1], image.dtype)

    def _look(self) -> Known:
        """At the headers of all images."""
        return kinds_of(map(self._info, range(len(self))), len(self))

    def encoded_keys(self, indices: np.ndarray | None = None) -> Iterator[bytes]:
        """The keys of all images, or of these in increasing order, encoded."""
        chosen = range(len(self)) if indices is None else indices.tolist()
        return (self.key(index).encode("utf-8", "surrogateescape") for index in chosen)

    def without_images(self) -> Collection:
        """What gives the same names and keys, and holds no image in memory."""
        return self

    def read_window(self, index: int, corner: Sequence[int], size: Sequence[int]) -> np.ndarray:
        """A part of an image, `[H, W, C]`; decodes no more than that if the image is in pieces."""
        return self.read(index)[tuple(slice(c, c + n) for c, n in zip(corner, size, strict=True))]

    def changed(self, index: int) -> None:  # noqa: B027  (most keep nothing)
        """Forget what is kept for later runs: an image is not what it was."""


class ArrayCollection(Collection):
    """Images `[H, W, C]` in memory; `names` is a name each, or one that gets numbered."""

    def __init__(
        self,
        images: Any,
        names: Sequence[str] | str,
        labels: np.ndarray | None = None,
        classes: tuple[str, ...] = (),
    ) -> None:
        self.images, self.names, self.labels, self.classes = images, names, labels, classes

    def __len__(self) -> int:
        return len(self.images)

    @override
    def name(self, index: int) -> str:
        return f"{self.names}[{index}]" if isinstance(self.names, str) else self.names[index]

    @override
    def read(self, index: int) -> np.ndarray:
        return self.images[index]

    @override
    def without_images(self) -> Collection:
        return ArrayCollection(range(len(self)), self.names)


class ItemCollection(ArrayCollection):
    """The images in the items of a map-style data set; `column` is theirs where items are dicts."""

    def __init__(self, items: Any, title: str, column: str | None = None) -> None:
        super().__init__(items, title)
        self.title, self.column = title, column

    @override
    def read(self, index: int) -> np.ndarray:
        item = self.images[index]
        if self.column is not None:
            item = item[self.column]
        return image_array(item[0] if isinstance(item, tuple) else item, self.name(index))


class Selection(Collection):
    """Images of other collections, which agree in their classes: all or some of each in turn."""

    def __init__(self, *parts: tuple[Collection, np.ndarray | None]) -> None:
        """Take of each collection the images with these indices, in this order; None for all."""
        chosen = [np.arange(len(c)) if indices is None else indices for c, indices in parts]
        self.parts = [collection for collection, _ in parts]
        self.owners = np.repeat(np.arange(len(parts), dtype=np.int8), list(map(len, chosen)))
        self.indices = np.concatenate(chosen, dtype=np.int32)
        first = self.parts[0]
        if first.labels is not None:
            of_each = zip((c.labels for c in self.parts), chosen, strict=True)
            self.labels = np.concatenate([np.asarray(labels)[i] for labels, i in of_each])
        self.classes, self.note = first.classes, first.note

    def __len__(self) -> int:
        return len(self.indices)

    def _chosen(self, indices: np.ndarray | None) -> Iterator[tuple[Collection, np.ndarray]]:
        """Each collection, and which of its images are among these."""
        chosen = slice(None) if indices is None else indices
        owners, own = self.owners[chosen], self.indices[chosen]
        return ((part, own[owners == number]) for number, part in enumerate(self.parts))

    @override
    def encoded_keys(self, indices: np.ndarray | None = None) -> Iterator[bytes]:
        return chain.from_iterable(part.encoded_keys(own) for part, own in self._chosen(indices))

    @override
    def _look(self) -> Known:
        kinds: dict[ImageInfo, int] = {}
        places = []
        for part, own in self._chosen(None):
            found, which = part.infos(own)
            numbers = [kinds.setdefault(info, len(kinds)) for info in found]
            places.append(np.array(numbers, np.int32)[which])
        return list(kinds), np.concatenate(places)

    @override
    def without_images(self) -> Collection:
        bare = copy(self)
        bare.parts = [part.without_images() for part in self.parts]
        return bare

    def _ask(self, what: str, index: int, *more: Any) -> Any:
        return getattr(self.parts[self.owners[index]], what)(int(self.indices[index]), *more)

    name: Any = partialmethod(_ask, "name")
    key: Any = partialmethod(_ask, "key")
    file: Any = partialmethod(_ask, "file")
    read: Any = partialmethod(_ask, "read")
    _info: Any = partialmethod(_ask, "info")
    read_window: Any = partialmethod(_ask, "read_window")
    changed: Any = partialmethod(_ask, "changed")


def written(infos: Sequence[ImageInfo]) -> np.ndarray:
    """Shapes and types for an `Index`, as text that `infos_of` reads."""
    return np.array(json.dumps([asdict(info) for info in infos], default=str))


def infos_of(text: np.ndarray) -> list[ImageInfo]:
    """What was `written`."""
    return [ImageInfo(**(each | {
        "size": tuple(each["size"]), "dtype": np.dtype(each["dtype"]),
        "spacing": each["spacing"] and tuple(each["spacing"]),
    })) for each in json.loads(str(text))]  # fmt: skip


class Index:
    """What is known of a large set, kept in the cache for later runs: by what is `said` of it."""

    smallest = 1000
    """Sets of so many images are looked through once."""

    def __init__(self, folder: str, *said: object) -> None:
        self.path = CACHE / folder / f"{digest_of(*said)}.npz"

    def load(self) -> dict[str, np.ndarray] | None:
        """Its arrays, the same ones for all who ask; None where there is none."""
        with suppress(OSError, ValueError, EOFError, BadZipFile):
            found = os.stat(self.path)
            return _load(self.path, found.st_mtime_ns, found.st_ino)
        return None

    def save(self, **arrays: Any) -> None:
        """Write it; a cache that cannot be written is none."""
        with suppress(OSError), finished(self.path, shared=True) as part, open(part, "wb") as file:
            np.savez(file, **arrays)


@lru_cache(maxsize=4)
def _load(path: Path, *version: int) -> dict[str, np.ndarray]:
    with np.load(path, allow_pickle=False) as index:
        return dict(index)


def digest_of(*said: object) -> str:
    """A digest of words; of paths too, in whatever encoding."""
    text = " ".join(map(str, said)).encode("utf-8", "surrogateescape")
    return hashlib.blake2b(text, digest_size=16).hexdigest()


def kinds_of(infos: Iterable[ImageInfo], count: int) -> Known:
    """The shapes and types of so many images."""
    kinds: dict[ImageInfo, int] = {}
    found = with_progress(infos, count, "looking at images")
    which = [kinds.setdefault(info, len(kinds)) for info in found]
    return list(kinds), np.array(which, np.int32)


def with_progress(items: Iterable[T], total: int, title: str) -> Iterable[T]:
    """The items, with a bar on a terminal where they take more than two seconds."""
    return tqdm(items, title, total, unit="image", delay=2, leave=False, disable=None)


@contextmanager
def one_at_a_time(place: Path) -> Iterator[None]:
    """Within, no other process of this user and host makes `place`; those that wait find it made.

    The lock lies among the temporary files, so `place` need not be writable, nor exist.
    """
    key = digest_of(getpass.getuser(), place.resolve())
    with FileLock(Path(tempfile.gettempdir(), f"ddpm_unet-{key}.lock")):
        yield
