"""A collection: numbered pictures as their source has them, with names and perhaps classes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from itertools import chain

import numpy as np
from typing_extensions import override

from ddpm_unet.data.images import ImageInfo


class Collection(ABC):
    """Pictures that can be read one by one, in any order and by many processes.

    Attributes:
        labels: Class of each picture, `int64 [N]`, or None.
        classes: Name of each class.
        note: What the user should know besides, or nothing.
    """

    labels: np.ndarray | None = None
    classes: tuple[str, ...] = ()
    note: str = ""

    @abstractmethod
    def __len__(self) -> int:
        """Number of pictures."""

    @abstractmethod
    def name(self, index: int) -> str:
        """What an error calls the picture: its path, where it has one."""

    def key(self, index: int) -> str:
        """What tells the picture from the others wherever the collection lies."""
        return str(index)

    @abstractmethod
    def read(self, index: int) -> np.ndarray:
        """Decode: `[H, W, C]`, or `[D, H, W, C]` of a volume; uint8, uint16 or float32."""

    def info(self, index: int) -> ImageInfo:
        """Shape and type, without decoding where the format allows it."""
        picture = self.read(index)
        *depth, height, width, channels = picture.shape
        return ImageInfo(height, width, channels, picture.dtype, *depth)

    def infos(self) -> Iterator[ImageInfo]:
        """`info` of every picture in order."""
        return map(self.info, range(len(self)))


class ArrayCollection(Collection):
    """Pictures that are in memory already."""

    def __init__(
        self,
        pictures: Sequence[np.ndarray] | np.ndarray,
        names: Sequence[str] | str,
        labels: np.ndarray | None = None,
        classes: tuple[str, ...] = (),
    ) -> None:
        """Collect `[H, W, C]` pictures; `names` is a name each, or one that gets numbered."""
        self.pictures, self.names = pictures, names
        self.labels, self.classes = labels, classes

    def __len__(self) -> int:
        return len(self.pictures)

    @override
    def name(self, index: int) -> str:
        return f"{self.names}[{index}]" if isinstance(self.names, str) else self.names[index]

    @override
    def read(self, index: int) -> np.ndarray:
        return self.pictures[index]


class _View(Collection):
    """Pictures of other collections."""

    @abstractmethod
    def find(self, index: int) -> tuple[Collection, int]:
        """The collection that has the picture, and its number there."""

    @override
    def name(self, index: int) -> str:
        owner, number = self.find(index)
        return owner.name(number)

    @override
    def key(self, index: int) -> str:
        owner, number = self.find(index)
        return owner.key(number)

    @override
    def read(self, index: int) -> np.ndarray:
        owner, number = self.find(index)
        return owner.read(number)

    @override
    def info(self, index: int) -> ImageInfo:
        owner, number = self.find(index)
        return owner.info(number)


class Part(_View):
    """Some pictures of a collection."""

    def __init__(self, whole: Collection, indices: np.ndarray) -> None:
        """Keep the pictures with these indices, in this order."""
        self.whole, self.indices = whole, indices
        self.labels = None if whole.labels is None else whole.labels[indices]
        self.classes, self.note = whole.classes, whole.note

    def __len__(self) -> int:
        return len(self.indices)

    @override
    def infos(self) -> Iterator[ImageInfo]:
        return map(self.whole.info, self.indices.tolist())

    @override
    def find(self, index: int) -> tuple[Collection, int]:
        return self.whole, int(self.indices[index])


class Joined(_View):
    """Collections of one source, one after the other."""

    def __init__(self, parts: Sequence[Collection]) -> None:
        """Join parts that agree in their classes."""
        self.parts = parts
        self.starts = np.cumsum([0, *map(len, parts)])
        labels = [part.labels for part in parts if part.labels is not None]
        self.labels = np.concatenate(labels) if labels else None
        self.classes, self.note = parts[0].classes, parts[0].note

    def __len__(self) -> int:
        return int(self.starts[-1])

    @override
    def infos(self) -> Iterator[ImageInfo]:
        return chain.from_iterable(part.infos() for part in self.parts)

    @override
    def find(self, index: int) -> tuple[Collection, int]:
        part = int(np.searchsorted(self.starts, index, side="right")) - 1
        return self.parts[part], index - int(self.starts[part])
