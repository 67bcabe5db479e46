"""The model card of a run: README.md in its model folder, as the Hugging Face hub reads it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from ddpm_unet.evaluation.report import Run, printable, shown, words, write_report
from ddpm_unet.files import replace_text

MARK = "# Written by ddpm-unet, and anew with its report; without this line it stays as it is."
UNKNOWN = "unknown"
LOAD = {
    "denoiser": """from ddpm_unet import Denoiser
denoiser = Denoiser.from_pretrained(FOLDER)
images = denoiser.sample(4, steps=250)  # uint8 [4, H, W, C]""",
    "segmenter": """from ddpm_unet import Predictor
predictor = Predictor.from_pretrained(FOLDER)
result = predictor("image.png")  # .mask, .probabilities, .objects""",
    "image predictor": """from ddpm_unet import Predictor
predictor = Predictor.from_pretrained(FOLDER)
values = predictor("image.png").values""",
    "autoencoder": """from diffusers import AutoencoderKL
autoencoder = AutoencoderKL.from_pretrained(FOLDER)
latents = autoencoder.encode(images).latent_dist.mean""",
    "network": """from safetensors.torch import load_file
weights = load_file(f"{FOLDER}/model.safetensors")
network.load_state_dict(weights)""",
}
TASKS = {
    "denoiser": "unconditional-image-generation",
    "segmenter": "image-segmentation",
    "image predictor": "image-to-image",
}


def write_pages(path: Path) -> None:
    """Write `report.html` of a run folder, and README.md of its model."""
    write_report([path])
    write_card(path)


def write_card(path: Path) -> None:
    """Write README.md into the model folder of a run, if there is one.

    One that somebody made his own, by removing the line that says so, is left alone; a licence
    that somebody filled in is kept.
    """
    file = path / "model" / "README.md"
    if not file.parent.is_dir():
        return
    before = file.read_text(encoding="utf-8") if file.is_file() else MARK
    if MARK in before:
        replace_text(file, printable(card_of(Run.read(path), license_of(before))))


def license_of(card: str) -> str:
    """The licence in the header of a card."""
    lines = [x for x in card.splitlines() if x.startswith("license: ")]
    return lines[0].removeprefix("license: ").strip() if lines else UNKNOWN


def with_license(card: str, name: str) -> str:
    """The card with another licence in its header."""
    return card.replace(f"license: {license_of(card)}\n", f"license: {name}\n", 1)


def card_of(run: Run, license_name: str = UNKNOWN) -> str:
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
    header: dict[str, Any] = {
        "library_name": "diffusers" if kind in ("denoiser", "autoencoder") else "ddpm-unet",
        "tags": ["ddpm-unet", "unet"],
    }
    if kind in TASKS:
        header["pipeline_tag"] = TASKS[kind]
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
    parts = [
        f"---\n{MARK}\nlicense: {license_name}\n{yaml.safe_dump(header, sort_keys=False)}---\n",
        f"# {title}\n",
        "Trained with ddpm-unet.\n\n| | |\n|---|---|\n"
        + "".join(f"| {name} | {value} |\n" for name, value in run.headline().items()),
        f"## Load\n\nFOLDER is this folder, or what `huggingface_hub.snapshot_download` gives.\n\n"
        f"```python\n{LOAD[kind]}\n```\n",
        f"## Data\n\n```\n{said}\n```\n" if said else "",
        f"Images or parts of images: {counts}.\n" if counts else "",
        "## Scores on the images kept to test\n\n| score | value |\n|---|---|\n"
        + "".join(f"| {name} | {value} |\n" for name, value in scores.items())
        if scores
        else "",
        f"## Limits\n\n{' '.join(limits(run, kind))}\n",
        "## Licence\n\n"
        + (
            "Not stated: who hands this on fills in `license` above, with a view to the data."
            if license_name == UNKNOWN
            else license_name
        ),
    ]  # fmt: skip
    return "\n".join(part for part in parts if part) + "\n"


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
