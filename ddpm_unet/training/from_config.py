"""From settings to jobs: the one place of training that knows the settings' names."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np

from ddpm_unet.config import (
    DenoiseConfig,
    DiffusionConfig,
    SegmentConfig,
    UNetConfig,
)
from ddpm_unet.config.network import UNetSettings
from ddpm_unet.config.reading import check_limits
from ddpm_unet.data import histology
from ddpm_unet.data.check import check_pairs
from ddpm_unet.data.collection import digest_of
from ddpm_unet.data.folder import with_dims
from ddpm_unet.data.image_set import ImageSet
from ddpm_unet.data.labelled import LabelledSet, PairSet, TargetSet, WithExtra, pair_stream
from ddpm_unet.data.pairs import POINTS
from ddpm_unet.data.preprocessing import PixelType, Preprocessing, labelled_data
from ddpm_unet.data.reading import numbers_of
from ddpm_unet.data.report import Report
from ddpm_unet.data.sources import concat_condition, held_out, open_stream
from ddpm_unet.data.splits import split_images
from ddpm_unet.data.volumes import alike, in_mm, spacing_of
from ddpm_unet.data.windows import orientation_in_words
from ddpm_unet.diffusion.edm import EDMDiffusion, make_diffusion
from ddpm_unet.errors import UserError, refuse
from ddpm_unet.evaluation.image_quality import SMALLEST, torchmetrics_of_images
from ddpm_unet.inference.conditioning import Conditioning
from ddpm_unet.inference.pipeline import read_diffusion
from ddpm_unet.inference.predictor import SegmentationModel, tiling
from ddpm_unet.models import UNet
from ddpm_unet.models.autoencoder import PLACES, Autoencoder
from ddpm_unet.models.classic import ClassicUNet
from ddpm_unet.models.lora import add_lora
from ddpm_unet.models.pretrained import model_folder, read_config
from ddpm_unet.models.segmenter import Segmenter
from ddpm_unet.training.denoise import DenoiseJob
from ddpm_unet.training.joint import JointDenoising
from ddpm_unet.training.latent_space import LatentSpace
from ddpm_unet.training.pixelwise import ClassTarget, ImageTarget, PixelwiseJob

SCRATCH, INTERIOR = "scratch", "interior"
D = TypeVar("D", bound=DenoiseJob)
P = TypeVar("P", bound=PixelwiseJob)


def build_denoise_job(config: DenoiseConfig, kind: type[D] = DenoiseJob) -> D:  # type: ignore[assignment]
    """The job of `scripts/train_ddpm.py`; refuses data that do not fit the network."""
    check_limits(config)
    patience = config.train.early_stopping_patience
    if patience:
        raise UserError(
            f"train.early_stopping_patience {patience}: is for segmentation, a denoiser has no "
            "score to wait for; set it to 0"
        )
    if config.lora.rank and (not config.init or config.train.ema_sigma_rel):
        cure = "set train.ema_sigma_rel []" if config.init else "give init, the denoiser to change"
        raise UserError(f"lora.rank {config.lora.rank}: {cure}")
    config.data = with_dims(config.data, config.data.source)
    data, stream = config.data, open_stream(config.data, config.seed)
    images, latent = stream.images, _latent_space(config, stream.images)
    conditioning = Conditioning(
        image_channels=latent.channels if latent else images.layout.channels,
        class_names=images.classes if data.class_labels else (),
        cond_dropout=config.condition_dropout > 0,
        concat_cond=concat_condition(data, images),
        text_encoder=data.text_encoder,
        self_conditioning=config.self_conditioning,
        mask_classes=(data.condition_classes or 0) * data.joint_masks,
    )

    diffusion = make_diffusion(config.diffusion, latents=latent is not None)
    if config.init:
        diffusion = begin_from(Path(config.init), config, conditioning)

    def build() -> UNet:
        size = latent.size if latent else data.size
        fitting = replace(fit_network(config, conditioning, images), sample_size=size)
        if not config.init:
            return UNet(fitting)
        unet = UNet.from_pretrained(config.init)
        if unet.config.num_class_embeds != fitting.num_class_embeds:
            raise UserError(
                f"init {config.init}: has no table of classes; set data.class_labels false"
            )
        unet.config = fitting
        own = config.lora
        return add_lora(unet, own.rank, own.alpha, own.layers) if own.rank else unet

    said = stream.describe()
    if data.fit == "crop" and data.scale != 1:
        said += f", at data.scale {data.scale:g}"
    known: Any = images.layout.spacings if data.fit == "crop" else []
    spacing, sizes, same = spacing_of(known, data.spacing, data.axes)
    if data.spacing and not same:
        raise UserError(f"data.spacing {data.spacing}: the files say {sizes}; leave it out")
    if not same:
        said += f", {'voxels' if data.axes == 3 else 'pixels'} of {sizes} taken as equal"
    preprocessing = Preprocessing(
        images.layout.channels,
        data.scale if data.fit == "crop" else 1.0,
        data.value_range,
        dtype=cast(PixelType, images.layout.dtype.name),
        spacing=spacing if same else None,
        channel_names=data.channel_names,
    )
    lines = [said, *([latent.describe()] if latent else [])]
    lines += unlike(config.init, preprocessing) if config.init else []
    return kind(
        build,
        diffusion,
        stream,
        held_out=held_out(data),
        conditioning=conditioning,
        cond_dropout=config.condition_dropout,
        latent=latent,
        loss_options=config.diffusion.loss_options,
        previews=config.preview,
        batch_size=config.train.micro_batch or config.train.batch_size,
        seed=config.seed,
        workers=data.workers,
        description="\n".join(lines),
        digest=f"{stream.digest}:{'' if images.laborious else images.fingerprint()}",
        preprocessing=preprocessing,
    )


def begin_from(folder: Path, config: DenoiseConfig, conditioning: Conditioning) -> Any:
    """The process of the denoiser that is trained further; its settings become those of `config`.

    Raises:
        UserError: It is conditioned on something else, or denoises in another space.
    """
    unet, diffusion = read_config(model_folder(folder)), read_diffusion(folder)
    config.model = UNetSettings(**{n: getattr(unet, n) for n in UNetSettings.__dataclass_fields__})
    known = diffusion.scheduler_config().items()
    names = DiffusionConfig.__dataclass_fields__
    config.diffusion = replace(
        config.diffusion,
        process="edm" if isinstance(diffusion, EDMDiffusion) else "ddpm",
        **{name: value for name, value in known if name in names and value is not None},
    )
    before = Conditioning.read(folder)
    for name in ("class_names", "self_conditioning", "mask_classes"):
        ours, theirs = getattr(conditioning, name), getattr(before, name)
        if theirs != ours and (name != "class_names" or theirs):
            raise UserError(f"init {folder}: has {name} {theirs}, these settings have {ours}")
    if any((folder / place).is_dir() for place in PLACES) != bool(config.latent.autoencoder):
        raise UserError(
            f"init {folder}: denoises {'pixels' if config.latent.autoencoder else 'latents'}, and "
            "latent.autoencoder says otherwise"
        )
    return diffusion


def unlike(folder: str, now: Preprocessing) -> list[str]:
    """Warnings where the images of the denoiser in `folder` had other units or another scale."""
    seen, said = Preprocessing.read(Path(folder), now.channels), []
    scales, sizes = (seen.scale, now.scale), (seen.made_spacing, now.made_spacing)
    if sizes[0] and sizes[1] and len(sizes[0]) == len(sizes[1]):
        scales = (1.0, 1.0)  # what counts is what a pixel is for the network
        if not alike(sizes[0], sizes[1]):
            said.append(
                f"warning: {folder} was trained with {in_mm(sizes[0])} a pixel, with "
                f"data.scale {now.scale:g} these images have {in_mm(sizes[1])}"
            )
    if seen.dtype and (seen.value_range != now.value_range or scales[0] != scales[1]):
        said.append(
            f"warning: {folder} was trained with value_range {seen.value_range} at scale "
            f"{scales[0]:g}, these images come with {now.value_range} at {scales[1]:g}"
        )
    return said


def build_pixel_job(
    config: SegmentConfig,
    kind: type[P] = PixelwiseJob,  # type: ignore[assignment]
    report: Report | None = None,
) -> P:
    """The job of `scripts/train_seg.py`, of either task; `init` is a folder or "scratch".

    `report` is of a check of the same images and masks, which is not repeated then.

    Raises:
        UserError: The labelled set has faults (a line each), or settings contradict each other.
    """
    check_limits(config)
    regress = config.task == "regress"
    if regress:
        torchmetrics_of_images()
    data = labelled_data(config)
    config = replace(config, data=data)
    if report is None:
        report = check_pairs(data)
    else:
        seen = report.config
        kept = replace(data, mask_kind=seen.mask_kind, class_names=seen.class_names)
        report = replace(report, config=kept)
    target, outputs = (_images if regress else _classes)(config, report)
    split = split_images(report.names, report.sizes, report.config.split)
    patience = config.train.early_stopping_patience
    if not split["validation"] and patience:
        raise UserError(
            f"train.early_stopping_patience {patience}: no image validates; set "
            "data.split.validation, or train.early_stopping_patience 0"
        )
    border = not regress and config.loss.name == "border"
    pairs = (
        TargetSet(report, split["train"])
        if regress
        else LabelledSet(report, split["train"], border, config.objects)
    )
    if isinstance(pairs, LabelledSet) and isinstance(target, ClassTarget) and config.objects:
        target = replace(target, objects=pairs.small_object)
    extra = None
    if report.extra and not regress:
        extra = LabelledSet(report.extra, border=border, interior=config.objects)
    joint = None
    if not regress and config.architecture == "unet" and config.head.transfer == "joint":
        joint = build_joint(config, report.channels)

    def windows(context: int) -> Any:
        stream = pair_stream(pairs, config.seed, context)
        if extra is None:
            return stream
        return WithExtra(stream, pair_stream(extra, config.seed, context), data.extra.share)

    def scored(part: str) -> PairSet:
        kept = split[part]  # type: ignore[literal-required]
        if not regress:
            return LabelledSet(report, kept, objects=True)
        pairs = TargetSet(report, kept)
        for name, size in ((pairs.name(i), size) for i, size in enumerate(pairs.sizes)):
            if min(size) < SMALLEST:
                raise UserError(
                    f"{name}: is scored, and under {SMALLEST} pixels wide at data.scale "
                    f"{data.scale:g}, too few for SSIM; raise data.scale, leave it out, or change "
                    "data.split"
                )
        return pairs

    def test() -> PairSet | None:
        if split["test"]:
            return scored("test")
        if not regress and data.images == histology.SOURCE and not data.include_held_out:
            held_out = check_pairs(replace(data, images=histology.HELD_OUT))
            return LabelledSet(held_out, objects=True)
        return None

    oriented = orientation_in_words(data.augment.flips, data.augment.rot90, "data.augment.")
    said = [str(report), split["how"], f"training on {pairs.describe()}{oriented}"]
    said += [f"and on further {extra.describe()}"] if extra else []
    said += [joint.description] if joint else []
    preprocessing = Preprocessing(
        report.channels,
        data.scale,
        data.value_range,
        data.voxel if data.masks == POINTS else None,
        target.targets if isinstance(target, ImageTarget) else None,
        isinstance(target, ImageTarget) and target.residual,
        cast(PixelType, report.dtype.name),
        report.spacing,
        target.objects if isinstance(target, ClassTarget) else None,
        data.channel_names,
        report.highest,
        channel_files=numbers_of(report.pairs[0].image_file),
    )
    if config.init not in (None, SCRATCH):
        said += unlike(str(config.init), preprocessing)
    files = [[Path(name).name for name in report.names], np.asarray(report.sizes).tolist()]
    order = digest_of(json.dumps(files))
    return kind(
        lambda: build_network(config, report.channels, outputs),
        target,
        windows,
        preprocessing=preprocessing,
        validation=scored("validation") if split["validation"] else None,
        open_test=test,
        joint=joint,
        denoise_weight=config.loss.denoise_weight,
        predict=config.predict,
        lr=config.train.lr,
        layer_decay=config.layer_decay,
        split=split,
        workers=data.workers,
        description="\n".join(said),
        digest=f"{order}:{report.content}",
    )


def _latent_space(config: DenoiseConfig, images: ImageSet) -> LatentSpace | None:
    latent = config.latent
    if latent.autoencoder is None:
        return None
    if config.data.condition:
        raise UserError(
            f"data.condition {config.data.condition}: latents are denoised without condition "
            "images; set it, or latent.autoencoder, to null"
        )
    return LatentSpace(
        Autoencoder(latent.autoencoder), images, epochs=latent.epochs, sample=latent.sample,
        cache=latent.cache,
    )  # fmt: skip


def _classes(config: SegmentConfig, report: Report) -> tuple[ClassTarget, dict[str, Any]]:
    """What to predict for task "segment", and what the network says of it."""
    names, colors = tuple(report.mask_code().class_names), report.config.class_colors
    loss = config.loss
    volumes = config.data.axes == 3
    refuse({
        "cell_class: is for images (data.dims 2) of two classes; leave it out":
            volumes and config.cell_class is not None,
        "loss.name border: its weight maps are of images; data.dims is 3":
            volumes and loss.name == "border",
        "objects: masks number them; set data.mask_kind instances":
            config.objects and config.data.masks == POINTS,
    })  # fmt: skip
    target = ClassTarget(
        names, colors, loss.name, loss.class_weights, loss.focal_gamma, config.criterion,
        config.cell_class,
    )  # fmt: skip
    if config.objects:
        names, colors = (*names, INTERIOR), colors and (*colors, (255, 255, 255))
    return target, {"num_classes": len(names), "class_names": names, "class_colors": colors}


def _images(config: SegmentConfig, report: Report) -> tuple[ImageTarget, dict[str, Any]]:
    """Likewise for task "regress"."""
    targets, settings, size = report.target_images(), config.regression, config.data.size
    classic = config.architecture == "classic"
    refuse({
        'objects: is for task "segment"; leave it out': config.objects,
        'data.foreground: is for task "segment"; leave it out': config.data.foreground,
        'head.transfer joint: is for task "segment"; take finetune':
            not classic and config.head.transfer == "joint",
        'classic.one_logit: is for task "segment"; leave it out':
            classic and config.classic.one_logit,
        f"regression.loss ssim: data.size {size} is under its window of {SMALLEST} pixels; "
        "raise it": settings.loss == "ssim" and size < SMALLEST,
        f"regression.residual: the targets have {targets.channels} channels and are to be added to "
        f"the images' first ones, which have {report.channels}; leave it out":
            settings.residual and report.channels < targets.channels,
    })  # fmt: skip
    target = ImageTarget(targets, settings.loss, settings.huber_delta, settings.residual)
    return target, {"num_classes": targets.channels, "class_names": (), "class_colors": ()}


def build_joint(config: SegmentConfig, channels: int) -> JointDenoising:
    """The denoiser's part in transfer "joint", on windows as large as the labelled ones."""
    if config.unlabelled.spacing is not None:
        raise UserError("unlabelled.spacing: set unlabelled.scale, which counts beside data.scale")
    data = replace(
        config.unlabelled,
        dims=config.data.dims,
        size=config.data.size,
        scale=config.data.scale * config.unlabelled.scale,
        channels=channels,
        value_range=config.unlabelled.value_range or config.data.value_range,
    )
    stream, scratch = open_stream(data, config.seed), config.init == SCRATCH
    return JointDenoising(
        make_diffusion(config.diffusion) if scratch else read_diffusion(Path(str(config.init))),
        stream,
        timestep=config.head.timestep,
        loss_options=config.diffusion.loss_options,
        seed=config.seed,
        description=f"denoising {stream.describe()}",
    )


