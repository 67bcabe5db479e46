"""What image files say of their channels and of the size of a pixel."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any
from uuid import UUID
from xml.etree import ElementTree

import numpy as np
import tifffile

from ddpm_unet.errors import UserError

UNITS = {
    "mm": 1.0,
    "cm": 10.0,
    "m": 1e3,
    "um": 1e-3,
    "µm": 1e-3,  # the micro sign, and the Greek letter
    "μm": 1e-3,
    "\\u00B5m": 1e-3,
    "micron": 1e-3,
    "nm": 1e-6,
    "Å": 1e-7,
}
"""Millimetres of what OME and ImageJ call them."""


@dataclass(frozen=True)
class Metadata:
    """What a file says of its image.

    Attributes:
        channels: Their names; empty where the file does not say them.
        spacing: Millimetres from pixel to pixel along (planes,) rows and columns; None where the
            file does not say it.
        resolution: Likewise by a TIFF's resolution in cm, which may be one of printing.
    """

    channels: tuple[str, ...] = ()
    spacing: tuple[float, ...] | None = None
    resolution: tuple[float, ...] | None = None

    @classmethod
    def of_tiff(cls, file: tifffile.TiffFile) -> Metadata:
        """What OME, ImageJ or the resolution's tags say of a TIFF."""
        page = file.pages.first
        per_x, per_y = page.resolution
        about = file.imagej_metadata or (file.shaped_metadata or ({},))[0]
        unit, depth = UNITS.get(about.get("unit", ""), 0.0), about.get("spacing", 0.0)
        resolution = spacing = None
        if page.resolutionunit == 3 and per_x and per_y:
            resolution = (10 / per_y, 10 / per_x)
        if unit and (resolution or (per_x and per_y)):
            sides = resolution or (unit / per_y, unit / per_x)
            spacing = (*[depth * unit] * bool(depth * unit), *sides)
        channels: tuple[str, ...] = ()
        if file.ome_metadata:
            channels, sizes = _of_ome(file.ome_metadata)
            spacing = sizes or spacing
        return cls(channels, spacing, resolution)

    def numbers(self, wanted: Sequence[str], count: int, path: str | Path) -> list[int] | None:
        """Where the wanted channels lie among the `count` of the file; None: as they lie there.

        They are named, or numbered from 0. A file that names none, of as many channels as are
        wanted, is taken as it is.

        Raises:
            UserError: One is not there, or twice.
        """
        if not wanted or (not self.channels and len(wanted) == count):
            return None
        found = []
        for name in wanted:
            places = [number for number, own in enumerate(self.channels) if own == name]
            if not places and name.isdecimal() and int(name) < count:
                places = [int(name)]
            if len(places) != 1:
                named = f"the channels {', '.join(self.channels)}"
                named = named if self.channels else f"{count} channels without names"
                fault = "not one of them" if not places else "more than one of them"
                raise UserError(f"{path}: has {named}; {name} is {fault}, see data.channels")
            found += places
        return None if found == list(range(count)) else found


def _of_ome(text: str) -> tuple[tuple[str, ...], tuple[float, ...] | None]:
    """Names of channels and spacing in OME-XML; of what is damaged nothing."""
    try:
        pixels = ElementTree.fromstring(text).find(".//{*}Pixels")
    except ElementTree.ParseError:
        return (), None
    if pixels is None:
        return (), None
    names = tuple(channel.get("Name", "") for channel in pixels.iterfind("{*}Channel"))
    lengths = []
    for axis in "ZYX":
        given = pixels.get(f"PhysicalSize{axis}")
        unit = UNITS.get(pixels.get(f"PhysicalSize{axis}Unit", "µm"), 0.0)
        lengths.append(float(given or 0) * unit)
    spacing = tuple(lengths[0 if lengths[0] > 0 else 1 :])
    return names if any(names) else (), spacing if min(spacing) > 0 else None


def tiff_options(
    path: Path, axes: str, spacing: Sequence[float] | None = None, channels: Sequence[str] = ()
) -> dict[str, Any]:
    """Arguments of `tifffile.imwrite` for an OME-TIFF, which Fiji, napari and others can scale.

    Args:
        path: The file, whose name is its identity, so that the same values give the same bytes.
        axes: A letter for each axis of what is written, such as "ZCYX".
        spacing: Millimetres from pixel to pixel along (planes,) rows and columns; None: not known.
        channels: Names of the channels.
    """
    identity = UUID(bytes=blake2b(os.fsencode(path.name), digest_size=16).digest(), version=4)
    metadata: dict[str, Any] = {"axes": axes, "UUID": str(identity)}
    options: dict[str, Any] = {"ome": True, "metadata": metadata}
    if channels:
        metadata["Channel"] = {"Name": list(channels)}
    if spacing:
        for axis, length in zip("XYZ", reversed(spacing), strict=False):
            if axis in axes:
                micrometres = float(f"{length * 1000:.10g}")
                metadata |= {f"PhysicalSize{axis}": micrometres, f"PhysicalSize{axis}Unit": "µm"}
        options |= {
            "resolution": tuple(10 / np.array(spacing[:-3:-1])),
            "resolutionunit": "CENTIMETER",
        }
    return options
