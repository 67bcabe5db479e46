"""Every input that is known to be refused, and the line it gets: a table, tested and shown.

python tests/scripts/bad_input.py     # writes docs/bad_input.md
"""

from pathlib import Path

from bad_case import COMMANDS, Case, Odd
from bad_images import SEGMENTING, TRAINING
from bad_masks import MASKS
from bad_models import FOLDERS, MODELS
from bad_settings import SETTINGS
from odd_input import ODD

PAGE = Path(__file__).parents[2] / "docs" / "bad_input.md"
SECTIONS: dict[str, list[Case]] = {
    "Images to train on": TRAINING,
    "Images to segment": SEGMENTING,
    "Masks": MASKS,
    "Flags, configurations and settings": SETTINGS,
    "Models": MODELS,
    "Run folders and outputs": FOLDERS,
}
CASES = [case for cases in SECTIONS.values() for case in cases]

INTRODUCTION = """# Bad input

{count} inputs that the scripts refuse, and what they say. Each ends with exit status 2 and this one
line on the error stream, after `error: `, before anything is written: no run folder, no output
folder, and an existing one is left as it was. `...` stands for the words of a library.

Two things are otherwise. The check of a labelled set names every file at fault, a line each. And
an image that is cut in the middle is found when its turn to be decoded comes: `segment.py` looks
at all headers first, and keeps the masks that were finished before.

Below `accelerate launch` and torchrun, which print a traceback of their own about every command
that fails, the line is printed a second time when they have ended, so that it is the last; their
exit status is 1 (`-k launcher` of the same test).

This page is written by `python tests/scripts/bad_input.py` from the table that
`tests/scripts/test_bad_input.py` tries, in a folder with `images`, `masks`, `generated` images,
a `denoiser`, a `segmenter` and two configurations, by these commands and what the tables add:

{commands}
"""


def row(*cells: str) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |\n"


def code(text: str) -> str:
    return f"`` {text} ``" if "`" in text else f"`{text}`"


def page() -> str:
    """The table as Markdown."""
    commands = "\n".join(f"    {name:<33} {line}" for name, line in COMMANDS.items())
    text = INTRODUCTION.format(count=len(CASES), commands=commands)
    for title, cases in SECTIONS.items():
        text += f"\n## {title}\n\n" + row("input", "command", "error") + row(*["---"] * 3)
        text += "".join(row(case.what, shown(case), code(case.says)) for case in cases)
    text += "\n## Odd, and welcome\n\nThese work.\n\n" + row("input", "command", "gives")
    text += row(*["---"] * 3)
    text += "".join(row(case.what, shown(case), code(case.gives)) for case in ODD)
    return text.encode(errors="backslashreplace").decode()


def shown(case: Case | Odd) -> str:
    return f"{case.command} {code(case.added)}" if case.added else case.command


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
