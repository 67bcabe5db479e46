"""`ddpm-unet COMMAND ...`, and the same commands as scripts."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module

COMMANDS = {
    "train-ddpm": ("train:train_ddpm", "train a U-Net to denoise images"),
    "sample": ("sample:main", "draw images from a trained denoiser"),
    "train-seg": ("train:train_seg", "train a U-Net to segment from a handful of masks"),
    "segment": ("segment:main", "segment images of any size"),
    "train-autoencoder": ("train:train_autoencoder", "train an autoencoder for latent denoising"),
    "check": ("train:check", "say what is right and wrong with images and masks"),
    "evaluate": ("evaluate:main", "measure how like real images generated ones are"),
    "likelihood": ("likelihood:main", "bits per dimension of images under a denoiser"),
    "ema": ("ema:main", "a model of averaged weights of another length"),
    "report": ("report:main", "a page on a run, or on several beside each other"),
    "convert": ("convert:main", "bring in a checkpoint of another toolkit"),
}
"""Where each command is, and what it does."""


def run(command: str, arguments: Sequence[str] | None = None) -> None:
    """Run one command; ends the process with status 2 after an error of the user.

    Args:
        command: One of `COMMANDS`.
        arguments: Of the command; None for those of the process.
    """
    from ddpm_unet.command_line import user_errors

    with user_errors():
        module, _, function = COMMANDS[command][0].partition(":")
        getattr(import_module(f"ddpm_unet.commands.{module}"), function)(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """The console entry point."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    command = arguments[0] if arguments else "--help"
    if command in ("-h", "--help"):
        width = max(map(len, COMMANDS))
        lines = [f"  {name:{width}}  {what}" for name, (_, what) in COMMANDS.items()]
        print("\n".join(["usage: ddpm-unet COMMAND ...  (COMMAND --help says more)", "", *lines]))
        return
    if command == "--version":
        from ddpm_unet import __version__

        print(__version__)
        return
    if command not in COMMANDS:
        from difflib import get_close_matches

        near = get_close_matches(command, COMMANDS, 1, 0.0)[0]
        print(f"error: {command}: no such command; did you mean {near}?", file=sys.stderr)
        sys.exit(2)
    sys.argv = [f"ddpm-unet {command}", *arguments[1:]]
    run(command, arguments[1:])
