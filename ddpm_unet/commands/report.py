"""A page on a run, or on several beside each other: `ddpm-unet report runs/a runs/b`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ddpm_unet.cli import ArgumentParser


def main(arguments: Sequence[str] | None = None) -> None:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("runs", type=Path, nargs="+", help="run folders")
    place = "report.html in the run, of several comparison.html here"
    parser.add_argument("--out", type=Path, help=f"file written (default: {place})")
    args = parser.parse_args(arguments)

    from ddpm_unet.evaluation.card import write_card
    from ddpm_unet.evaluation.report import write_report

    for run in args.runs:
        write_card(run)
    print(f"written: {write_report(args.runs, args.out)}")
