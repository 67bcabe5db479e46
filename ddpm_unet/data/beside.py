"""Files beside the pictures, found by their names: condition pictures, sequences, captions."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from typing_extensions import override

from ddpm_unet.config import ImageDataConfig
from ddpm_unet.data.collection import Collection
from ddpm_unet.data.folder import split_ending, visible_files
from ddpm_unet.data.images import EXTENSIONS, ImageInfo, image_info, read_image
from ddpm_unet.data.planes import class_indices
from ddpm_unet.data.sequences import ENDINGS as SEQUENCES
from ddpm_unet.data.sequences import Sequences, read_sequence
from ddpm_unet.data.text import encode_texts, read_caption
from ddpm_unet.data.volumes import VOLUME_EXTENSIONS, read_volume, volume_info
from ddpm_unet.errors import UserError


def files_beside(
    pictures: Collection, root: str, endings: frozenset[str], setting: str
) -> list[str]:
    """The file of each picture: that of its path below root, but for the ending.

    Args:
        pictures: Of a folder; `key` gives their paths.
        root: The files' folder.
        endings: Theirs, such as ".npy"; others are passed over.
        setting: For messages.

    Raises:
        UserError: No such folder, two files for a picture, or none.
    """
    if not Path(root).is_dir():
        raise UserError(f"data.{setting} {root}: no such folder")
    found: dict[str, str] = {}
    for path in visible_files(Path(root)):
        stem, ending = split_ending(path)
        if ending.lower() in endings:
            if stem in found:
                raise UserError(f"{Path(root, path)}: has the name of {found[stem]}; keep one")
            found[stem] = str(Path(root, path))
    paths = []
    for index in range(len(pictures)):
        stem = split_ending(pictures.key(index))[0]
        if stem not in found:
            kinds = " or ".join(sorted(endings)) if len(endings) < 4 else "an image"
            raise UserError(
                f"{pictures.name(index)}: has no {setting}; add {Path(root, stem)} as {kinds}, "
                "or move the picture away"
            )
        paths.append(found[stem])
    return paths


class ConditionPictures(Collection):
    """The condition picture of each picture, as large as it; class masks are int16.

    A condition that is a whole number of times smaller is enlarged by repeating its pixels.
    """

    def __init__(self, pictures: Collection, config: ImageDataConfig) -> None:
        """Find the files, and open none.

        Args:
            pictures: Of a folder.
            config: The data settings, with a folder as `condition`.

        Raises:
            UserError: As `files_beside`.
        """
        self.pictures, self.config = pictures, config
        endings = VOLUME_EXTENSIONS if config.dims == 3 else EXTENSIONS
        self.paths = files_beside(pictures, str(config.condition), endings, "condition")

    def __len__(self) -> int:
        return len(self.paths)

    @override
    def name(self, index: int) -> str:
        return self.paths[index]

    @override
    def read(self, index: int) -> np.ndarray:
        config, path = self.config, self.paths[index]
        classes = config.condition_classes
        read = read_volume if config.dims == 3 else read_image
        picture = read(path, config.max_pixels, classes is not None)
        if classes is not None:
            picture = class_indices(picture, classes, path)
        factor = self._factor(index, picture.shape[:-1])
        for axis in range(picture.ndim - 1):
            picture = picture.repeat(factor, axis) if factor > 1 else picture
        return picture

    @override
    def info(self, index: int) -> ImageInfo:
        look = volume_info if self.config.dims == 3 else image_info
        info = look(self.paths[index], self.config.max_pixels)
        factor = self._factor(index, info.size)
        *depth, height, width = (factor * length for length in info.size)
        if self.config.condition_classes is None:
            return ImageInfo(height, width, info.channels, info.dtype, *depth)
        return ImageInfo(height, width, 1, np.dtype(np.int16), *depth)

    def _factor(self, index: int, size: tuple[int, ...]) -> int:
        wanted = self.pictures.info(index).size
        factor = wanted[0] // size[0]
        if tuple(factor * length for length in size) != wanted:
            found, picture = (" x ".join(map(str, s[::-1])) for s in (size, wanted))
            raise UserError(
                f"{self.paths[index]}: is {found} pixels, its picture {picture}; make it as large, "
                "or a whole number of times smaller"
            )
        return factor


def condition_settings(config: ImageDataConfig) -> ImageDataConfig:
    """The settings by which condition pictures are fitted: those of the pictures but for values."""
    return replace(config, channels=None, value_range=None)


def open_context(pictures: Collection, config: ImageDataConfig) -> Sequences | None:
    """The sequence of each picture, read now or, of captions, encoded now; None for none.

    Raises:
        UserError: A picture without one, or a file at fault.
    """
    if config.context is None:
        return None
    if config.text_encoder is None:
        paths = files_beside(pictures, config.context, SEQUENCES, "context")
        return Sequences([read_sequence(path) for path in paths], paths)
    paths = files_beside(pictures, config.context, frozenset((".txt",)), "context")
    captions = [read_caption(path) for path in paths]
    return Sequences(encode_texts(config.text_encoder, captions, paths), paths)
