"""Model cards: README.md in a model's folder, as the Hugging Face hub reads it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from ddpm_unet.files import printable, replace_text

MARK = "# Written by ddpm-unet, and anew with its report; without this line it stays as it is."
ALONE = "# Written by ddpm-unet with the model; without this line it stays as it is."
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
    "U-Net": """from ddpm_unet import UNet
unet = UNet.from_pretrained(FOLDER)
output = unet(images, timesteps)  # [B, C, H, W]""",
}
TASKS = {
    "denoiser": "unconditional-image-generation",
    "segmenter": "image-segmentation",
    "image predictor": "image-to-image",
}


def card_text(
    kind: str,
    title: str,
    rows: Mapping[str, Any],
    limits: Sequence[str],
    *,
    license_name: str = UNKNOWN,
    mark: str = ALONE,
    sections: Sequence[str] = (),
    header: Mapping[str, Any] | None = None,
) -> str:
    """The text of a card.

    Args:
        kind: A key of `LOAD`.
        title: The first line.
        rows: What is known of the model, by name.
        limits: What it was not shown to do, sentences.
        license_name: Of the model.
        mark: The line by which a card is known as ours.
        sections: Further ones, between how to load it and its limits.
        header: Further entries for the hub.
    """
    own: dict[str, Any] = {
        "library_name": "ddpm-unet" if kind in ("segmenter", "image predictor") else "diffusers",
        "tags": ["ddpm-unet", "unet"],
    }
    if kind in TASKS:
        own["pipeline_tag"] = TASKS[kind]
    every = yaml.safe_dump({**own, **(header or {})}, sort_keys=False)
    unsaid = "Not stated: who hands this on fills in `license` above, with a view to the data."
    parts = [
        f"---\n{mark}\nlicense: {license_name}\n{every}---\n",
        f"# {title}\n",
        "A model of ddpm-unet.\n\n| | |\n|---|---|\n"
        + "".join(f"| {name} | {value} |\n" for name, value in rows.items()),
        f"## Load\n\nFOLDER is this folder, or what `huggingface_hub.snapshot_download` gives.\n\n"
        f"```python\n{LOAD[kind]}\n```\n",
        *sections,
        f"## Limits\n\n{' '.join(limits)}\n",
        f"## Licence\n\n{unsaid if license_name == UNKNOWN else license_name}",
    ]
    return "\n".join(part for part in parts if part) + "\n"


def license_of(card: str) -> str:
    """The licence in the header of a card."""
    lines = [x for x in card.splitlines() if x.startswith("license: ")]
    return lines[0].removeprefix("license: ").strip() if lines else UNKNOWN


def with_license(card: str, name: str) -> str:
    """The card with another licence in its header."""
    return card.replace(f"license: {license_of(card)}\n", f"license: {name}\n", 1)


def replace_card(folder: Path, mark: str, text: Callable[..., str]) -> None:
    """Write README.md, unless somebody made it his own or it has more in it than this one's `mark`.

    `text` is called with the `license_name` of the card that is there, which is kept.
    """
    file = folder / "README.md"
    before = file.read_text(encoding="utf-8") if file.is_file() else mark
    if mark in before or ALONE in before:
        replace_text(file, printable(text(license_name=license_of(before))))


def write_card_alone(folder: Path, kind: str, rows: Mapping[str, Any], note: str = "") -> None:
    """Write the card of a model of whose training nothing is known; cards with more are left.

    Args:
        folder: The model's.
        kind: A key of `LOAD`.
        rows: What is known of it, by name.
        note: A sentence on where it comes from.
    """
    limits = f"{note} Of the data that it was trained on, and of scores, nothing is known here."
    known = {name: value for name, value in rows.items() if value not in (None, "", ())}
    title = f"{kind[0].upper()}{kind[1:]}"
    replace_card(folder, ALONE, partial(card_text, kind, title, known, [limits.strip()]))
