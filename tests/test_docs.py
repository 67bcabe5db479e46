"""The pages: their Python runs, their links lead somewhere, their claims name what shows them."""

import re
import shlex
from pathlib import Path

import pytest

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
    r"(?<!not )(?<!Not )(?<!never )\b(tested|measured|equal to)\b"
    r"|\d(\.\d+)? ?(%|dB\b|times\b|MB\b|GB\b)|\b0\.\d\d|\b\d+\.\d\d x\b",
    re.IGNORECASE,
)
"""Words and figures that say how well something does."""
EVIDENCE = re.compile(r"(?:tests|scripts)/[\w/.-]+|make [a-z]+|\]\(([^)#]+\.md)")
GENERATED = {"bad_input.md", "benchmarks.md", "samplers.md", "reliability.md", "status.md"}
"""Pages that a test compares, a script writes, or that have a test or command in each row."""


def sections_without_evidence(page: str) -> list[str]:
    """Headings below which a claim stands, and no test, script, make target or page is named."""
    page = re.sub(r"^```.*?^```", "", page, flags=re.MULTILINE | re.DOTALL)
    head, *sections = re.split(r"^#{1,2} ", page, flags=re.MULTILINE)
    return [s.partition("\n")[0] for s in [head, *sections] if CLAIM.search(s) and not _named(s)]


def _named(section: str) -> bool:
    found = [match[0] for match in EVIDENCE.finditer(section)]
    files = [name.rstrip(".") for name in found if name.startswith(("tests/", "scripts/"))]
    return bool(found) and all((ROOT / name).exists() for name in files)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_figures_stand_with_the_test_or_command_that_shows_them(page):
    text = page.read_text()
    assert _named(text) if page.name in GENERATED else sections_without_evidence(text) == []


def test_a_section_without_evidence_is_listed():
    page = "# A\n\nDice 0.87.\n\n## B\n\n9 % faster: `scripts/nowhere.py`\n\n## C\n\nText.\n"
    assert sections_without_evidence(page) == ["A", "B"]
    named = page.replace("Dice 0.87.", "Dice 0.87: `make demo`.").replace("nowhere", "sample")
    assert not sections_without_evidence(named)
