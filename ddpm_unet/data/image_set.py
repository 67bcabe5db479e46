"""Fitted images to cut windows from: kept in memory, or read from disk each time."""

from __future__ import annotations

import errno
import hashlib
import math
import os
import shutil
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from typing_extensions import override

from ddpm_unet.data.collection import Collection, Index, one_at_a_time, with_progress
from ddpm_unet.data.pixels import Fit, resampling, shown_size, to_unit
from ddpm_unet.data.stream import WindowSource
from ddpm_unet.data.windows import Batch
from ddpm_unet.errors import UserError
from ddpm_unet.files import finished

if TYPE_CHECKING:
    from ddpm_unet.data.conditioning import Sequences


@dataclass(frozen=True)
class Layout:
    """Shapes of all fitted images; channels and type are the same for all."""

    sizes: np.ndarray
    """(Depth,) height and width of each, `int64 [N, 2]` or `[N, 3]`."""
    channels: int
    dtype: np.dtype
    """uint8, uint16, float32 for values in [-1, 1], or int16 for classes."""
    in_pieces: np.ndarray
    """Whether windows of each can be read alone, `bool [N]`."""
    spacings: np.ndarray
    """Millimetres along (depth,) height and width, of those images whose files say it."""

    @property
    def nbytes(self) -> int:
        """Size of all images decoded."""
        return int(self.sizes.prod(1).sum()) * self.channels * self.dtype.itemsize


class ImageSet(Dataset[Tensor], WindowSource):
    """A map-style data set of fitted images `[C, H, W]`, or volumes `[C, D, H, W]`.

    An image is decoded again whenever a window of it is needed. `digest` is of names and sizes:
    another one if images were added or removed. Labels, classes and note are the collection's;
    `condition` are images of the same sizes, `context` sequences, one each.
    """

    condition: ImageSet | None = None
    context: Sequences | None = None
    sizes: np.ndarray
    laborious = True

    def __init__(self, collection: Collection, fit: Fit, layout: Layout) -> None:
        self.fit, self.layout, self.collection = fit, layout, collection
        self.window, self.sizes, self.resized = fit.size, layout.sizes, fit.mode == "resize"
        digest = hashlib.blake2b(digest_size=16)
        for start in range(0, len(collection), 4096):  # of the list's text, never of a million
            text = str(layout.sizes[start : start + 4096].tolist())[1:-1]
            digest.update(f"{', ' if start else '['}{text}".encode())
        digest.update(b"]")
        for key in collection.encoded_keys():
            digest.update(key + b"\n")
        self.digest = digest.hexdigest()
        self.labels, self.classes = collection.labels, collection.classes
        self.note = collection.note

    def __len__(self) -> int:
        return len(self.layout.sizes)

    @override
    def name(self, index: int) -> str:
        return self.collection.name(index)

    def __getitem__(self, index: int) -> Tensor:
        """One image, `[C, (D,) H, W]`."""
        return torch.from_numpy(np.array(self.planes(index)[...]))

    def planes(self, index: int) -> Any:
        """One image, `[C, (D,) H, W]`, or what gives windows of it in the place of an array."""
        if self.layout.in_pieces[index]:
            return InPieces(self, index)
        return self._checked(index, self.collection.read(index), self.sizes[index])

    @override
    def item(self, index: int) -> dict[str, Any]:
        beside = {} if self.condition is None else {"condition": self.condition.planes(index)}
        return {"image": self.planes(index), **beside}

    @override
    def finished(self, key: str, windows: np.ndarray) -> np.ndarray:
        value_range = self.fit.value_range if key == "image" else None
        if windows.dtype == np.uint16 or (windows.dtype == np.uint8 and value_range):
            return to_unit(windows, value_range)
        return windows

    @override
    def whole(self, numbers: np.ndarray, items: Sequence[dict[str, Any]] = ()) -> Batch:
        batch = {} if self.labels is None else {"label": torch.from_numpy(self.labels[numbers])}
        if self.context is not None:
            batch["context"], batch["context_mask"] = self.context.take(numbers)
        return batch

    def _checked(
        self,
        index: int,
        image: np.ndarray,
        size: Sequence[int],
        weights: Sequence[np.ndarray] = (),
    ) -> np.ndarray:
        name = self.name(index)
        planes = self.fit.apply(image, name, weights)
        expected = (self.layout.channels, *size)
        if planes.shape != expected or planes.dtype != self.layout.dtype:
            self.collection.changed(index)
            raise UserError(f"{name}: has changed while it was in use; start again")
        return planes

    def fingerprint(self) -> str:
        """A digest of the images: of their pixels, or if they are read as needed of their names
        and of the sizes and times of their files.
        """
        digest, stat = hashlib.blake2b(digest_size=16), lru_cache(maxsize=16)(os.stat)
        for index in range(len(self)):
            name = self.name(index)
            with suppress(OSError):  # not all sets have files
                found = stat(self.collection.file(index))
                name += f" {found.st_size} {found.st_mtime_ns}"
            digest.update(f"{name}\n".encode("utf-8", "surrogateescape"))
        return digest.hexdigest()

    def _place(self) -> str:
        """Where the decoded images are, for the log."""
        wanted = math.ceil(self.layout.nbytes / 1e6)
        files = os.path.isfile(self.collection.file(0))
        cure = f" (to keep them decoded on disk, set disk_limit to {wanted})" * files
        return f"read as needed{cure}"

    @override
    def describe(self) -> str:
        layout = self.layout
        sizes = [shown_size(f(layout.sizes, 0)) for f in (np.min, np.max)]
        what = "image" if layout.sizes.shape[1] == 2 else "volume"
        parts = [
            f"{len(self):,} {what}" + "s" * (len(self) > 1),
            " to ".join(dict.fromkeys(sizes)),
            f"{layout.channels} channel" + "s" * (layout.channels > 1),
            layout.dtype.name,
            *([f"{len(self.classes)} classes"] if self.labels is not None else []),
            *(["a condition image each"] if self.condition else []),
            *([f"up to {self.context.longest} vectors each"] if self.context else []),
            f"{layout.nbytes / 1e6:,.1f} MB {self._place()}",
            *([self.note] if self.note else []),
        ]
        return ", ".join(parts)


