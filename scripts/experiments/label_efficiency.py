"""Does a denoiser of unlabelled images save labels? A table that anybody can measure again.

Segmenters are trained on n = 1, 3, 6, 12 labelled slices, several seeds each, with the same steps,
windows and augmentation: our U-Net from scratch and from a denoiser, milesial's variant of the
2015 U-Net, and segmentation_models_pytorch's U-Net. Each tries the same learning rates once, and
the validation slices choose; they are used for nothing else. Every training is a run folder below
--out; what is finished is not repeated, so the same command goes on. Further flags are settings
of every segmenter, such as --train.steps=1000. Folders among --unlabelled that are --images
themselves are used without their test pictures.
"""

import argparse
import json
import shutil
import time
from functools import partial
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import torch
from safetensors.torch import load_model, save_file
from torch import Tensor, nn

from ddpm_unet.cli import read_settings, user_errors
from ddpm_unet.commands.shared import best_device
from ddpm_unet.config import ClassicConfig, DenoiseConfig, SegmentConfig
from ddpm_unet.data.folder import list_images
from ddpm_unet.evaluation.metrics import overlap
from ddpm_unet.models.segmenter import load_segmentation_model
from ddpm_unet.training.from_config import SCRATCH, build_denoise_job, build_pixel_job
from ddpm_unet.training.loop import train
from ddpm_unet.training.pixelwise import PixelwiseJob
from ddpm_unet.training.run_folder import RunFolder

CONFIGS = Path(__file__).parents[2] / "configs"
ARMS = {
    "scratch": "our U-Net, from scratch",
    "denoiser": "our U-Net, from the denoiser",
    "milesial": "milesial's U-Net",
    "smp": "smp Unet, resnet18, random",
}
MILESIAL = [
    "--architecture=classic",
    "--classic.padding=same",
    "--classic.norm=batch",
    "--classic.dropout=0",
]
SCORES = {"dice": "Dice", "v_rand": "V_rand", "v_info": "V_info"}

# What one CPU core carries: half resolution, narrow networks, short runs.
REDUCED_NETWORK = [
    "--data.scale=0.5",
    "--data.size=64",
    "--model.block_out_channels=[8,16,32,64,128]",
    f"--model.down_block_types={['DownBlock2D'] * 5}",
    f"--model.up_block_types={['UpBlock2D'] * 5}",
    "--model.layers_per_block=1",
    "--model.norm_num_groups=4",
]
REDUCED_DENOISER = [
    *REDUCED_NETWORK,
    "--train.steps=2100",
    "--train.batch_size=8",
    "--train.lr=1e-3",
    "--train.warmup_steps=100",
    "--train.ema_decay=0.998",
    "--train.checkpoint_every=500",
    "--train.sample_every=500",
    "--train.log_every=25",
]
REDUCED_SEGMENTER = [
    *REDUCED_NETWORK,
    "--data.augment.elastic_sigma=4",
    "--classic.base_width=16",
    "--predict.tile=288",
    "--train.steps=300",
    "--train.batch_size=4",
    "--train.warmup_steps=30",
    "--train.ema_decay=0.9",
]


def main() -> None:
    args = arguments()
    args.out.mkdir(parents=True, exist_ok=True)
    args.denoiser = args.denoiser or train_denoiser(args)
    table = Table(args)
    rates = {arm: choose_rate(arm, args, table) for arm in table.arms}
    for seed in range(args.seeds):
        for n in args.counts:
            for arm in table.arms:
                table.add(train_segmenter(arm, n, seed, rates[arm], args))
    print(table.text())


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--set", choices=["isbi", "dsb2018"], default="isbi", help="configs/<set>_*.yaml")
    add("--images", type=Path, required=True, help="labelled images, in order; the last test")
    add("--masks", type=Path, required=True, help="their masks, of two classes")
    add("--unlabelled", type=Path, nargs="+", default=[], help="folders for the denoiser")
    add("--denoiser", type=Path, help="a trained denoiser's folder, instead of training one")
    add("--out", type=Path, default=Path("runs/label_efficiency"), help="folder written to")
    add("--counts", type=int, nargs="+", default=[1, 3, 6, 12], help="labelled slices n")
    add("--seeds", type=int, default=3, help="trainings per arm and n")
    add("--arms", nargs="+", choices=list(ARMS), default=list(ARMS), help="what is compared")
    add("--rates", type=float, nargs="+", default=[3e-4, 1e-3, 3e-3], help="learning rates tried")
    size = "full" if torch.accelerator.is_available() else "reduced"
    add("--size", choices=["full", "reduced"], default=size, help=f"here by default {size}")
    args, settings = parser.parse_known_args()
    args.settings = settings
    if not args.unlabelled and not args.denoiser:
        parser.error("give --unlabelled DIR ... to train a denoiser, or --denoiser DIR")
    return args


