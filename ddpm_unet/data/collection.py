"""Numbered images as their source has them: arrays, torchvision's and Hugging Face's data sets."""

from __future__ import annotations

import difflib
import getpass
import gzip
import hashlib
import inspect
import tempfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import numpy as np
from filelock import FileLock
from typing_extensions import override

from ddpm_unet.data.images import ImageInfo, image_array
from ddpm_unet.errors import UserError

CACHE = Path.home() / ".cache" / "ddpm_unet"
FASHION_CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
OPTIONS = ("config", "split", "held_out", "image", "label")
"""What may follow the name of a Hugging Face set, as in `NAME?split=train&image=img`."""


class Collection(ABC):
    """Images that can be read one by one, in any order and by many processes.

    Attributes:
        labels: Class of each image, `int64 [N]`, or None.
        classes: Name of each class.
        note: What the user should know besides, or nothing.
    """

    labels: np.ndarray | None = None
    classes: tuple[str, ...] = ()
    note: str = ""

    @abstractmethod
    def __len__(self) -> int:
        """Number of images."""

    @abstractmethod
    def name(self, index: int) -> str:
        """What an error calls the image: its path, where it has one."""

    def key(self, index: int) -> str:
        """What tells the image from the others wherever the collection lies."""
        return str(index)

    @abstractmethod
    def read(self, index: int) -> np.ndarray:
        """Decode: `[H, W, C]`, or `[D, H, W, C]` of a volume; uint8, uint16 or float32."""

    def info(self, index: int) -> ImageInfo:
        """Shape and type, without decoding where the format allows it."""
        image = self.read(index)
        *depth, height, width, channels = image.shape
        return ImageInfo(height, width, channels, image.dtype, *depth)

    def infos(self) -> Iterator[ImageInfo]:
        """`info` of every image in order."""
        return map(self.info, range(len(self)))

    def changed(self, index: int) -> None:  # noqa: B027  (most keep nothing)
        """Forget what is kept for later runs: an image is not what it was."""


class ArrayCollection(Collection):
    """Images that are in memory already."""

    def __init__(
        self,
        images: Sequence[np.ndarray] | np.ndarray,
        names: Sequence[str] | str,
        labels: np.ndarray | None = None,
        classes: tuple[str, ...] = (),
    ) -> None:
        """Collect `[H, W, C]` images; `names` is a name each, or one that gets numbered."""
        self.images, self.names = images, names
        self.labels, self.classes = labels, classes

    def __len__(self) -> int:
        return len(self.images)

    @override
    def name(self, index: int) -> str:
        return f"{self.names}[{index}]" if isinstance(self.names, str) else self.names[index]

    @override
    def read(self, index: int) -> np.ndarray:
        return self.images[index]


class Selection(Collection):
    """Images of other collections, which agree in their classes: all or some of each in turn."""

    def __init__(self, *parts: tuple[Collection, np.ndarray | None]) -> None:
        """Take of each collection the images with these indices, in this order; None for all."""
        chosen = [np.arange(len(c)) if indices is None else indices for c, indices in parts]
        self.parts = [collection for collection, _ in parts]
        self.owners = np.repeat(np.arange(len(parts)), list(map(len, chosen)))
        self.indices = np.concatenate(chosen)
        if self.parts[0].labels is not None:
            labels = [
                c.labels[i] for c, i in zip(self.parts, chosen, strict=True) if c.labels is not None
            ]
            self.labels = np.concatenate(labels)
        self.classes, self.note = self.parts[0].classes, self.parts[0].note

    def __len__(self) -> int:
        return len(self.indices)

    def _find(self, index: int) -> tuple[Collection, int]:
        return self.parts[self.owners[index]], int(self.indices[index])

    @override
    def name(self, index: int) -> str:
        owner, number = self._find(index)
        return owner.name(number)

    @override
    def key(self, index: int) -> str:
        owner, number = self._find(index)
        return owner.key(number)

    @override
    def read(self, index: int) -> np.ndarray:
        owner, number = self._find(index)
        return owner.read(number)

    @override
    def info(self, index: int) -> ImageInfo:
        owner, number = self._find(index)
        return owner.info(number)

    @override
    def changed(self, index: int) -> None:
        owner, number = self._find(index)
        owner.changed(number)


class ItemCollection(Collection):
    """The images in the items of a map-style data set.

    Args:
        items: Anything with a length and items by number.
        title: For messages.
        column: Where an item is a dict, its image; else it is the item, or the first of a tuple.
    """

    def __init__(self, items: Any, title: str, column: str | None = None) -> None:
        self.items, self.title, self.column = items, title, column

    def __len__(self) -> int:
        return len(self.items)

    @override
    def name(self, index: int) -> str:
        return f"{self.title}[{index}]"

    @override
    def read(self, index: int) -> np.ndarray:
        item = self.items[index]
        if self.column is not None:
            item = item[self.column]
        elif isinstance(item, tuple):
            item = item[0]
        return image_array(item, self.name(index))


