"""What an item of a data set may hold, and its parts as arrays of one form."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypedDict

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ddpm_unet.data.cells import connected_cells, interiors
from ddpm_unet.data.images import image_array
from ddpm_unet.data.masks import IGNORE_INDEX
from ddpm_unet.data.pixels import shown_size, to_unit
from ddpm_unet.errors import UserError

Range = tuple[float, float]
KEYS = ("image", "mask", "label", "target", "weight", "condition", "context")


class Item(TypedDict, total=False):
    """One item of a data set; only the image must be there. Volumes have a depth before H.

    Attributes:
        image: `[C, H, W]`, uint8 or float32 in [-1, 1].
        mask: Class of each pixel, `int64 [H, W]`, IGNORE_INDEX where unlabelled.
        objects: Number of the object at each pixel, `int32 [H, W]`, 0 for none.
        interior: Of these, see `interiors`, `float32 [H, W]`; where objects are asked for.
        label: Class of the image.
        target: Numbers to predict, `float32 [K, H, W]` in [-1, 1].
        weight: Weight of each pixel in the loss, `float32 [H, W]`.
        condition: Image to condition on, `[K, H, W]` as `image`, or classes, `int16 [1, H, W]`.
        context: Vectors to attend to, `float32 [L, C]`.
    """

    image: Tensor
    mask: Tensor
    objects: Tensor
    interior: Tensor
    label: int
    target: Tensor
    weight: Tensor
    condition: Tensor
    context: Tensor


def image_planes(value: Any, name: str, dims: int | None = None) -> np.ndarray:
    """An image `[C, *space]` as an array of its own type."""
    if isinstance(value, Image.Image):
        return np.moveaxis(image_array(value, name), -1, 0)
    if not isinstance(value, Tensor | np.ndarray):
        raise UserError(
            f"{name}: is a {type(value).__name__}; an image is a tensor, an array or a Pillow image"
        )
    shape, is_tensor = list(value.shape), isinstance(value, Tensor)
    if isinstance(value, Tensor):
        value = value.detach().cpu()
        value = (value.float() if value.dtype.is_floating_point else value).numpy()
    array = value.astype(np.float32) if value.dtype.kind in "fb" else value
    wrong = array.ndim not in (2, 3, 4) or not array.size
    if array.ndim == 2:
        array = array[None]
    elif is_tensor:
        wrong |= array.ndim == 3 and array.shape[-1] <= 4 < array.shape[0]
    elif not wrong and array.shape[-1] <= 4:
        array = np.moveaxis(array, -1, 0)
    else:
        wrong |= array.shape[0] > 4
    if wrong:
        raise UserError(
            f"{name}: has the shape {shape}; give an image as a tensor [C, H, W] or an "
            "array [H, W, C], a volume with a depth before H"
        )
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise UserError(f"{name}: has values that are NaN or infinite; replace them")
    if dims is not None and array.ndim != dims + 1:
        raise UserError(
            f"{name}: has the shape {shape}, but the first image {dims} axes without "
            "its channels; bring all images to one form"
        )
    return array


def planes_beside(value: Any, dims: int, space: tuple[int, ...], what: str, key: str) -> Tensor:
    """Planes that belong to an image: float32 targets `[K, *space]` in [-1, 1], conditions
    likewise or bytes or classes (int16), a weight `[*space]` of any values.
    """
    if isinstance(value, np.ndarray | Tensor) and value.ndim == dims:
        value = value[None] if isinstance(value, Tensor) else value[..., None]
    planes = image_planes(value, what, dims)
    if planes.shape[1:] != space:
        raise UserError(
            f"{what}: is {shown_size(planes.shape[1:])} pixels, the image {shown_size(space)}; "
            "make it as large"
        )
    if key == "weight":
        planes = planes[0].astype(np.float32)
    elif planes.dtype.kind == "f":
        check_within(planes, (-1.0, 1.0), what)
    elif key == "target" or (planes.dtype.kind != "i" and planes.dtype != np.uint8):
        planes = to_unit(planes, None, what)
    elif planes.dtype.kind == "i":
        planes = planes.astype(np.int16)
    return torch.from_numpy(np.ascontiguousarray(planes))


def check_within(values: np.ndarray, limits: Range, name: str, cure: str = "") -> None:
    """Refuse values outside of some limits."""
    low, high = limits
    if values.size and not low <= values.min() <= values.max() <= high:
        raise UserError(
            f"{name}: float values from {values.min():g} to {values.max():g}, not within "
            f"{low:g} to {high:g}{cure}"
        )


def is_number(value: Any) -> bool:
    """Whether a second part of an item is the class of the image."""
    return not isinstance(value, Image.Image) and np.ndim(value) == 0


def spread(count: int, most: int) -> list[int]:
    """Up to so many of the numbers 0 to count - 1, first and last among them."""
    return sorted(set(np.linspace(0, count - 1, min(count, most)).round().astype(int).tolist()))


def masks_of(
    mask: Any,
    numbers: Any,
    space: tuple[int, ...],
    name: str,
    count: int | None = None,
    ignored: int | None = None,
    objects: bool = False,
) -> Item:
    """The mask of an item and, if they are asked for, its objects and their interiors.

    One of mask and numbers of objects may be None. The other is both then: numbers, or a mask of
    two classes that numbers. Of other masks the objects are the connected pieces of each class.

    Args:
        mask, numbers: As the item has them.
        space: Size of the image.
        name: Of the item.
        count: Refuse other classes than 0 to count - 1.
        ignored: Value of unlabelled pixels.
        objects: Whether they are asked for.
    """
    both = objects and (mask is None or numbers is None)
    limit = None if both and (count == 2 or numbers is not None) else count
    classes = mask_of(numbers if mask is None else mask, space, name, limit, ignored)
    if not objects:
        return {"mask": classes}
    if numbers is not None:
        cells = mask_of(numbers, space, name, None, ignored)
    elif count == 2 and classes.max() > 1:
        cells = classes
    else:
        every = range(1, count or int(classes.max()) + 1)
        cells = torch.from_numpy(connected_cells(classes.numpy(), every))
    cells = torch.where(classes > 0, cells, 0).int()
    classes = classes.clamp(max=1) if count in (None, 2) else classes
    interior = torch.from_numpy(interiors(cells.numpy()))
    return {"mask": classes, "objects": cells, "interior": interior}


def mask_of(
    value: Any, space: tuple[int, ...], name: str, classes: int | None, ignored: int | None
) -> Tensor:
    """A mask of so many classes, or any numbers, `int64 [*space]`, IGNORE_INDEX for `ignored`."""
    value = value.detach().cpu() if isinstance(value, Tensor) else value
    mask = np.asarray(value)  # of a palette image its indices
    if mask.dtype.kind not in "iub":
        raise UserError(
            f"{name}: its mask is {mask.dtype}; give whole numbers, the class of each pixel"
        )
    mask = mask.reshape(space) if mask.shape in ((1, *space), (*space, 1)) else mask
    if mask.shape != space:
        raise UserError(
            f"{name}: its mask is {shown_size(mask.shape)} pixels, the image {shown_size(space)}"
        )
    found = mask.astype(np.int64)
    if ignored is not None:
        found[found == ignored] = IGNORE_INDEX
    known = found[found != IGNORE_INDEX]
    most = known.max(initial=0) if classes is None else classes - 1
    if known.size and not 0 <= known.min() <= known.max() <= most:
        strange = known.max() if known.max() > most else known.min()
        raise UserError(
            f"{name}: its mask has the class {strange}, not 0 to {most}; number the classes "
            "from 0, or name the value of unlabelled pixels with ignore_value"
        )
    return torch.from_numpy(found)


def find_columns(
    features: Mapping[str, Any], given: Mapping[str, str], title: str
) -> dict[str, str]:
    """Columns of a Hugging Face set: "image", and "label" where there is one.

    Those given; else those of their own name or, of that kind (Image, ClassLabel), the only one.
    """
    for key, column in given.items():
        if column not in features:
            raise UserError(
                f"{title}: has no column {column} for its {key}; it has {', '.join(features)}"
            )
    found = dict(given)
    for key, kind in (("image", "Image"), ("label", "ClassLabel")):
        alike = [name for name, feature in features.items() if type(feature).__name__ == kind]
        if key not in found and (key in alike or len(alike) == 1):
            found[key] = key if key in alike else alike[0]
    if "image" not in found:
        raise UserError(
            f"{title}: has no column of images, or several, of the columns {', '.join(features)}; "
            "name the one to take as image"
        )
    return found
