"""The pages: their Python runs, their links lead somewhere, their claims name what shows them."""

import re
import shlex
from pathlib import Path
from textwrap import indent

import pytest

from ddpm_unet.config import CheckpointHints, ProcessHints
from ddpm_unet.config.jobs import SCRIPTS
from ddpm_unet.config.reading import setting_names

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "samples" / "README.md"]
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)]*)?\)")
BLOCKS = [
    pytest.param(block, id=f"{page.name}-{number}")
    for page in PAGES
    for number, block in enumerate(BLOCK.findall(page.read_text()))
]


@pytest.mark.parametrize("block", BLOCKS)
def test_python_of_the_pages_runs(block, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(compile(block, "page", "exec"), {"__name__": "page"})


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files(page):
    targets = [t for t in LINK.findall(page.read_text()) if "://" not in t and "mailto:" not in t]
    lost = [t for t in targets if not (page.parent / t).exists()]
    assert not lost


def without_evidence(page: str) -> list[str]:
    """Rows of the page's tables whose last cell names neither a test nor a command that exists."""
    lines = [line for line in page.splitlines() if line.startswith("| ") or line.startswith("|-")]
    rows = [line for line in lines if not line.startswith("|-")]
    return [row for row in rows if not row.startswith("| what ") and not _evidence(row)]


def _evidence(row: str) -> bool:
    cell = row.strip().strip("|").rsplit("|", 1)[-1]
    names = re.findall(r"`([^`]+)`", cell)
    return bool(names) and all(_exists(name) for name in names)


def _exists(name: str) -> bool:
    words = shlex.split(name)
    files = [w.split("::")[0] for w in words if w.startswith(("tests/", "scripts/", "configs/"))]
    if words[0] == "make":
        return f"\n{words[1]}:" in (ROOT / "Makefile").read_text()
    return bool(files) and all((ROOT / file).exists() for file in files)


def test_every_claim_names_its_test_or_command():
    assert without_evidence((ROOT / "docs" / "status.md").read_text()) == []


def test_a_claim_without_evidence_is_listed():
    page = "| what | state | test or command |\n|---|---|---|\n| it | yes | `tests/nowhere.py` |\n"
    assert len(without_evidence(page)) == 1
    assert not without_evidence(page.replace("tests/nowhere.py", "tests/test_docs.py"))


CLAIM = re.compile(
    r"(?<!not )(?<!not been )(?<!never )\b(tested|measured|equal to)\b"
    r"|\d(\.\d+)? ?(%|dB\b|times\b|MB\b|GB\b)|\b0\.\d\d|\b\d+\.\d\d x\b",
    re.IGNORECASE,
)
"""Words and figures that say how well something does."""
EVIDENCE = re.compile(
    r"(?:tests|scripts|configs)/[\w/-]+(?:\.\w+)?|make [a-z]+|ddpm-unet \w+|\]\(([^)#]+\.md)"
)
WRITTEN = {"bad_input.md", "benchmarks.md", "samplers.md", "reliability.md"}
"""Pages that a command writes, which they name."""


def claims_without_evidence(page: str) -> list[str]:
    """Paragraphs, lists and tables with a claim, and no test, command or page that shows it.

    It is named in them, or is the command that stands before or after them; of a list or a table
    also in the paragraph before or after.
    """
    page = re.sub(r"^```.*?^```", lambda b: indent(b[0], " " * 4), page, flags=re.M | re.S)
    blocks = ["", *(b for b in re.split(r"\n\s*\n", page) if b.strip()), ""]
    return [
        block.strip("\n")
        for before, block, after in zip(blocks, blocks[1:], blocks[2:], strict=False)
        if CLAIM.search(block) and not _is_command(block) and not block.startswith("#")
        if not (_named(block) or _is_command(before) or _is_command(after))
        if not (block.lstrip().startswith(("|", "- ")) and (_named(before) or _named(after)))
    ]


def _is_command(block: str) -> bool:
    return bool(block) and all(line.startswith(" " * 4) for line in block.split("\n") if line)


def _named(block: str) -> bool:
    found = [match[0] for match in EVIDENCE.finditer(block)]
    files = [name for name in found if name.startswith(("tests/", "scripts/", "configs/"))]
    return bool(found) and all((ROOT / name).exists() for name in files)


def claims_of(page: Path) -> list[str]:
    """Those of a page without evidence; of one that a command writes, all unless it is named."""
    text = page.read_text()
    if page.name in WRITTEN:
        return [] if _named(text) else [text]
    return claims_without_evidence(text)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_figures_stand_with_the_test_or_command_that_shows_them(page):
    assert claims_of(page) == []


def test_a_claim_of_a_page_without_evidence_is_listed():
    page = "# A\n\nDice 0.87.\n\n## B\n\n9 % faster: `scripts/nowhere.py`\n\nText.\n"
    assert claims_without_evidence(page) == ["Dice 0.87.", "9 % faster: `scripts/nowhere.py`"]
    named = page.replace("Dice 0.87.", "Dice 0.87: `make demo`.").replace("nowhere", "sample")
    assert not claims_without_evidence(named)
    assert not claims_without_evidence("    make bench\n\nIt is 0.25.\n")
    assert not claims_without_evidence("By `make bench`:\n\n| it | 0.25 |\n")
    assert claims_without_evidence("By `make bench`:\n\nIt is 0.25.\n") == ["It is 0.25."]


def known_flags() -> set[str]:
    """Of our commands and scripts, and of all settings."""
    files = [*ROOT.glob("ddpm_unet/commands/*.py"), *ROOT.glob("scripts/**/*.py")]
    found = {flag for file in files for flag in re.findall(r'"(--[\w-]+)"', file.read_text())}
    kinds = [*SCRIPTS.values(), CheckpointHints, ProcessHints]
    names = {name for kind in kinds for name, _ in setting_names(kind)}
    return found | {f"--{name}" for name in names} | {"--config", "--help", "--help-all"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_flags_of_the_pages_exist(page):
    text = page.read_text().replace("\\\n", " ")
    used = re.findall(r"(?:\w+\.py|ddpm-unet [\w-]+)([^`\n#|]*)", text)
    flags = {flag for rest in used for flag in re.findall(r"(?<=\s)--[\w.-]*\w", rest)}
    assert flags - known_flags() == set()


if __name__ == "__main__":  # lists them: python tests/test_docs.py
    for page in PAGES:
        for claim in claims_of(page):
            print(f"{page.relative_to(ROOT)}: {claim}\n")
