"""16-bit colour PNG, which Pillow would cut to 8 bits (PNG specification, third edition)."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator

import numpy as np

CHANNELS = {0: 1, 2: 3, 4: 2, 6: 4}  # by colour type: grey, RGB, grey and alpha, RGBA


def decode(data: bytes) -> np.ndarray:
    """Decode a 16-bit PNG without interlacing.

    Args:
        data: The whole file.

    Returns:
        `[H, W, C]` uint16.

    Raises:
        ValueError: Damaged, interlaced, or not of 16 bits.
    """
    chunks = list(_chunks(data))
    width, height, depth, colour, _, _, interlaced = struct.unpack(">IIBBBBB", chunks[0][1])
    if depth != 16 or interlaced:
        raise ValueError("interlaced 16-bit PNG: save it without interlacing or as TIFF")
    pixel = 2 * CHANNELS[colour]
    size = height * (1 + width * pixel)
    inflated = zlib.decompressobj().decompress(
        b"".join(body for kind, body in chunks if kind == b"IDAT"), size
    )
    if len(inflated) < size:
        raise ValueError(f"pixel data end after {len(inflated)} of {size} bytes")
    rows = np.frombuffer(inflated, np.uint8).reshape(height, 1 + width * pixel)
    pixels = _unfiltered(rows[:, 0], rows[:, 1:].reshape(height, width, pixel))
    return pixels.view(">u2").astype(np.uint16)


def _chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    place = 8
    while place < len(data):
        (length,) = struct.unpack_from(">I", data, place)
        kind, body = data[place + 4 : place + 8], data[place + 8 : place + 8 + length]
        (check,) = struct.unpack_from(">I", data, place + 8 + length)
        if zlib.crc32(kind + body) != check:
            raise ValueError(f"checksum of chunk {kind!r} is wrong")
        yield kind, body
        place += 12 + length


def _unfiltered(filters: np.ndarray, filtered: np.ndarray) -> np.ndarray:
    """Add each pixel's prediction from its left, upper and upper left neighbours (section 9).

    All three lie on earlier diagonals, so a diagonal at a time is one array operation.

    Args:
        filters: Filter type of each row, `[H]`.
        filtered: `[H, W, bytes of a pixel]` uint8.
    """
    if filters.max(initial=0) > 4:
        raise ValueError(f"unknown filter {filters.max()}")
    height, width, pixel = filtered.shape
    out = np.zeros((height + 1, width + 1, pixel), np.int16)  # a border of zeros above and left
    for diagonal in range(height + width - 1):
        y = np.arange(max(0, diagonal - width + 1), min(height, diagonal + 1))
        x = diagonal - y
        left, up, corner = out[y + 1, x], out[y, x + 1], out[y, x]
        to_left, to_up = abs(up - corner), abs(left - corner)
        to_corner = abs(left + up - 2 * corner)
        nearest = np.where(to_up <= to_corner, up, corner)
        nearest = np.where((to_left <= to_up) & (to_left <= to_corner), left, nearest)
        predictions = np.stack([np.zeros_like(left), left, up, (left + up) // 2, nearest])
        predicted = predictions[filters[y], np.arange(len(y))]
        out[y + 1, x + 1] = (filtered[y, x] + predicted) & 255
    return out[1:, 1:].astype(np.uint8)
