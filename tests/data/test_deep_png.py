"""16-bit colour PNG against its specification's filters, written here the plain way."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from ddpm_unet.data.deep_png import decode

COLOUR_TYPE = {1: 0, 2: 4, 3: 2, 4: 6}


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def encode(picture: np.ndarray, filters: list[int], interlaced: int = 0) -> bytes:
    """Byte by byte, with one filter type per row (PNG specification, section 9.2)."""
    height, width, channels = picture.shape
    pixel = 2 * channels
    rows = [list(row.astype(">u2").tobytes()) for row in picture]
    data = bytearray()
    for y, row in enumerate(rows):
        data.append(filters[y])
        for x, value in enumerate(row):
            a = row[x - pixel] if x >= pixel else 0
            b = rows[y - 1][x] if y else 0
            c = rows[y - 1][x - pixel] if y and x >= pixel else 0
            paeth = min((abs(b - c), 0, a), (abs(a - c), 1, b), (abs(a + b - 2 * c), 2, c))[2]
            data.append((value - [0, a, b, (a + b) // 2, paeth][filters[y]]) % 256)
    head = struct.pack(">IIBBBBB", width, height, 16, COLOUR_TYPE[channels], 0, 0, interlaced)
    packed = zlib.compress(bytes(data))
    half = len(packed) // 2
    body = chunk(b"IDAT", packed[:half]) + chunk(b"IDAT", packed[half:])
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + body + chunk(b"IEND", b"")


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("filters", [[0], [1], [2], [3], [4], [4, 0, 3, 1, 2, 4, 3]])
def test_every_filter(channels: int, filters: list[int]) -> None:
    rng = np.random.default_rng(0)
    picture = rng.integers(0, 65536, (7, 5, channels)).astype(np.uint16)
    picture[2:4] //= 500  # neighbours near each other, so that ties are met
    data = encode(picture, (filters * 7)[:7])
    if channels in (3, 4):  # what Pillow keeps, the high bytes, shows that the encoder is right
        high = np.asarray(Image.open(io.BytesIO(data)))
        np.testing.assert_array_equal(high, picture >> 8)
    found = decode(data)
    assert found.dtype == np.uint16
    np.testing.assert_array_equal(found, picture)


def test_faults() -> None:
    picture = np.zeros((3, 3, 3), np.uint16)
    with pytest.raises(ValueError, match="interlac"):
        decode(encode(picture, [0] * 3, interlaced=1))
    good = encode(picture, [0] * 3)
    with pytest.raises(ValueError, match="checksum"):
        decode(good[:45] + bytes([good[45] ^ 1]) + good[46:])
    short = bytearray(good)
    short[16:24] = struct.pack(">II", 3, 4)
    short[29:33] = struct.pack(">I", zlib.crc32(bytes(short[12:29])))
    with pytest.raises(ValueError, match="end after"):
        decode(bytes(short))
