"""`ddpm-unet COMMAND ...`, the same commands as scripts, their flags, and from errors to exits."""

from __future__ import annotations

import argparse
import errno
import os
import re
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib import import_module
from io import TextIOWrapper
from typing import Any, NoReturn, TypeVar

from ddpm_unet.config.reading import converted, described, from_text, refuse_unknown
from ddpm_unet.config.reading import read_settings as read_settings
from ddpm_unet.errors import UserError, did_you_mean, launcher_fault

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
    "suggest": ("suggest:main", "which unlabelled images to label first"),
    "demo": ("demo:main", "a page to try a model on, in a browser"),
    "report": ("report:main", "a page on a run, or on several beside each other"),
    "push": ("push:main", "put a model on the Hugging Face hub"),
    "convert": ("convert:main", "bring in a checkpoint of another toolkit"),
    "completion": ("completion:main", "complete commands and flags in bash, zsh or fish"),
}
"""Where each command is, and what it does."""
SHARED = {
    "train-ddpm", "train-seg", "train-autoencoder", "sample", "segment", "evaluate", "likelihood",
}  # fmt: skip
"""The commands that several processes share."""
Number = TypeVar("Number", int, float)
MISMATCH = "operator torchvision::nms does not exist"
DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
SECONDS_FOR_THE_MAIN_PROCESS = 2.0
LAUNCHERS = re.compile(
    r"(.*[/\\])?(accelerate(-launch)?|torchrun)(\.exe)?"
    r"|accelerate\.commands\.(launch|accelerate_cli)|torch\.distributed\.(run|launch)"
)
AFTER = """
import contextlib, sys, time, psutil
with contextlib.suppress(psutil.Error):
    launcher = psutil.Process(int(sys.argv[1]))
    print(flush=True)
    for _ in range(1200):
        if launcher.status() == psutil.STATUS_ZOMBIE:  # who started it reads our output first
            break
        time.sleep(0.05)
sys.stderr.write(sys.argv[2])
"""


def run(command: str, arguments: Sequence[str] | None = None) -> None:
    """Run one command; ends the process with status 2 after an error of the user.

    Args:
        command: One of `COMMANDS`.
        arguments: Of the command; None for those of the process.
    """
    with user_errors(shared=command in SHARED):
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
        cure = did_you_mean(command, COMMANDS, "", cutoff=0.0)
        print(f"error: {command}: no such command; {cure}", file=sys.stderr)
        sys.exit(2)
    sys.argv = [f"ddpm-unet {command}", *arguments[1:]]
    run(command, arguments[1:])


class _Output:
    """Standard output, into nothing once its reader is gone (`| head`): the work goes on."""

    def __init__(self, stream: TextIOWrapper) -> None:
        self.stream, self.gone = stream, False

    def write(self, text: str) -> int:
        """As of the stream."""
        self._guarded(lambda: self.stream.write(text))
        return len(text)

    def flush(self) -> None:
        """As of the stream."""
        self._guarded(self.stream.flush)

    def _guarded(self, act: Callable[[], object]) -> None:
        try:
            act()
        except BrokenPipeError:
            self.gone = True
            os.dup2(os.open(os.devnull, os.O_WRONLY), self.stream.fileno())

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


