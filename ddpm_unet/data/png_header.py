"""The header of a PNG in one read of its file, for folders of very many.

Whatever is not plain here (palettes, animations, turned or damaged files) is left to Pillow,
which then says the same or names the fault.
"""

from __future__ import annotations

import struct
import zlib
from functools import lru_cache

import numpy as np

from ddpm_unet.data.deep_png import CHANNELS
from ddpm_unet.data.header import PictureInfo

ENOUGH = 4096  # bytes, in which the pixels of a plain file begin
_SIGNATURE = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"
_HARMLESS = frozenset(
    (b"gAMA", b"cHRM", b"sRGB", b"sBIT", b"pHYs", b"bKGD", b"tIME", b"tEXt", b"zTXt", b"iTXt")
)


def plain_info(start: bytes) -> PictureInfo | None:
    """Shape and type of a grey or colour picture of 8 or 16 bits from the start of its file.

    Args:
        start: The first `ENOUGH` bytes, or all there are.
    """
    if start[:16] != _SIGNATURE or len(start) < 41:
        return None
    place = 33
    while (kind := start[place + 4 : place + 8]) != b"IDAT":
        end = place + 8 + int.from_bytes(start[place : place + 4], "big")
        checksum = zlib.crc32(start[place + 4 : end]).to_bytes(4, "big")
        if kind not in _HARMLESS or start[end : end + 4] != checksum:
            return None
        place = end + 4
    return _info(start[16:33])


@lru_cache(maxsize=1024)
def _info(header: bytes) -> PictureInfo | None:
    """What the body and checksum of a header chunk tell."""
    width, height, depth, colour, *methods, checksum = struct.unpack(">IIBBBBBI", header)
    plain = colour in CHANNELS and depth in (8, 16) and methods == [0, 0, 0] and width * height
    if not plain or zlib.crc32(b"IHDR" + header[:13]) != checksum:
        return None
    dtype = np.dtype(np.uint16 if depth == 16 else np.uint8)
    return PictureInfo(height, width, CHANNELS[colour], dtype)
