"""Do images drawn of a class show it? An independent classifier says.

    python scripts/experiments/class_agreement.py --model runs/fashion_mnist/model --guidance 1 2 4

A small convolutional network is trained on the labelled images of the model's training data and
tested on those held out. Then as many images are drawn of each class, at each scale of guidance,
and the share that the classifier puts into the class asked for is printed, beside its accuracy on
real images. Written: scores.json, and grid.png with a row a class and scale. Data settings come
from the config.yaml beside the model's folder; --config and dotted flags change them.
"""

import json
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ddpm_unet.cli import ArgumentParser, user_errors, whole
from ddpm_unet.commands.shared import best_device, training_settings
from ddpm_unet.config import DenoiseConfig
from ddpm_unet.data import sources
from ddpm_unet.data.stream import to_model_range
from ddpm_unet.errors import UserError
from ddpm_unet.evaluation.plots import save_grid
from ddpm_unet.inference.denoiser import Denoiser
from ddpm_unet.inference.writers import output_folder


def arguments() -> tuple[Namespace, list[str]]:
    parser = ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    add = parser.add_argument
    add("--model", type=Path, required=True, help="folder of a class-conditional denoiser")
    add("--guidance", type=float, nargs="+", default=[1.0], help="scales of guidance (default 1)")
    add("--per_class", type=whole(1), default=32, help="images of each class (default 32)")
    add("--steps", type=whole(1), default=50, help="denoising steps (default 50)")
    add("--sampler", default="ddim", help="as of sample.py (default ddim)")
    add("--training_steps", type=whole(1), default=2000, help="of the classifier (default 2000)")
    add("--batch_size", type=whole(1), default=64, help="images at a time (default 64)")
    add("--seed", type=int, default=0, help="of the classifier and of the images")
    add("--out", type=Path, default=Path("class_agreement"), help="folder written to")
    return parser.parse_known_args()


def classifier(channels: int, classes: int) -> nn.Module:
    """A small convolutional network, `[B, C, H, W]` in [-1, 1] -> logits `[B, K]`."""

    def block(inputs: int, outputs: int) -> list[nn.Module]:
        convolution = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        return [convolution, nn.BatchNorm2d(outputs), nn.ReLU(), nn.MaxPool2d(2)]

    pool = [nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Dropout(0.3), nn.Linear(4 * 128, classes)]
    return nn.Sequential(*block(channels, 32), *block(32, 64), *block(64, 128), *pool)


def train_classifier(stream: Any, classes: int, args: Namespace, device: Any) -> nn.Module:
    """Train on the labelled images of a stream."""
    first = stream.__getitems__([0])
    torch.manual_seed(args.seed)
    network = classifier(first["image"].shape[1], classes).to(device).train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3, weight_decay=1e-2)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, args.training_steps)
    for step in range(args.training_steps):
        batch = stream.__getitems__(range(step * args.batch_size, (step + 1) * args.batch_size))
        logits = network(to_model_range(batch["image"].to(device)))
        optimizer.zero_grad()
        F.cross_entropy(logits, batch["label"].to(device)).backward()
        optimizer.step()
        rate.step()
    return network.eval()


def accuracy(network: Callable[[Tensor], Tensor], images: Tensor, labels: Tensor) -> float:
    """Share of images `[N, C, H, W]` in [-1, 1] that get their label."""
    with torch.inference_mode():
        found = torch.cat([network(part).argmax(1) for part in images.split(256)])
    return float((found == labels).float().mean())


def main() -> None:
    args, others = arguments()
    device = best_device()
    denoiser = Denoiser.from_pretrained(args.model).to(device)
    names = denoiser.conditioning.class_names
    if not names:
        raise UserError(f"{args.model}: is not conditioned on classes; give a model that is")
    settings = training_settings(DenoiseConfig, args.model, others)
    held_out = sources.held_out(settings.data)
    if held_out is None:
        raise UserError(f"data.source {settings.data.source}: holds no images out to test on")
    stream = sources.open_stream(settings.data, args.seed)
    with output_folder(args.out):
        network = train_classifier(stream, len(names), args, device)
        real = held_out.__getitems__(range(min(len(held_out), 10_000)))
        images = to_model_range(real["image"].to(device))
        scores: dict[str, Any] = {"real": accuracy(network, images, real["label"].to(device))}
        print(f"the classifier is right of {scores['real']:.2%} of {len(images)} real images")
        labels = torch.arange(args.per_class * len(names), device=device) % len(names)
        rows = []
        for scale in args.guidance:
            job = denoiser.job(
                len(labels), steps=args.steps, sampler=args.sampler, seed=args.seed,
                batch_size=args.batch_size, guidance=None if scale == 1 else scale, progress=True,
            )  # fmt: skip
            drawn = torch.cat([images.to(device) for _, images, _ in job])
            scores[f"guidance {scale:g}"] = accuracy(network, drawn, labels)
            print(f"guidance {scale:g}: {scores[f'guidance {scale:g}']:.2%} are of their class")
            shown = min(args.per_class, 10)
            rows += [drawn[number :: len(names)][:shown] for number in range(len(names))]
        save_grid(torch.cat(rows), args.out / "grid.png", columns=shown)
        (args.out / "scores.json").write_text(json.dumps(scores, indent=1))
    print(f"written: {args.out}")


if __name__ == "__main__":
    with user_errors():
        main()