def torchvision_set(
    name: str, root: Path, *, held_out: bool = False, class_labels: bool = False
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
        raise UserError(f"source {title}: torchvision has no such data set; try {close}")
    make = getattr(datasets, name)
    known = inspect.signature(make).parameters
    arguments: dict[str, Any] = {"root": str(root), "download": True}
    arguments = {key: value for key, value in arguments.items() if key in known}
    cure = f"put its files into {root} or give their folder as root"
    with named_faults(title, cure), one_at_a_time(root):
        if "train" in known:
            items = make(train=not held_out, **arguments)
        elif "split" in known:
            splits = ("test", "val") if held_out else ("train", "trainval")
            items = _first_split(make, splits, arguments)
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


def huggingface_set(
    name: str, root: str | None = None, *, held_out: bool = False, class_labels: bool = False
) -> ItemCollection | None:
    """A data set of the Hugging Face hub: its "train" split, or its "test" or "validation" one.

    Only the columns of the images and the classes are read from its Arrow files.

    Args:
        name: As `datasets.load_dataset` takes it, perhaps with options behind: config (the set's
            configuration), split, held_out (the split for validation), image and label (columns),
            as in "cifar100?label=fine_label&held_out=test".
        root: Its cache folder, or None for the library's own.
        held_out: The test (or else validation) split.
        class_labels: Take the classes from its ClassLabel column.

    Returns:
        None when held_out is asked of a set that has no such split.

    Raises:
        UserError: The extra is not installed, no such set, or no column of images or classes.
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
    if class_labels and "label" not in columns:
        raise UserError(
            f"source {title}: has no column of classes, or several; name it with ?label=, or set "
            "class_labels to false"
        )
    collection = ItemCollection(rows.select_columns([columns["image"]]), title, columns["image"])
    if class_labels:
        labels = rows.select_columns([columns["label"]])
        collection.labels = _class_numbers(list(labels[columns["label"]]), title)
        kind = rows.features[columns["label"]]
        numbers = range(int(collection.labels.max()) + 1)
        collection.classes = tuple(map(str, getattr(kind, "names", numbers)))
    return collection


def find_columns(
    features: Mapping[str, Any], given: Mapping[str, str], title: str
) -> dict[str, str]:
    """Columns of a Hugging Face set: "image", and "label" where there is one.

    Those given; else those of their own name or, of that kind (Image, ClassLabel), the only one.

    Raises:
        UserError: No such column, or it is not clear which holds the image.
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


def fashion_mnist(root: str | None, train: bool, cache: Path) -> tuple[np.ndarray, np.ndarray]:
    """Images and classes of a split of Fashion-MNIST (Xiao 2017): 60,000 or 10,000 of 28 x 28.

    Args:
        root: Folder with the four idx files, gzipped or not, or with torchvision's
            FashionMNIST/raw; None downloads to `cache` by torchvision, unless they are there.
        train: The training split, else the test split.
        cache: Folder of downloads.

    Returns:
        `[N, 28, 28, 1]` uint8 and `[N]` int64.

    Raises:
        UserError: No files and no network, or a damaged file.
    """
    names = [
        f"{'train' if train else 't10k'}-{kind}-ubyte" for kind in ("images-idx3", "labels-idx1")
    ]
    place = Path(root) if root else cache
    cure = "give a folder with the four idx files as root"
    if root is None:
        from torchvision.datasets import FashionMNIST

        with named_faults("builtin:fashion-mnist", cure), one_at_a_time(cache):
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
    return images[..., None], labels.astype(np.int64)


def read_idx(path: Path) -> np.ndarray:
    """An array of bytes in LeCun's idx format, gzipped or not.

    Raises:
        UserError: Truncated or not such a file.
    """
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
def one_at_a_time(place: Path) -> Iterator[None]:
    """Within, no other process of this user and host makes `place`; those that wait find it made.

    The lock lies among the temporary files, so `place` need not be writable, nor exist.
    """
    said = f"{getpass.getuser()} {place.resolve()}"
    key = hashlib.blake2b(said.encode("utf-8", "surrogateescape"), digest_size=8).hexdigest()
    with FileLock(Path(tempfile.gettempdir(), f"ddpm_unet-{key}.lock")):
        yield


@contextmanager
def named_faults(title: str, cure: str) -> Iterator[None]:
    """Turn whatever opening a data set raises into one line that names it."""
    try:
        yield
    except Exception as error:  # downloads, parsers and file systems each have their own
        cause = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise UserError(f"source {title}: cannot be opened ({cause}); {cure}") from error


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
            f"source {title}: has no class number for each image; set class_labels to false"
        )
    return labels.astype(np.int64)
