"""From the command line and a YAML file to a dataclass of settings, and from errors to exits."""

from __future__ import annotations

import difflib
import inspect
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

from ddpm_unet.errors import UserError

Settings = TypeVar("Settings")
MISMATCH = "operator torchvision::nms does not exist"


@contextmanager
def user_errors() -> Iterator[None]:
    """Print a UserError, or that torch and torchvision do not fit, and exit with status 2."""
    try:
        yield
    except UserError as error:
        message = str(error)
    except RuntimeError as error:
        if MISMATCH not in str(error):
            raise
        message = (
            f"{MISMATCH}: torch and torchvision are of different builds; "
            "pip install --force-reinstall torch torchvision"
        )
    else:
        return
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)


def read_settings(
    kind: type[Settings], default_config: Path, arguments: Sequence[str] | None = None
) -> tuple[Settings, str]:
    """Settings from `--config FILE`, overridden by dotted flags.

    Args:
        kind: Dataclass of the settings.
        default_config: Read when there is no `--config`.
        arguments: Instead of the process's own.

    Returns:
        The settings, and the name (without suffix) of the configuration file.

    Raises:
        UserError: An unknown key (with the nearest valid one), a value of the wrong type or out
            of its choices, or a file that is missing or not YAML.
    """
    from argparse import ArgumentError

    from jsonargparse import ArgumentParser

    arguments = list(sys.argv[1:] if arguments is None else arguments)
    flags = [a[2:].split("=")[0] for a in arguments if a.startswith("--")]
    if "config" not in flags:
        arguments = ["--config", str(default_config), *arguments]
    names = set(setting_names(kind))
    _refuse_unknown(flags, names | {"config", "help", "print_config"}, "--")
    file = Path(_value_of("--config", arguments))
    _refuse_unknown(_yaml_keys(file), names, f"{file}: ")
    parser = ArgumentParser(
        exit_on_error=False,
        description=f"{inspect.getdoc(kind)}".splitlines()[0],
    )
    parser.add_argument(
        "--config",
        action="config",
        help=f"YAML file of the settings below (default {default_config.name}).",
    )
    parser.add_class_arguments(kind, nested_key=None)
    try:
        chosen = parser.instantiate(parser.parse_args(arguments))
    except ArgumentError as error:
        raise UserError(" ".join(str(error).split())) from error
    return kind(**{f.name: chosen[f.name] for f in fields(kind)}), file.stem  # type: ignore[arg-type]


def setting_names(kind: type, prefix: str = "") -> Iterator[str]:
    """Dotted names of every setting and group of settings of a dataclass."""
    for name, hint in get_type_hints(kind).items():
        yield f"{prefix}{name}"
        if is_dataclass(hint):
            yield from setting_names(hint, f"{prefix}{name}.")  # type: ignore[arg-type]


def _value_of(flag: str, arguments: Sequence[str]) -> str:
    for index, argument in enumerate(arguments):
        if argument.startswith(f"{flag}="):
            return argument.split("=", 1)[1]
        if argument == flag:
            if index + 1 == len(arguments):
                raise UserError(f"{flag}: needs a value")
            return arguments[index + 1]
    raise KeyError(flag)


def _yaml_keys(path: Path) -> list[str]:
    import yaml

    try:
        values = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"{path}: cannot be read ({error}); give a YAML file of settings"
        ) from error
    except yaml.YAMLError as error:
        raise UserError(f"{path}: is not YAML ({' '.join(str(error).split())})") from error
    if not isinstance(values, dict):
        raise UserError(f"{path}: holds no settings; write lines such as `seed: 0`")
    return list(_keys(values))


def _keys(values: dict[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in values.items():
        yield f"{prefix}{key}"
        if isinstance(value, dict):
            yield from _keys(value, f"{prefix}{key}.")


def _refuse_unknown(given: Iterable[str], known: set[str], where: str) -> None:
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
        raise UserError(f"{where}{name}: no such setting; {cure}")