class InPieces:
    """Stands for the array of an image that is stored in pieces: windows of it are read alone."""

    def __init__(self, images: ImageSet, index: int) -> None:
        self.images, self.index, self.dtype = images, index, images.layout.dtype
        self.shape = (images.layout.channels, *images.sizes[index].tolist())

    def __getitem__(self, place: Any) -> np.ndarray:
        """A window of all channels, `[..., rows, columns]`."""
        slices = place[1:] if isinstance(place, tuple) else [slice(None)] * 2
        rows = [range(n)[part] for n, part in zip(self.shape[1:], slices, strict=True)]
        corner, sides = [part.start for part in rows], [len(part) for part in rows]
        images, index = self.images, self.index
        read = images.collection.read_window
        if images.fit.scale == 1:
            return images._checked(index, read(index, corner, sides), sides)
        whole = images.collection.info(index).size
        lengths = zip(whole, self.shape[1:], corner, sides, strict=True)
        firsts, weights = zip(*(resampling(*each) for each in lengths), strict=True)
        image = read(index, firsts, [each.shape[1] for each in weights])
        return images._checked(index, image, sides, weights)


class PackedImages(ImageSet):
    """All images, decoded once into one flat tensor: in memory, or in a file that is mapped.

    Loader processes share it: forked ones as pages of the parent, spawned ones because torch
    sends tensors through shared memory. A file is shared by all processes of a host, and found
    by later runs.
    """

    laborious = False

    def __init__(
        self, collection: Collection, fit: Fit, layout: Layout, path: Path | None = None
    ) -> None:
        """Decode everything, unless the file is there."""
        super().__init__(collection, fit, layout)
        sizes, self.even = layout.channels * layout.sizes.prod(1), not np.ptp(layout.sizes, 0).any()
        self.path, self.starts, self._values = path, np.cumsum(sizes) - sizes, int(sizes.sum())
        if path is None:
            self.flat = torch.empty(self._values, dtype=_STORAGE[layout.dtype.name])
            self._decode(self.flat)
        else:
            self._write(path)
            self.flat = self._mapped(path)
        self.collection = collection.without_images()

    def _write(self, path: Path) -> None:
        wanted = self.layout.nbytes
        with one_at_a_time(path):
            if not (path.is_file() and path.stat().st_size == wanted):
                try:
                    with finished(path, shared=True) as part:
                        if shutil.disk_usage(path.parent).free < wanted:
                            raise OSError(errno.ENOSPC, "no space left")
                        self._decode(self._mapped(part))
                except OSError as error:
                    raise UserError(
                        f"{path}: cannot be written ({error.strerror}); set disk_limit to 0"
                    ) from error

    def _decode(self, flat: Tensor) -> None:
        values, read = flat.numpy().view(self.layout.dtype), super().planes

        def store(i: int) -> None:
            planes = read(i)[...].ravel()
            values[self.starts[i] : self.starts[i] + len(planes)] = planes

        # Threads pay where decoding, which frees the interpreter, outweighs what does not.
        threads = min(16, os.cpu_count() or 1) if self._values / len(self) > 1e6 else 1
        with ThreadPoolExecutor(threads) as pool:
            done = (pool.map if threads > 1 else map)(store, range(len(self)))
            for _ in with_progress(done, len(self), "decoding images"):
                pass

    def _mapped(self, path: Path) -> Tensor:
        dtype = _STORAGE[self.layout.dtype.name]
        return torch.from_file(str(path), shared=True, size=self._values, dtype=dtype)

    def __getstate__(self) -> dict[str, Any]:
        """A mapped file is mapped again by the process that gets the set, not copied."""
        return self.__dict__ | ({"flat": None} if self.path else {})

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if self.path:
            self.flat = self._mapped(self.path)

    @override
    def planes(self, index: int) -> np.ndarray:
        shape = (self.layout.channels, *self.sizes[index].tolist())
        values = self.flat.numpy()[self.starts[index] :][: math.prod(shape)]
        return values.view(self.layout.dtype).reshape(shape)

    @override
    def stacked(self) -> dict[str, np.ndarray] | None:
        found = {}
        for key, each in (("image", self), ("condition", self.condition)):
            if each is None:
                continue
            if not isinstance(each, PackedImages) or not each.even:
                return None
            values = each.flat.numpy().view(each.layout.dtype)
            found[key] = values.reshape(len(each), -1, *each.sizes[0])
        return found

    @override
    def fingerprint(self) -> str:
        layout = self.layout
        said = f"{layout.dtype} {layout.channels} {layout.sizes.tolist()}"
        digest = hashlib.blake2b(said.encode(), digest_size=16)
        digest.update(self.flat.numpy().data)
        return digest.hexdigest()

    def _place(self) -> str:
        return f"in {self.path}" if self.path else "in memory"


