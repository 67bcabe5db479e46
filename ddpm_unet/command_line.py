"""From the command line and a YAML file to a dataclass of settings, and from errors to exits."""

from __future__ import annotations

import argparse
import difflib
import errno
import inspect
import os
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import fields, is_dataclass
from functools import cache
from io import TextIOWrapper
from pathlib import Path
from typing import Any, NoReturn, TypeVar, get_type_hints

from ddpm_unet.config import AutoencodeConfig, DenoiseConfig, SegmentConfig
from ddpm_unet.config.limits import check_limits
from ddpm_unet.config.typed import wrong_type
from ddpm_unet.config.yaml_file import in_one_line, read_yaml
from ddpm_unet.errors import UserError

Settings = TypeVar("Settings")
Number = TypeVar("Number", int, float)
MISMATCH = "operator torchvision::nms does not exist"
DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
SECONDS_FOR_THE_MAIN_PROCESS = 2.0
SCRIPTS = {
    "train_ddpm": DenoiseConfig,
    "train_seg": SegmentConfig,
    "train_autoencoder": AutoencodeConfig,
}


@contextmanager
def user_errors() -> Iterator[None]:
    """Print a UserError, and what else a person can mend, in one line; exit with status 2.

    Of several processes the main one speaks first: launchers then end the others, which would
    often say the same.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # names of files may be in no encoding
            stream.reconfigure(errors="backslashreplace")
    try:
        yield
        return
    except UserError as error:
        message = str(error)
    except (RuntimeError, MemoryError, OSError) as error:
        known = _cause_outside(error)
        if known is None:
            raise
        message = known
    if os.environ.get("RANK", "0") != "0":
        time.sleep(SECONDS_FOR_THE_MAIN_PROCESS)
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)


def _cause_outside(error: Exception) -> str | None:
    """What to do about an error whose cause lies outside the program, None for others."""
    text = " ".join(str(error).split())
    if MISMATCH in text:
        return (
            f"{MISMATCH}: torch and torchvision are of different builds; "
            "pip install --force-reinstall torch torchvision"
        )
    if isinstance(error, MemoryError) or re.search("can't allocate memory|out of memory", text):
        return (
            f"memory is exhausted ({text[:200]}); use smaller pictures, batches "
            "(train.micro_batch, --batch_size) or a smaller network"
        )
    if isinstance(error, OSError) and error.errno in DISK:
        return f"{error.filename or 'a file'}: could not be written ({error.strerror}); make room"
    return None


class ArgumentParser(argparse.ArgumentParser):
    """Python's, for scripts with flags of their own: bad ones are refused in one line."""

    def error(self, message: str) -> NoReturn:
        """Refuse, with the nearest flag in place of an unknown one.

        Raises:
            UserError: Always.
        """
        unknown = re.fullmatch(r"unrecognized arguments: (-\S*?)(=.*| .*)?", message)
        if unknown:
            known = (flag for action in self._actions for flag in action.option_strings)
            _refuse_unknown([unknown[1]], set(known), "")
        raise UserError(f"{message}; --help lists what there is")


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


def read_settings(
    kind: type[Settings], default_config: Path | None, arguments: Sequence[str] | None = None
) -> tuple[Settings, str]:
    """Settings from `--config FILE`, overridden by dotted flags.

    Args:
        kind: Dataclass of the settings.
        default_config: Read when there is no `--config`; None for the settings' own defaults.
        arguments: Instead of the process's own.

    Returns:
        The settings, and the name (without suffix) of the configuration file, "" without one.

    Raises:
        UserError: An unknown key (with the nearest valid one), a value of the wrong type or out
            of its choices or limits, or a file that is missing or not YAML.
    """
    from argparse import ArgumentError

    arguments = list(sys.argv[1:] if arguments is None else arguments)
    names = dict(setting_names(kind))
    flags = [a[2:].split("=")[0] for a in arguments if a.startswith("--")]
    _refuse_unknown(flags, {*names, "config", "help"}, "--")
    for group in (flag for flag in flags if is_dataclass(names.get(flag))):
        raise UserError(f"--{group}: is a group of settings; give one as --{group}.NAME")
    file = _taken_out("--config", arguments) or default_config
    # What the file says comes first, as flags, so that those of the command line win.
    given = {} if file is None else dict(_leaves(read_yaml(Path(file)), names, f"{file}: "))
    default = default_config.name if default_config else "none"
    parser: Any = _parser(kind, default)  # type: ignore[arg-type]
    try:
        chosen = parser.instantiate(
            parser.parse_args([*(f"--{n}={text}" for n, text in given.items()), *arguments])
        )
    except ArgumentError as error:
        found = re.match(r'Parser key "([\w.]+)"', str(error))
        if not found or found[1] not in names:
            text = " ".join(str(error).split())
            raise UserError(f"{text[:300]}; --help lists all settings") from error
        name, value = found[1], _flag_value(found[1], arguments)
        where, value = (
            (f"{file}: {name}", given.get(name, "")) if value is None else (f"--{name}", value)
        )
        raise UserError(wrong_type(where, value, names[name])) from error
    settings = kind(**{f.name: chosen[f.name] for f in fields(kind)})  # type: ignore[arg-type]
    check_limits(settings)
    return settings, "" if file is None else Path(file).stem


