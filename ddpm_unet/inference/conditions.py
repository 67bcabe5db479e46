"""What a denoiser must be told, as its folder says, and how the images of a job are told it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from ddpm_unet.config import UNetConfig
from ddpm_unet.config.typed import from_plain, read_json
from ddpm_unet.data.folder import natural, visible_files
from ddpm_unet.data.images import EXTENSIONS
from ddpm_unet.data.planes import Planes, enlarged, one_hot
from ddpm_unet.data.sequences import ENDINGS as SEQUENCES
from ddpm_unet.data.sequences import Sequences, read_sequence
from ddpm_unet.data.text import encode_texts
from ddpm_unet.data.volumes import VOLUME_EXTENSIONS as VOLUMES
from ddpm_unet.errors import UserError
from ddpm_unet.inference.generate import Conditions, of_class
from ddpm_unet.replace import replace_json

FILE = "conditions.json"


@dataclass(frozen=True)
class Conditioning:
    """What a denoiser was told in training, besides what its `UNetConfig` says.

    Args:
        image_channels: Channels of its images; None for as many as the network takes or gives,
            whichever is less.
        class_names: Name of each class; empty if it knows none, or their names are unknown.
        withheld: Some images were told nothing, so that it can be guided; its last class is none.
        planes: What it goes by beside the noisy image.
        text_encoder: Folder of the text encoder that made its context.
        self_conditioning: It is told its own estimate of the clean image.
        mask_classes: It denoises masks of so many classes with the images, a channel each, -1 or
            1; 0 for images alone.
    """

    image_channels: int | None = None
    class_names: tuple[str, ...] = ()
    withheld: bool = False
    planes: Planes | None = None
    text_encoder: str | None = None
    self_conditioning: bool = False
    mask_classes: int = 0

    @property
    def drawn_channels(self) -> int | None:
        """Channels of what is denoised: images, and their masks; None as for images."""
        return self.image_channels and self.image_channels + self.mask_classes

    def with_masks(self, images: Tensor, masks: Tensor | None) -> Tensor:
        """What is denoised, `[B, drawn_channels, *space]`.

        Args:
            images: `float32 [B, C, *space]`.
            masks: Classes `int16 [B, 1, *space]`, if masks are denoised too.
        """
        if not self.mask_classes:
            return images
        assert masks is not None, "the batch carries no masks"
        return torch.cat([images, 2 * one_hot(masks, self.mask_classes) - 1], dim=1)

    def parted(self, drawn: Tensor) -> tuple[Tensor, Tensor | None]:
        """The images in what was drawn, and the classes of their pixels, `int64 [B, *space]`."""
        if not self.mask_classes:
            return drawn, None
        return drawn[:, : self.image_channels], drawn[:, self.image_channels :].argmax(1)

    def write(self, folder: Path) -> None:
        """Write conditions.json into the folder of a pipeline."""
        replace_json(folder / FILE, asdict(self))

    @classmethod
    def read(cls, folder: Path) -> Conditioning:
        """Of the folder of a pipeline, or of the `unet` in one; without a file, nothing is known.

        Raises:
            UserError: The file is unreadable.
        """
        root = folder if (folder / "unet").is_dir() else folder.resolve().parent
        path = root / FILE
        if not path.is_file():
            return cls()
        values = read_json(path)
        planes = values.pop("planes", None)
        told = from_plain(cls, values, path)
        if planes is None:
            return told
        return replace(told, planes=from_plain(Planes, planes, f"{path}: planes"))

    def check(self, config: UNetConfig, folder: Path) -> None:
        """Refuse a network of which it is not known what its input channels are for.

        Raises:
            UserError: Names the folder.
        """
        images = self.drawn_channels or min(config.in_channels, config.out_channels)
        planes = self.planes.channels if self.planes else 0
        if config.in_channels != images * (1 + self.self_conditioning) + planes:
            raise UserError(
                f"{folder}: takes {config.in_channels} channels for images of {images}, and has no "
                f"{FILE} that says what the others are; sample it with what trained it"
            )

    def classes(self, config: UNetConfig) -> int | None:
        """Number of classes, but for none; None if there are none."""
        table = config.num_class_embeds
        return None if table is None else table - self.withheld

    def null_class(self, config: UNetConfig) -> int | None:
        """The class that stands for none; None if no image was told nothing of its class."""
        table = config.num_class_embeds
        return table - 1 if table is not None and self.withheld else None

    def class_number(self, name: str | None, config: UNetConfig) -> int | None:
        """The number of a class, given by its number or its name.

        Raises:
            UserError: There is no such class, or there are no classes.
        """
        count = self.classes(config)
        if name is None:
            return None
        if count is None:
            raise UserError("the model knows no classes; leave --class out")
        if name in self.class_names:
            return self.class_names.index(name)
        if not name.isdecimal() or int(name) >= count:
            names = f" ({', '.join(self.class_names[:12])})" if self.class_names else ""
            raise UserError(f"class {name}: the model has classes 0 to {count - 1}{names}")
        return int(name)


def read_planes(
    told: Conditioning, files: Sequence[Path] | None, dims: int, size: Sequence[int] | None
) -> Tensor | None:
    """The planes of pictures, `[N, K, *space]`; None for a model that goes by none.

    Args:
        told: What the model must be told.
        files: Pictures, or folders of them in natural order.
        dims: 2 for pictures, 3 for volumes.
        size: (Depth,) height and width of the images to draw; smaller pictures are enlarged to it
            by a whole number. None for that of the first picture.

    Raises:
        UserError: They are missing or superfluous, cannot be read, or are of another size.
    """
    if told.planes is None:
        if files:
            raise UserError("the model goes by no condition; leave --condition out")
        return None
    if not files:
        what = {
            "picture": "a picture",
            "classes": f"a mask of {told.planes.channels} classes",
            "lower": f"a picture {told.planes.factor} times smaller",
            "hole": "a picture whose hole is transparent",
        }[told.planes.kind]
        raise UserError(f"the model goes by {what}; give --condition FILES, or a folder")
    found = []
    paths = _files(files, VOLUMES if dims == 3 else EXTENSIONS)
    wanted = None if size is None else [*size] * (dims if len(size) == 1 else 1)
    for path in paths:
        planes = told.planes.of_file(path, dims)[None]
        wanted = wanted or list(planes.shape[2:])
        if told.planes.kind in ("picture", "classes"):
            planes = enlarged(planes, max(1, wanted[0] // planes.shape[2]))
        if list(planes.shape[2:]) != wanted:
            made, asked = (" x ".join(map(str, s)) for s in (planes.shape[2:], wanted))
            raise UserError(
                f"{path}: makes images of {made}, not of {asked}; give others or --size"
            )
        found.append(planes)
    return torch.cat(found)


def read_context(
    told: Conditioning,
    config: UNetConfig,
    files: Sequence[Path] | None,
    prompts: Sequence[str] | None,
) -> Sequences | None:
    """The sequences to attend to, from files or of captions; None for a model without.

    Args:
        told: What the model must be told.
        config: Its network.
        files: Sequences, or folders of them in natural order.
        prompts: Captions, for a model with a text encoder.

    Raises:
        UserError: They are missing or superfluous, or not what the network attends to.
    """
    if not config.conditional:
        if files or prompts:
            raise UserError("the model attends to no context; leave --context and --prompt out")
        return None
    if prompts and told.text_encoder is None:
        raise UserError("the model has no text encoder; give --context FILES instead of --prompt")
    if files and prompts:
        raise UserError("the model attends to one context; give --context or --prompt, not both")
    if not files and not prompts:
        flag = "--prompt TEXT" if told.text_encoder else "--context FILES"
        raise UserError(f"the model attends to a context; give {flag}")
    if prompts:
        names = [f"--prompt {text!r}" for text in prompts]
        found = Sequences(encode_texts(str(told.text_encoder), prompts, names), names)
    else:
        paths = _files(files or (), SEQUENCES)
        found = Sequences([read_sequence(path) for path in paths], paths)
    width = config.cross_attention_dim
    if found.channels not in (width if isinstance(width, tuple) else (width,)):
        raise UserError(
            f"the context has vectors of {found.channels} numbers, the model attends to {width}"
        )
    return found


def in_turn(
    classes: int | None,
    label: int | None,
    context: Sequences | None,
    planes: Tensor | None,
    device: torch.device,
) -> Conditions:
    """What each image of a job is told: one of each for all images, or several in turn.

    Args:
        classes: Number of classes; None for none.
        label: The class of all images; None for all in turn.
        context: The sequences.
        planes: `[N, K, *space]`.
        device: Where to.
    """
    of_label = of_class(label, classes, device)

    def conditions(indices: Sequence[int]) -> dict[str, Tensor]:
        told = of_label(indices)
        if context is not None:
            vectors, mask = context.take([i % len(context) for i in indices])
            told |= {"context": vectors.to(device), "context_mask": mask.to(device)}
        if planes is not None:
            told["planes"] = planes[[i % len(planes) for i in indices]].to(device)
        return told

    return conditions


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
