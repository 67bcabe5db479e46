"""The U-Net's family side by side, on one labelled set: tables and figures anybody can make again.

Every member is trained in turn with the same steps, windows, augmentation and seeds; only the
network is its own, that of its file in configs/. Each training is a run folder below --out; what
is finished is not repeated, so the same command goes on. Parameters, operations and memory are
counted at the published size, and an image of 512 x 512 is timed. Further flags are settings of
every training, such as --data.mask_kind=instances.
"""

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np
import torch
from network_cost import forward_cost
from network_diagram import draw, trace
from torch import Tensor

from ddpm_unet.cli import read_settings, user_errors
from ddpm_unet.commands.shared import best_device
from ddpm_unet.config import SegmentConfig
from ddpm_unet.config.reading import read_yaml
from ddpm_unet.data.masks import IGNORE_INDEX
from ddpm_unet.evaluation.metrics import confusion, overlap
from ddpm_unet.inference.overlay import class_colors, displayable, draw_overlay
from ddpm_unet.inference.predictor import SegmentationModel, class_probabilities, tiling
from ddpm_unet.inference.tiles import predict_tiles
from ddpm_unet.models.classic import ClassicUNet
from ddpm_unet.models.segmenter import Segmenter, load_segmentation_model
from ddpm_unet.models.unet import UNet
from ddpm_unet.training.from_config import SCRATCH, build_pixel_job
from ddpm_unet.training.loop import train
from ddpm_unet.training.pixelwise import PixelwiseJob
from ddpm_unet.training.run_folder import RunFolder

CONFIGS = Path(__file__).parents[2] / "configs"
MEMBERS = read_yaml(CONFIGS / "family" / "members.yaml")
COMMON = "histology_nuclei.yaml"


@dataclass(frozen=True)
class Member:
    """A network of the family.

    Args:
        key: Of the folders it is written to.
        title: And the others: as configs/family/members.yaml says.
    """

    key: str
    title: str
    change: str
    config: str
    year: int | None = None
    own: tuple[str, ...] = ()
    reduced: tuple[str, ...] = ()
    shape: tuple[int, ...] = (3, 512, 512)
    trained: bool = True


DRAWN = ("unet2015", "fcn8s", "ternausnet", "unet_plus_plus", "unet3plus")

# The same for all. What one CPU core carries is half resolution, and narrow networks.
TRAINING = [
    "--data.split.by=files",
    "--data.split.validation=0",
    "--data.split.test=0.25",
    "--train.lr=1e-3",
    "--train.ema_decay=0.95",
    "--train.validate_every=0",
    "--train.sample_every=0",
]
REDUCED = ["--data.scale=0.5", "--data.size=64"]
FULL = ["--data.scale=1", "--data.size=128", "--train.steps=2000"]


def main() -> None:
    args = arguments()
    args.out.mkdir(parents=True, exist_ok=True)
    members = [Member(key, **MEMBERS[key]) for key in args.members]
    costs = {member.key: count(member, args) for member in members}
    trained = [member for member in members if member.trained]
    results: list[dict[str, Any]] = []
    for seed in range(args.seeds):
        for member in trained:
            results.append(train_member(member, seed, args))
            tables = [family_table(members, costs, results), side_by_side(trained, results)]
            (args.out / "table.md").write_text("\n".join(tables))
    show_members(trained, args)
    draw_networks(args.out / "architecture.png")
    print("\n".join(tables))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--images", type=Path, required=True, help="labelled images; a quarter of them tests")
    add("--masks", type=Path, required=True, help="their masks")
    add("--out", type=Path, default=Path("runs/family"), help="folder written to")
    add("--seeds", type=int, default=2, help="trainings per member")
    add("--members", nargs="+", choices=list(MEMBERS), default=list(MEMBERS), help="who takes part")
    size = "full" if torch.accelerator.is_available() else "reduced"
    add("--size", choices=["full", "reduced"], default=size, help=f"here by default {size}")
    args, settings = parser.parse_known_args()
    args.settings = settings
    return args


def network_settings(member: Member, reduced: bool) -> SegmentConfig:
    """The member's file, changed where it differs."""
    flags = [f"--{setting}" for setting in (*member.own, *(member.reduced if reduced else ()))]
    return read_settings(SegmentConfig, CONFIGS / member.config, flags)[0]


