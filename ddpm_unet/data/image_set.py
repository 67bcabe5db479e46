"""Fitted pictures to cut windows from: kept in memory, or read from disk each time."""

from __future__ import annotations

import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm
from typing_extensions import override

from ddpm_unet.config import ImageDataConfig
from ddpm_unet.data.collection import Collection
from ddpm_unet.data.images import ImageInfo
from ddpm_unet.data.pixels import box, fit_image, fitted_info
from ddpm_unet.data.sequences import Sequences
from ddpm_unet.errors import UserError

T = TypeVar("T")


@dataclass(frozen=True)
class Layout:
    """Shapes of all fitted pictures; channels and type are the same for all.

    Attributes:
        sizes: (Depth,) height and width of each, `int64 [N, 2]` or `[N, 3]`.
        channels: Channels of every picture.
        dtype: uint8, uint16, float32 for values in [-1, 1], or int16 for classes.
    """

    sizes: np.ndarray
    channels: int
    dtype: np.dtype

    @property
    def nbytes(self) -> int:
        """Size of all pictures decoded."""
        return int(self.sizes.prod(1).sum()) * self.channels * self.dtype.itemsize


class ImageSet(Dataset[Tensor], ABC):
    """A map-style data set of fitted pictures `[C, H, W]`, or volumes `[C, D, H, W]`.

    Attributes:
        layout: Their shapes.
        labels: Class of each picture, `int64 [N]`, or None.
        classes: Name of each class.
        note: What the user should know besides.
        condition: The condition picture of each, of the same sizes, or None.
        context: The sequence of vectors of each, or None.
    """

    condition: ImageSet | None = None
    context: Sequences | None = None

    def __init__(self, collection: Collection, layout: Layout) -> None:
        """Describe the fitted pictures of a collection."""
        self.layout = layout
        self.labels, self.classes = collection.labels, collection.classes
        self.note = collection.note

    def __len__(self) -> int:
        return len(self.layout.sizes)

    @abstractmethod
    def name(self, index: int) -> str:
        """What messages call a picture."""

    @abstractmethod
    def __getitem__(self, index: int) -> Tensor:
        """One picture, `[C, (D,) H, W]`."""

    @abstractmethod
    def cut(self, index: np.ndarray, corner: np.ndarray, size: int) -> np.ndarray:
        """Windows `[B, C, (size,) size, size]` of some pictures.

        Args:
            index: The pictures, `int64 [B]`.
            corner: (Front,) top and left of each window, `int64 [B, 2]` or `[B, 3]`.
            size: Of every side.
        """

    @abstractmethod
    def fingerprint(self) -> str:
        """A digest of the pictures: of their pixels, or if they are read as needed of their names
        and of the sizes and times of their files.
        """

    def describe(self) -> str:
        """One line for the log."""
        layout = self.layout
        kept = "in memory" if isinstance(self, PackedImages) else "read as needed"
        sizes = [" x ".join(map(str, f(layout.sizes, 0)[::-1])) for f in (np.min, np.max)]
        what = "picture" if layout.sizes.shape[1] == 2 else "volume"
        parts = [
            f"{len(self):,} {what}" + "s" * (len(self) > 1),
            " to ".join(dict.fromkeys(sizes)),
            f"{layout.channels} channel" + "s" * (layout.channels > 1),
            layout.dtype.name,
            *([f"{len(self.classes)} classes"] if self.labels is not None else []),
            *(["a condition picture each"] if self.condition else []),
            *([f"up to {self.context.longest} vectors each"] if self.context else []),
            f"{layout.nbytes / 1e6:,.1f} MB {kept}",
            *([self.note] if self.note else []),
        ]
        return ", ".join(parts)


class PackedImages(ImageSet):
    """All pictures, decoded once into one flat tensor.

    Loader processes share it: forked ones as pages of the parent, spawned ones because torch
    sends tensors through shared memory.
    """

    def __init__(self, collection: Collection, config: ImageDataConfig, layout: Layout) -> None:
        """Decode everything."""
        super().__init__(collection, layout)
        sizes = layout.channels * layout.sizes.prod(1)
        self.starts = np.cumsum(sizes) - sizes
        self.flat = torch.empty(int(sizes.sum()), dtype=_STORAGE[layout.dtype.name])
        values = self.flat.numpy().view(layout.dtype)

        def store(i: int) -> str:
            planes = _fitted(collection, config, layout, i)
            values[self.starts[i] : self.starts[i] + sizes[i]] = planes.ravel()
            return collection.name(i)

        # Threads pay where decoding, which frees the interpreter, outweighs what does not.
        threads = min(16, os.cpu_count() or 1) if sizes.mean() > 1e6 else 1
        with ThreadPoolExecutor(threads) as pool:
            names = (pool.map if threads > 1 else map)(store, range(len(collection)))
            self.names = list(_with_progress(names, len(collection), "decoding pictures"))

    @override
    def name(self, index: int) -> str:
        return self.names[index]

    @override
    def __getitem__(self, index: int) -> Tensor:
        layout = self.layout
        shape = (layout.channels, *layout.sizes[index].tolist())
        planes = self.flat[self.starts[index] :][: int(np.prod(shape))].clone()
        return torch.from_numpy(planes.numpy().view(layout.dtype).reshape(shape))

    @override
    def fingerprint(self) -> str:
        layout = self.layout
        said = f"{layout.dtype} {layout.channels} {layout.sizes.tolist()}"
        digest = hashlib.blake2b(said.encode(), digest_size=16)
        digest.update(self.flat.numpy().data)
        return digest.hexdigest()

    @override
    def cut(self, index: np.ndarray, corner: np.ndarray, size: int) -> np.ndarray:
        sizes = self.layout.sizes[index]
        axes = sizes.shape[1]
        begin, run = self.starts[index], self.layout.channels * size**axes
        if (sizes != size).any():  # no whole pictures, which are in one piece
            run = size
            # Values from a channel to the next, a slice, a row and a pixel.
            steps = [sizes[:, axis:].prod(1) for axis in range(axes + 1)]
            counts = (self.layout.channels, *[size] * (axes - 1))
            begin = begin + (corner * np.stack(steps[1:], axis=1)).sum(1)
            # Each row of each window is one entry of a single index_select.
            for step, count in zip(steps, counts, strict=False):
                begin = begin[..., None] + np.multiply.outer(step, np.arange(count)).reshape(
                    len(index), *[1] * (begin.ndim - 1), count
                )  # in the end [B, C, (size,) size]
        runs = self.flat.unfold(0, run, 1)  # a view: run i is the values i to i + run
        cut = runs.index_select(0, torch.from_numpy(begin.ravel())).numpy()
        shape = (len(index), self.layout.channels, *[size] * axes)
        return cut.view(self.layout.dtype).reshape(shape)


