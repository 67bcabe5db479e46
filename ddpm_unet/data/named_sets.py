"""Data sets by name, through torchvision or Hugging Face's datasets (an extra)."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from typing_extensions import override

from ddpm_unet.data.collection import Collection
from ddpm_unet.data.downloads import one_at_a_time
from ddpm_unet.data.images import image_array
from ddpm_unet.errors import UserError


class ItemCollection(Collection):
    """The pictures of a map-style data set, taken out by `picture(item)`."""

    def __init__(self, items: Any, title: str) -> None:
        """Wrap `items`: anything with a length and items by number."""
        self.items, self.title = items, title

    def __len__(self) -> int:
        return len(self.items)

    @override
    def name(self, index: int) -> str:
        return f"{self.title}[{index}]"

    @override
    def read(self, index: int) -> np.ndarray:
        return image_array(self.picture(self.items[index]), self.name(index))

    def picture(self, item: Any) -> Any:
        """The picture in an item."""
        return item[0] if isinstance(item, tuple) else item


def torchvision_set(
    name: str, root: Path, held_out: bool, class_labels: bool
) -> ItemCollection | None:
    """A data set of torchvision, downloaded to root where missing.

    Args:
        name: The class in torchvision.datasets.
        root: Where its files are or go.
        held_out: The test (or else validation) split instead of the training split.
        class_labels: Take the classes.

    Returns:
        None when held_out is asked of a set that has no split.

    Raises:
        UserError: No such set, no download, or no classes.
    """
    from torchvision import datasets

    title = f"torchvision:{name}"
    if name not in datasets.__all__:
        close = difflib.get_close_matches(name, datasets.__all__, 1, 0.0)[0]
        raise UserError(f"data.source {title}: torchvision has no such data set; try {close}")
    make = getattr(datasets, name)
    known = inspect.signature(make).parameters
    arguments: dict[str, Any] = {"root": str(root), "download": True}
    arguments = {key: value for key, value in arguments.items() if key in known}
    cure = f"put its files into {root} or give their folder as data.root"
    with _named(title, cure), one_at_a_time(root):
        if "train" in known:
            items = make(train=not held_out, **arguments)
        elif "split" in known:
            items = _first_split(
                make, ("test", "val") if held_out else ("train", "trainval"), arguments
            )
        elif held_out:
            return None
        else:
            items = make(**arguments)
    collection = ItemCollection(items, title)
    if class_labels:
        targets = getattr(items, "targets", None)
        if targets is None:
            targets = [items[i][1] for i in range(len(items))]
        collection.labels = _class_numbers(targets, title)
        found = int(collection.labels.max()) + 1
        names = getattr(items, "classes", None) or range(found)
        collection.classes = tuple(map(str, names))
    return collection


class _HuggingFace(ItemCollection):
    """Rows with a column of pictures."""

    def __init__(self, rows: Any, title: str, column: str) -> None:
        super().__init__(rows, title)
        self.column = column

    @override
    def picture(self, item: Any) -> Any:
        return item[self.column]


def huggingface_set(
    name: str, root: str | None, held_out: bool, class_labels: bool
) -> ItemCollection | None:
    """A data set of the Hugging Face hub: its "train" split, or its "test" or "validation" one.

    Args:
        name: As `datasets.load_dataset` takes it.
        root: Its cache folder, or None for the library's own.
        held_out: The test (or else validation) split.
        class_labels: Take the classes from its ClassLabel column.

    Returns:
        None when held_out is asked of a set that has no such split.

    Raises:
        UserError: The extra is not installed, no such set, or no column of pictures or classes.
    """
    title = f"huggingface:{name}"
    try:
        import datasets
    except ImportError:
        raise UserError(f"data.source {title}: needs `pip install datasets`") from None
    with _named(title, "check the name and the network, or give its cache folder as data.root"):
        splits = datasets.load_dataset(name, cache_dir=root)
    wanted = ("test", "validation") if held_out else ("train",)
    split = next((split for split in wanted if split in splits), None)
    if split is None:
        if held_out:
            return None
        raise UserError(f"data.source {title}: has no split train, only {', '.join(splits)}")
    rows = splits[split]
    columns = [key for key, kind in rows.features.items() if isinstance(kind, datasets.Image)]
    if len(columns) != 1:
        raise UserError(f"data.source {title}: has {len(columns)} columns of images, not one")
    collection = _HuggingFace(rows, title, columns[0])
    if class_labels:
        kinds = rows.features.items()
        classes = [key for key, kind in kinds if isinstance(kind, datasets.ClassLabel)]
        if len(classes) != 1:
            raise UserError(
                f"data.source {title}: has {len(classes)} columns of classes, not one; "
                "set data.class_labels false"
            )
        collection.labels = _class_numbers(list(rows[classes[0]]), title)
        collection.classes = tuple(rows.features[classes[0]].names)
    return collection


def _first_split(make: Any, splits: tuple[str, ...], arguments: dict[str, Any]) -> Any:
    for split in splits[:-1]:
        try:
            return make(split=split, **arguments)
        except ValueError:  # torchvision's word for an unknown split
            continue
    return make(split=splits[-1], **arguments)


def _class_numbers(targets: Any, title: str) -> np.ndarray:
    labels = np.asarray(targets)
    if labels.ndim != 1 or labels.dtype.kind not in "iu" or (labels < 0).any():
        raise UserError(
            f"data.source {title}: has no class number for each image; set data.class_labels false"
        )
    return labels.astype(np.int64)


@contextmanager
def _named(title: str, cure: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # downloads, parsers and file systems each have their own
        cause = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise UserError(f"data.source {title}: cannot be opened ({cause}); {cure}") from error
