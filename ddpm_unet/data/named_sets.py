"""Data sets by name: torchvision's, Hugging Face's and Fashion-MNIST."""

from __future__ import annotations

import difflib
import gzip
import inspect
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import parse_qsl

import numpy as np
from typing_extensions import override

from ddpm_unet.data.collection import (
    ArrayCollection,
    Index,
    ItemCollection,
    Known,
    infos_of,
    kinds_of,
    one_at_a_time,
    written,
)
from ddpm_unet.data.images import ImageInfo
from ddpm_unet.data.items import find_columns
from ddpm_unet.data.reading import Reading
from ddpm_unet.errors import UserError, cause_of

T = TypeVar("T")
FASHION = "builtin:fashion-mnist"
FASHION_CLASSES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat",
    "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip
OPTIONS = ("config", "split", "held_out", "image", "label")
"""What may follow the name of a Hugging Face set, as in `NAME?split=train&image=img`."""


def torchvision_set(
    name: str, root: Path, *, held_out: bool = False, class_labels: bool = False
) -> ItemCollection | None:
    """A data set of torchvision, downloaded to root where missing.

    Of its training split, or the test (or else validation) split; None when held_out is asked of a
    set that has no split.
    """
    from torchvision import datasets

    title = f"torchvision:{name}"
    if name not in datasets.__all__:
        close = difflib.get_close_matches(name, datasets.__all__, 1, 0.0)[0]
        raise UserError(f"source {title}: torchvision has no such data set; try {close}")
    make = getattr(datasets, name)
    known = inspect.signature(make).parameters
    if held_out and not {"train", "split"} & known.keys():
        return None
    arguments: dict[str, Any] = {"root": str(root), "download": True, "train": not held_out}
    arguments = {key: value for key, value in arguments.items() if key in known}
    splits = ("test", "val") if held_out else ("train", "trainval")
    cure = f"put its files into {root} or give their folder as root"
    with named_faults(title, cure), one_at_a_time(root):
        items = None
        if "train" not in known and "split" in known:
            with suppress(ValueError):  # torchvision's word for an unknown split
                items = make(split=splits[0], **arguments)
            arguments["split"] = splits[1]
        items = make(**arguments) if items is None else items
    collection = ItemCollection(items, title)
    if class_labels:
        targets = getattr(items, "targets", None)
        if targets is None:
            targets = [items[i][1] for i in range(len(items))]
        _label(collection, targets, getattr(items, "classes", None))
    return collection


def huggingface_set(
    name: str, root: str | None = None, *, held_out: bool = False, class_labels: bool = False
) -> ItemCollection | None:
    """A data set of the Hugging Face hub: its "train" split, or its "test" or "validation" one.

    Only the columns of the images and the classes are read from its Arrow files. Behind the name
    may stand options: config (the set's configuration), split, held_out (the split for validation),
    image and label (columns), as in "cifar100?label=fine_label&held_out=test". `root` is its cache
    folder. The name of a folder may be one that `save_to_disk` wrote. None when held_out is asked
    of a set that has no such split.
    """
    title = f"huggingface:{name}"
    name, _, said = name.partition("?")
    options = dict(parse_qsl(said, keep_blank_values=True))
    if unknown := [key for key in options if key not in OPTIONS]:
        raise UserError(f"source {title}: has no option {unknown[0]}; give {', '.join(OPTIONS)}")
    try:
        import datasets
    except ImportError:
        raise UserError(f"source {title}: needs `pip install datasets`") from None
    with named_faults(title, "check the name and the network, or give its cache folder as root"):
        config = {"name": options["config"]} if "config" in options else {}
        if any(Path(name, file).is_file() for file in ("state.json", "dataset_dict.json")):
            saved = datasets.load_from_disk(name)
            splits = saved if isinstance(saved, dict) else {"train": saved}
        else:
            splits = datasets.load_dataset(name, cache_dir=root, **config)
    asked = options.get("held_out" if held_out else "split")
    usual = ("test", "validation") if held_out else ("train",)
    split = next((split for split in ((asked,) if asked else usual) if split in splits), None)
    if split is None:
        if held_out and not asked:
            return None
        missing = asked or "train"
        raise UserError(f"source {title}: has no split {missing}, only {', '.join(splits)}")
    rows = splits[split]
    given = {key: options[key] for key in OPTIONS[-2:] if key in options}
    columns = find_columns(rows.features, given, f"source {title}")
    collection = Rows(rows, title, columns["image"])
    if class_labels:
        if "label" not in columns:
            raise UserError(
                f"source {title}: has no column of classes, or several; name it with ?label=, or "
                "set class_labels to false"
            )
        column = columns["label"]
        labels = rows.select_columns([column]).with_format("numpy")[:][column]
        _label(collection, labels, getattr(rows.features[column], "names", None))
    return collection