def build_network(
    config: SegmentConfig, channels: int, outputs: dict[str, Any]
) -> SegmentationModel:
    """The network, on the denoiser's weights or freshly initialised, if it fits the images.

    `outputs` are `num_classes`, `class_names` and `class_colors`.
    """
    data, model = config.data, _network(config, channels, outputs)
    if model.dims != data.axes:
        raise UserError(
            f"data.dims {data.axes}: the network is one of {model.dims} dimensions; set "
            "data.dims to that, or take another network"
        )
    side = data.size + 2 * model.margin
    if model.valid_size(side) != side:
        raise UserError(
            f"data.size {data.size}: the network without padding gives no window of that size; "
            f"the next that fits is {model.valid_size(side) - 2 * model.margin}"
        )
    tiling(model, config.predict)
    return model


def _network(config: SegmentConfig, channels: int, outputs: dict[str, Any]) -> SegmentationModel:
    data, head = config.data, replace(config.head, **outputs)
    if config.architecture == "classic":
        classic = replace(config.classic, in_channels=channels, dims=data.axes, **outputs)
        network = ClassicUNet(classic)
        if config.init not in (None, SCRATCH):
            network.load_encoder(str(config.init))
        return network
    if config.init != SCRATCH:
        return Segmenter.from_denoiser(str(config.init), head, in_channels=channels)
    why = f"the images have {channels} channels and data.dims {data.axes}"
    predicted = config.diffusion.output_channels(channels)
    asked = {"in_channels": channels, "out_channels": predicted, "dims": data.axes}
    unet = fitted(config.model, {name: (value, why) for name, value in asked.items()})
    return Segmenter(UNet(replace(unet, sample_size=data.size)), head)