def open_collection(
    collection: Collection, fit: Fit, memory_limit: float = 2048, disk_limit: float = 0
) -> ImageSet:
    """Look at all headers, then keep the images decoded if they fit, else read them as needed.

    They may take `memory_limit` megabytes of memory, or those of larger sets of files
    `disk_limit` in the cache, in a file that all processes of a host share. A UserError names an
    unreadable image, one smaller than a window, or of other channels or depth than the first.
    """
    layout = survey(collection, fit)
    decodable = layout.sizes.prod(1).max() <= fit.max_pixels * 1e6
    if decodable and layout.nbytes <= memory_limit * 1e6:
        return PackedImages(collection, fit, layout)
    streamed = ImageSet(collection, fit, layout)
    files = all(os.path.isfile(collection.file(i)) for i in (0, len(collection) - 1))
    fits = decodable and layout.nbytes <= disk_limit * 1e6
    if not fits or not files:  # what has no time of change is not kept
        return streamed
    said = streamed.fingerprint(), streamed.digest, fit, layout.channels, layout.dtype
    return PackedImages(collection, fit, layout, Index("images", *said).path.with_suffix(""))


def survey(collection: Collection, fit: Fit) -> Layout:
    """Shapes of the fitted images from their headers; errors as `open_collection`."""
    infos, which = collection.infos()
    used, firsts = np.unique(which, return_index=True)
    by_first = sorted(zip(firsts.tolist(), used.tolist(), strict=True))
    first = fit.info(infos[by_first[0][1]], collection.name(0))
    axes = len(first.size)
    sizes, spacings = np.zeros((len(infos), axes), np.int64), np.full((len(infos), axes), np.nan)
    pieces = np.zeros(len(infos), bool)
    for index, kind in by_first:
        name = collection.name(index)
        fitted = fit.info(infos[kind], name)
        cure, other = "convert it, or set channels to 1, 3 or 4", collection.name(0)
        said = f"channels are {fitted.channels}, those of {other} {first.channels}"
        if fitted.channels == first.channels:
            cure = "convert the files to one depth or keep them in separate folders"
            said = f"depth is {fitted.dtype}, that of {other} {first.dtype}"
        if (fitted.channels, fitted.dtype) != (first.channels, first.dtype):
            raise UserError(f"{name}: {said}; {cure}")
        sizes[kind], pieces[kind] = fitted.size, fitted.in_pieces
        spacings[kind] = infos[kind].along(axes) or np.nan
    known = ~np.isnan(spacings).any(1)[which]
    known_spacings = spacings[which[known]]
    return Layout(sizes[which], first.channels, first.dtype, pieces[which], known_spacings)


_STORAGE = defaultdict(lambda: torch.int16, uint8=torch.uint8, float32=torch.float32)
"""Of what numpy calls so, bit for bit."""
