"""Quality of generated images against time of training, beside two other toolkits' recipes.

    python scripts/experiments/quality_per_compute.py --minutes 5 --seeds 2

Every side trains on the same tiles, read from the same folder of PNG files, with a network of
nearly equal operations, for the same minutes of a processor, and draws by DDIM in the same steps:

- ours: `train_ddpm.py` with its default recipe;
- diffusers: what examples/unconditional_image_generation/train_unconditional.py does by default
  (UNet2DModel, DDPMScheduler, AdamW at 1e-4 with 500 steps of warm-up and a cosine, EMAModel,
  batches of 16), with our network's sizes;
- denoising-diffusion-pytorch: `Trainer` with `Unet` and `GaussianDiffusion` as they are by default,
  narrower, without loader processes.

How many steps a side may make is the budget over what one of its steps takes: the least time of the
process among some, measured for the sides in turn before anything is trained, so that other work on
the machine favours nobody. Each result is kept in --out, and a job that was stopped goes on with
the next. Written: results.json, table.md, plot.png. Needs a CPU, and the extras `fidelity` and
`peers`.
"""

from __future__ import annotations

import json
import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader

from ddpm_unet.cli import ArgumentParser, user_errors, whole
from ddpm_unet.commands.train import train_ddpm
from ddpm_unet.config import ImageDataConfig
from ddpm_unet.data import sources
from ddpm_unet.data.stream import to_bytes, to_model_range
from ddpm_unet.evaluation.extractors import load_extractor
from ddpm_unet.evaluation.fidelity import compare, describe
from ddpm_unet.evaluation.plots import pyplot, save_grid
from ddpm_unet.files import replace_json
from ddpm_unet.inference.denoiser import Denoiser, read_guide

NETWORK: dict[str, Any] = {
    "block_out_channels": (32, 48, 96, 128),
    "down_block_types": ("DownBlock2D",) * 3 + ("AttnDownBlock2D",),
    "up_block_types": ("AttnUpBlock2D",) + ("UpBlock2D",) * 3,
    "layers_per_block": 1,
    "norm_num_groups": 8,
    "attention_head_dim": 32,
}
"""Of configs/histology64.yaml."""
SHORT_AND_LONG = (5, 60)
"""Steps of the two trainings whose difference says what a step takes."""
SHOWN = ("fd", "kid", "precision", "recall", "colour_spread")
LUCIDRAINS_WIDTH = 22
"""With which that network's operations, 0.53 GFLOP at 32 x 32, are those of ours."""

Draw = Callable[[int, int], Tensor]
"""From a number of images and of steps to images `[N, 3, H, W]` in [-1, 1]."""
Side = Callable[[Path, Path, int, int, list[int]], Iterator[tuple[int, Draw]]]
"""(tiles, out, steps, seed, marks): trains, then gives what draws after each mark's steps."""


def ours(
    tiles: Path, out: Path, steps: int, seed: int, marks: list[int]
) -> Iterator[tuple[int, Draw]]:
    """The command with its default recipe; only the data, the steps and the checkpoints differ."""
    every = marks[0]
    size = Image.open(next(tiles.glob("*.png"))).width
    flags = {
        "run": out, "seed": seed, "data.source": tiles, "data.size": size, "data.scale": 1,
        "data.flips": "true", "data.rot90": "false", "train.steps": steps,
        "train.warmup_steps": min(300, steps // 2), "train.checkpoint_every": every,
        "train.keep_checkpoints": steps // every + 1, "train.validate_every": steps + 1,
        "train.sample_every": steps + 1,
    }  # fmt: skip
    train_ddpm([part for name, value in flags.items() for part in (f"--{name}", str(value))])
    for mark in marks:
        denoiser = Denoiser.from_pretrained(out / "model")
        if mark < steps:
            denoiser.unet = read_guide(out / "checkpoints" / f"{mark:08d}", denoiser)
        yield mark, _ddim(denoiser)


def diffusers(
    tiles: Path, out: Path, steps: int, seed: int, marks: list[int]
) -> Iterator[tuple[int, Draw]]:
    """The loop of train_unconditional.py, with its defaults."""
    from datasets import load_dataset
    from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
    from diffusers.optimization import get_scheduler
    from diffusers.training_utils import EMAModel
    from torchvision import transforms as T

    torch.manual_seed(seed)
    data = load_dataset("imagefolder", data_dir=str(tiles), split="train", cache_dir=str(out))
    change = T.Compose([T.RandomHorizontalFlip(), T.ToTensor(), T.Normalize([0.5], [0.5])])
    data.set_transform(lambda rows: {"input": [change(i.convert("RGB")) for i in rows["image"]]})
    loader = DataLoader(data, batch_size=16, shuffle=True)
    model: Any = UNet2DModel(sample_size=data[0]["input"].shape[-1], **NETWORK)
    scheduler: Any = DDPMScheduler(num_train_timesteps=1000)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4, (0.95, 0.999), 1e-8, 1e-6)
    rate = get_scheduler("cosine", optimizer, num_warmup_steps=500, num_training_steps=steps)
    average = EMAModel(
        model.parameters(), decay=0.9999, use_ema_warmup=True, inv_gamma=1.0, power=0.75
    )
    for step, images in zip(range(1, steps + 1), _forever(loader), strict=False):
        noise = torch.randn_like(images["input"])
        times = torch.randint(0, 1000, (len(noise),))
        noisy = scheduler.add_noise(images["input"], noise, times)
        F.mse_loss(model(noisy, times).sample, noise).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        rate.step()
        optimizer.zero_grad()
        average.step(model.parameters())
        if step in marks:
            average.store(model.parameters())
            average.copy_to(model.parameters())
            pipeline: Any = DDPMPipeline(model, scheduler)
            pipeline.save_pretrained(out / str(step))
            average.restore(model.parameters())
    for mark in marks:
        yield mark, _ddim(Denoiser.from_pretrained(out / str(mark)))


