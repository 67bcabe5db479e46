"""One protocol for data: whatever gives images by number can be trained on.

An item is an image, a pair (image, label) or (image, mask), or a dict with the keys of `Item`.
`as_dataset` brings the items of any such data set into one form; `stream_of` is the endless
training stream over it, in which everything is a function of (seed, position).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset
from typing_extensions import override

from ddpm_unet.data.cells import small_object
from ddpm_unet.data.image_set import ImageSet
from ddpm_unet.data.items import (
    KEYS,
    Item,
    Range,
    check_within,
    find_columns,
    image_planes,
    is_number,
    masks_of,
    planes_beside,
    spread,
)
from ddpm_unet.data.pixels import to_unit
from ddpm_unet.data.stream import Change, Grid, Stream, WindowSource
from ddpm_unet.data.windows import Batch
from ddpm_unet.errors import UserError

RANGE_CURE = "; say what is black and white with value_range=(low, high)"
LOOKED_AT = 64
"""Items whose values decide whether float images lie in [0, 1] or in [-1, 1]."""


class ImageDataset(Dataset[Item], WindowSource):
    """The items of any data set of images in one form, dicts (see `Item`).

    It takes everything with a length and items by number: lists of tensors, arrays or Pillow
    images, a tensor `[N, C, H, W]`, TensorDataset, the sets of torchvision and Hugging Face.
    Tensors are `[C, H, W]` or `[H, W]`, arrays and Pillow images `[H, W, C]` or `[H, W]` (arrays
    of at most 4 channels, which may come first too); volumes have a depth before H.

    Values: uint8 stays as it is until it is on the device; uint16 is taken by its full range.
    Floats lie in [0, 1], or in [-1, 1] if any of 64 images spread over the set has a value below
    0. `value_range` says otherwise; what lies outside of it is refused in floats.

    The set says its `channels`, `dims` (3 for volumes), `dtype` (torch.uint8 or torch.float32)
    and, if it has labels, their names as `classes`.

    Args:
        items: The data set.
        columns: Where items are dicts, the name of each thing there, such as {"image": "img"}.
            Of a Hugging Face set, columns of one kind are found by themselves.
        value_range: Values that become -1 and 1.
        num_classes: Refuse masks with other classes than 0 to num_classes - 1.
        objects: Give the objects of the masks too, which are what an item's "objects" number, or
            the mask itself (which then becomes class 0 and 1) of two classes; of more, or of masks
            of 0 and 1, the connected pieces of each class.
        ignore_value: Value of unlabelled pixels in masks.
        name: For messages.

    Raises:
        UserError: Something in the first items cannot be an image; later items when they are met.
    """

    def __init__(
        self,
        items: Any,
        *,
        columns: Mapping[str, str] | None = None,
        value_range: Range | None = None,
        num_classes: int | None = None,
        objects: bool = False,
        ignore_value: int | None = None,
        name: str | None = None,
    ) -> None:
        self.title = name or type(items).__name__
        self._check_source(items)
        self.keys = (*KEYS, "objects") if objects else KEYS
        features = getattr(items, "features", None) if hasattr(items, "select_columns") else None
        self.columns = dict(columns or {})
        if features:  # of Hugging Face: what is not used is not decoded either
            own = {key: key for key in self.keys if key in features}
            self.columns = own | find_columns(features, self.columns, self.title)
            items = items.select_columns(list(dict.fromkeys(self.columns.values())))
        self.items = items
        self.num_classes, self.objects, self.ignore_value = num_classes, objects, ignore_value
        label = (features or {}).get(self.columns.get("label", ""))
        self.classes = tuple(map(str, getattr(label, "names", getattr(items, "classes", ()))))
        self.value_range = value_range
        first = self._raw(0)["image"]
        values = image_planes(first, self.name(0))
        if values.dtype.kind == "f" and value_range is None:
            self.value_range = self._float_range()
        self.dims, self.channels, self._stored = values.ndim - 1, len(values), values.dtype
        self.dtype = self._image(first, self.name(0)).dtype

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Item:
        """One item. IndexError beyond the last; UserError names what is at fault."""
        if not 0 <= index < len(self):
            raise IndexError(f"{self.title} has {len(self)} items")
        raw, name = self._raw(index), self.name(index)
        image = self._image(raw["image"], name)
        item: Item = {"image": image}
        space = tuple(image.shape[1:])
        if "mask" in raw or "objects" in raw:
            how = self.num_classes, self.ignore_value, self.objects
            item |= masks_of(raw.get("mask"), raw.get("objects"), space, name, *how)
        if "label" in raw:
            item["label"] = int(raw["label"])
        for key in ("target", "weight", "condition"):
            if key in raw:
                item[key] = planes_beside(raw[key], self.dims, space, f"{name}: its {key}", key)
        if "context" in raw:
            item["context"] = torch.as_tensor(np.asarray(raw["context"]), dtype=torch.float32)
            if item["context"].ndim != 2 or not item["context"].isfinite().all():
                raise UserError(f"{name}: its context must be finite vectors [L, C]")
        return item

    @override
    def item(self, index: int) -> dict[str, Any]:
        found = self[index].items()
        return {key: x.numpy() if isinstance(x, Tensor) else x for key, x in found}

    @override
    def whole(self, numbers: np.ndarray, items: Sequence[dict[str, Any]] = ()) -> Batch:
        batch: Batch = {}
        if items and "label" in items[0]:
            batch["label"] = torch.tensor([item["label"] for item in items])
        if items and "context" in items[0]:
            vectors = [torch.from_numpy(item["context"]) for item in items]
            lengths = torch.tensor(list(map(len, vectors)))
            batch["context"] = pad_sequence(vectors, batch_first=True)
            batch["context_mask"] = torch.arange(int(lengths.max())) < lengths[:, None]
        return batch

    @override
    def name(self, index: int) -> str:
        named = getattr(self.items, "name", None)
        return named(index) if callable(named) else f"{self.title}[{index}]"

    @property
    def digest(self) -> str:  # type: ignore[override]
        """A digest of the number of items, and of the shapes and values of 16 of them."""
        digest = hashlib.blake2b(f"{len(self)}".encode(), digest_size=16)
        for index in spread(len(self), 16):
            image = self[index]["image"]
            digest.update(f"{tuple(image.shape)}".encode() + image.numpy().tobytes())
        return digest.hexdigest()

    @override
    def describe(self) -> str:
        own = f", values {self.value_range or 'of the type'}"
        values = "" if self.dtype == torch.uint8 else own
        kind = "image" if self.dims == 2 else "volume"
        keys = [key for key in self[0] if key != "image"]
        further = f", each with {' and '.join(keys)}" if keys else ""
        return (
            f"{self.title}: {len(self):,} {kind}{'s' * (len(self) > 1)}, "
            f"{self.channels} channel{'s' * (self.channels > 1)}{values}{further}"
        )

    def _check_source(self, items: Any) -> None:
        fault = ""
        if isinstance(items, tuple) and any(isinstance(part, Tensor) for part in items):
            fault = "of tensors is no data set; give torch.utils.data.TensorDataset(*tensors)"
        elif isinstance(items, Mapping):
            fault = f"is a dict of {', '.join(map(str, items))}; give one of them"
        elif not hasattr(items, "__getitem__") or not hasattr(items, "__len__"):
            fault = (
                "has no length and items by number, which resuming needs; give a map-style data "
                "set (of Hugging Face: without streaming)"
            )
        elif len(items) == 0:
            fault = "is empty; give at least one image"
        if fault:
            raise UserError(f"{self.title}: {fault}")

    def _raw(self, index: int) -> dict[str, Any]:
        """What an item holds, by the names of `KEYS`."""
        item, name = self.items[index], self.name(index)
        if isinstance(item, Mapping):
            named = {key: self.columns.get(key, key) for key in self.keys}
            raw = {key: item[column] for key, column in named.items() if column in item}
            if "image" not in raw:
                raise UserError(
                    f"{name}: has no image, but {', '.join(map(str, item))}; say which is the "
                    'image with columns={"image": ...}'
                )
            if "label" in raw and not is_number(raw["label"]):  # a mask under that name
                raw = {"mask": raw.pop("label"), **raw}
            return {key: value for key, value in raw.items() if value is not None}
        if not isinstance(item, tuple | list):
            return {"image": item}
        if len(item) not in (1, 2):
            raise UserError(
                f"{name}: has {len(item)} parts; give (image, label), (image, mask) or a dict"
            )
        rest = {"label" if is_number(part) else "mask": part for part in item[1:]}
        return {"image": item[0], **rest}

    def _image(self, value: Any, name: str) -> Tensor:
        values = image_planes(value, name, self.dims)
        if (len(values), values.dtype) != (self.channels, self._stored):
            raise UserError(
                f"{name}: has {len(values)} channels of {values.dtype}, the first image "
                f"{self.channels} of {self._stored}; bring all images to one form"
            )
        kind, known = values.dtype.kind, self.value_range
        if kind == "f":
            check_within(values, known or (-1.0, 1.0), name, RANGE_CURE)
        elif kind == "i" and known is None:
            raise UserError(
                f"{name}: is {values.dtype}; give uint8, uint16 or floats, or say what is black "
                "and white with value_range=(low, high)"
            )
        ready = known is None if values.dtype == np.uint8 else kind == "f" and known == (-1.0, 1.0)
        values = values if ready else to_unit(values, known, name)
        return torch.from_numpy(np.ascontiguousarray(values))

    def _float_range(self) -> Range:
        """[0, 1] unless one of the items looked at has values below 0."""
        low = 0.0
        for index in spread(len(self), LOOKED_AT):
            values = image_planes(self._raw(index)["image"], self.name(index))
            low = min(low, float(values.min(initial=0)))
        return (0.0, 1.0) if low == 0 else (-1.0, 1.0)

    @property
    def small_object(self) -> int:
        """Pixels of an object that only 5 % are smaller than, in up to 64 items; 0 without any."""
        return small_object(self[i]["objects"].numpy() for i in spread(len(self), LOOKED_AT))


def as_dataset(data: Any, **reading: Any) -> ImageDataset:
    """Any data set of images as one whose items are dicts; see `ImageDataset` and its arguments.

    Example:
        >>> images = torch.rand(10, 3, 32, 32)
        >>> as_dataset(list(images)).describe()
        'list: 10 images, 3 channels, values (0.0, 1.0)'
        >>> as_dataset(list(zip(images, range(10))))[3]["label"]
        3
    """
    if isinstance(data, ImageDataset):
        return data
    if isinstance(data, ImageSet) and data.layout.dtype.kind == "f":
        reading = {"value_range": (-1.0, 1.0), **reading}
    return ImageDataset(data, **reading)


def stream_of(
    data: Any,
    *,
    size: int | None = None,
    flips: bool = False,
    rot90: bool = False,
    seed: int = 0,
    for_masks: bool = False,
    transform: Change | None = None,
    **reading: Any,
) -> Stream:
    """The training stream over a data set: `stream.__getitems__(positions)` is a finished batch.

    Order, windows and orientations are functions of (seed, position), so that a run resumes bit
    for bit on any number of processes.

    Args:
        data: Whatever `as_dataset` takes. Of an ImageSet it is a `Stream`: each image counts for as
            many windows as fit in its area.
        size: Cut windows of so many pixels a side at random places; None takes whole images, all
            of one size.
        flips: Mirror along every axis at random.
        rot90: Turn by a random multiple of 90 degrees.
        seed: Of the run.
        for_masks: The items must have masks or targets, and images come as float32.
        transform: A further change of each item, a dict of tv_tensors as torchvision's v2
            transforms take it; it draws from torch's global generator, which the position sets.
        **reading: Of `as_dataset`.

    Example:
        >>> stream = stream_of(torch.rand(10, 3, 40, 50), size=32, flips=True, seed=1)
        >>> stream.__getitems__(range(4))["image"].shape
        torch.Size([4, 3, 32, 32])
    """
    source = data if isinstance(data, WindowSource) else as_dataset(data, **reading)
    if for_masks and not source.item(0).keys() & {"mask", "target"}:
        raise UserError(
            f"{source.name(0)}: has no mask; give items (image, mask), or dicts with both"
        )
    how: dict[str, Any] = {"flips": flips, "rot90": rot90, "seed": seed, "change": transform}
    return Stream(source, size=size, floats=for_masks, **how)


def grid_of(data: Any, *, size: int | None = None, **reading: Any) -> Grid:
    """All windows side by side, or where sizes are not known the one in the middle of each image,
    unturned and in a fixed shuffled order: for validation.
    """
    source = data if isinstance(data, WindowSource) else as_dataset(data, **reading)
    return Grid(source, size=size)