def fit_network(config: DenoiseConfig, conditioning: Conditioning, images: ImageSet) -> UNetConfig:
    """The network, with what the data say of settings that are null.

    Raises:
        UserError: A setting is not what the images, or what they are conditioned on, ask for.
    """
    channels, names = conditioning.drawn_channels, conditioning.class_names
    dropped, concat = conditioning.cond_dropout, conditioning.concat_cond
    assert channels is not None, "a job knows the channels of its images"
    context = images.context.channels if images.context else None
    if dropped and not (names or concat or context):
        raise UserError(
            f"condition_dropout {config.condition_dropout:g}: the images come without a class, "
            "context or condition to drop; set it to 0"
        )
    what = "latents" if config.latent.autoencoder else "images"
    what += " with their masks" * (conditioning.mask_classes > 0)
    given = {
        f"the {what}'": channels,
        "an estimate's": channels * conditioning.self_conditioning,
        "the condition's": concat.channels if concat else 0,
    }
    parts = ", ".join(f"{whose} {count}" for whose, count in given.items() if count)
    outputs = config.diffusion.output_channels(channels)
    predicted = f"the {what} have {channels} channels"
    if outputs > channels:
        predicted += ", and diffusion.variance_type learned_range gives each a variance"
    model = fitted(config.model, {
        "in_channels": (sum(given.values()), f"the network is given {parts} channels"),
        "out_channels": (outputs, predicted),
        "dims": (config.data.axes, f"data.dims is {config.data.axes}"),
        "num_class_embeds": (
            len(names) + dropped if names else None,
            f"the images come with {len(names) or 'no'} classes{' and one for none' * dropped}",
        ),
    })  # fmt: skip
    if model.class_embed_type and not names:
        raise UserError(
            f"model.class_embed_type {model.class_embed_type}: the images come without classes; "
            "set it to null, or data.class_labels true"
        )
    widths = model.cross_attention_dim
    if context is None and model.conditional:
        raise UserError(
            "model.cross_attention_dim: the network attends to a context; set data.context to a "
            "folder of sequences, or model.cross_attention_dim to null"
        )
    if context and {context} != set(widths if isinstance(widths, tuple) else [widths]):
        raise UserError(
            f"model.cross_attention_dim = {widths}, but the vectors of data.context have {context} "
            f"numbers; set it to {context}"
        )
    return model


def fitted(model: UNetSettings, needed: dict[str, tuple[int | None, str]]) -> UNetConfig:
    """An architecture that takes what is needed, by setting with a reason, where it is null.

    Raises:
        UserError: A setting is another than is needed.
    """
    filled = model.filled(**{name: value for name, (value, _) in needed.items()})
    for name, (value, why) in needed.items():
        if getattr(filled, name) != value:
            cure = "null" if value is None else f"{value}, or to null"
            raise UserError(f"model.{name} = {getattr(filled, name)}: {why}; set it to {cure}")
    return filled