def lucidrains(
    tiles: Path, out: Path, steps: int, seed: int, marks: list[int]
) -> Iterator[tuple[int, Draw]]:
    """The package's trainer with its defaults."""
    from denoising_diffusion_pytorch import GaussianDiffusion, Trainer, Unet
    from denoising_diffusion_pytorch import denoising_diffusion_pytorch as module

    torch.manual_seed(seed)
    out.mkdir(parents=True, exist_ok=True)
    size = Image.open(next(tiles.glob("*.png"))).width
    diffusion = GaussianDiffusion(Unet(LUCIDRAINS_WIDTH), image_size=size)
    module.cpu_count = lambda: 0  # loads in this process, whose time counts
    trainer = Trainer(
        diffusion, str(tiles), results_folder=str(out), calculate_fid=False,
        train_num_steps=steps, save_and_sample_every=steps + 1,
    )  # fmt: skip
    for mark in marks:
        trainer.train_num_steps = mark
        trainer.train()
        torch.save(trainer.ema.ema_model.state_dict(), out / f"{mark}.pt")
    for mark in marks:
        diffusion.load_state_dict(torch.load(out / f"{mark}.pt", weights_only=True))

        def draw(count: int, sampling_steps: int) -> Tensor:
            diffusion.is_ddim_sampling = True
            diffusion.sampling_timesteps = sampling_steps
            torch.manual_seed(0)
            diffusion.eval()
            parts = [diffusion.sample(min(16, count - i)) for i in range(0, count, 16)]
            return torch.cat(parts) * 2 - 1

        yield mark, draw


SIDES: dict[str, Side] = {
    "ours": ours,
    "diffusers": diffusers,
    "denoising-diffusion-pytorch": lucidrains,
}


def _forever(loader: Any) -> Iterator[Any]:
    while True:
        yield from loader


def _ddim(denoiser: Denoiser) -> Draw:
    def draw(count: int, steps: int) -> Tensor:
        job = denoiser.job(count, steps=steps, sampler="ddim", seed=0, batch_size=16)
        return torch.cat([images for _, images, _ in job])

    return draw


def arguments() -> Namespace:
    parser = ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    add = parser.add_argument
    add("--source", default="builtin:histology", help="as data.source (default builtin:histology)")
    add("--size", type=whole(8), default=32, help="side of the tiles, pixels (default 32)")
    add("--scale", type=float, default=0.5, help="as data.scale (default 0.5)")
    add("--tiles", type=whole(100), default=2048, help="tiles to train on (default 2048)")
    add("--sides", nargs="+", choices=list(SIDES), default=list(SIDES), help="default: all")
    add("--minutes", type=float, default=5.0, help="of the processor, of each (default 5)")
    add("--seeds", type=whole(1), default=1, help="trainings of each side (default 1)")
    add("--points", type=whole(1), default=3, help="times at which each is scored (default 3)")
    add("--num_images", type=whole(8), default=128, help="drawn and scored (default 128)")
    add("--steps", type=whole(2), default=50, help="of DDIM (default 50)")
    add("--extractor", default="efficientnet-lite0", help="as of evaluate.py")
    add("--out", type=Path, default=Path("runs/quality_per_compute"), help="folder written to")
    return parser.parse_args()


def read_tiles(args: Namespace) -> tuple[Path, Tensor]:
    """The folder of tiles, and other tiles to compare with, `uint8 [2 N, 3, H, W]`."""
    data = ImageDataConfig(source=args.source, size=args.size, scale=args.scale)
    stream: Any = sources.open_stream(data, seed=0)
    folder, total = args.out / "tiles", args.tiles + 2 * args.num_images
    parts = [range(i, min(i + 64, total)) for i in range(0, total, 64)]
    tiles = torch.cat([stream.__getitems__(part)["image"] for part in parts])
    tiles = to_bytes(to_model_range(tiles))
    if not folder.is_dir():
        folder.mkdir(parents=True)
        for number, tile in enumerate(tiles[: args.tiles].movedim(1, -1).numpy()):
            Image.fromarray(np.ascontiguousarray(tile)).save(folder / f"{number:05d}.png")
    return folder, tiles[args.tiles :]


