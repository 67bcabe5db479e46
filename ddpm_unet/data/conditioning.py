"""What a denoiser is conditioned on: images to concatenate, sequences of vectors, captions.

They lie in sidecar files, found by the names of the images.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.numpy import load_file
from torch import Tensor
from typing_extensions import override

from ddpm_unet import randomness
from ddpm_unet.data.collection import Collection
from ddpm_unet.data.folder import visible_files
from ddpm_unet.data.images import ImageInfo
from ddpm_unet.data.pixels import shown_size, to_unit
from ddpm_unet.data.reading import IMAGE_EXTENSIONS, VOLUME_EXTENSIONS, Reading, split_ending
from ddpm_unet.data.stream import to_model_range
from ddpm_unet.errors import UserError, cause_of

SEQUENCE_EXTENSIONS = frozenset((".npy", ".safetensors"))
TENSOR = "context"
TEXTS_AT_ONCE = 64


@dataclass(frozen=True)
class ConcatCondition:
    """An image that is concatenated to the denoiser's input, float32.

    Kind "image" is grey or colour in [-1, 1]; "classes", a mask, one channel of 0 and 1 for each
    class; "lower", the image itself at a lower resolution, every pixel repeated (`factor` times);
    "hole", the image itself with a hole of 0, and a channel of -1 in the hole and 1 around.
    """

    kind: Literal["image", "classes", "lower", "hole"]
    channels: int
    factor: int = 1

    def of_batch(
        self, images: Tensor, condition: Tensor | None, seed: int, positions: randomness.Positions
    ) -> Tensor:
        """The channels of a training batch, `[B, channels, *space]`.

        Of images `float32 [B, C, *space]` in [-1, 1], or of what the batch carries beside them
        (kinds "image" and "classes"). Holes are functions of (seed, position).
        """
        if self.kind == "lower":
            return lowered(images, self.factor)
        if self.kind == "hole":
            known = known_around_holes(seed, positions, images.shape[2:])
            return with_hole(images, known.to(images.device))
        assert condition is not None, "the batch carries no condition"
        if self.kind == "classes":
            return one_hot(condition, self.channels)
        return to_model_range(condition)

    def of_file(self, path: str, dims: int = 2) -> Tensor:
        """The channels of an image or volume, `[channels, *space]`; transparency is a hole."""
        image = Reading(dims, keep_palette=self.kind == "classes").read(path)
        if self.kind == "classes":
            classes = class_indices(image, self.channels, path)
            return one_hot(torch.from_numpy(np.moveaxis(classes, -1, 0)[None]), self.channels)[0]
        if image.shape[-1] != self.channels:
            alpha = " (the last is its transparency, which is the hole)" * (self.kind == "hole")
            raise UserError(
                f"{path}: has {image.shape[-1]} channels, the model is conditioned on "
                f"{self.channels}{alpha}; save it so"
            )
        values = torch.from_numpy(np.moveaxis(to_unit(image, name=path), -1, 0).copy())
        if self.kind == "hole":
            return with_hole(values[None, :-1], values[None, -1:] >= 0)[0]
        return enlarged(values[None], self.factor)[0]

    def shown(self, values: Tensor, channels: int) -> Tensor:
        """Images `[B, channels, *space]` in [-1, 1] of the condition's channels, for people."""
        if self.kind == "classes":
            values = values.argmax(1, keepdim=True) * (2 / (self.channels - 1)) - 1
        elif self.kind == "hole":
            values = values[:, :-1]
        if values.shape[1] != channels:
            values = values[:, :1].expand(-1, channels, *values.shape[2:])
        return values


