"""A network of pixels as a function of images of any size: classes, probabilities, objects."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property, partial, reduce
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ddpm_unet.config import PredictConfig, ValueRange
from ddpm_unet.data.images import ImageInfo, image_array
from ddpm_unet.data.pixels import check_channels
from ddpm_unet.data.points import PointSet, from_grid, read_points, to_grid
from ddpm_unet.data.preprocessing import Preprocessing
from ddpm_unet.data.reading import (
    files_of,
    image_info,
    is_bio,
    is_nifti,
    is_tiff,
    read_image,
    volume_space,
)
from ddpm_unet.data.volumes import Space, in_mm
from ddpm_unet.errors import UserError
from ddpm_unet.inference.objects import ObjectRow, find_objects, label_objects
from ddpm_unet.inference.overlay import displayable
from ddpm_unet.inference.readers import Prepared, lengths_of, open_planes
from ddpm_unet.inference.tiles import Predict, Rows, Tiling, predict_scaled, predict_tiles
from ddpm_unet.models.classic import ClassicUNet
from ddpm_unet.models.segmenter import Segmenter, load_segmentation_model

SegmentationModel = ClassicUNet | Segmenter
DEFAULTS = {2: PredictConfig(256, 32, 16), 3: PredictConfig(96, 16, 8)}
"""Least tiles of images and of volumes."""
PIXELS = {2: 768**2, 3: 96**3}
"""How many pixels a network may get at once where the tile is not given."""
Part = tuple[int, int, np.ndarray, np.ndarray]
"""First plane and row, pixels `[planes, rows, W, C]` to show, values `[planes, K, rows, W]`."""


def tta(predict: Predict) -> Predict:
    """The mean prediction over the 8 flips and quarter turns of the last two axes.

    For microscopy and the like, where up is not special; eight times the work.
    """

    def variants(tiles: Tensor) -> Iterator[Tensor]:
        for flipped in (False, True):
            for quarters in range(4):
                turned = torch.rot90(tiles.flip(-1) if flipped else tiles, quarters, (-2, -1))
                back = torch.rot90(predict(turned).float(), -quarters, (-2, -1))
                yield back.flip(-1) if flipped else back

    return lambda tiles: reduce(torch.add, variants(tiles)) / 8


def class_probabilities(model: Any, average: bool = False, objects: bool = False) -> Predict:
    """Tiles `[B, C, *tile]` in [-1, 1] to probabilities `float32 [B, K, *tile]` of every class.

    Of one output channel two classes are made; `average` is of `tta`. With `objects` the last
    output is no class: a further plane, the probability of the interior of an object.
    """

    def predict(tiles: Tensor) -> Tensor:
        logits = model(tiles).float()
        if objects:
            return torch.cat([logits[:, :-1].softmax(dim=1), logits[:, -1:].sigmoid()], dim=1)
        if logits.shape[1] == 1:
            logits = torch.cat([torch.zeros_like(logits), logits], dim=1)
        return logits.softmax(dim=1)

    return tta(predict) if average else predict


def add_residual(output: Tensor, images: Tensor, residual: bool = True) -> Tensor:
    """The prediction `[B, K, *space]` of a regression head whose output is to be added (residual).

    It is added to the first K channels of the images `[B, C, *space]`, of which an output without
    padding covers the middle.
    """
    if not residual:
        return output
    base = images[:, : output.shape[1]]
    for axis in range(2, images.ndim):
        lost = images.shape[axis] - output.shape[axis]
        base = base.narrow(axis, lost // 2, output.shape[axis])
    return output + base


def regressed_values(model: Any, residual: bool = False, average: bool = False) -> Predict:
    """Tiles `[B, C, *tile]` in [-1, 1] to values `float32 [B, K, *tile]`, about in [-1, 1].

    `residual` is of `add_residual`, `average` of `tta`.
    """

    def predict(tiles: Tensor) -> Tensor:
        return add_residual(model(tiles).float(), tiles.float(), residual)

    return tta(predict) if average else predict


def tiling(model: SegmentationModel, config: PredictConfig) -> Tiling:
    """Tiles that suit the network: exact seams without padding, blended ones with it.

    Args:
        model: Gives the margin that is lost or not trusted.
        config: Gives the tile's size, which grows to the next one that the network takes, and
            the overlap and margin, which a network without padding has no use for. Without a size
            the tiles are those with which the least is computed in bounded memory.

    Raises:
        UserError: Tiles that are all margin and overlap.
    """
    default = DEFAULTS[model.dims]
    tile, overlap, margin = (
        getattr(default if getattr(config, name) is None else config, name)
        for name in ("tile", "overlap", "margin")
    )
    pixels = PIXELS[model.dims] if config.tile is None else 0
    if model.margin:
        tile = model.valid_size(max(tile, 2 * model.margin + model.step))
        return Tiling(tile, model.margin, overlap=0, step=model.step, pixels=pixels)
    step = model.factor if model.dims == 3 else 32
    least = 2 * max(0, margin) + max(0, overlap) + step
    if min(overlap, margin) < 0 or tile < least:
        raise UserError(
            f"tiles of {tile} pixels that share {overlap}, with a margin of {margin}: give an "
            f"overlap and a margin of 0 or more, and then a tile of at least {least}"
        )
    return Tiling(tile, margin, overlap, step, pixels=pixels)


@dataclass(frozen=True)
class Prediction:
    """What a network makes of one image.

    Args:
        probabilities: Of every class at every pixel, `float32 [K, *space]`; of a network that
            regresses, the values in units of its targets.
        class_names: One per class, or empty.
        image: The pixels that were predicted, `[*space, C]`.
        regression: It holds values, no probabilities.
        interior: Probability of the interior of an object, `float32 [*space]`, of a network that
            learned it.
        label: `label_objects`, told which objects are small and which interiors sure.
    """

    probabilities: np.ndarray = field(repr=False)
    class_names: Sequence[str] = ()
    image: np.ndarray | None = field(default=None, repr=False)
    regression: bool = False
    interior: np.ndarray | None = field(default=None, repr=False)
    label: Callable[..., np.ndarray] = field(default=label_objects, repr=False)

    @cached_property
    def mask(self) -> np.ndarray:
        """The likeliest class of every pixel, `int64 [*space]`.

        Raises:
            UserError: The network regresses.
        """
        if self.regression:
            raise UserError("mask: the model regresses images and knows no classes; take values")
        return self.probabilities.argmax(axis=0)

    @property
    def values(self) -> np.ndarray:
        """The same array under the name that suits regression, `float32 [K, *space]`."""
        return self.probabilities

    @cached_property
    def labels(self) -> np.ndarray:
        """The number of the object at every pixel, `int32 [*space]`; see `label_objects`."""
        return self.label(self.mask, self.interior)

    @cached_property
    def objects(self) -> list[ObjectRow]:
        """A row for each of the `labels`; see `find_objects`."""
        return find_objects(self.labels, self.mask, self.image, self.class_names)


class Predictor:
    """A segmentation or regression network that takes images of any size.

    Images are covered by tiles, so memory is bounded; see `tiles`.

    Example:
        >>> import numpy as np
        >>> from ddpm_unet import Predictor, Segmenter, UNet
        >>> unet = UNet(in_channels=3, out_channels=3, block_out_channels=(8,),
        ...             layers_per_block=1, norm_num_groups=4)
        >>> predictor = Predictor(Segmenter(unet, num_classes=2).eval())
        >>> result = predictor(np.zeros((20, 30, 3), np.uint8))
        >>> result.mask.shape, result.probabilities.shape
        ((20, 30), (2, 20, 30))

    Args:
        model: In evaluation mode, on its device.
        preprocessing: What it must know of its training's images; None takes them as they are.
        tile: Pixels of a tile's side; None for the tiles of least work.
        overlap: Pixels that neighbouring tiles share; None for 32, of volumes 16.
        batch_size: Tiles per call of the network.
        tta: Average over flips and quarter turns.
        value_range: Pixel values of black and white here, where they are not the training's.
        spacing: Millimetres from pixel to pixel along (depth,) height and width here, or one
            number, instead of what the files say (of NIfTI, where they do not). Images of another
            spacing than the training's are resampled to it, and the results back; where neither
            says it, it is the training's.
        max_pixels: Refuse to decode more than so many million pixels at once.
        stream_above: Million pixels from which on a TIFF is read row by row.
    """

    def __init__(
        self,
        model: SegmentationModel,
        preprocessing: Preprocessing | None = None,
        *,
        tile: int | None = None,
        overlap: int | None = None,
        batch_size: int = 4,
        tta: bool = False,
        value_range: ValueRange = None,
        spacing: float | Sequence[float] | None = None,
        max_pixels: float = 200.0,
        stream_above: float = 16.0,
    ) -> None:
        self.model, self.dims = model, model.dims
        self.preprocessing = preprocessing or Preprocessing(model.in_channels)
        if value_range is not None:
            self.preprocessing = replace(self.preprocessing, value_range=value_range, dtype=None)
        self.spacing: tuple[float, ...] | None = None
        if spacing is not None:
            if self.preprocessing.spacing is None:
                raise UserError(
                    "spacing: the model does not know that of its training; leave it out, or train "
                    "with data.spacing"
                )
            given = [spacing] * self.dims if isinstance(spacing, int | float) else spacing
            self.spacing = tuple(map(float, given))
            if len(self.spacing) != self.dims or not min(self.spacing) > 0:
                raise UserError(f"spacing {spacing}: give 1 or {self.dims} numbers above 0")
        self.batch_size, self.max_pixels, self.stream_above = batch_size, max_pixels, stream_above
        self.tiling = tiling(model, PredictConfig(tile, overlap))
        self.tta = tta
        self.network: Any = model
        """Computes in place of the model, for instance when compiled."""

    @classmethod
    def from_pretrained(
        cls,
        folder: str | PathLike[str],
        *,
        levels: int | None = None,
        device: torch.device | str = "cpu",
        **options: Any,
    ) -> Predictor:
        """Read the folder that a run or `save_pretrained` wrote.

        Args:
            folder: The folder.
            levels: Of a U-Net++, use so many of the finest levels only.
            device: Where to predict.
            options: Keyword arguments of the class.

        Raises:
            UserError: The folder has no such model; names what is at fault.
        """
        model = load_segmentation_model(folder, levels).to(device)
        return cls(model, Preprocessing.read(Path(folder), model.in_channels), **options)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.model.parameters()).device

    @property
    def num_classes(self) -> int:
        """Classes; of regression, channels of the targets."""
        own = self.preprocessing
        if own.targets:
            return own.targets.channels
        return max(2, self.model.config.num_classes - (own.objects is not None))

    def _label(self, spacing: tuple[float, ...] | None, name: str) -> Callable[..., np.ndarray]:
        """`label_objects`, where objects have half the pixels of the training's small ones."""
        own = self.preprocessing
        scales = np.broadcast_to(own.scales(spacing, name), self.dims)
        least = (own.objects or 0) / 2 / float(np.prod(scales))
        return partial(label_objects, least=least, sure=own.sure)

    @property
    def class_names(self) -> tuple[str, ...]:
        """One per class, or empty."""
        return tuple(self.model.config.class_names[: self.num_classes])

    @property
    def predict(self) -> Predict:
        """Tiles `[B, C, *tile]` to probabilities (and interiors), or to values in [-1, 1]."""
        own = self.preprocessing
        if own.targets:
            return regressed_values(self.network, own.residual, self.tta)
        return class_probabilities(self.network, self.tta, own.objects is not None)

    def __call__(self, image: Any) -> Prediction:
        """Predict one image or volume.

        Args:
            image: A path, a Pillow image, or an array or tensor of uint8, uint16 or float32 pixels:
                `[H, W]`, `[C, H, W]` or `[H, W, C]` (of volumes with D in front of H), which of the
                two is known by the network's channels.

        Raises:
            UserError: It cannot be read, has other channels or a depth that is not known; an array
                whose channels could be either axis.
        """
        own, spacing = self.preprocessing, self.spacing_of(image)
        pixels, name = self._pixels(image)
        self._check_values([pixels], name)
        with torch.inference_mode():
            found = [band.cpu() for band in self.bands(pixels, name, spacing)]
        values, interior = torch.cat(found, dim=1).numpy(), None
        if own.targets:
            values = own.targets.to_values(values)
        if own.objects is not None:
            values, interior = values[:-1], values[-1]
        label, regresses = self._label(spacing, name), own.targets is not None
        return Prediction(values, self.class_names, pixels, regresses, interior, label)

    def spacing_of(self, image: Any) -> tuple[float, ...] | None:
        """Of a NIfTI file its own; else what was said of all, or what the file says."""
        if not isinstance(image, str | PathLike):
            return self.spacing
        if self.spacing is not None and not is_nifti(str(image)):
            return self.spacing
        return self._info(Path(image)).along(self.dims)

    def _info(self, path: Path) -> ImageInfo:
        """Of a volume, or of a stack, of which any size can be read; else of an image."""
        stack = self.dims == 3 or is_bio(path) or is_tiff(path)
        most = math.inf if stack and self.dims == 2 else self.max_pixels
        chosen = self.preprocessing.channel_names
        return image_info(path, 3 if stack else 2, max_pixels=most, channels=chosen)

    def _pixels(self, image: Any) -> tuple[np.ndarray, str]:
        """`[*space, C]` and a name for messages."""
        if isinstance(image, str | PathLike):
            path, chosen = Path(image), self.preprocessing.channel_names
            self.look(path)
            return read_image(
                path, self.dims, max_pixels=self.max_pixels, channels=chosen
            ), path.name
        if not isinstance(image, Tensor | np.ndarray):
            return image_array(image, "the image"), "the image"
        array = image.detach().cpu().numpy() if isinstance(image, Tensor) else image
        if array.dtype == np.float64:
            array = array.astype(np.float32)
        if array.dtype.name not in ("uint8", "uint16", "float32"):
            raise UserError(f"the array is {array.dtype}; give uint8, uint16 or float32")
        if array.ndim == self.dims:
            return array[..., None], "the array"
        if array.ndim != self.dims + 1:
            raise UserError(
                f"the array has shape {array.shape}; give one image, [H, W], [C, H, W] or "
                "[H, W, C]" + ", with a depth in front of H" * (self.dims == 3)
            )
        wanted = self.preprocessing.channels
        either = {axis for axis in (0, -1) if array.shape[axis] == wanted}
        if not either and wanted in (1, 3, 4):
            either = {axis for axis in (0, -1) if array.shape[axis] in (1, 2, 3, 4)}
        if len(either) != 1:
            fault = "could have its channels first or last" if either else "has other channels"
            raise UserError(
                f"the array of shape {array.shape} {fault}, the model takes {wanted}; give "
                f"[{wanted}, {'D, ' * (self.dims == 3)}H, W], larger than {wanted} pixels"
            )
        return np.moveaxis(array, either.pop(), -1), "the array"

    def bands(
        self, source: Rows, name: str, spacing: tuple[float, ...] | None = None
    ) -> Iterator[Tensor]:
        """Predictions `float32 [K, rows, W]` of an image from top to bottom; see `predict_scaled`.

        `source` is `[H, W, C]` or `[D, H, W, C]`.
        """
        own = self.preprocessing
        rows = Prepared(own.whole(source), lambda pixels: own.to_unit(pixels, name), own.channels)
        return predict_scaled(
            self.predict, rows, own.scales(spacing, name), self.tiling, self.batch_size, self.device
        )

    # Files

    def look(self, path: Path) -> None:
        """Decode nothing; raise what a file's header shows to be wrong with it.

        Raises:
            UserError: See `open`.
        """
        own = self.preprocessing
        if own.voxel:
            read_points(path)
            return
        if self.dims == 3:
            _check_volume(files_of(path)[0])
        info = self._info(path)
        check_channels(info, own.channels, path.name)
        own.check_depth(info.dtype, math.inf, path.name)
        own.scales(self.spacing_of(path), path.name)

    def changes(self, path: Path) -> str:
        """How a file is unlike the training's, and what is done about it, in a few words."""
        own = self.preprocessing
        if own.voxel:
            return ""
        here, info, found = self.spacing_of(path), self._info(path), []
        if info.channels != own.channels:
            found.append(f"{info.channels} channel{'s' * (info.channels > 1)} made {own.channels}")
        if own.scales(here, path.name) != own.scale:
            found.append(f"pixels of {in_mm(here or ())}, resampled to {in_mm(own.spacing or ())}")
        return f" ({'; '.join(found)})" if found else ""

    @contextmanager
    def open(self, path: Path) -> Iterator[OpenFile]:
        """A file of one or more images, or a volume, to be predicted part by part.

        Raises:
            UserError: It cannot be read, or with a network of volumes is none.
        """
        if self.dims == 3:
            _check_volume(files_of(path)[0])
        own, spacing, name = self.preprocessing, self.spacing_of(path), path.name
        first = files_of(path)[0]
        about: dict[str, Any] = {
            "tiff": is_tiff(first) or is_bio(path),
            "interior": own.objects is not None,
            "spacing": spacing or lengths_of(first),
            "label": self._label(spacing, name),
        }
        if self.dims == 3:
            chosen = own.channel_names
            volume = read_image(path, 3, max_pixels=self.max_pixels, channels=chosen)
            self._check_values([volume], name)
            parts, space = self._volume(volume, name, spacing), volume_space(path)
            yield OpenFile(volume.shape, parts, [volume], space, **about)
            return
        streamed = math.inf if own.value_range == "percentiles" else self.stream_above
        with open_planes(path, self.max_pixels, streamed, own.channel_names) as planes:
            self._check_values(planes, name)
            arrays = [plane for plane in planes if isinstance(plane, np.ndarray)]
            images = arrays if len(arrays) == len(planes) else None
            parts = self._planes(planes, name, spacing)
            yield OpenFile((len(planes), *planes[0].shape), parts, images, **about)

    def _check_values(self, images: Sequence[Any], name: str) -> None:
        """Refuse a depth that is not known; warn of values far from the training's.

        Of images that are not read whole the largest value is not known.
        """
        own, dtype = self.preprocessing, images[0].dtype
        whole = all(isinstance(image, np.ndarray) and image.size for image in images)
        highest = max(float(image.max()) for image in images) if whole else None
        own.check_depth(dtype, highest, name)
        if own.dtype == dtype.name and (remark := own.unlike(highest)):
            warnings.warn(f"{name}: {remark}", stacklevel=3)

    def _planes(
        self, planes: Sequence[Rows], name: str, spacing: tuple[float, ...] | None
    ) -> Iterator[Part]:
        for number, plane in enumerate(planes):
            row = 0
            for band in self.bands(plane, name, spacing):
                rows = band.shape[1]
                pixels = np.asarray(plane[row : row + rows])[None]
                yield number, row, pixels, band.cpu().numpy()[None]
                row += rows

    def _volume(
        self, volume: np.ndarray, name: str, spacing: tuple[float, ...] | None
    ) -> Iterator[Part]:
        plane, shown = 0, displayable(volume)
        for band in self.bands(volume, name, spacing):
            planes = band.shape[1]
            values = band.cpu().numpy().swapaxes(0, 1)
            yield plane, 0, shown[plane : plane + planes], values
            plane += planes

    def points(self, path: Path) -> tuple[PointSet, np.ndarray]:
        """The points of a file, and the probabilities of their classes `float32 [N, K]`."""
        own, points = self.preprocessing, read_points(path)
        assert own.voxel, "the model is of points"
        grid = to_grid(points, own.voxel)
        image = own.to_unit(own.whole(grid), path.name)
        planes = torch.from_numpy(np.moveaxis(image, -1, 0))
        values = predict_tiles(self.predict, planes, self.tiling, self.batch_size, self.device)
        return points, from_grid(values.cpu().numpy(), points, own.voxel)


@dataclass(frozen=True)
class OpenFile:
    """A file that is being predicted."""

    shape: tuple[int, ...]
    """Pages or planes, height, width, channels."""
    parts: Iterator[Part]
    """From top to bottom."""
    images: Sequence[np.ndarray] | None
    """Pages `[H, W, C]`, or the volume `[D, H, W, C]`; None where it is read row by row."""
    space: Space | None = None
    """Of NIfTI."""
    tiff: bool = False
    interior: bool = False
    """After the classes, the values are of interiors."""
    spacing: tuple[float, ...] | None = None
    """Millimetres from pixel to pixel along (planes,) rows and columns, where the file says."""
    label: Callable[..., np.ndarray] = label_objects
    """Gives objects their numbers."""


def _check_volume(path: str | Path) -> None:
    if not (is_tiff(path) or is_nifti(path) or is_bio(path)):
        raise UserError(
            f"{path}: is no volume; give NIfTI, OME-Zarr, CZI, ND2 or a TIFF of a page per plane"
        )