class Rows(ItemCollection):
    """Images in a column of a Hugging Face set; the files stored there are decoded when read.

    Shapes and types come from their headers, of a large set once: an index is kept of it.
    """

    def __init__(self, rows: Any, title: str, column: str) -> None:
        from datasets import Image

        self._index = Index("rows", 2, rows._fingerprint, column)
        self._files = [file["filename"] for file in rows.cache_files]
        self.encoded = isinstance(rows.features[column], Image)
        rows = rows.select_columns([column])
        if self.encoded:
            rows = rows.cast_column(column, Image(decode=False))
        super().__init__(rows, title, column)

    @override
    def file(self, index: int) -> str:
        return self._files[0] if self._files else self.name(index)

    @override
    def read(self, index: int) -> np.ndarray:
        if not self.encoded:
            return super().read(index)
        return self._file(Reading().read, index, **self.images[index][self.column])

    @override
    def _info(self, index: int) -> ImageInfo:
        if not self.encoded:
            return super()._info(index)
        return self._file(Reading().info, index, **self.images[index][self.column])

    def _file(self, read: Callable[..., T], index: int, bytes: Any, path: str | None) -> T:
        """What a function makes of a row's file: its content, or if it is not stored its path."""
        name = self.name(index)
        if bytes is None and path is None:
            raise UserError(f"{name}: has no image; leave the row out")
        return read(name if path is None or bytes is not None else path, bytes)

    @override
    def _look(self) -> Known:
        if not self.encoded:
            return super()._look()
        with one_at_a_time(self._index.path):
            if index := self._index.load():
                return infos_of(index["kinds"]), index["which"]
            kinds, which = kinds_of(self._headers(), len(self))
            if len(self) >= Index.smallest:
                self._index.save(kinds=written(kinds), which=which)
            return kinds, which

    def _headers(self) -> Iterator[ImageInfo]:
        import pyarrow

        cells = (
            cell
            for batch in self.images.with_format("arrow").iter(1000)
            for cell in batch[self.column]
        )
        for index, cell in enumerate(cells):
            content = cell["bytes"]
            data = pyarrow.BufferReader(content.as_buffer()) if content.is_valid else None
            yield self._file(Reading().info, index, data, cell["path"].as_py())


def fashion_mnist(
    root: str | None, cache: Path, *, held_out: bool = False, class_labels: bool = False
) -> ArrayCollection:
    """The training or test split of Fashion-MNIST (Xiao 2017): 60,000 or 10,000 of 28 x 28.

    `root` has the four idx files, gzipped or not, or torchvision's FashionMNIST/raw; None downloads
    to `cache` by torchvision, unless they are there.
    """
    split = "t10k" if held_out else "train"
    names = [f"{split}-{kind}-ubyte" for kind in ("images-idx3", "labels-idx1")]
    place, cure = Path(root or cache), "give a folder with the four idx files as root"
    if root is None:
        from torchvision.datasets import FashionMNIST

        with named_faults(FASHION, cure), one_at_a_time(cache):
            FashionMNIST(str(cache), download=True)  # looks first whether it is there
    paths: list[Path] = []
    for folder in (place, place / "FashionMNIST" / "raw"):
        either = [(folder / name, folder / f"{name}.gz") for name in names]
        paths = paths or [
            path for pair in either if (path := next(filter(Path.is_file, pair), None))
        ]
    if len(paths) < 2:
        raise UserError(f"{place}: holds no {names[0]}(.gz) and {names[1]}(.gz); {cure}")
    images, labels = map(read_idx, paths)
    if images.ndim != 3 or labels.shape != images.shape[:1]:
        raise UserError(f"{paths[0]}: does not belong to {paths[1]}; {cure}")
    collection = ArrayCollection(images[..., None], FASHION)
    collection.note = "" if held_out else "the test split held out for validation"
    if class_labels:
        collection.labels, collection.classes = labels.astype(np.int64), FASHION_CLASSES
    return collection


def read_idx(path: Path) -> np.ndarray:
    """An array of bytes in LeCun's idx format, gzipped or not."""
    try:
        data = path.read_bytes()
        if path.suffix == ".gz":
            data = gzip.decompress(data)
        if data[:3] != b"\0\0\x08":
            raise ValueError("no idx file of bytes")
        shape = np.frombuffer(data, ">i4", count=data[3], offset=4)
        return np.frombuffer(data, np.uint8, offset=4 + 4 * data[3]).reshape(shape)
    except (OSError, EOFError, ValueError, IndexError, zlib.error) as error:
        raise UserError(f"{path}: is damaged ({error}); copy or download it again") from error


@contextmanager
def named_faults(title: str, cure: str) -> Iterator[None]:
    """Turn whatever opening a data set raises into one line that names it."""
    try:
        yield
    except Exception as error:  # downloads, parsers and file systems each have their own
        cause = cause_of(f"{type(error).__name__}: {error}")
        raise UserError(f"source {title}: cannot be opened ({cause}); {cure}") from error


def _label(collection: ItemCollection, targets: Any, names: Any) -> None:
    labels = np.asarray(targets)
    if labels.ndim != 1 or labels.dtype.kind not in "iu" or (labels < 0).any():
        raise UserError(
            f"source {collection.title}: has no class number for each image; set class_labels to "
            "false"
        )
    collection.labels = labels.astype(np.int64)
    collection.classes = tuple(map(str, names or range(int(labels.max()) + 1)))
