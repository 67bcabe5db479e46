"""What a model must know of the images it was trained on, kept in its folder."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np

from ddpm_unet.config import ImageDataConfig, PairDataConfig, SegmentConfig, ValueRange
from ddpm_unet.config.data import check_data_settings
from ddpm_unet.config.reading import from_plain, read_json
from ddpm_unet.data.folder import with_dims
from ddpm_unet.data.pixels import convert_channels, normalised, to_unit
from ddpm_unet.data.reading import split_ending
from ddpm_unet.data.volumes import alike, in_mm
from ddpm_unet.errors import UserError
from ddpm_unet.files import replace_json

FILE, EARLIER_FILE = "preprocessing.json", "preparation.json"
FILES = "prep*.json"
Range = tuple[float, float]
PixelType = Literal["uint8", "uint16", "float32"]


@dataclass(frozen=True)
class Targets:
    """What all images to predict have in common: channels, type of their files' pixels, and the
    pixel values that the network gives as -1 and 1.
    """

    channels: int
    dtype: PixelType
    low: float
    high: float

    @classmethod
    def of(cls, image: np.ndarray, target_range: Range | None, name: str) -> Targets:
        """Those of an image `[..., C]`; no range is the full one of its type (floats: 0 to 1)."""
        if image.dtype.kind == "f":
            to_unit(image, target_range, name, "data.target_range")
            full = 1.0
        else:
            full = float(np.iinfo(image.dtype).max)
        low, high = target_range or (0.0, full)
        dtype = cast(PixelType, image.dtype.name)
        return cls(image.shape[-1], dtype, float(low), float(high))

    def __str__(self) -> str:
        return f"{self.channels} channel{'s' * (self.channels > 1)} of {self.dtype}"

    def to_unit(self, pixels: np.ndarray) -> np.ndarray:
        """Pixel values to what the network gives, float32 in [-1, 1], clipped to it."""
        return to_unit(pixels, (self.low, self.high))

    def to_values(self, unit: np.ndarray) -> np.ndarray:
        """What the network gives to pixel values, float32; it may go beyond the range a little."""
        return (unit + 1) * np.float32((self.high - self.low) / 2) + np.float32(self.low)

    def to_pixels(self, unit: np.ndarray) -> np.ndarray:
        """What the network gives to pixels of the targets' type: clipped to it, and rounded."""
        values = self.to_values(unit)
        if self.dtype == "float32":
            return values
        return values.round().clip(0, np.iinfo(self.dtype).max).astype(self.dtype)


def target_settings(data: PairDataConfig) -> PairDataConfig:
    """The settings of pairs for images to predict, whose inputs keep their intensities."""
    if data.mask_kind not in ("auto", "images"):
        raise UserError(f'data.mask_kind {data.mask_kind}: is for task "segment"; leave it out')
    augment = replace(data.augment, intensity=bool(data.augment.intensity))
    return replace(data, mask_kind="images", augment=augment)


def labelled_data(config: SegmentConfig) -> PairDataConfig:
    """The settings of the labelled images, as task and files complete them."""
    data = target_settings(config.data) if config.task == "regress" else config.data
    return with_dims(data, data.images)


