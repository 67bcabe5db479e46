"""From the values of a mask file to class indices; what they mean is never guessed silently."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ddpm_unet.config import MaskKind, PairDataConfig
from ddpm_unet.data.cells import connected_cells
from ddpm_unet.errors import UserError

MOST_CLASSES = 256
"""Class masks are written with 8 bits a pixel."""

IGNORE_INDEX = -100
"""Class of pixels that nobody labelled (torch's default)."""

_NAMES: dict[str, tuple[str, ...]] = {
    "threshold": ("lower half", "upper half"),
    "instances": ("background", "foreground"),
}


def mask_values(mask: np.ndarray, colors: bool, name: str) -> np.ndarray:
    """One number per pixel of a mask file `[..., C]`: its grey value, or its `color_number`.

    An alpha channel must be constant, and without `colors` the channels equal. Colours, and floats
    without fractions, are int64, others of the mask's type.
    """
    if mask.shape[-1] in (2, 4):
        if mask[..., -1].min() != mask[..., -1].max():
            raise UserError(f"{name}: its transparency varies; save the mask without alpha")
        mask = mask[..., :-1]
    if mask.shape[-1] not in (1, 3):
        raise UserError(f"{name}: has {mask.shape[-1]} channels; save the mask with 1 or 3")
    if colors:
        if mask.dtype != np.uint8:
            raise UserError(f"{name}: has {mask.dtype} colours; save it with 8 bits a channel")
        return color_number(np.broadcast_to(mask, (*mask.shape[:-1], 3)))
    if (mask != mask[..., :1]).any():
        found = [color_of(number) for number in np.unique(color_number(mask))]
        raise UserError(
            f"{name}: is coloured; set data.mask_kind colors and data.class_colors to the colour "
            f"of each class, in order; it holds {listed(found)}"
            + "; set data.nearest_color true too, as it was saved as JPEG"
            * name.endswith((".jpg", ".jpeg"))
        )
    values = mask[..., 0]
    if values.dtype.kind == "f" and (values == values.round()).all():
        return values.astype(np.int64)
    return values


def color_number(color: np.ndarray | Sequence[int]) -> np.ndarray:
    """Red, green and blue `[..., 3]` as one number 65536 r + 256 g + b, int64 `[...]`."""
    return np.asarray(color, np.int64) @ np.array([65536, 256, 1])


def color_of(number: int) -> list[int]:
    """The red, green and blue of a `color_number`."""
    return [int(number) >> 16, int(number) >> 8 & 255, int(number) & 255]


def listed(values: Iterable[object], most: int = 12) -> str:
    """Some values for a message: the first ones, and how many more there are."""
    shown = [str(v) for v in values]
    rest = f", ... ({len(shown)} in all)" if len(shown) > most else ""
    return ", ".join(shown[:most]) + rest


@dataclass(frozen=True)
class MaskCode:
    """How the values of masks become classes; the words are those of `PairDataConfig`.

    `values` has that of each class, `ignore` that of unlabelled pixels. Kind "threshold": class 1
    lies above `half`; None takes half of what the one mask holds. Kind "colors": with `nearest` a
    colour that is no class's is the nearest one's.
    """

    kind: MaskKind
    class_names: tuple[str, ...]
    values: tuple[int, ...] = ()
    ignore: int | None = None
    half: float | None = None
    nearest: bool = False

    @property
    def num_classes(self) -> int:
        """K."""
        return len(self.class_names)

    def read(self, mask: np.ndarray, name: str) -> np.ndarray:
        """The `mask_values [H, W]` of a mask file `[H, W, C]`."""
        return mask_values(mask, self.kind == "colors", name)

    def classes(self, values: np.ndarray, name: str) -> np.ndarray:
        """Class of each pixel of `read` values, `int16 [H, W]`: 0 to K - 1, or IGNORE_INDEX."""
        unlabelled = values == self.ignore if self.ignore is not None else False
        if self.kind == "threshold":
            labelled = values[~np.asarray(unlabelled)] if self.ignore is not None else values
            half = half_of(labelled.ravel()) if self.half is None else self.half
            classes = (values > half).astype(np.int16)
        elif self.kind == "instances":
            if values.dtype.kind == "f":
                raise UserError(
                    f"{name}: holds fractions, not numbered objects; save whole numbers"
                )
            classes = (values != 0).astype(np.int16)
        elif self.nearest:
            classes = self._nearest(values)[0]
        else:
            order = np.argsort(self.values)
            table = np.array(self.values)[order]
            places = np.searchsorted(table, values).clip(max=len(table) - 1)
            strange = (table[places] != values) & ~np.asarray(unlabelled)
            if strange.any():
                raise UserError(f"{name}: {self._complaint(np.unique(values[strange]))}")
            classes = order.astype(np.int16)[places]
        return np.where(unlabelled, np.int16(IGNORE_INDEX), classes)

    def unclear(self, values: np.ndarray) -> np.ndarray:
        """Which colours are further from the nearest class than half of the way to another."""
        return self._nearest(values)[1] & (values != self.ignore)

    def _nearest(self, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The class of the nearest colour, `int16 [H, W]`, and whether it is unclear."""
        table = np.array([color_of(value) for value in self.values])
        found, places = np.unique(values, return_inverse=True)
        colors = np.stack([found >> 16, found >> 8 & 255, found & 255], axis=1)
        distances = np.linalg.norm(colors[:, None] - table, axis=-1)
        between = np.linalg.norm(table[:, None] - table, axis=-1)
        least = between[~np.eye(len(table), dtype=bool)].min()
        nearest = distances.argmin(1).astype(np.int16)
        unclear = distances.min(1) > least / 2
        return nearest[places].reshape(values.shape), unclear[places].reshape(values.shape)

    def cells(
        self, values: np.ndarray, classes: np.ndarray, cell_classes: Sequence[int]
    ) -> np.ndarray:
        """Numbered cells, between which border weights lie, `int32 [H, W]`, 0 for background:
        numbered objects or, of other masks, connected pieces of `cell_classes` (empty: all but 0).
        """
        if self.kind == "instances":
            numbers = np.unique(values, return_inverse=True)[1].reshape(values.shape) + 1
            return np.where(classes == 1, numbers, 0).astype(np.int32)
        return connected_cells(classes, cell_classes or range(1, self.num_classes))

    def _complaint(self, found: np.ndarray) -> str:
        if self.kind == "colors":
            shown = listed(color_of(number) for number in found)
            return (
                f"{shown} not in data.class_colors; add the colour there, mend the file, or set "
                "data.nearest_color true if it was saved as JPEG"
            )
        shown = f"value{'s' * (len(found) > 1)} {listed(found)}"
        if self.kind == "values":
            return (
                f"{shown} not in data.mask_values {list(self.values)}; add them there, mend the "
                "file, or set data.mask_kind threshold if its edges are smooth"
            )
        cure = "raise data.num_classes or mend the file"
        if 255 in found:
            cure = "set data.ignore_value 255 if it means unlabelled, or list data.mask_values"
        last = self.num_classes - 1
        return f"{shown}, but the {self.num_classes} classes are numbered 0 to {last}; {cure}"


def half_of(values: np.ndarray) -> float:
    """Half of what masks hold: between 0, or what is below it, and the largest value."""
    return (min(0.0, float(values.min())) + float(values.max())) / 2 if values.size else 0.0


def find_code(config: PairDataConfig, found: np.ndarray, tops: Mapping[float, float]) -> MaskCode:
    """The code that the settings name, or that the masks' values leave no doubt about.

    `found` is every value in the masks (as `mask_values`) but the unlabelled one, sorted; `tops`
    the largest value that each of the masks' types can hold, and that its masks hold. Values that
    may mean several things are a UserError that says which setting decides.
    """
    if not len(found):
        raise UserError("the masks hold no labelled pixel; see data.ignore_value")
    kind, values = config.mask_kind, tuple(config.mask_values)
    if values and kind not in ("auto", "values"):
        raise UserError(f"data.mask_values is for data.mask_kind values, not for {kind}")
    stated = config.num_classes or len(config.class_names)
    if kind == "auto":
        kind, values = ("values", values) if values else _only_meaning(found, tops, stated)
    if kind == "values" and len(values) < 2:
        raise UserError("data.mask_kind values: list the value of each class in data.mask_values")
    if kind == "colors":
        values = tuple(int(color_number(color)) for color in config.class_colors)
        if len(values) < 2:
            raise UserError("data.mask_kind colors: list each class's colour in data.class_colors")
    if kind == "classes":
        last = stated - 1 if stated else found.max()
        if last >= MOST_CLASSES:
            raise UserError(
                f"value {last} is no class index below {MOST_CLASSES}; list data.mask_values, or "
                "set data.mask_kind instances if the masks number objects"
            )
        values = tuple(range(int(last) + 1))
    if len(values) > MOST_CLASSES:
        raise UserError(f"{len(values)} classes are too many; at most {MOST_CLASSES} are written")
    if len(set(values)) < len(values):
        raise UserError(f"data.mask_kind {kind}: two classes have the same value in its table")
    if kind == "threshold":
        if len(found) < 2:
            raise UserError(f"the masks hold no two values but {listed(found)}; see data.masks")
        if len(set(tops.values())) > 1:
            held = listed(f"{most:g}" for most in sorted(tops.values()))
            raise UserError(
                "data.mask_kind threshold: masks of several types, which hold values up to "
                f"{held}; save all with one type"
            )
    form = {"classes": "class {}", "colors": "#{:06x}"}.get(kind, "value {}")
    names = _NAMES.get(kind) or tuple(form.format(value) for value in values)
    named, colored = len(config.class_names), len(config.class_colors)
    counts = {"num_classes": config.num_classes, "class_names": named, "class_colors": colored}
    for setting, count in counts.items():
        if count and count != len(names):
            raise UserError(
                f"data.{setting} is for {count} classes, but masks of kind {kind} give {len(names)}"
            )
    names = tuple(config.class_names) or names
    strange = [number for number in config.border_classes if number >= len(names)]
    if strange:
        raise UserError(
            f"data.border_classes {strange[0]}: the classes are numbered 0 to {len(names) - 1}"
        )
    half = half_of(found) if kind == "threshold" else None
    nearest = config.nearest_color and kind == "colors"
    return MaskCode(kind, names, values, ignored_value(config), half, nearest)


def ignored_value(config: PairDataConfig) -> int | None:
    """The `mask_values` number of unlabelled pixels."""
    ignore = config.ignore_value
    return ignore if ignore is None or isinstance(ignore, int) else int(color_number(ignore))


def _only_meaning(
    found: np.ndarray, tops: Collection[float], stated: int
) -> tuple[MaskKind, tuple[int, ...]]:
    """Kind and values of masks that can mean one thing only."""
    shown = f"the masks hold the value{'s' * (len(found) != 1)} {listed(found)}"
    cures = (
        f"list the value of each class in data.mask_values [{listed(found)}], or set "
        "data.mask_kind threshold for masks with smooth edges, instances for numbers of objects"
    )
    if len(found) < 2:
        raise UserError(f"{shown} and no other, so there is nothing to learn; see data.masks")
    if found.dtype.kind == "f":
        raise UserError(
            f"{shown}; say what they mean: data.mask_kind threshold takes what is over half"
        )
    if len(found) == 2 and found[0] == 0 and found[1] in tops:
        return "values", (0, int(found[1]))
    if tuple(found) == (0, 1) or (stated and 0 <= found.min() <= found.max() < stated):
        return "classes", ()
    indices = tuple(range(len(found)))
    if tuple(found) == indices:
        raise UserError(
            f"{shown}: set data.mask_kind classes, or instances if they are numbers of objects"
        )
    if tuple(found) == (*indices[:-1], 255):
        raise UserError(f"{shown}: set data.ignore_value 255 if that is unlabelled, or {cures}")
    raise UserError(f"{shown}: {cures}")