def published(member: Member) -> SegmentationModel:
    """The network at its published size, for images of `shape`."""
    settings, (channels, *sides) = network_settings(member, False), member.shape
    own: dict[str, Any] = {"in_channels": channels, "dims": len(sides)}
    if settings.architecture == "classic":
        return ClassicUNet(replace(settings.classic, **own))
    return Segmenter(UNet(settings.model.filled(out_channels=channels, **own)), settings.head)


def example(model: SegmentationModel, member: Member) -> Tensor:
    """An image that gives the scores of `shape`."""
    channels, *sides = member.shape
    fitting = [model.valid_size(side + 2 * model.margin) for side in sides]
    return torch.zeros(1, channels, *fitting)


def count(member: Member, args: argparse.Namespace) -> dict[str, Any]:
    """Cost of the published network, and seconds of one image here."""
    done = args.out / f"{member.key}.json"
    if not done.is_file():
        with torch.device("meta"):
            model = published(member)
            cost = forward_cost(model, example(model, member))
        values = {**asdict(cost), "seconds": image_seconds(published(member), member)}
        done.write_text(json.dumps(values, indent=1) + "\n")
    return json.loads(done.read_text())


def image_seconds(model: SegmentationModel, member: Member) -> float:
    """The lesser of two: on a GPU by the clock, else the processor time of this process."""
    device = best_device()
    model, images = model.to(device).eval(), example(model, member).to(device)
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    times = []
    for _ in range(2):
        start = clock()
        with torch.inference_mode():
            model(images).sum().item()
        times.append(clock() - start)
    return min(times)


def train_member(member: Member, seed: int, args: argparse.Namespace) -> dict[str, Any]:
    """Train, unless it is finished, and score on the images kept to test."""
    run = run_folder(member, seed, args)
    done = run.path / "result.json"
    if done.is_file():
        return json.loads(done.read_text())
    settings = settings_of(member, seed, args)
    job: PixelwiseJob = build_pixel_job(settings)
    start, cpu_start = time.perf_counter(), time.process_time()
    train(job, run, settings)
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start
    result: dict[str, Any] = {"key": member.key, "seed": seed, **scored(job, settings, run.model)}
    classic = settings.classic
    if classic.decoder == "nested" and classic.deep_supervision:
        pruned = {str(n): scored(job, settings, run.model, n) for n in range(2, classic.depth)}
        result["pruned"] = pruned
    result |= {"seconds": round(seconds, 1), "cpu_seconds": round(cpu_seconds, 1)}
    done.write_text(json.dumps(result, indent=1) + "\n")
    return result


def run_folder(member: Member, seed: int, args: argparse.Namespace) -> RunFolder:
    return RunFolder(args.out / f"{member.key}-seed{seed}")


def settings_of(member: Member, seed: int, args: argparse.Namespace) -> SegmentConfig:
    """The common settings with the member's network."""
    reduced = args.size == "reduced"
    flags = [f"--data.images={args.images}", f"--data.masks={args.masks}", *TRAINING]
    flags += [*(REDUCED if reduced else FULL), *args.settings]
    settings, _ = read_settings(SegmentConfig, CONFIGS / COMMON, flags)
    own = network_settings(member, reduced)
    for name in ("architecture", "classic", "model", "head"):
        setattr(settings, name, getattr(own, name))
    settings.run, settings.seed = str(run_folder(member, seed, args).path), seed
    settings.init = SCRATCH
    settings.train.checkpoint_every = settings.train.steps
    return settings


def scored(
    job: PixelwiseJob, settings: SegmentConfig, folder: Path, levels: int | None = None
) -> dict[str, float]:
    """Dice of all classes but the first, pixels of all test images together; cost of a window."""
    model = load_segmentation_model(folder, levels)
    assert job.test is not None
    classes = len(job.test.class_names)
    counts = torch.zeros(classes, classes, dtype=torch.int64)
    for index in range(len(job.test)):
        item = job.test[index]
        predicted = predict(model, item["image"], job)
        counts += confusion(predicted, item["mask"], len(counts), IGNORE_INDEX)
    side = model.valid_size(settings.data.size + 2 * model.margin)
    cost = forward_cost(model, torch.zeros(1, model.in_channels, side, side))
    return {"dice": float(overlap(counts).dice[1:].nanmean()), **asdict(cost)}


def predict(model: SegmentationModel, image: Tensor, job: PixelwiseJob) -> Tensor:
    """Class of every pixel of an image, `int64 [H, W]`."""
    device = best_device()
    with torch.inference_mode():
        probabilities = predict_tiles(
            class_probabilities(model.to(device)),
            image,
            tiling(model, job.predict),
            device=device,
        )
    model.cpu()
    return probabilities.argmax(dim=0).cpu()