@contextmanager
def user_errors(shared: bool = False) -> Iterator[None]:
    """Print a UserError, and what else a person can mend, in one line; exit with status 2.

    A command whose output nobody reads any more ends its work, then with status 141, as by SIGPIPE.
    Of several processes the main one speaks first, as launchers then end the others. Launchers
    print a traceback of their own below it, so the line is printed again when they have ended.
    What is not `shared` by several processes, and would be done by each, is refused to them.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # names of files may be in no encoding
            stream.reconfigure(errors="backslashreplace")
    stdout, formatted = sys.stdout, warnings.formatwarning
    warnings.formatwarning = lambda message, *_, **__: f"warning: {message}\n"
    output = _Output(stdout) if isinstance(stdout, TextIOWrapper) else None
    sys.stdout = output or stdout
    try:
        count = os.environ.get("WORLD_SIZE", "1")
        if not shared and count != "1" and "RANK" in os.environ:
            raise UserError(
                f"{count} processes were started, and this is the work of one; start it without "
                "accelerate launch or torchrun"
            )
        yield
        if output is not None:
            output.flush()
            if output.gone:
                sys.exit(128 + 13)
        return
    except UserError as error:
        message = str(error)
        if type(error).__name__ == "PeerError":  # the main process says what it met
            sys.exit(2)
    except (RuntimeError, MemoryError, OSError, ValueError) as error:
        known = _cause_outside(error)
        if known is None:
            raise
        message = known
    finally:
        sys.stdout, warnings.formatwarning = stdout, formatted
    if os.environ.get("RANK", "0") != "0":
        time.sleep(SECONDS_FOR_THE_MAIN_PROCESS)
    print(f"error: {message}", file=sys.stderr, flush=True)
    _repeat_after_launcher(f"error: {message}\n")
    sys.exit(2)


def _repeat_after_launcher(line: str) -> None:
    """Print a line again once `accelerate launch` or torchrun has ended, if one started this."""
    import psutil

    with suppress(psutil.Error, OSError):
        launcher = psutil.Process(os.getppid())
        if any(map(LAUNCHERS.fullmatch, launcher.cmdline()[:3])):
            command = [sys.executable, "-c", AFTER, str(launcher.pid), line]
            waiting = subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True)
            waiting.stdout.readline()  # type: ignore[union-attr]


def _cause_outside(error: Exception) -> str | None:
    """What to do about an error whose cause lies outside the program, None for others."""
    text = " ".join(str(error).split())
    if "truth value" in text and (fault := launcher_fault(error)):
        return str(fault)
    if MISMATCH in text:
        return (
            f"{MISMATCH}: torch and torchvision are of different builds; "
            "pip install --force-reinstall torch torchvision"
        )
    if any(kind.__name__ == "TorchDynamoException" for kind in type(error).__mro__):
        return (
            f"torch cannot compile the network here ({text[:200]}); leave out --compile and "
            "train.compile, or install what it needs (a compiler, Python's headers)"
        )
    if isinstance(error, MemoryError) or re.search("can't allocate memory|out of memory", text):
        return (
            f"memory is exhausted ({text[:200]}); use smaller images, batches "
            "(train.micro_batch, --batch_size) or a smaller network"
        )
    if isinstance(error, OSError) and error.errno in DISK:
        return f"{error.filename or 'a file'}: could not be written ({error.strerror}); make room"
    return None


class ArgumentParser(argparse.ArgumentParser):
    """Python's, for scripts with flags of their own: bad ones are refused in one line."""

    def error(self, message: str) -> NoReturn:
        """Refuse by a UserError, with the nearest flag in place of an unknown one."""
        unknown = re.fullmatch(r"unrecognized arguments: (-\S*?)(=.*| .*)?", message)
        if unknown:
            known = (flag for action in self._actions for flag in action.option_strings)
            refuse_unknown(unknown[1], known, "")
        raise UserError(f"{message}; --help lists what there is")

    def add_settings(self, kind: type) -> None:
        """Add a flag for each field of a flat dataclass, with its line of help."""
        for name, hint, value, text in described(kind()):

            def read(text: str, name: str = name, hint: Any = hint) -> Any:
                return converted(from_text(text, hint), hint, "--", name, text)

            self.add_argument(f"--{name}", type=read, default=value, help=text)


def whole(least: int, most: int = 10**9) -> Callable[[str], int]:
    """An argparse type: a whole number within limits."""
    return within(int, least, most)


def within(kind: type[Number], least: Number, most: Number) -> Callable[[str], Number]:
    """An argparse type: an int or float within limits."""

    def convert(text: str) -> Number:
        with suppress(ValueError):
            if least <= kind(text) <= most:
                return kind(text)
        word = "whole number" if kind is int else "number"
        raise argparse.ArgumentTypeError(
            f"{text!r} is no {word} between {least:.12g} and {most:.12g}"
        )

    return convert
