"""docs/benchmarks.md, written from the raw figures alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.growth_plots import growth_section
from benchmarks.rows import OURS, Results, Row
from benchmarks.timing import Spread, quotients, spread

HEAD = """# Benchmarks

Written by `python scripts/benchmarks` from [benchmarks.json](benchmarks.json), which has every
sample. `--only ROW...` measures single rows again, `--quick` all of them roughly in minutes,
`--growth` the plots at the end.

All sides of a row take turns in one process (memory and start: in processes of their own), after
a warm-up. Figures are medians; ratios are taken round by round, with their quartiles in brackets,
and are of time per FLOP where the networks differ. Work is counted by torch's FLOP counter on the
plain network, a product and a sum as two. "Of the machine" is the rate of that work as a share of
the rate of float32 matrix products just before and after it (on a GPU: of its bfloat16 peak); fast
convolutions that do fewer operations than counted may exceed 100 %. The difference is the largest
of the outputs (of gradients: the norm), relative, with the same weights and noise, measured first.

A million images, and a slide of 20,000 x 20,000: [many_gpus.md](many_gpus.md#large-sets).
"""
COLUMNS = [
    "",
    "work, GFLOP",
    "ours",
    "peer",
    "",
    "ratio",
    "at least / aim",
    "of the machine: ours, peer",
    "difference",
]


def page(results: Results, rows: Mapping[str, Row]) -> str:
    """The whole page.

    Args:
        results: All that was ever measured.
        rows: All rows there are, by name.
    """
    parts = [HEAD, machines(results, rows)]
    for device, title in (("cpu", "On a CPU, float32"), ("cuda", "On a GPU")):
        chosen = {name: row for name, row in rows.items() if row.device == device}
        parts += [f"## {title}\n", table(results, chosen), notes(results, chosen)]
    return "\n".join([*parts, growth_section(results.growth)])


def machines(results: Results, rows: Mapping[str, Row]) -> str:
    """Where and when, once for all rows that have it in common."""
    groups: dict[str, list[str]] = {}
    for name, found in [*results.rows.items(), *results.growth.items()]:
        title = rows[name].title if name in rows else f"growth: {name}"
        groups.setdefault(machine(found["circumstances"]), []).append(title)
    if len(groups) < 2:
        return "".join(f"{text}.\n" for text in groups)
    return "".join(f"- {text}: {'; '.join(titles)}.\n" for text, titles in groups.items())


def machine(at: Mapping[str, Any]) -> str:
    """One machine and one set of versions."""
    return ", ".join(
        [
            at["date"],
            *(["roughly (--quick)"] if at["quick"] else []),
            *([at["gpu"]] if at["gpu"] else []),
            f"{at['cpu']}, {at['processors']} processors ({at['vectors']}), "
            f"{at['threads']} thread{'s' * (at['threads'] > 1)} used, {at['memory_gb']} GB",
            *(f"{package} {number}" for package, number in at["versions"].items()),
        ]
    )


def table(results: Results, rows: Mapping[str, Row]) -> str:
    """A line for each row and peer."""
    lines = [f"| {' | '.join(COLUMNS)} |", "|---" * len(COLUMNS) + "|"]
    for name, row in rows.items():
        found = results.rows.get(name)
        if found is None:
            why = "no GPU yet" if row.device == "cuda" else "not yet"
            cells = [row.title, "", f"not measured: {why}"]
            lines.append(f"| {' | '.join([*cells, *[''] * (len(COLUMNS) - len(cells))])} |")
            continue
        others = [side for side in found["samples"] if side != OURS and side not in row.peers]
        for number, peer in enumerate([*row.peers, *others] or [None]):
            cells = line(row, found, peer)
            if number:  # what is said once a row
                cells[:3] = [""] * 3
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def line(row: Row, found: Mapping[str, Any], peer: str | None) -> list[str]:
    """The cells of a row and one of its peers."""
    gflop, apart = found["gflop"], found["differences"]
    ours = shown(row, found, OURS)
    goal = row.peers.get(peer) if peer else row.within
    cells = [row.title, f"{gflop[OURS]:.3g}" if gflop else "", ours]
    if peer is None:
        reached = spread(found["samples"][OURS]).median
        return [
            *cells,
            "",
            "",
            "",
            goals(goal, reached, smaller=True, unit=" s"),
            share(found, OURS),
            "",
        ]
    if peer not in found["samples"]:
        return [*cells, peer, "not installed", "", goals(goal, None), share(found, OURS), ""]
    times = ratio(row, found, peer)
    return [
        *cells,
        peer,
        shown(row, found, peer),
        f"{times.median:.2f}x ({times.low:.2f} to {times.high:.2f})",
        goals(goal, times.median, row.smaller),
        ", ".join(s for s in (share(found, OURS), share(found, peer)) if s),
        f"{apart[peer]:.1e}" if peer in apart else "",
    ]


def ratio(row: Row, found: Mapping[str, Any], peer: str) -> Spread:
    """How many times faster ours is for the same work, or what share of the memory it needs."""
    ours, theirs = found["samples"][OURS], found["samples"][peer]
    if row.smaller:
        return quotients(ours, theirs)
    gflop = found["gflop"]
    return quotients(theirs, ours, gflop[OURS] / gflop[peer] if gflop else 1.0)


def shown(row: Row, found: Mapping[str, Any], side: str) -> str:
    """A side's median, per step or image, in the row's unit."""
    value = spread(found["samples"][side]).median
    per = found["per"]
    if row.unit == "images/s":
        return f"{digits(per / value)} images/s"
    factor = {"ms": 1e3, "us": 1e6, "s": 1.0, "MB": 1.0}[row.unit]
    return f"{digits(factor * value / per)} {row.unit}"


def share(found: Mapping[str, Any], side: str) -> str:
    """Rate of a side's work relative to that of matrix products around it."""
    work = found["gflop"].get(side)
    if not work or side not in found["rates"]:
        return ""
    done = [work * 1e9 * found["per"] / seconds for seconds in found["samples"][side]]
    return f"{100 * quotients(done, found['rates'][side]).median:.0f} %"


def goals(goal: Any, reached: float | None, smaller: bool = False, unit: str = "x") -> str:
    """What was wanted, and whether it was reached."""
    if goal is None:
        return ""
    wanted = " / ".join(f"{value:g}{unit}" for value in goal)
    if reached is None:
        return wanted
    least, aim = (reached <= value if smaller else reached >= value for value in goal)
    return f"{wanted}: {'aim reached' if aim else 'reached' if least else 'short'}"


def notes(results: Results, rows: Mapping[str, Row]) -> str:
    """What belongs to single rows."""
    said = [
        f"- {row.title}: {'; '.join(results.rows[name]['notes'])}."
        for name, row in rows.items()
        if name in results.rows and results.rows[name]["notes"]
    ]
    return "\n".join(said) + "\n" * bool(said)


def digits(value: float) -> str:
    """Three digits, thousands apart."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