def family_table(
    members: list[Member], costs: dict[str, dict[str, Any]], results: list[dict[str, Any]]
) -> str:
    """Who changed what, and what it costs at its published size, in Markdown."""
    lines = [
        "| member | year | what it changed | parameters | GFLOP | MB | seconds | Dice | command |",
        "|---" * 9 + "|",
    ]
    for member in members:
        if member.year is not None:
            cost = costs[member.key]
            flags = "".join(f" --{setting}" for setting in member.own)
            dice = mean([r["dice"] for r in results if r["key"] == member.key])
            lines.append(
                f"| {member.title} | {member.year} | {member.change} | {cost['parameters']:,} | "
                f"{cost['gflop']:.0f} | {cost['kept_mb']:.0f} | {cost['seconds']:.1f} | {dice} | "
                f"`train_seg.py --config configs/{member.config}{flags}` |"
            )
    return "\n".join(lines) + "\n"


def side_by_side(members: list[Member], results: list[dict[str, Any]]) -> str:
    """The trainings, at the size they had, in Markdown."""
    lines = [
        "| network | parameters | MFLOP | MB | CPU seconds | Dice | seeds |",
        "|---" * 7 + "|",
    ]

    def row(title: str, values: Sequence[dict[str, Any]], seconds: str = "") -> None:
        one = values[0]
        lines.append(
            f"| {title} | {one['parameters']:,} | {1000 * one['gflop']:.0f} | "
            f"{one['kept_mb']:.1f} | {seconds} | {mean([v['dice'] for v in values])} | "
            f"{len(values)} |"
        )

    for member in members:
        own = [r for r in results if r["key"] == member.key]
        if own:
            row(member.title, own, f"{fmean(r['cpu_seconds'] for r in own):.0f}")
            for levels in own[0].get("pruned", ()):
                row(f"... its {levels} finest levels", [r["pruned"][levels] for r in own])
    return "\n".join(lines) + "\n"


def mean(values: list[float]) -> str:
    """With the standard deviation, of several."""
    deviation = f" ± {stdev(values):.3f}" if len(values) > 1 else ""
    return f"{fmean(values):.3f}{deviation}" if values else ""


def show_members(members: list[Member], args: argparse.Namespace) -> None:
    """What each member makes of the first test image: `members.png`."""
    from matplotlib.figure import Figure

    job: PixelwiseJob = build_pixel_job(settings_of(members[0], 0, args))
    assert job.test is not None
    item, image = job.test[0], np.moveaxis(job.test.item(0)["image"], 0, -1)
    colors = class_colors(len(job.test.class_names))

    def drawn(classes: Tensor) -> np.ndarray:
        return draw_overlay(image, classes.clamp(min=0).numpy().astype(np.uint8), colors)

    panels = [("the image", displayable(image)), ("its mask", drawn(item["mask"]))]
    for member in members:
        model = load_segmentation_model(run_folder(member, 0, args).model)
        classes = predict(model, item["image"], job)
        counts = confusion(classes, item["mask"], len(colors), IGNORE_INDEX)
        dice = float(overlap(counts).dice[1:].nanmean())
        panels.append((f"{member.title}: {dice:.2f}", drawn(classes)))
    columns = 4
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(3 * columns, 2.7 * rows), layout="constrained")
    for number, (title, overlay) in enumerate(panels, start=1):
        axis = figure.add_subplot(rows, columns, number)
        axis.imshow(overlay, interpolation="nearest")
        axis.set_title(title, fontsize=9)
        axis.axis("off")
    figure.savefig(args.out / "members.png", dpi=110)


def draw_networks(path: Path) -> None:
    """The networks at their published sizes, drawn from what runs: `architecture.png`."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 11), layout="constrained")
    for number, key in enumerate(DRAWN, start=1):
        member = Member(key, **MEMBERS[key])
        with torch.device("meta"):
            model = published(member).eval()
            side = model.valid_size(388 + 2 * model.margin) if model.margin else 512
            images = torch.empty(1, model.in_channels, side, side)
            blocks = trace(model, images)
        draw(figure.add_subplot(3, 2, number), blocks, side, member.title)
    legend = "numbers: channels\nred: to a coarser size\ngreen: to a finer one\ngrey: to the same"
    figure.text(0.6, 0.2, legend, fontsize=10)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    with user_errors():
        main()
