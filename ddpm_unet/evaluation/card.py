"""The model card of a run: what its folder says of data, scores and limits."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from ddpm_unet.evaluation.report import Run, shown, words, write_report
from ddpm_unet.models.card import LOAD, MARK, TASKS, card_text, replace_card


def write_pages(path: Path) -> None:
    """Write `report.html` of a run folder, and README.md of its model."""
    write_report([path])
    write_card(path)


def write_card(path: Path, model: Path | None = None, note: str = "") -> None:
    """Write README.md into the model folder of a run, if there is one.

    One that somebody made his own, by removing the line that says so, is left alone; a licence
    that somebody filled in is kept.

    Args:
        path: The run's folder.
        model: A folder of weights of the run that are not those that were scored.
        note: A sentence on these.
    """
    folder = model or path / "model"
    if folder.is_dir():
        run = Run.read(path)
        run.scores = run.scores if model is None else {}
        replace_card(folder, MARK, partial(card_of, run, note=note))


def card_of(run: Run, license_name: str, note: str = "") -> str:
    """The text of a model card."""
    kind = run.kind if run.kind in LOAD else "network"
    data = {k: v for k, v in run.config.get("data", {}).items() if isinstance(v, str)}
    said = "\n".join(run.about.get("data", []))
    for value in data.values():  # where a folder lay on this machine is nobody's affair
        if "/" in value and ":" not in value[2:]:
            said = said.replace(value, Path(value).name)
    size = run.config.get("data", {}).get("size")
    title = f"{kind.capitalize()}{f' of windows of {size} pixels' if size else ''}"
    scores = {words(k): shown(v) for k, v in run.averages.items()}
    header: dict[str, Any] = {}
    if scores and kind in TASKS:
        source = Path(str(data.get("images", "images"))).name
        metrics = [{"type": k, "name": words(k), "value": v} for k, v in run.averages.items()]
        results = {
            "task": {"type": TASKS[kind]},
            "dataset": {"type": "images", "name": source},
            "metrics": metrics,
        }
        header["model-index"] = [{"name": title, "results": [results]}]
    counts = ", ".join(f"{count:,} in {part}" for part, count in run.counts.items())
    sections = [
        f"## Data\n\n```\n{said}\n```\n" if said else "",
        f"Images or parts of images: {counts}.\n" if counts else "",
        "## Scores on the images kept to test\n\n| score | value |\n|---|---|\n"
        + "".join(f"| {name} | {value} |\n" for name, value in scores.items())
        if scores
        else "",
    ]
    return card_text(
        kind, title, run.headline(), [*[note] * bool(note), *limits(run, kind)],
        license_name=license_name, mark=MARK, sections=sections, header=header,
    )  # fmt: skip


def limits(run: Run, kind: str) -> list[str]:
    """What the model was not shown to do."""
    found = []
    if kind == "denoiser":
        found.append(
            "It draws images of the kind it was trained on and nothing else. Trained for long on "
            "few images it may repeat them; `ddpm-unet evaluate` looks for copies."
        )
    if kind in ("segmenter", "image predictor"):
        found.append(
            "The images kept to test are of the same source as those of the training; of another "
            "device, preparation, or pixel size it may do worse."
            if run.scores
            else "No image was kept to test. Scores of validation, by which the best step was "
            "chosen, flatter it."
        )
    found += [f"The check of the data warned: {line}." for line in run.warnings]
    return found or ["Nothing was measured but the losses above."]
