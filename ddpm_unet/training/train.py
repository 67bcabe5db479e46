"""Training of any network here on any data set, in a script, a thread or a notebook."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field, is_dataclass
from os import PathLike
from pathlib import Path
from typing import Any, TypeVar

from accelerate import PartialState
from accelerate.utils import extract_model_from_parallel
from safetensors.torch import save_file
from torch import Tensor, nn

from ddpm_unet.config import TrainConfig
from ddpm_unet.config.jobs import RunConfig
from ddpm_unet.data.dataset import as_dataset, grid_of, stream_of
from ddpm_unet.data.preprocessing import Preprocessing, Targets
from ddpm_unet.diffusion.process import GaussianDiffusion
from ddpm_unet.errors import UserError
from ddpm_unet.inference.conditioning import Conditioning
from ddpm_unet.models import UNet
from ddpm_unet.models.classic import ClassicUNet
from ddpm_unet.models.segmenter import Segmenter
from ddpm_unet.training.denoise import DenoiseJob
from ddpm_unet.training.job import Batch
from ddpm_unet.training.loop import train as run_loop
from ddpm_unet.training.pixelwise import ClassTarget, ImageTarget, PixelwiseJob, Target
from ddpm_unet.training.run_folder import RunFolder

M = TypeVar("M", bound=nn.Module)
Loss = Callable[[nn.Module, Batch], Tensor]


def train(
    model: M,
    dataset: Any,
    *,
    run: str | PathLike[str],
    diffusion: Any = None,
    loss: Loss | None = None,
    steps: int = 1000,
    batch_size: int = 16,
    lr: float = 1e-4,
    validation: Any = None,
    size: int | None = None,
    flips: bool = False,
    rot90: bool = False,
    objects: bool = False,
    transform: Callable[[dict[str, Any]], dict[str, Any]] | None = None,
    workers: int = 0,
    seed: int = 0,
    resume: bool = True,
    tracker: str = "none",
    **settings: Any,
) -> M:
    """Train a network, going on from what the run folder holds, bit for bit.

    A `UNet` learns to denoise the images; a `Segmenter` or a `ClassicUNet` learns the masks of
    items (image, mask), or the numbers of items {"image", "target"}, by their absolute error.
    Any other module is trained by `loss`, or called as `model(x, t)` to
    denoise. A GPU is used where there is one; `accelerate launch` gives more processes. Nothing of
    the process is changed for good: no signal handlers, no seeds.

    Args:
        model: Trained in place.
        dataset: Whatever `ddpm_unet.data.dataset.as_dataset` takes: a list of tensors `[C, H, W]`,
            a TensorDataset, sets of torchvision or Hugging Face; items are images, (image, mask),
            or dicts.
        run: Folder of checkpoints, metrics.jsonl and model/.
        diffusion: The forward process to denoise; by default `GaussianDiffusion()`.
        loss: Instead of the model's own: `loss(model, batch)` gives `[B]`, or one number. Of the
            batch, "image" is `float32 [B, C, *space]` in [-1, 1], "position" its place in the
            stream, `int64 [B]` on the CPU.
        steps: Optimizer steps in all.
        batch_size: Images per step, over all processes.
        lr: Peak learning rate.
        validation: A data set like `dataset`, on which the loss, Dice and IoU, or PSNR are
            measured; a network of pixels then keeps its best model.
        size: Train on windows of so many pixels a side; None takes whole images.
        flips: Mirror at random along every axis.
        rot90: Turn by a random multiple of 90 degrees.
        objects: Of a network of pixels, whose last output is then no class but the interior of
            objects, so that those that touch come out apart: with two classes masks number the
            objects, with more they are the connected pieces of each class, or what the "objects" of
            an item number. Give it as many outputs as classes and one more.
        transform: A further change of each item, see `stream_of`.
        workers: Loader processes.
        seed: Order, augmentation, noise and dropout are functions of it and the position.
        resume: False refuses a folder that holds a run.
        tracker: "none", "tensorboard" or "wandb".
        settings: Further fields of `ddpm_unet.config.TrainConfig`, such as `mixed_precision`,
            `micro_batch`, `validate_every`, `ema_decay` or `compile`.

    Returns:
        The model with its averaged weights (of a validated segmenter the best ones), in evaluation
        mode.

    Raises:
        UserError: Data, model and arguments do not fit together; the folder cannot be used; the
            loss stays non-finite.

    Example:
        >>> import tempfile, torch
        >>> from ddpm_unet import UNet, train
        >>> unet = UNet(sample_size=8, in_channels=1, out_channels=1, block_out_channels=(8,),
        ...             layers_per_block=1, norm_num_groups=4)
        >>> images = list(torch.rand(10, 1, 8, 8))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     unet = train(unet, images, run=folder, steps=2, batch_size=4)
    """
    unknown = settings.keys() - TrainConfig.__dataclass_fields__.keys()
    if unknown:
        raise UserError(f"{sorted(unknown)[0]}: is no argument of train, nor field of TrainConfig")
    every = max(1, min(1000, steps // 10))
    defaults = {
        "lr_schedule": "constant", "warmup_steps": min(100, steps // 10), "ema_decay": 0.999,
        "checkpoint_every": every, "validate_every": every, "sample_every": 0, "native": False,
    }  # fmt: skip
    given = {"steps": steps, "batch_size": batch_size, "lr": lr, **settings}
    config = TrainConfig(**{**defaults, **given})
    pixelwise = model if isinstance(model, Segmenter | ClassicUNet) else None
    classes = max(2, pixelwise.config.num_classes) - objects if pixelwise else None
    if objects and (classes is None or classes < 2):
        raise UserError(
            "objects: the last output is of their interiors; give a Segmenter or a ClassicUNet of "
            "one output more than classes, 3 or more"
        )
    reading: dict[str, Any] = {"num_classes": classes, "objects": objects}
    data = as_dataset(dataset, **reading)
    _check(model, data)
    windows = stream_of(
        data, size=size, flips=flips, rot90=rot90, seed=seed,
        for_masks=pixelwise is not None and loss is None, transform=transform,
    )  # fmt: skip
    shared: dict[str, Any] = {
        "workers": workers, "digest": windows.digest, "loss": loss,
        "description": windows.describe(),
    }  # fmt: skip
    job: Any
    if pixelwise:
        kept = None if validation is None else as_dataset(validation, **reading)
        target, preprocessing = _target_of(pixelwise, data)
        job = PixelwiseJob(
            pixelwise, target, lambda _: windows, validation=kept, lr=lr,
            preprocessing=preprocessing, **shared,
        )  # fmt: skip
    else:
        conditioning = Conditioning(data.channels)
        if isinstance(model, UNet) and (count := model.config.num_class_embeds):
            names = data.classes or tuple(map(str, range(count)))
            conditioning = Conditioning(data.channels, names[:count])
        job = (DenoiseJob if isinstance(model, UNet) else _ModuleJob)(
            model,
            diffusion or GaussianDiffusion(),
            windows,
            held_out=None if validation is None else grid_of(validation, size=size),
            conditioning=conditioning,
            batch_size=config.micro_batch or config.batch_size,
            seed=seed,
            **shared,
        )
    folder, own = RunFolder(Path(run)), getattr(model, "config", None)
    own = asdict(own) if is_dataclass(own) and not isinstance(own, type) else {}
    said = Settings(
        str(run), "auto" if resume else "never", seed, tracker,  # type: ignore[arg-type]
        model={"class": type(model).__name__, **own},
        data={"size": size, "flips": flips, "rot90": rot90, "objects": objects}, train=config,
    )  # fmt: skip
    trained: Any = extract_model_from_parallel(
        run_loop(job, folder, said, signals=False), keep_fp32_wrapper=False
    )
    if job.criterion and folder.model.is_dir():
        best = type(model).from_pretrained(folder.model)  # type: ignore[attr-defined]
        if objects and PartialState().is_main_process:
            job.choose_sure(best.to(next(trained.parameters()).device), folder.model)
        trained.load_state_dict(best.state_dict())
    return trained.eval()


@dataclass
class Settings(RunConfig):
    """What a run folder keeps of a call of `train`."""

    model: dict[str, Any] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)


class _ModuleJob(DenoiseJob):
    """A network of any class, written as its weights alone."""

    def preview(self, model: nn.Module, accelerator: Any, path: Path) -> None:
        """None: there is no sampler for it."""

    def export(self, model: nn.Module, state_dict: dict[str, Tensor], folder: Path) -> None:
        """Write model.safetensors, or what the network's own `save_pretrained` writes."""
        own = getattr(model, "save_pretrained", None)
        if callable(own):
            own(folder, state_dict=state_dict)
            return
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {name: value.contiguous().clone() for name, value in state_dict.items()}
        save_file(tensors, folder / "model.safetensors")


