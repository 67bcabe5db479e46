"""What a denoiser is conditioned on, as its folder says, and its values for the images of a job."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from ddpm_unet.config import UNetConfig
from ddpm_unet.config.reading import from_plain, read_json
from ddpm_unet.data.conditioning import (
    SEQUENCE_EXTENSIONS,
    ConcatCondition,
    Sequences,
    encode_texts,
    enlarged,
    one_hot,
    read_sequence,
)
from ddpm_unet.data.folder import natural, visible_files
from ddpm_unet.data.reading import IMAGE_EXTENSIONS
from ddpm_unet.data.reading import VOLUME_EXTENSIONS as VOLUMES
from ddpm_unet.errors import UserError
from ddpm_unet.files import replace_json
from ddpm_unet.models.pretrained import pipeline_root

FILE, EARLIER_FILE = "conditioning.json", "conditions.json"
EARLIER_KEYS = {"withheld": "cond_dropout", "planes": "concat_cond"}

Cond = Callable[[Sequence[int]], dict[str, Tensor]]
"""From indices of images to their `cond`: keyword arguments of the denoiser."""


@dataclass(frozen=True)
class Conditioning:
    """What a denoiser was conditioned on in training, besides what its `UNetConfig` says.

    Args:
        image_channels: Channels of its images; None for as many as the network takes or gives,
            whichever is less.
        class_names: Name of each class; empty without classes, or where the names are unknown.
        cond_dropout: It was trained with condition dropout (Ho 2022), so that it has an
            unconditional prediction; its last class is the null class.
        concat_cond: Images concatenated to the noisy one.
        text_encoder: Folder of the text encoder that made its context.
        self_conditioning: Its own estimate of the clean image is concatenated (Chen 2022).
        mask_classes: It denoises masks of so many classes with the images, a channel each, -1 or
            1; 0 for images alone.
        guidance: The scale of guidance with which it draws where no other is given.
    """

    image_channels: int | None = None
    class_names: tuple[str, ...] = ()
    cond_dropout: bool = False
    concat_cond: ConcatCondition | None = None
    text_encoder: str | None = None
    self_conditioning: bool = False
    mask_classes: int = 0
    guidance: float | None = None

    @property
    def drawn_channels(self) -> int | None:
        """Channels of what is denoised: images and their masks; None as for images."""
        return self.image_channels and self.image_channels + self.mask_classes

    def with_masks(self, images: Tensor, masks: Tensor | None) -> Tensor:
        """What is denoised, `[B, drawn_channels, *space]`; masks are classes `[B, 1, *space]`."""
        if not self.mask_classes:
            return images
        assert masks is not None, "the batch carries no masks"
        return torch.cat([images, 2 * one_hot(masks, self.mask_classes) - 1], dim=1)

    def split(self, drawn: Tensor) -> tuple[Tensor, Tensor | None]:
        """The images in what was drawn, and the classes of their pixels, `int64 [B, *space]`."""
        if not self.mask_classes:
            return drawn, None
        return drawn[:, : self.image_channels], drawn[:, self.image_channels :].argmax(1)

    def write(self, folder: Path) -> None:
        """Write conditioning.json into the folder of a pipeline."""
        replace_json(folder / FILE, asdict(self))

    @classmethod
    def read(cls, folder: Path) -> Conditioning:
        """Of the folder of a pipeline, or of the `unet` in one; without a file, nothing is known.

        Raises:
            UserError: The file is unreadable.
        """
        root = pipeline_root(folder)
        path = next((root / n for n in (FILE, EARLIER_FILE) if (root / n).is_file()), None)
        if path is None:
            return cls()
        values = {EARLIER_KEYS.get(key, key): value for key, value in read_json(path).items()}
        own = values.get("concat_cond")
        if isinstance(own, dict) and own.get("kind") == "picture":  # the earlier name
            own["kind"] = "image"
        return from_plain(cls, values, path)

    def check(self, config: UNetConfig, folder: Path | str) -> None:
        """Refuse a network of which it is not known what its input channels are for."""
        images = self.drawn_channels or min(config.in_channels, config.out_channels)
        concatenated = self.concat_cond.channels if self.concat_cond else 0
        if config.in_channels != images * (1 + self.self_conditioning) + concatenated:
            raise UserError(
                f"{folder}: takes {config.in_channels} channels for images of {images}, and has no "
                f"{FILE} that says what the others are; sample it with what trained it"
            )

    def classes(self, config: UNetConfig) -> int | None:
        """Number of classes without the null class; None if there are none."""
        table = config.num_class_embeds
        return None if table is None else table - self.cond_dropout

    def null_class(self, config: UNetConfig) -> int | None:
        """The null class of condition dropout, if there is one."""
        table = config.num_class_embeds
        return table - 1 if table is not None and self.cond_dropout else None

    def class_numbers(
        self, given: str | int | Sequence[str | int] | None, config: UNetConfig
    ) -> list[int]:
        """Numbers of one class or several, given by number or name; None for all there are.

        Raises:
            UserError: There is no such class, or there are no classes.
        """
        count = self.classes(config) or 0
        if given is None:
            return list(range(count))
        numbers = []
        for name in [given] if isinstance(given, str | int) else given:
            if not count:
                raise UserError(f"class {name}: the model has no classes; leave it out")
            if name in self.class_names:
                name = self.class_names.index(str(name))
            if not str(name).isdecimal() or int(name) >= count:
                names = f" ({', '.join(self.class_names[:12])})" if self.class_names else ""
                raise UserError(f"class {name}: the model has classes 0 to {count - 1}{names}")
            numbers.append(int(name))
        return numbers


def read_concat_cond(
    conditioning: Conditioning, files: Sequence[Path] | None, dims: int, size: Sequence[int] | None
) -> Tensor | None:
    """The images to concatenate, `[N, K, *space]`; None for a model without.

    Args:
        conditioning: Of the model.
        files: Images, or folders of them in natural order.
        dims: 2 for images, 3 for volumes.
        size: Sides of the images to draw, to which smaller ones are enlarged by a whole number;
            None for those of the first image.

    Raises:
        UserError: They are missing or superfluous, cannot be read, or are of another size.
    """
    wanted_kind = conditioning.concat_cond
    if wanted_kind is None:
        if files:
            raise UserError("condition: the model has no image conditioning; leave it out")
        return None
    if not files:
        what = {
            "image": "an image",
            "classes": f"a mask of {wanted_kind.channels} classes",
            "lower": f"an image {wanted_kind.factor} times smaller",
            "hole": "an image whose hole is transparent",
        }[wanted_kind.kind]
        raise UserError(
            f"condition: is missing, the model is conditioned on {what}; give files or a folder"
        )
    found = []
    paths = _files(files, VOLUMES if dims == 3 else IMAGE_EXTENSIONS)
    wanted = None if size is None else [*size] * (dims if len(size) == 1 else 1)
    for path in paths:
        values = wanted_kind.of_file(path, dims)[None]
        wanted = wanted or list(values.shape[2:])
        if wanted_kind.kind in ("image", "classes"):
            values = enlarged(values, max(1, wanted[0] // values.shape[2]))
        if list(values.shape[2:]) != wanted:
            made, asked = (" x ".join(map(str, s)) for s in (values.shape[2:], wanted))
            raise UserError(f"{path}: makes images of {made}, not of {asked}; give others or size")
        found.append(values)
    return torch.cat(found)


def read_context(
    conditioning: Conditioning,
    config: UNetConfig,
    files: Sequence[Path] | None,
    prompts: Sequence[str] | None,
) -> Sequences | None:
    """The sequences to attend to, from files (or folders) or of captions; None for a model without.

    Raises:
        UserError: They are missing or superfluous, or not what the network attends to.
    """
    if not config.conditional:
        if files or prompts:
            which = "prompt" if prompts else "context"
            raise UserError(f"{which}: the model attends to no context; leave it out")
        return None
    if prompts and conditioning.text_encoder is None:
        raise UserError("prompt: the model has no text encoder; give context files instead")
    if files and prompts:
        raise UserError("prompt: the model attends to one context; give context or prompt")
    if not files and not prompts:
        what = "prompt, a text" if conditioning.text_encoder else "context, files of sequences"
        raise UserError(f"the model attends to a context; give {what}")
    if prompts:
        names = [f"prompt {text!r}" for text in prompts]
        encoded = encode_texts(str(conditioning.text_encoder), prompts, names)
        found = Sequences(encoded, names)
    else:
        paths = _files(files or (), SEQUENCE_EXTENSIONS)
        found = Sequences([read_sequence(path) for path in paths], paths)
    width = config.cross_attention_dim
    if found.channels not in (width if isinstance(width, tuple) else (width,)):
        raise UserError(
            f"the context has vectors of {found.channels} numbers, the model attends to {width}"
        )
    return found


def cond_in_turn(
    labels: Sequence[int],
    context: Sequences | None = None,
    concat_cond: Tensor | None = None,
    device: torch.device | str = "cpu",
) -> Cond:
    """The cond of a job: of each kind one for all images, or several in turn."""

    def cond(indices: Sequence[int]) -> dict[str, Tensor]:
        found = {}
        if labels:
            each = [labels[i % len(labels)] for i in indices]
            found["class_labels"] = torch.tensor(each, device=device)
        if context is not None:
            vectors, mask = context.take([i % len(context) for i in indices])
            found |= {"context": vectors.to(device), "context_mask": mask.to(device)}
        if concat_cond is not None:
            found["concat_cond"] = concat_cond[[i % len(concat_cond) for i in indices]].to(device)
        return found

    return cond


def _files(paths: Sequence[Path], endings: frozenset[str]) -> list[str]:
    """Files, and in the place of folders the files in them with these endings."""
    found: list[str] = []
    for path in paths:
        if path.is_dir():
            below = sorted(visible_files(path), key=natural)
            own = [str(path / name) for name in below if name.lower().endswith(tuple(endings))]
            if not own:
                raise UserError(f"{path}: holds no file of {' '.join(sorted(endings))}")
            found += own
        else:
            found.append(str(path))
    return found
