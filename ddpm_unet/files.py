"""Files that are replaced as a whole: a reader meets the old text or the new, never half of it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def finished(path: Path, shared: bool = False) -> Iterator[Path]:
    """A path beside the final one to write to; it gets its name when all went well.

    The folder is made if missing. Where it is `shared`, others may write the same file meanwhile.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    own = f".{os.getpid()}" if shared else ""
    part = path.with_name(f".{path.name}{own}.part")
    try:
        yield part
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def replace_text(path: Path, text: str) -> None:
    """Replace a file by one of this text."""
    with finished(path) as part:
        part.write_text(text, encoding="utf-8")


def printable(text: str) -> str:
    """A text in which names of files that are in no encoding are spelt out."""
    return text.encode("utf-8", "backslashreplace").decode()


def replace_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON; see `replace_text`."""
    replace_text(path, json.dumps(value, indent=2) + "\n")