def _target_of(model: Segmenter | ClassicUNet, data: Any) -> tuple[Target, Preprocessing]:
    """What a network of pixels learns of the items, and what its folder says of them."""
    config, first = model.config, data[0]
    if "target" not in first:
        count, small = max(2, config.num_classes), None
        if data.objects:
            count, small = count - 1, data.small_object
        names = config.class_names or tuple(f"class {number}" for number in range(count))
        colors = config.class_colors[:count]
        target = ClassTarget(names[:count], colors, objects=small)
        return target, Preprocessing(data.channels, objects=small)
    count = len(first["target"])
    if count != config.num_classes:
        raise UserError(
            f"model: gives {config.num_classes} numbers a pixel, and the targets have {count} "
            f"channels; build it with num_classes={count}"
        )
    targets = Targets(count, "float32", -1.0, 1.0)
    return ImageTarget(targets), Preprocessing(data.channels, targets=targets)


def _check(model: nn.Module, data: Any) -> None:
    """Refuse a network and data that do not fit each other."""
    if isinstance(model, ClassicUNet) and model.margin:
        raise UserError(
            "model: a ClassicUNet without padding needs more around a window than the items have; "
            'give it padding="same"'
        )
    own = model.config if isinstance(model, UNet) else model
    known = isinstance(model, UNet | Segmenter | ClassicUNet)
    wanted = getattr(own, "in_channels", None) if known else None
    if wanted not in (None, data.channels):
        raise UserError(
            f"model: takes images of {wanted} channels, and these have {data.channels}; build it "
            f"with in_channels={data.channels}"
        )