@cache
def _parser(kind: type, default: str) -> Any:
    from jsonargparse import ArgumentParser

    description = f"{inspect.getdoc(kind)}".splitlines()[0]
    parser = ArgumentParser(exit_on_error=False, description=description)
    parser.add_argument("--config", help=f"YAML file of the settings below (default {default}).")
    parser.add_class_arguments(kind, nested_key=None)
    return parser


def setting_names(kind: type, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted name and type of every setting and group of settings of a dataclass."""
    for name, hint in get_type_hints(kind).items():
        yield f"{prefix}{name}", hint
        if is_dataclass(hint):
            yield from setting_names(hint, f"{prefix}{name}.")  # type: ignore[arg-type]


def _taken_out(flag: str, arguments: list[str]) -> str | None:
    """The value of a flag, which is taken out of the arguments together with it."""
    places = [i for i, a in enumerate(arguments) if a == flag or a.startswith(f"{flag}=")]
    if not places:
        return None
    if len(places) > 1:
        raise UserError(f"{flag}: is given {len(places)} times; give one")
    name, equals, value = arguments.pop(places[0]).partition("=")
    if not equals and places[0] < len(arguments):
        value = arguments.pop(places[0])
    if not value or value.startswith("--"):
        raise UserError(f"{name}: needs a value, a YAML file of settings")
    return value


def _flag_value(name: str, arguments: Sequence[str]) -> str | None:
    """The last value that the command line gives to a flag."""
    found = None
    for place, argument in enumerate(arguments):
        if argument == f"--{name}":
            found = " ".join(arguments[place + 1 : place + 2])
        elif argument.startswith(f"--{name}="):
            found = argument.split("=", 1)[1]
    return found


def _leaves(
    values: dict[Any, Any], names: dict[str, Any], where: str, prefix: str = ""
) -> Iterator[tuple[str, str]]:
    """Dotted name and text of every value of nested settings."""
    for key, value in values.items():
        name = f"{prefix}{key}"
        _refuse_unknown([name], names, where)
        if isinstance(value, dict) and (value or is_dataclass(names[name])):
            yield from _leaves(value, names, where, f"{name}.")
        elif is_dataclass(names[name]) or (
            names[name] in (str, str | None) and not isinstance(value, str | None)
        ):
            raise UserError(wrong_type(f"{where}{name}", value, names[name]))
        else:
            yield name, value if isinstance(value, str) else in_one_line(value)


def _refuse_unknown(given: Iterable[str], known: Iterable[str], where: str) -> None:
    known = set(known)
    for name in given:
        if name in known:
            continue
        leaves = {n.rsplit(".", 1)[-1]: n for n in sorted(known)}
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
        near = near or [
            leaves[leaf]
            for leaf in difflib.get_close_matches(name.rsplit(".", 1)[-1], leaves, n=1, cutoff=0.6)
        ]
        cure = f"did you mean {near[0]}?" if near else "--help lists all settings"
        others = [s for s, kind in SCRIPTS.items() if name in dict(setting_names(kind))]
        if others:
            cure = f"it is one of {' and '.join(f'scripts/{script}.py' for script in others)}"
        shown = name if name.isprintable() else repr(name)
        raise UserError(f"{where}{shown}: no such setting; {cure}")
