"""Files that are replaced as a whole: a reader meets the old text or the new, never half of it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any


def replace_text(path: Path, text: str) -> None:
    """Write `text` beside `path` and rename it; the folder is made if missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"{path.name}.unfinished")
    unfinished.write_text(text, encoding="utf-8")
    os.replace(unfinished, path)


def printable(text: str) -> str:
    """A text in which names of files that are in no encoding are spelt out."""
    return text.encode("utf-8", "backslashreplace").decode()


def replace_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON; see `replace_text`."""
    replace_text(path, json.dumps(value, indent=2) + "\n")
