"""Put a model on the Hugging Face hub: `ddpm-unet push runs/x owner/name --license cc-by-4.0`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ddpm_unet.cli import ArgumentParser
from ddpm_unet.errors import UserError


def main(arguments: Sequence[str] | None = None) -> None:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="run folder, or the model folder in one")
    parser.add_argument("repository", help="owner/name on the hub, made if missing")
    parser.add_argument("--license", help="filled in in the model's card, such as cc-by-4.0 or mit")
    parser.add_argument("--private", action="store_true", help="a new repository is private")
    args = parser.parse_args(arguments)

    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    from ddpm_unet.evaluation.card import write_card
    from ddpm_unet.files import replace_text
    from ddpm_unet.models.card import UNKNOWN, license_of, with_license

    transport: Any = HfHubHTTPError.__bases__[0]  # of whichever library the hub's client uses
    folder = args.folder
    if (folder / "config.yaml").is_file():
        write_card(folder)
        folder = folder / "model"
    card = folder / "README.md"
    if not any(folder.glob("**/*.safetensors")):
        raise UserError(f"{folder}: holds no model; give a run folder or its model")
    if not card.is_file():
        raise UserError(f"{card}: there is no model card; `ddpm-unet report RUN` writes one")
    if args.license:
        replace_text(card, with_license(card.read_text(encoding="utf-8"), args.license))
    if license_of(card.read_text(encoding="utf-8")) == UNKNOWN:
        print(f"{card}: says license: {UNKNOWN}; --license NAME fills it in")
    try:
        hub = HfApi()
        hub.create_repo(args.repository, private=args.private or None, exist_ok=True)
        found = hub.upload_folder(
            repo_id=args.repository, folder_path=folder, commit_message="Model of ddpm-unet",
            ignore_patterns=["*.part"],
        )  # fmt: skip
    except (HFValidationError, OSError, transport) as error:
        cause = str(error).strip().splitlines()[0]
        raise UserError(
            f"{args.repository}: could not be written on the hub ({cause}); `hf auth login`, and "
            "look at the name"
        ) from error
    print(f"pushed: {found}")
