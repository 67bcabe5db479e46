"""Try to break trainings, and write down what happened: `python scripts/reliability.py [ITEM...]`.

Every item is a section of docs/reliability.md, which is written anew when the item runs.
"""

import argparse
import time
from collections.abc import Callable, Iterator

import torch
from reliability_items.damages import damage, disk
from reliability_items.much import folder, soak
from reliability_items.page import write_section
from reliability_items.stops import kill, signals
from reliability_items.together import faults, hosts, processes, sampling, sharded

ITEMS: dict[str, Callable[..., Iterator[str]]] = {
    f.__name__: f
    for f in (
        kill,
        signals,
        damage,
        disk,
        processes,
        sampling,
        sharded,
        hosts,
        faults,
        soak,
        folder,
    )
}

SIZES = {"kill": 20, "soak": 2000, "folder": 100_000}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("items", nargs="*", metavar="ITEM", help=f"of {', '.join(ITEMS)}")
    chosen = parser.parse_args().items or list(ITEMS)
    if unknown := sorted(set(chosen) - set(ITEMS)):
        parser.error(f"{unknown[0]}: no such item; known are {', '.join(ITEMS)}")
    torch.set_num_threads(1)
    for item in chosen:
        begin = time.monotonic()
        lines = []
        for line in ITEMS[item](*([SIZES[item]] if item in SIZES else [])):
            print(f"{item}: {line}", flush=True)
            lines.append(line)
        print(f"{item}: {time.monotonic() - begin:.0f} s")
        write_section(item, lines, ITEMS)


if __name__ == "__main__":
    main()
