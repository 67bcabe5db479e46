"""How the files of images and masks are named, so that each mask finds its image."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from ddpm_unet.data.folder import list_images, split_ending
from ddpm_unet.errors import UserError


@dataclass(frozen=True)
class Place:
    """A folder and how the files in it, pictures or volumes, are named."""

    root: str
    pattern: str
    dims: int = 2

    def shared(self, path: str) -> str | None:
        """What a file's name shares with its partner's; None if it does not fit the pattern."""
        before, after = self.pattern.split("{}")
        stem = Path(split_ending(path)[0]).name
        fits = stem.startswith(before) and stem.endswith(after)
        middle = stem[len(before) : len(stem) - len(after)]
        return os.path.join(os.path.dirname(path), middle) if fits and middle else None

    def files(self, what: str, other: Place) -> tuple[dict[str, str], list[str], list[str]]:
        """Files by the shared part of their names, notes and faults.

        Where one folder is inside the other, what is inside belongs to the inner one; in one
        folder, a name that fits both patterns belongs to the longer.
        """
        if self.pattern.count("{}") != 1:
            raise UserError(
                f"data.{what}_name is {self.pattern!r}: write {{}} once, for instance '{{}}_{what}'"
            )
        files: dict[str, str] = {}
        unfit, faults = [], []
        for path in list_images(Path(self.root), self.dims)[0]:
            full, name = os.path.join(self.root, path), self.shared(path)
            if self._belongs_to(other, full, path):
                continue
            if name is None:
                unfit.append(full)
            elif name in files:
                faults.append(f"{full}: has the name of {files[name]}; keep one of the two")
            else:
                files[name] = full
        fit = "file does" if len(unfit) == 1 else "files do"
        notes = [f"{len(unfit)} {fit} not fit data.{what}_name, such as {path}" for path in unfit]
        return files, notes[:1], faults

    def _belongs_to(self, other: Place, full: str, path: str) -> bool:
        mine, others = Path(self.root).resolve(), Path(other.root).resolve()
        if mine == others:
            return len(other.pattern) > len(self.pattern) and other.shared(path) is not None
        return others.is_relative_to(mine) and Path(full).resolve().is_relative_to(others)


def naming_hint(images: dict[str, str], masks: dict[str, str]) -> str:
    """Where no name fits: the pattern that would give every image its mask, if there is one."""
    for setting, names, longer in (("mask_name", images, masks), ("image_name", masks, images)):
        first = next(iter(names), "")
        for other in longer:
            before, found, after = other.partition(first)
            if found and all(f"{before}{name}{after}" in longer for name in names):
                return f"set data.{setting} '{before}{{}}{after}'"
    return ""