def seconds_of_a_step(side: Side, tiles: Path, out: Path) -> float:
    """Time of the process for a step, without what a training takes besides."""
    taken = []
    for steps in SHORT_AND_LONG:
        begun = time.process_time()
        next(side(tiles, out / str(steps), steps, 0, [steps]))
        taken.append(time.process_time() - begun)
    return (taken[1] - taken[0]) / (SHORT_AND_LONG[1] - SHORT_AND_LONG[0])


def calibrate(args: Namespace, tiles: Path) -> dict[str, float]:
    """Seconds of a step, by side, the median of three in turn; kept in --out."""
    file = args.out / "seconds_of_a_step.json"
    found: dict[str, float] = json.loads(file.read_text()) if file.exists() else {}
    missing = [name for name in args.sides if name not in found]
    measured: dict[str, list[float]] = {name: [] for name in missing}
    for turn in range(4 if missing else 0):  # the first also imports and compiles
        for name in missing:
            out = args.out / "calibration" / f"{name}-{turn}"
            measured[name].append(seconds_of_a_step(SIDES[name], tiles, out))
    found |= {name: float(np.median(values[1:])) for name, values in measured.items()}
    replace_json(file, found)
    return found


def run(args: Namespace) -> list[dict[str, Any]]:
    """Train and score every side and seed that --out does not hold; gives all results."""
    tiles, real = read_tiles(args)
    extractor = load_extractor(args.extractor)
    reference = describe(real[::2], extractor)
    floor = compare(describe(real[1::2], extractor), reference)
    results: list[dict[str, Any]] = [
        {"side": "real tiles", "seed": 0, "step": 0, "minutes": 0.0, **floor}
    ]
    seconds = calibrate(args, tiles)
    for seed in range(args.seeds):
        for name in [args.sides[(i + seed) % len(args.sides)] for i in range(len(args.sides))]:
            out = args.out / f"{name}-{seed}"
            file = out / "results.json"
            if not file.exists():
                every = max(1, round(60 * args.minutes / seconds[name] / args.points))
                marks = [every * (i + 1) for i in range(args.points)]
                begun = time.process_time()
                found: list[dict[str, Any]] = []
                for mark, draw in SIDES[name](tiles, out, marks[-1], seed, marks):
                    took = found[0]["process_minutes"] if found else None
                    took = took or (time.process_time() - begun) / 60
                    images = draw(args.num_images, args.steps)
                    save_grid(images[:64], out / f"{mark}.png")
                    found.append({
                        "side": name, "seed": seed, "step": mark, "process_minutes": took,
                        "minutes": mark * seconds[name] / 60,
                        **compare(describe(to_bytes(images), extractor), reference),
                    })  # fmt: skip
                replace_json(file, found)
            results += json.loads(file.read_text())
            print(table(results), flush=True)
    replace_json(args.out / "results.json", results)
    return results


def table(results: list[dict[str, Any]]) -> str:
    """Means over the seeds in Markdown, with the lowest and highest FD of several."""
    groups: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for row in results:
        groups.setdefault((row["side"], row["step"]), []).append(row)
    lines = [
        "| side | minutes | steps | seeds | FD | KID | precision | recall | spread of colours |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for (side, step), rows in groups.items():
        mean = {name: float(np.mean([row[name] for row in rows])) for name in SHOWN}
        every = [row["fd"] for row in rows]
        spread = f" ({min(every):.0f} to {max(every):.0f})" if len(rows) > 1 else ""
        known = (f"{rows[0]['minutes']:.1f}", str(step)) if step else ("", "")
        lines.append(
            f"| {side} | {' | '.join(known)} | {len(rows)} | {mean['fd']:.1f}{spread} | "
            f"{mean['kid']:.3f} | {mean['precision']:.2f} | {mean['recall']:.2f} | "
            f"{mean['colour_spread']:.2f} |"
        )
    return "\n".join(lines)


def plot(results: list[dict[str, Any]], path: Path) -> None:
    """FD and KID against minutes, a line a seed."""
    plt = pyplot()
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    for axis, (key, title) in zip(axes, (("fd", "FD"), ("kid", "KID")), strict=True):
        axis.axhline(results[0][key], color="grey", label="real tiles")
        for number, side in enumerate(dict.fromkeys(row["side"] for row in results[1:])):
            rows = [row for row in results if row["side"] == side]
            for seed in sorted({row["seed"] for row in rows}):
                points = [(row["minutes"], row[key]) for row in rows if row["seed"] == seed]
                look = {"color": f"C{number}", "label": side if seed == 0 else None}
                axis.plot(*zip(*points, strict=True), "o-", **look)
        axis.set(xlabel="minutes of a processor", ylabel=title, ylim=(0, None))
        axis.grid(alpha=0.3)
    axes[0].legend(fontsize=8)
    figure.savefig(path, dpi=100)
    plt.close(figure)


def main() -> None:
    """Measure, and write the table and the plot."""
    args = arguments()
    args.out.mkdir(parents=True, exist_ok=True)
    results = run(args)
    (args.out / "table.md").write_text(table(results) + "\n")
    plot(results, args.out / "plot.png")
    print(f"{table(results)}\nwritten: {args.out}")


if __name__ == "__main__":
    with user_errors():
        main()
