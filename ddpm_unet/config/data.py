"""Images, masks, and their care."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from ddpm_unet.config.reading import FINITE, SHARE, check_limits, limited
from ddpm_unet.errors import UserError

MaskKind = Literal["auto", "classes", "values", "threshold", "colors", "instances", "images"]
ValueRange = tuple[float, float] | Literal["percentiles"] | None


@dataclass(kw_only=True)
class DataConfig:
    """What settings of images have in common, with masks or without.

    Args:
        dims: 2 for images, also the pages of stacks; 3 for volumes, TIFF stacks or NIfTI files;
            null takes 3 for NIfTI files, else 2.
        size: Height and width (and depth) of the training windows, pixels.
        scale: Factor applied to images and masks before anything is cut (0.5 halves them).
        channels: 1 (grey), 3 (RGB), 4 or, of labelled images, any number; null keeps what the
            images have. Or a list of those wanted, [DAPI, GFP], by the names that OME-TIFF,
            OME-Zarr, CZI or ND2 give them, or by their numbers from 0; files of just so many
            without names are taken as they are.
        value_range: Pixel values that become black and white, -1 and 1; outside is clipped. Null
            is the full range: 255 for 8 bits, 65535 for 16, and floats must be within 0 to 1;
            "percentiles" are the 0.5 and 99.5 percentiles of each image's channels (for MRI).
        spacing: Millimetres from pixel to pixel along (depth,) height and width, or one number for
            all, where the files (NIfTI, OME, ImageJ) do not say it; 0.0005 is half a micrometre.
            Labelled images whose files say another are resampled to it, of different ones to
            their median; the model keeps it, and segments images of another as if they had it.
        include_held_out: Train on what the source keeps for scoring too.
        workers: Loader processes; 0 loads in the main one (best for sets kept in memory), null
            takes some for a GPU where images are decoded or deformed window by window.
        memory_limit: Sets whose decoded images fit in so many MB are decoded once and kept.
        max_pixels: Refuse images of more than so many million pixels (decompression bombs).
    """

    dims: Literal[2, 3] | None = None
    size: int = limited(64, 1, 65_536)
    scale: float = limited(1.0, 1e-3, 1e3)
    channels: int | tuple[int | str, ...] | None = limited(None, 0, 1024)
    value_range: ValueRange = limited(None, *FINITE)
    spacing: float | tuple[float, ...] | None = limited(None, 1e-9, 1e6)
    include_held_out: bool = False
    workers: int | None = limited(None, 0, 1024)
    memory_limit: int = 2048
    max_pixels: float = limited(200.0, 1e-6, 10**9)

    @property
    def axes(self) -> Literal[2, 3]:
        """Dimensions of what is read, once `data.folder.with_dims` has decided on them."""
        return self.dims or 2

    @property
    def channel_count(self) -> int | None:
        """How many channels images are converted to; None for none, or where they are chosen."""
        return self.channels if isinstance(self.channels, int) else None

    @property
    def channel_names(self) -> tuple[str, ...]:
        """Channels that are chosen, by name or number; empty for all."""
        return tuple(map(str, self.channels)) if isinstance(self.channels, tuple) else ()


@dataclass
class ImageDataConfig(DataConfig):
    """Images without labels, for the denoiser.

    Args:
        source: "builtin:histology", "builtin:fashion-mnist", a folder of images, a tar file or a
            folder of them (webdataset's shards, classes in .cls files),
            "torchvision:CIFAR10" (any torchvision image data set) or "huggingface:NAME", which may
            name its config, split, held_out split and columns: "NAME?split=train&image=img".
        root: Folder of a data set's files (torchvision: downloaded there when missing).
        fit: "crop" cuts size x size windows at random places (at the images' own scale);
            "resize" scales the shorter side to size and cuts the centre.
        level: Of files of several resolutions (OME-TIFF, SVS, OME-Zarr) which one, 0 the finest.
        flips: Mirror at random: left-right and, for "crop", along the other axes. Null does so for
            folders and builtin:histology; the other sets are of things that have a left and an up.
        rot90: Turn by a random multiple of 90 degrees, volumes in the plane of their slices; null
            as for flips.
        class_labels: Take a class from the data set, or from the folder's sub-folder names.
        condition: What is concatenated to the noisy image: a folder with an image for
            each image, found by its name, as large or a whole number of times smaller;
            "builtin:nucleus" or "builtin:nucleus-type" (built-in images); "lower:4", the image
            itself at a quarter of its resolution; or "hole", itself with a random hole.
        condition_classes: The condition is a mask of so many classes, numbered from 0; null for
            grey and colour images.
        joint_masks: Denoise the masks of `condition` together with the images, as further channels,
            instead of being conditioned on them: samples are then images with their masks.
        context: Folder with a sequence of vectors `[L, C]` for each image, found by its name, as
            .npy or .safetensors; or, with text_encoder, a caption as .txt. They stay in memory.
        text_encoder: Folder of a transformers text encoder that reads the captions.
        disk_limit: Larger folders that fit in so many MB are decoded once into a file in
            ~/.cache/ddpm_unet/images, which all processes of a host share and later runs find.
        max_pixels: Refuse images of more than so many million pixels (decompression bombs), but
            for tiled TIFFs, OME-Zarr, CZI and ND2, of which windows are read alone where scale is
            1 and they are cropped.
    """

    source: str = "builtin:histology"
    root: str | None = None
    fit: Literal["crop", "resize"] = "crop"
    level: int = limited(0, 0, 99)
    flips: bool | None = None
    rot90: bool | None = None
    class_labels: bool = False
    condition: str | None = None
    condition_classes: int | None = limited(None, 2, 256)
    joint_masks: bool = False
    context: str | None = None
    text_encoder: str | None = None
    disk_limit: int = 0


@dataclass
class LatentConfig:
    """Denoising in the latent space of an autoencoder (Rombach 2022, arXiv:2112.10752).

    Args:
        autoencoder: Folder of a diffusers AutoencoderKL, or of a pipeline that has one; null to
            denoise pixels. Its own config.json has the scale of the latents.
        epochs: Passes over the images whose windows are encoded, once, each pass with its own
            places, flips and turns; training goes through these windows over and over.
        sample: Draw each latent anew from what the autoencoder says; false takes its mode.
        cache: Folder where encoded windows are kept; null for ~/.cache/ddpm_unet/latents. Runs
            on several hosts share it.
    """

    autoencoder: str | None = None
    epochs: int = limited(4, 1, 10_000)
    sample: bool = True
    cache: str | None = None


@dataclass
class SplitConfig:
    """Which labelled images train, which choose the best checkpoint and which are kept to test.

    A single labelled image is cut in strips instead.

    Args:
        by: "blocks": in order of their names, training first and test last, as the slices of a
            stack must be (neighbours are nearly equal); "files": shuffled.
        validation: Share of the images; 1 and more count them.
        test: Share of the images; 1 and more count them.
        folds: k-fold cross-validation of what is not test; 0 for one split.
        fold: The fold that validates, counted from 0.
        limit: Train on so many of the training images, spread evenly over them; null for all.
        gap: Pixels between the strips of a single image.
        seed: Shuffles "files"; not the seed of the run, so that runs can be compared.
    """

    by: Literal["blocks", "files"] = "blocks"
    validation: float = 0.2
    test: float = 0.0
    folds: int = 0
    fold: int = 0
    limit: int | None = limited(None, 1)
    gap: int = 32
    seed: int = 0


@dataclass
class AugmentConfig:
    """Random changes of an image together with its mask; 0 or false for none.

    Args:
        flips: Mirror along every axis.
        rot90: Turn by a random multiple of 90 degrees, volumes in the plane of their slices.
        elastic_sigma: Standard deviation, in pixels, of the displacements of a coarse grid,
            joined by bicubic interpolation (Ronneberger 2015). Above size / 12 it may fold.
        elastic_grid: Nodes of that grid along each side of the window.
        rotation: Largest angle of a random turn, degrees; of volumes about each of their axes.
        zoom: Largest natural logarithm of a random magnification; 0.3 makes from 0.74 to 1.35.
        brightness: Largest shift, as a share of the grey range.
        contrast: Largest relative change of the distance to the mean.
        gamma: Largest natural logarithm of the exponent of the grey curve.
        noise: Largest standard deviation of white noise, as a share of the grey range.
        color: RGB: largest relative change of the saturation and of the amounts of haematoxylin,
            eosin and DAB, and four times that of the hue, in turns; 0.05 to 0.2 for micrographs.
        intensity: Whether the last five change the image; null: for masks they do, for images
            to predict, which stay as they are, they do not.
    """

    flips: bool = True
    rot90: bool = True
    elastic_sigma: float = limited(10.0, 0, 1000)
    elastic_grid: int = limited(3, 1, 64)
    rotation: float = limited(0.0, 0, 180)
    zoom: float = limited(0.0, 0, 2)
    brightness: float = limited(0.1, *SHARE)
    contrast: float = limited(0.2, 0, 10)
    gamma: float = limited(0.2, 0, 10)
    noise: float = limited(0.03, *SHARE)
    color: float = limited(0.0, *SHARE)
    intensity: bool | None = None


@dataclass
class ExtraPairsConfig:
    """Further images with masks, which train, and neither validate nor test.

    Args:
        images: Folder of images, such as `generated/images` of `scripts/sample.py`; null for none.
        masks: Folder of their masks, class indices in palette or grey images.
        share: Share of the training windows that are cut from them.
        scale: Factor applied to them before anything is cut.
    """

    images: str | None = None
    masks: str | None = None
    share: float = limited(0.5, *SHARE)
    scale: float = limited(1.0, 1e-3, 1e3)


@dataclass
class PairDataConfig(DataConfig):
    """Images with masks for the segmenter, or with images to predict for regression.

    Args:
        images: "builtin:histology" (or "builtin:histology/held-out", the part kept for scoring),
            a folder of images, or a stack (multi-page TIFF).
        masks: "builtin:nucleus" or "builtin:nucleus-type" (built-in images), the folder or stack
            of masks, or "points": images are point sets (.npz) that have their labels in them. Of
            task "regress", the folder or stack of the images to predict.
        voxel: Masks "points": side of the grid's cells, in units of the coordinates.
        image_name: Image files' names, without ending; {} is what an image and its mask share.
        mask_name: Mask files' names likewise, for instance "{}_mask".
        skip_unlabelled: Leave out images that have no mask, instead of stopping.
        mask_kind: What the masks' values mean. "classes": class indices; "values": those of
            mask_values; "threshold": class 1 above half of the largest value that all masks
            together hold; "colors": those of class_colors; "instances": numbered objects, to
            background and foreground; "images": they are no masks but images to predict (task
            "regress" sets this). "auto" takes what leaves no doubt, such as 0/255 or over 100
            numbers of objects, and asks about the rest.
        mask_values: "values": the value of each class, in order.
        ignore_value: Value (for "colors": red, green, blue) of pixels that are not labelled.
        nearest_color: "colors": take a colour that is none of class_colors for the nearest one, as
            in masks saved as JPEG; the check says for how many pixels that is unclear.
        num_classes: Number of classes; null counts the names, or what the masks hold.
        class_names: One name per class, or empty.
        class_colors: One RGB colour (0 to 255) per class, or empty.
        target_range: Task "regress": likewise of the images to predict; null or two numbers.
        foreground: Share of the training's windows that are moved to a rare class; 0 takes windows
            from anywhere, 0.33 is nnU-Net's. For small structures in large images.
        augment: Random changes in training.
        extra: Further pairs, for training only.
        split: Training, validation and test.
        border_w0: Loss "border": weight of a border between touching cells.
        border_sigma: Loss "border": width of the weighted borders, pixels.
        border_classes: Loss "border": classes whose connected pieces are cells, where the masks
            do not number them; empty for all but class 0.
    """

    images: str = "builtin:histology"
    masks: str = "builtin:nucleus"
    voxel: float = limited(1.0, 1e-6, 10**6)
    image_name: str = "{}"
    mask_name: str = "{}"
    skip_unlabelled: bool = False
    mask_kind: MaskKind = "auto"
    mask_values: tuple[int, ...] = limited((), *FINITE)
    ignore_value: int | tuple[int, int, int] | None = limited(None, *FINITE)
    nearest_color: bool = False
    num_classes: int | None = limited(None, 2, 256)
    class_names: tuple[str, ...] = ()
    class_colors: tuple[tuple[int, int, int], ...] = limited((), 0, 255)
    target_range: tuple[float, float] | None = limited(None, *FINITE)
    size: int = limited(128, 1, 65_536, kw_only=True)
    foreground: float = limited(0.0, 0, 1)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    extra: ExtraPairsConfig = field(default_factory=ExtraPairsConfig)
    split: SplitConfig = field(default_factory=SplitConfig)
    border_w0: float = 10.0
    border_sigma: float = limited(5.0, 0.001, 10**6)
    border_classes: tuple[int, ...] = ()


def check_data_settings(config: DataConfig) -> None:
    """Refuse numbers, windows and value ranges that no images could satisfy.

    Raises:
        UserError: Names the setting.
    """
    check_limits(config, "data.")
    if config.channels in (0, ()):
        raise UserError("data.channels: must be at least 1, a list of channels, or null")
    for name in ("value_range", "target_range"):
        found = getattr(config, name, None)
        if isinstance(found, tuple) and not found[0] < found[1]:
            raise UserError(
                f"data.{name} [{found[0]:g}, {found[1]:g}]: must be two numbers, black below white"
            )
    if isinstance(config.spacing, tuple) and len(config.spacing) != config.axes:
        raise UserError(f"data.spacing: has {len(config.spacing)} numbers; give 1 or {config.axes}")
    pixels = config.size**config.axes / 1e6
    if pixels > config.max_pixels:
        raise UserError(
            f"data.size {config.size}: is {pixels:.3g} million pixels a window, over "
            f"data.max_pixels {config.max_pixels:g}; lower the one or raise the other"
        )
