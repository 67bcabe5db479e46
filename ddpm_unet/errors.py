"""Errors that a user can mend."""

from __future__ import annotations

import difflib
import importlib
import os
import re
from collections.abc import Iterable, Mapping
from typing import Any

LAUNCHER = ("ACCELERATE_", "FSDP_", "MEGATRON_LM_", "PARALLELISM_CONFIG_")
"""How the variables begin that accelerate reads."""


class UserError(Exception):
    """Bad input. The message is one line that names the thing at fault and the cure.

    The scripts print it and exit with status 2.
    """


def refuse(faults: Mapping[str, object], of: str = "") -> None:
    """Raise the first fault of a table of faults, each with whether it is there."""
    for fault in (fault for fault, there in faults.items() if there):
        raise UserError(f"{of}{fault}")


def cause_of(error: object) -> str:
    """What an error of another library says, in one line of moderate length."""
    return " ".join(str(error).split())[:200]


def from_extra(module: str, extra: str, what: str) -> Any:
    """A module that comes with an extra of the package, or the error that says so of `what`."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UserError(
            f"{what}: {module.partition('.')[0]} cannot be imported ({cause_of(error)}); "
            f'pip install "ddpm-unet[{extra}]"'
        ) from error


def did_you_mean(name: str, known: Iterable[str], otherwise: str, cutoff: float = 0.6) -> str:
    """The cure for a name that is not known: the nearest that is, or what else there is."""
    near = difflib.get_close_matches(name, list(known), 1, cutoff)
    return f"did you mean {near[0]}?" if near else otherwise


def launcher_fault(error: Exception) -> UserError | None:
    """The error of a variable that accelerate does not take; None where it speaks of none."""
    text = cause_of(error)
    said = [f"{n} {v}" for n, v in os.environ.items() if n.startswith(LAUNCHER) and v.strip()]
    usual = ("no", "false", "true", "cpu")
    found = [
        each
        for each in said
        if (value := each.partition(" ")[2].lower()) not in usual
        and re.search(rf"(?<!\w){re.escape(value)}(?!\w)", text, re.IGNORECASE)
    ]
    if not found:
        return None
    return UserError(
        f"{' or '.join(found)}: accelerate does not take it ({text}); set another, or leave it out"
    )