def lowered(images: Tensor, factor: int) -> Tensor:
    """Means of blocks of factor pixels a side, in the place of their pixels."""
    small = [length // factor for length in images.shape[2:]]
    return enlarged(F.interpolate(images, size=small, mode="area"), factor)


def enlarged(images: Tensor, factor: int) -> Tensor:
    """`[B, C, *space]` with every pixel repeated along every axis."""
    return F.interpolate(images, scale_factor=factor, mode="nearest") if factor > 1 else images


def with_hole(images: Tensor, known: Tensor) -> Tensor:
    """`[B, C + 1, *space]` of images, and where they are known, `bool [B, 1, *space]`."""
    return torch.cat([images * known, known * 2.0 - 1], dim=1)


def known_around_holes(seed: int, positions: randomness.Positions, space: Sequence[int]) -> Tensor:
    """False in a random box of an eighth to five eighths of each side, `bool [B, 1, *space]`."""
    hole = torch.ones(len(positions), 1, *[1] * len(space), dtype=torch.bool)
    for axis, length in enumerate(space):
        extent = randomness.integers(seed, f"hole/extent/{axis}", positions, length // 2 + 1)
        extent += max(1, length // 8)
        start = randomness.integers(seed, f"hole/start/{axis}", positions, length - extent + 1)
        place = np.arange(length)
        inside = (place >= start[:, None]) & (place < (start + extent)[:, None])
        shape = [len(inside), 1, *(length if i == axis else 1 for i in range(len(space)))]
        hole = hole & torch.from_numpy(inside).reshape(shape)
    return ~hole


def one_hot(classes: Tensor, count: int) -> Tensor:
    """`[B, 1, *space]` of class indices to `float32 [B, count, *space]` of 0 and 1."""
    numbers = torch.arange(count, device=classes.device)
    return (classes == numbers.reshape(-1, *[1] * (classes.ndim - 2))).float()


def class_indices(mask: np.ndarray, count: int, name: str) -> np.ndarray:
    """The classes of a mask file `[..., C]`, `int16 [..., 1]`, which lie in 0 to count - 1."""
    if mask.shape[-1] != 1 or mask.dtype.kind != "u":
        raise UserError(
            f"{name}: is no mask of class indices ({mask.dtype}, {mask.shape[-1]} channels); save "
            "it as a grey or palette image, or set condition_classes to null"
        )
    if mask.max() >= count:
        raise UserError(
            f"{name}: has the class {mask.max()}, but the {count} classes are numbered 0 to "
            f"{count - 1}; see condition_classes"
        )
    return mask.astype(np.int16)


def sidecar_files(
    images: Collection, root: str, endings: frozenset[str], setting: str
) -> list[str]:
    """The sidecar file of each image of a folder: that of its path below root, but for the ending.

    Files of other endings are passed over; messages call the folder by its setting.
    """
    if not Path(root).is_dir():
        raise UserError(f"{setting} {root}: no such folder")
    found: dict[str, str] = {}
    for path in visible_files(Path(root)):
        stem, ending = split_ending(path)
        if ending.lower() in endings:
            if stem in found:
                raise UserError(f"{Path(root, path)}: has the name of {found[stem]}; keep one")
            found[stem] = str(Path(root, path))
    stems = [split_ending(images.key(index))[0] for index in range(len(images))]
    if missing := [index for index, stem in enumerate(stems) if stem not in found]:
        kinds = " or ".join(sorted(endings)) if len(endings) < 4 else "an image"
        raise UserError(
            f"{images.name(missing[0])}: has no {setting}; add {Path(root, stems[missing[0]])} as "
            f"{kinds}, or move the image away"
        )
    return [found[stem] for stem in stems]


class ConditionImages(Collection):
    """The condition image of each image of a folder, as large as it; class masks are int16.

    A condition that is a whole number of times smaller is enlarged by repeating its pixels. Of
    masks `classes` is the number of classes; errors as `sidecar_files`, no file is opened yet.
    """

    def __init__(
        self, images: Collection, root: str, dims: int, classes: int | None, max_pixels: float
    ) -> None:
        self.images, self.num_classes = images, classes
        self.reading = Reading(dims, max_pixels, keep_palette=classes is not None)
        endings = VOLUME_EXTENSIONS if dims == 3 else IMAGE_EXTENSIONS
        self.paths = sidecar_files(images, root, endings, "condition")

    def __len__(self) -> int:
        return len(self.paths)

    @override
    def name(self, index: int) -> str:
        return self.paths[index]

    @override
    def read(self, index: int) -> np.ndarray:
        path = self.paths[index]
        image = self.reading.read(path)
        if self.num_classes is not None:
            image = class_indices(image, self.num_classes, path)
        factor = self._factor(index, image.shape[:-1])
        for axis in range(image.ndim - 1):
            image = image.repeat(factor, axis) if factor > 1 else image
        return image

    @override
    def _info(self, index: int) -> ImageInfo:
        info = self.reading.info(self.paths[index])
        factor = self._factor(index, info.size)
        kind = (info.channels, info.dtype) if self.num_classes is None else (1, np.dtype(np.int16))
        return ImageInfo(tuple(factor * length for length in info.size), *kind)

    def _factor(self, index: int, size: tuple[int, ...]) -> int:
        wanted = self.images.info(index).size
        factor = wanted[0] // size[0]
        if tuple(factor * length for length in size) != wanted:
            raise UserError(
                f"{self.paths[index]}: is {shown_size(size)} pixels, its image "
                f"{shown_size(wanted)}; make it as large, or a whole number of times smaller"
            )
        return factor


class Sequences:
    """Numbered sequences `[L, C]` of one C, in one tensor that loader processes share."""

    def __init__(self, sequences: Sequence[np.ndarray], names: Sequence[str]) -> None:
        self.channels = sequences[0].shape[1]
        for name, found in zip(names, (sequence.shape[1] for sequence in sequences), strict=True):
            if found != self.channels:
                raise UserError(
                    f"{name}: has vectors of {found} numbers, {names[0]} of {self.channels}; make "
                    "them the same"
                )
        self.lengths = torch.tensor([len(sequence) for sequence in sequences])
        self.longest = int(self.lengths.max())
        self._starts = self.lengths.cumsum(0) - self.lengths
        self._flat = torch.from_numpy(np.concatenate(sequences))

    @classmethod
    def of_images(cls, images: Collection, root: str, text_encoder: str | None = None) -> Sequences:
        """The sequence of each image, read now or, of captions, encoded now."""
        endings = frozenset((".txt",)) if text_encoder else SEQUENCE_EXTENSIONS
        paths = sidecar_files(images, root, endings, "context")
        if text_encoder is None:
            return cls(list(map(read_sequence, paths)), paths)
        return cls(encode_texts(text_encoder, list(map(read_caption, paths)), paths), paths)

    def __len__(self) -> int:
        return len(self.lengths)

    def take(self, numbers: Sequence[int] | np.ndarray) -> tuple[Tensor, Tensor]:
        """Some sequences, zeros behind the shorter ones, `float32 [B, L, C]`, and where they are.

        L is the longest of all; the mask is `bool [B, L]`.
        """
        chosen = torch.as_tensor(np.asarray(numbers, dtype=np.int64))
        place = torch.arange(self.longest)
        mask = place < self.lengths[chosen, None]
        rows = torch.where(mask, self._starts[chosen, None] + place, 0)
        return self._flat[rows] * mask[..., None], mask


def read_sequence(path: str) -> np.ndarray:
    """A sequence of vectors, `float32 [L, C]`.

    Of a .npy file of `[L, C]`, or of one vector `[C]`; or of a .safetensors file of one such
    tensor, or of several with one named "context".
    """
    try:
        if path.endswith(".safetensors"):
            tensors = load_file(path)
            if len(tensors) != 1 and TENSOR not in tensors:
                raise UserError(f"{path}: holds {len(tensors)} tensors; name one of them {TENSOR}")
            array = tensors[TENSOR] if TENSOR in tensors else next(iter(tensors.values()))
        else:
            array = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError, SafetensorError) as error:
        raise UserError(
            f"{path}: is missing or damaged ({cause_of(error)}); write it again"
        ) from error
    if not isinstance(array, np.ndarray) or array.ndim not in (1, 2) or array.size == 0:
        raise UserError(f"{path}: is no sequence of vectors; write an array of shape [L, C]")
    if array.dtype.kind not in "fiu" or not np.isfinite(array).all():
        raise UserError(f"{path}: holds something else than finite numbers; write it again")
    return array.reshape(-1, array.shape[-1]).astype(np.float32)


def read_caption(path: str) -> str:
    """The text of a UTF-8 file, without the spaces around it."""
    try:
        return Path(path).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as UTF-8 ({error}); save it again") from error


def encode_texts(folder: str, texts: Sequence[str], names: Sequence[str]) -> list[np.ndarray]:
    """The last hidden states of each text by an encoder of transformers (the extra `text`).

    A vector a token, `float32 [L, C]`. Texts of one length are encoded together, so no padding is
    ever seen; equal texts once. The tokenizer lies in the encoder's folder (CLIP's, T5's, BERT...)
    or, as in the folder of a pipeline, in `tokenizer/` beside it. Nothing is fetched.
    """
    tokenizer, encoder = _text_encoder(Path(folder))
    tokens = {text: tuple(tokenizer(text)["input_ids"]) for text in dict.fromkeys(texts)}
    for text, name in zip(texts, names, strict=True):
        if not 0 < len(tokens[text]) <= tokenizer.model_max_length:
            raise UserError(
                f"{name}: is {len(tokens[text])} tokens long, {folder} reads 1 to "
                f"{tokenizer.model_max_length}; change the caption"
            )
    encoded: dict[tuple[int, ...], np.ndarray] = {}
    with torch.inference_mode():
        for _, group in groupby(sorted(set(tokens.values()), key=len), key=len):
            alike = sorted(group)
            for start in range(0, len(alike), TEXTS_AT_ONCE):
                batch = alike[start : start + TEXTS_AT_ONCE]
                states = encoder(input_ids=torch.tensor(batch)).last_hidden_state
                encoded.update(zip(batch, states.float().numpy(), strict=True))
    return [encoded[tokens[text]] for text in texts]


def _text_encoder(folder: Path) -> tuple[Any, Any]:
    try:
        from transformers import AutoModelForTextEncoding, AutoTokenizer
    except ImportError:
        raise UserError('captions need transformers; run `pip install "ddpm-unet[text]"`') from None
    if not (folder / "config.json").is_file():
        raise UserError(f"text_encoder {folder}: no such folder of a text encoder")
    own = any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json"))
    place, local = folder if own else folder.parent / "tokenizer", {"local_files_only": True}
    try:
        tokenizer = AutoTokenizer.from_pretrained(place, **local)
        encoder = AutoModelForTextEncoding.from_pretrained(folder, use_safetensors=True, **local)
    except (OSError, ValueError) as error:
        raise UserError(f"text_encoder {folder}: cannot be read ({cause_of(error)})") from error
    return tokenizer, encoder.float().eval()