@dataclass(frozen=True)
class Preprocessing:
    """From the pixels of files to what a network sees, and back."""

    channels: int
    """Channels of the network's images."""
    scale: float = 1.0
    """Factor by which images were resampled."""
    value_range: ValueRange = None
    """Pixel values of -1 and 1, "percentiles" of each image; None: the full range of the type."""
    voxel: float | None = None
    """Side of the cells in which points were put, where the network was trained on points."""
    targets: Targets | None = None
    """Of a network that regresses images, what these are; None for classes."""
    residual: bool = False
    """Such a network gives what is to be added to the first channels of its input."""
    dtype: PixelType | None = None
    """Type of the training's pixels; None where it is not known."""
    spacing: tuple[float, ...] | None = None
    """Millimetres from voxel to voxel along (depth,) height and width; None if unknown."""
    objects: int | None = None
    """Where the last output is of objects' interiors: pixels of the training's small objects."""
    channel_names: tuple[str, ...] = ()
    """Channels that were chosen of the files' by name or number; empty for all."""
    highest: float | None = None
    """The largest pixel value in training; None where it is not known."""
    sure: float | None = None
    """With `objects`, least probability of an interior, as validation images chose it, if any."""

    channel_files: tuple[str, ...] = ()
    """Where images lay in a file for each channel, what ends their names: 0000, 0001."""

    def write(self, folder: Path) -> None:
        """Keep it in a model's folder."""
        replace_json(folder / FILE, asdict(self))

    @classmethod
    def read(cls, folder: Path, channels: int) -> Preprocessing:
        """That of a model's folder; without one, images of so many channels as they are."""
        path = next((folder / n for n in (FILE, EARLIER_FILE) if (folder / n).is_file()), None)
        if path is None:
            return cls(channels)
        found = from_plain(cls, read_json(path), path)
        try:
            check_data_settings(ImageDataConfig(scale=found.scale, value_range=found.value_range))
        except UserError as error:
            raise UserError(f"{path}: {error}") from error
        return found

    def whole(self, image: Any) -> Any:
        """A whole image or volume `[..., C]`, ready for `to_unit`, which may see parts of it."""
        return normalised(image, self.value_range)

    def images(self, paths: Iterable[Path]) -> list[Path]:
        """The images in files, in order: case_{0000,0001}.png of all files of such channels."""
        found = dict[Path, None]()
        for path in paths:
            stem, ending = split_ending(path)
            before, _, number = stem.rpartition("_")
            if number in self.channel_files:
                path = Path(f"{before}_{{{','.join(self.channel_files)}}}{ending}")
            found[path] = None
        return list(found)

    def to_unit(self, pixels: np.ndarray, name: str) -> np.ndarray:
        """Pixels `[..., C]` of a file to `float32 [..., channels]` in [-1, 1]."""
        shape = pixels.shape
        flat = convert_channels(pixels.reshape(1, -1, shape[-1]), self.channels, name)
        unit = to_unit(flat, self.value_range, name, "value_range")
        return unit.reshape(*shape[:-1], self.channels)

    @property
    def made_dtype(self) -> np.dtype:
        """Of `to_pixels`; 8 bits where the training's units are not known."""
        known = self.dtype is not None and self.value_range != "percentiles"
        return np.dtype(self.dtype if known else "uint8")

    @property
    def made_spacing(self) -> tuple[float, ...] | None:
        """Millimetres from voxel to voxel of what is generated, which was resampled by `scale`."""
        return self.spacing and tuple(length / self.scale for length in self.spacing)

    def scales(self, spacing: tuple[float, ...] | None, name: str) -> float | tuple[float, ...]:
        """Factors that make an image of this spacing like those that the network was trained on.

        One for all axes where either spacing is not known, or both are the same.

        Raises:
            UserError: They differ by more than a factor of 16, as units do.
        """
        if spacing is None or self.spacing is None or alike(spacing, self.spacing):
            return self.scale
        factors = np.divide(spacing, self.spacing)
        if np.abs(np.log2(factors)).max() > 4:
            raise UserError(
                f"{name}: has pixels of {in_mm(spacing)}, those of the training are of "
                f"{in_mm(self.spacing)}; give spacing in millimetres"
            )
        return tuple((factors * self.scale).tolist())

    def to_pixels(self, unit: np.ndarray) -> np.ndarray:
        """What a network makes, in [-1, 1], as pixels of the training's type and range."""
        dtype = self.made_dtype
        if self.value_range == "percentiles":
            low, high = 0.0, 255.0
        elif self.value_range is None or self.dtype is None:
            low, high = 0.0, 1.0 if dtype.kind == "f" else float(np.iinfo(dtype).max)
        else:
            low, high = self.value_range
        of_type = Targets(self.channels, cast(PixelType, dtype.name), low, high)
        return of_type.to_pixels(np.clip(unit, -1, 1).astype(np.float32))

    def unlike(self, highest: float | None) -> str:
        """Whether an image's largest value is far from the training's, in words; else empty."""
        most = self.highest
        if not (highest and most) or self.value_range == "percentiles" or self.dtype is None:
            return ""
        if 0 < highest * 8 <= most or highest >= 8 * most > 0:
            return f"values up to {highest:g}, in training up to {most:g}; see value_range"
        return ""

    def check_depth(self, dtype: np.dtype, highest: float | None, name: str) -> None:
        """Refuse an image of another type than the training's, if its black is not known.

        Images of one full range are taken for those of another (0 to 255, 0 to 65535, 0.0 to 1.0).
        `highest` is the largest pixel value; None where it was not read whole.
        """
        if self.dtype in (None, dtype.name) or self.value_range == "percentiles":
            return
        if self.value_range is not None:
            low, high = self.value_range
            black_and_white = f"at {low:g} and {high:g}"
        elif dtype == np.uint16 and (highest is None or highest < 2**15):
            black_and_white = "at the ends of the type"
        else:
            return
        raise UserError(
            f"{name}: has pixels of {dtype}, the model was trained on {self.dtype} with black and "
            f"white {black_and_white}; convert it, or say what is black and white here with "
            "value_range"
        )