def train_denoiser(args: argparse.Namespace) -> Path:
    """Train on all unlabelled slices, gathered in one folder of links."""
    gathered = args.out / "unlabelled"
    gathered.mkdir(exist_ok=True)
    split = read_settings(SegmentConfig, CONFIGS / f"{args.set}_segmenter.yaml", [])[0].data.split
    for number, folder in enumerate(args.unlabelled):
        names = list_images(folder)[0]
        if folder.samefile(args.images):
            names = names[: -int(split.test)]
        for name in names:
            link = gathered / f"{number}_{name.replace('/', '_')}"
            if not link.exists():
                link.symlink_to((folder / name).resolve())
    run = RunFolder(args.out / "denoiser")
    settings, _ = read_settings(
        DenoiseConfig,
        CONFIGS / f"{args.set}_denoiser.yaml",
        [
            f"--run={run.path}",
            f"--data.source={gathered}",
            *(REDUCED_DENOISER if args.size == "reduced" else []),
        ],
    )
    train(build_denoise_job(settings), run, settings)
    return run.model


def choose_rate(arm: str, args: argparse.Namespace, table: "Table") -> float:
    """The learning rate whose model of few slices is best on the validation slices."""
    n = 3 if 3 in args.counts else args.counts[0]
    results = [train_segmenter(arm, n, 0, rate, args) for rate in args.rates]
    best = max(results, key=lambda result: result["validation_dice"])
    table.tried += results
    return best["lr"]


def train_segmenter(
    arm: str, n: int, seed: int, rate: float, args: argparse.Namespace
) -> dict[str, Any]:
    """Train one segmenter, unless it is finished, and score it on the test slices."""
    run = RunFolder(args.out / f"{arm}-n{n}-seed{seed}-lr{rate:g}")
    done = run.path / "result.json"
    if done.is_file():
        return json.loads(done.read_text())
    settings = segmenter_settings(arm, n, seed, rate, run, args)
    job: PixelwiseJob = build_pixel_job(settings)
    if arm == "smp":  # random weights: what the arms from scratch have too
        job.network = partial(PeerUNet, job.test.channels, len(job.test.class_names))
    start, cpu_start = time.perf_counter(), time.process_time()
    train(job, run, settings)
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start
    if arm == "smp":
        model: Any = job.build_model().eval()
        load_model(model, run.model / "model.safetensors")
    else:
        model = load_segmentation_model(run.model)
    result = {
        "arm": arm,
        "n": n,
        "seed": seed,
        "lr": rate,
        "steps": settings.train.steps,
        "parameters": sum(p.numel() for p in model.parameters()),
        "validation_dice": run.read_metrics()[-1]["mean_dice"],
        **test_scores(job, model),
        "seconds": round(seconds, 1),
        "cpu_seconds": round(cpu_seconds, 1),
        "device": str(best_device()),
    }
    done.write_text(json.dumps(result, indent=1) + "\n")
    shutil.rmtree(run.checkpoints)
    print({name: result[name] for name in ("arm", "n", "seed", "lr", *SCORES)}, flush=True)
    return result


def segmenter_settings(
    arm: str, n: int, seed: int, rate: float, run: RunFolder, args: argparse.Namespace
) -> SegmentConfig:
    """The arm's configuration file, changed alike for all arms."""
    settings, _ = read_settings(
        SegmentConfig,
        CONFIGS / f"{args.set}_segmenter.yaml",
        [
            *(MILESIAL if arm == "milesial" else []),
            *(REDUCED_SEGMENTER if args.size == "reduced" else []),
            *args.settings,
            f"--run={run.path}",
            f"--seed={seed}",
            f"--init={args.denoiser if arm == 'denoiser' else SCRATCH}",
            f"--data.images={args.images}",
            f"--data.masks={args.masks}",
            f"--data.split.limit={n}",
            f"--train.lr={rate}",
            "--cell_class=1",
        ],
    )
    steps = settings.train.steps  # the last model counts: no slice chooses a checkpoint
    settings.train.validate_every = settings.train.checkpoint_every = steps
    settings.train.sample_every = 0
    return settings


