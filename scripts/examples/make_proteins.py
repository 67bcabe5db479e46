"""Synthetic proteins with planted pockets, to try point sets.

    python scripts/examples/make_proteins.py

A protein is a globule of atoms on a jittered lattice. Cavities are carved into its surface; the
lining of half of them is rich in nitrogen and oxygen, and those atoms are the binding site. The
others are decoys of the same shape, and a third of the ordinary surface is as polar as a site, so
neither the shape nor the elements alone tell. Nothing here was measured on a real protein.
"""

from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np

from ddpm_unet.cli import ArgumentParser, user_errors, whole
from ddpm_unet.inference.writers import output_folder

ELEMENTS = ("C", "N", "O", "S")  # or another
SPACING = 2.3  # Angstrom between neighbours on the lattice
SHARES = {"inside": (0.66, 0.16, 0.16, 0.02), "polar": (0.40, 0.28, 0.31, 0.01)}


def arguments() -> Namespace:
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=whole(1), default=160, help="proteins (default 160)")
    parser.add_argument("--seed", type=int, default=0, help="protein i is a function of (seed, i)")
    parser.add_argument("--out", type=Path, default=Path("proteins"), help="folder written to")
    return parser.parse_args()


def protein(rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Coordinates `[N, 3]`, one-hot elements `[N, 5]` and labels `[N]` (1 in a binding site)."""
    line = np.arange(-24, 25, SPACING)
    atoms = np.stack(np.meshgrid(line, line, line), axis=-1).reshape(-1, 3)
    atoms = atoms + rng.normal(0, 0.3, atoms.shape)
    centres, radii = rng.normal(0, 5, (4, 3)), rng.uniform(7, 10, 4)
    depth = (radii - np.linalg.norm(atoms[:, None] - centres, axis=-1)).max(1)  # below the surface
    directions = rng.normal(size=(64, 3))
    cavities: list[np.ndarray] = []
    for direction in directions / np.linalg.norm(directions, axis=1, keepdims=True):
        reach = atoms[depth > 0] @ direction
        edge = atoms[depth > 0][reach > reach.max() - 1.5].mean(0) - 2.5 * direction
        if all(np.linalg.norm(edge - other) > 13 for other in cavities):
            cavities.append(edge)
        if len(cavities) == 4:
            break
    gap = np.stack([np.linalg.norm(atoms - c, axis=1) for c in cavities]) - rng.uniform(4, 5)
    kept = (depth > 0) & (gap.min(0) > 0)
    gap, atoms, depth = gap[:, kept], atoms[kept], depth[kept]
    lining = gap < 2
    site = lining[: (len(cavities) + 1) // 2].any(0)
    patches = np.linalg.norm(atoms[:, None] - atoms[rng.integers(len(atoms), size=3)], axis=-1)
    polar = site | ((patches < 7).any(1) & (depth < 4) & ~lining.any(0))
    shares = np.where(polar[:, None], SHARES["polar"], SHARES["inside"]).cumsum(1)
    element = (rng.random((len(atoms), 1)) > shares).sum(1).clip(max=len(ELEMENTS) - 1)
    return {
        "coordinates": atoms.astype(np.float32),
        "features": np.eye(len(ELEMENTS) + 1, dtype=np.float32)[element],
        "labels": site.astype(np.uint8),
    }


def main() -> None:
    args = arguments()
    with output_folder(args.out):
        for number in range(args.count):
            rng = np.random.default_rng([args.seed, number])
            arrays: dict[str, Any] = {**protein(rng)}
            np.savez_compressed(args.out / f"{number:04d}.npz", **arrays)
    print(f"written: {args.count} synthetic proteins in {args.out}")


if __name__ == "__main__":
    with user_errors():
        main()
