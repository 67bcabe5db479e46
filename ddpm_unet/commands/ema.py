"""A model with averaged weights of another length: `python scripts/ema.py --length 0.08`.

For a run that kept averages for it (train.ema_sigma_rel [0.05, 0.1]), of any kind of model.
"""

from __future__ import annotations

import shutil
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from ddpm_unet.cli import ArgumentParser, whole, within
from ddpm_unet.errors import UserError


def parse(arguments: Sequence[str] | None) -> Namespace:
    parser = ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--run", type=Path, help="run folder (default: that with the newest averages)")
    said = "standard deviation of the average as a share of the training, e.g. 0.08"
    add("--length", type=within(float, 0.01, 0.28), required=True, help=said)
    add("--step", type=whole(1), help="where the average ends (default: the last one kept)")
    add("--out", type=Path, help="model folder written (default: RUN/model-LENGTH)")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    args = parse(arguments)

    from ddpm_unet.evaluation.card import write_card
    from ddpm_unet.inference.writers import output_folder
    from ddpm_unet.training.post_hoc_ema import Snapshots, put_in_place

    kept = sorted(Path("runs").glob("*/averages/"), key=lambda path: path.stat().st_mtime)
    if not args.run and not kept:
        raise UserError(
            "no run in runs/ has averages; train one with --train.ema_sigma_rel, or give --run"
        )
    run = args.run or kept[-1].parent
    snapshots = Snapshots(run / "averages")
    steps, model = snapshots.steps(), run / "model"
    if not steps:
        raise UserError(f"{run}/averages: has no averages; train with --train.ema_sigma_rel")
    step = args.step or steps[-1]
    if step not in steps:
        near = min(steps, key=lambda kept: abs(kept - step))
        raise UserError(f"--step {step}: no averages were kept there; the nearest is {near}")
    out = args.out or run / f"model-{args.length:g}"
    if out.exists() and any(out.iterdir()):
        raise UserError(f"{out}: has files in it; name a new folder with --out")
    if not model.is_dir():
        raise UserError(f"{model}: does not exist; let the run write a checkpoint first")
    weights, distance = snapshots.reconstruct(args.length, step)
    with output_folder(out):
        shutil.copytree(model, out, dirs_exist_ok=True)
        put_in_place(weights, out)
        write_card(
            run, out, f"Its weights are the average of length {args.length:g} at step {step}."
        )
    print(
        f"average of length {args.length:g} at step {step} from {len(steps)} snapshots, "
        f"its profile met to {distance:.2%}\nwritten: {out}"
    )