class StreamedImages(ImageSet):
    """Pictures decoded again whenever a window of them is needed."""

    def __init__(self, collection: Collection, config: ImageDataConfig, layout: Layout) -> None:
        """Decode nothing yet."""
        super().__init__(collection, layout)
        self.collection, self.config = collection, config

    @override
    def name(self, index: int) -> str:
        return self.collection.name(index)

    @override
    def __getitem__(self, index: int) -> Tensor:
        return torch.from_numpy(_fitted(self.collection, self.config, self.layout, index))

    @override
    def fingerprint(self) -> str:
        digest = hashlib.blake2b(digest_size=16)
        for index in range(len(self)):
            name = self.name(index)
            with suppress(OSError):  # not all sets have files
                found = os.stat(name)
                name += f" {found.st_size} {found.st_mtime_ns}"
            digest.update(f"{name}\n".encode("utf-8", "surrogateescape"))
        return digest.hexdigest()

    @override
    def cut(self, index: np.ndarray, corner: np.ndarray, size: int) -> np.ndarray:
        shape = (len(index), self.layout.channels, *[size] * corner.shape[1])
        windows = np.empty(shape, dtype=self.layout.dtype)
        for window, i, starts in zip(windows, index.tolist(), corner.tolist(), strict=True):
            planes = _fitted(self.collection, self.config, self.layout, i)
            window[:] = planes[box(starts, size)]
        return windows


def open_collection(collection: Collection, config: ImageDataConfig) -> ImageSet:
    """Look at all headers, then keep the pictures in memory if they fit, else read as needed.

    Raises:
        UserError: An unreadable picture, one smaller than a window, or one whose channels or
            depth differ from the first one's.
    """
    layout = survey(collection, config)
    packed = layout.nbytes <= config.memory_limit * 1e6
    return (PackedImages if packed else StreamedImages)(collection, config, layout)


def survey(collection: Collection, config: ImageDataConfig) -> Layout:
    """Shapes of the fitted pictures from their headers; errors as `open_collection`."""
    sizes: list[tuple[int, ...]] = []
    first: ImageInfo | None = None
    seen: dict[ImageInfo, tuple[int, ...]] = {}  # most pictures are like others
    infos = _with_progress(collection.infos(), len(collection), "looking at pictures")
    for index, info in enumerate(infos):
        if info not in seen:
            fitted = fitted_info(info, config, collection.name(index))
            first = first or fitted
            _check_alike(fitted, first, collection, index)
            seen[info] = fitted.size
        sizes.append(seen[info])
    assert first is not None, "no collection is empty"
    return Layout(np.array(sizes, dtype=np.int64), first.channels, first.dtype)


def _check_alike(info: ImageInfo, first: ImageInfo, collection: Collection, index: int) -> None:
    name, other = collection.name(index), collection.name(0)
    if info.channels != first.channels:
        raise UserError(
            f"{name}: channels are {info.channels}, those of {other} {first.channels}; "
            "convert it, or set data.channels to 1, 3 or 4"
        )
    if info.dtype != first.dtype:
        raise UserError(
            f"{name}: depth is {info.dtype}, that of {other} {first.dtype}; "
            "convert the files to one depth or keep them in separate folders"
        )


def _fitted(
    collection: Collection, config: ImageDataConfig, layout: Layout, index: int
) -> np.ndarray:
    name = collection.name(index)
    planes = fit_image(collection.read(index), config, name)
    expected = (layout.channels, *layout.sizes[index])
    if planes.shape != expected or planes.dtype != layout.dtype:
        raise UserError(f"{name}: has changed while it was in use; start again")
    return planes


_STORAGE = {
    "uint8": torch.uint8,
    "uint16": torch.int16,
    "int16": torch.int16,
    "float32": torch.float32,
}


def _with_progress(items: Iterable[T], total: int, title: str) -> Iterable[T]:
    return tqdm(items, title, total, unit="picture", delay=2, leave=False, disable=None)
