"""A script as its command line starts it, in this process: importing torch again takes seconds."""

import io
import logging
import runpy
import sys
import traceback
import warnings
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

from accelerate.state import AcceleratorState

from ddpm_unet import cli
from ddpm_unet.data.pairs import _stack

SCRIPTS = Path(__file__).parents[2] / "scripts"


@dataclass(frozen=True)
class Outcome:
    """What a person sees of a command."""

    status: object
    out: str
    err: str


def run(script: str, arguments: Sequence[str]) -> Outcome:
    """Run `scripts/NAME.py`, or `ddpm-unet`, in the current folder.

    Warnings and log messages go where they would without pytest: to stderr.
    """
    out, err, status = io.StringIO(), io.StringIO(), 0
    root = logging.getLogger()
    argv, handlers = sys.argv, root.handlers
    with redirect_stdout(out), redirect_stderr(err), warnings.catch_warnings():
        warnings.showwarning = lambda message, kind, file, line, *_: print(
            warnings.formatwarning(message, kind, file, line), file=sys.stderr
        )
        for kind in (UserWarning, RuntimeWarning):
            warnings.simplefilter("default", kind)
        try:
            sys.argv, root.handlers = [script, *map(str, arguments)], []
            if script.endswith(".py"):
                runpy.run_path(str(SCRIPTS / script), run_name="__main__")
            else:
                cli.main(arguments)
        except SystemExit as stop:
            status = stop.code
        except BaseException:
            status = 1
            traceback.print_exc()
        finally:
            _stack.cache_clear()  # its paths are relative to a folder that is left now
            sys.argv, root.handlers = argv, handlers
            AcceleratorState._reset_state(reset_partial_state=True)
    return Outcome(status, out.getvalue(), err.getvalue())


def done(script: str, *arguments: object) -> str:
    """What a command that must end well says."""
    outcome = run(script, list(map(str, arguments)))
    assert (outcome.status, outcome.err.count("error:")) == (0, 0), outcome.err
    return outcome.out