class PeerUNet(nn.Module):
    """segmentation_models_pytorch's U-Net, with what the segmentation job asks of a network."""

    margin = 0
    step = 1
    config = ClassicConfig(padding="same", depth=6)  # six levels, of images

    def __init__(self, channels: int, classes: int) -> None:
        import segmentation_models_pytorch as smp

        super().__init__()
        self.in_channels = channels
        self.network = smp.Unet(
            "resnet18", encoder_weights=None, in_channels=channels, classes=classes
        )

    def forward(self, images: Tensor) -> Tensor:
        """Logits `[B, classes, H, W]`; H and W must be multiples of 32."""
        return self.network(images)

    def save_pretrained(self, folder: Path, state_dict: dict[str, Tensor]) -> None:
        """Write the weights."""
        folder.mkdir(parents=True, exist_ok=True)
        weights = {name: value.contiguous() for name, value in state_dict.items()}
        save_file(weights, folder / "model.safetensors")


def test_scores(job: PixelwiseJob, model: Any) -> dict[str, float]:
    """Dice of the rarer class at 0.5, and V_rand and V_info of the cells, which are class 1."""
    device = best_device()
    model, pictures = model.to(device), job.test
    assert pictures is not None
    with torch.inference_mode():
        items = [pictures[number] for number in range(len(pictures))]
        found = [(job.planes(model, item, device).cpu(), item) for item in items]
    total = torch.stack([job.target.update_metric(*each) for each in found]).sum(dim=0)
    dice = float(overlap(total).dice[int(total.sum(dim=1).argmin())])
    return {"dice": dice, **job.target.further_scores(found)}


class Table:
    """All results: `results.json`, `table.md` and `plot.png`, new after every training."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.out, self.counts, self.arms = args.out, args.counts, list(args.arms)
        self.tried: list[dict[str, Any]] = []
        self.results: list[dict[str, Any]] = []
        self.missing = ""
        if "smp" in self.arms:
            try:
                import segmentation_models_pytorch  # noqa: F401
            except ModuleNotFoundError as error:
                self.arms.remove("smp")
                self.missing = f"{ARMS['smp']}: left out ({error})"

    def add(self, result: dict[str, Any]) -> None:
        """Take in a training, and write everything."""
        self.results.append(result)
        everything = {"results": self.results, "tried": self.tried, "missing": self.missing}
        (self.out / "results.json").write_text(json.dumps(everything, indent=1) + "\n")
        (self.out / "table.md").write_text(self.text())
        self.plot()

    def values(self, arm: str, n: int, score: str) -> list[float]:
        """A score of every seed."""
        return [r[score] for r in self.results if (r["arm"], r["n"]) == (arm, n)]

    def text(self) -> str:
        """Mean and standard deviation over the seeds, in Markdown."""
        lines = [
            "| n | network | parameters | learning rate | "
            + " | ".join(SCORES.values())
            + " | seeds | seconds | CPU seconds |",
            "|---" * (7 + len(SCORES)) + "|",
        ]
        for n in self.counts:
            for arm in self.arms:
                rows = [r for r in self.results if (r["arm"], r["n"]) == (arm, n)]
                if rows:
                    scores = [spread(self.values(arm, n, score)) for score in SCORES]
                    wall, cpu = (fmean(r[k] for r in rows) for k in ("seconds", "cpu_seconds"))
                    lines.append(
                        f"| {n} | {ARMS[arm]} | {rows[0]['parameters']:,} | {rows[0]['lr']:g} | "
                        f"{' | '.join(scores)} | {len(rows)} | {wall:.0f} | {cpu:.0f} |"
                    )
        return "\n".join([*lines, *([f"\n{self.missing}"] if self.missing else [])]) + "\n"

    def plot(self) -> None:
        """Dice and V_rand against n, with the standard deviation over the seeds."""
        import matplotlib

        matplotlib.use("Agg")
        import matplotlib.pyplot as plt

        figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
        for axis, score in zip(axes, ("dice", "v_rand"), strict=True):
            for shift, arm in enumerate(self.arms):
                seen = [(n, self.values(arm, n, score)) for n in self.counts]
                seen = [(n, values) for n, values in seen if values]
                axis.errorbar(
                    [n * 1.03**shift for n, _ in seen],
                    [fmean(values) for _, values in seen],
                    [stdev(values) if len(values) > 1 else 0.0 for _, values in seen],
                    label=ARMS[arm], marker="o", capsize=3,
                )  # fmt: skip
            axis.set_xscale("log")
            axis.set_xticks(self.counts, [str(n) for n in self.counts])
            axis.minorticks_off()
            axis.set_xlabel("labelled slices")
            axis.set_ylabel(SCORES[score])
            axis.grid(alpha=0.3)
        axes[0].legend(fontsize=8)
        figure.savefig(self.out / "plot.png", dpi=110)
        plt.close(figure)


def spread(values: list[float]) -> str:
    deviation = f" ± {stdev(values):.3f}" if len(values) > 1 else ""
    return f"{fmean(values):.3f}{deviation}"


if __name__ == "__main__":
    with user_errors():
        main()
