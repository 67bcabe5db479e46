"""Reading back exactly what was written, and one line for what cannot be read."""

import itertools
import re
import struct
import zlib
from collections import Counter

import imagecodecs
import numpy as np
import pytest
import tifffile
from data_files import refused
from PIL import Image, ImageOps

from ddpm_unet.data.images import orient
from ddpm_unet.data.reading import image_info, read_image
from ddpm_unet.errors import UserError

RNG = np.random.default_rng(0)


def pixels(*shape, dtype=np.uint8):
    return RNG.integers(0, np.iinfo(dtype).max + 1, shape).astype(dtype)


def assert_reads(path, expected):
    picture = read_image(path)
    assert picture.dtype == expected.dtype
    np.testing.assert_array_equal(picture, expected)
    assert picture.flags.writeable
    info = image_info(path)
    assert (*info.size, info.channels) == expected.shape
    assert info.dtype == expected.dtype


def fault(path, *words, **options):
    """Reading fails with one line that names the file and has these words."""
    with pytest.raises(UserError) as caught:
        read_image(path, **options)
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    for word in words:
        assert re.search(word, message), f"{word!r} not in {message!r}"


@pytest.mark.parametrize(
    ("suffix", "channels"),
    [(suffix, channels) for suffix in ("png", "tif") for channels in (1, 2, 3, 4)]
    + [("webp", 3), ("webp", 4), ("bmp", 1), ("bmp", 3)],
)
def test_8_bit_files_come_back(tmp_path, suffix, channels):
    picture = pixels(5, 7, channels)
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(picture.squeeze()).save(path, lossless=True)
    assert_reads(path, picture)


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_16_bit_png_keeps_its_depth(tmp_path, channels):
    picture = pixels(6, 5, channels, dtype=np.uint16)
    (tmp_path / "a.png").write_bytes(imagecodecs.png_encode(picture))
    assert_reads(tmp_path / "a.png", picture)


def test_jpeg_is_what_pillow_decodes(tmp_path):
    for name, mode in (("grey.jpg", "L"), ("colour.jpg", "RGB")):
        Image.fromarray(pixels(16, 24, 3)).convert(mode).save(tmp_path / name)
        expected = np.atleast_3d(np.asarray(Image.open(tmp_path / name)))
        assert_reads(tmp_path / name, expected)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
def test_exif_orientation(tmp_path, suffix, orientation):
    path = tmp_path / f"a.{suffix}"
    image = Image.fromarray(pixels(16, 24, 3))
    exif = Image.Exif()
    exif[274] = orientation
    if suffix == "tif":
        image.save(path, tiffinfo={274: orientation})
    else:
        image.save(path, exif=exif, lossless=True)
    assert_reads(path, np.asarray(ImageOps.exif_transpose(Image.open(path))))


def test_palettes_become_colours_or_stay_indices(tmp_path):
    indices = pixels(4, 6, 1) % 3
    colours = pixels(3, 3)
    image = Image.fromarray(indices[..., 0], mode="P")
    image.putpalette(colours.tobytes())
    for name in ("a.png", "a.gif", "a.tif"):
        image.save(tmp_path / name)
        assert_reads(tmp_path / name, colours[indices[..., 0]])
        kept = read_image(tmp_path / name, keep_palette=True)
        np.testing.assert_array_equal(kept, indices)
    image.save(tmp_path / "clear.png", transparency=1)
    clear = read_image(tmp_path / "clear.png")
    np.testing.assert_array_equal(clear[..., 3:], np.where(indices == 1, 0, 255))
    assert image_info(tmp_path / "clear.png").channels == 4


def test_bilevel_becomes_0_and_255(tmp_path):
    bits = pixels(9, 11, 1) > 127
    for name in ("a.png", "a.tif"):
        Image.fromarray(bits[..., 0]).save(tmp_path / name)
        assert_reads(tmp_path / name, bits.astype(np.uint8) * 255)


def test_what_cannot_be_read_is_named(tmp_path):
    fault(tmp_path / "none.png", "no such file")
    fault(tmp_path, "is a folder")
    path = tmp_path / "ünter weg 1.png"
    path.write_bytes(b"")
    fault(path, "empty")
    path.write_bytes(b"#!/bin/sh\necho hello\n" * 20)
    fault(path, "not an image")
    Image.fromarray(pixels(64, 64, 3)).save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    fault(path, "damaged or truncated")
    path.write_bytes(whole[:2000] + bytes([whole[2000] ^ 1]) + whole[2001:])
    fault(path, "damaged or truncated")
    jpeg = tmp_path / "a.jpg"
    Image.fromarray(pixels(64, 64, 3)).save(jpeg)
    jpeg.write_bytes(jpeg.read_bytes()[:-500])
    fault(jpeg, "damaged or truncated")


def test_forbidden_file(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError

    monkeypatch.setattr("builtins.open", refuse)
    fault(tmp_path / "a.png", "permissions")


def test_every_cut_of_a_file_is_refused_or_read_whole(tmp_path):
    """No length of a truncated file gives a wrong picture."""
    picture = pixels(8, 8, 3)
    for suffix in ("png", "jpg", "tif", "webp"):
        path = tmp_path / f"a.{suffix}"
        Image.fromarray(picture).save(path)
        whole, expected = path.read_bytes(), read_image(path)
        for length in range(0, len(whole), max(1, len(whole) // 60)):
            path.write_bytes(whole[:length])
            try:
                found = read_image(path)
            except UserError:
                continue
            np.testing.assert_array_equal(found, expected)


def test_cmyk_and_animations_are_refused(tmp_path):
    for suffix in ("jpg", "tif"):
        Image.new("CMYK", (8, 8)).save(tmp_path / f"a.{suffix}")
        fault(tmp_path / f"a.{suffix}", "CMYK|SEPARATED", "convert")
    frames = [Image.fromarray(pixels(8, 8, 3)) for _ in range(3)]
    for suffix in ("gif", "webp", "png"):
        path = tmp_path / f"film.{suffix}"
        frames[0].save(path, save_all=True, append_images=frames[1:])
        fault(path, "animated")
        with refused("animated"):
            image_info(path)


def test_size_limit_is_checked_on_the_header(tmp_path):
    bomb = tmp_path / "bomb.png"
    header = struct.pack(">IIBBBBB", 200_000, 100_000, 8, 0, 0, 0, 0)
    check = struct.pack(">I", zlib.crc32(b"IHDR" + header))
    start = b"\x89PNG\r\n\x1a\n\0\0\0\x0dIHDR" + header + check
    bomb.write_bytes(start + b"\0\0\0\1IDAT")
    fault(bomb, "20,000 million pixels", "raise max_pixels")
    Image.new("L", (1000, 1000)).save(tmp_path / "a.png")
    fault(tmp_path / "a.png", "limit of 0.5", max_pixels=0.5)
    assert read_image(tmp_path / "a.png", max_pixels=1.0).shape == (1000, 1000, 1)
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        file.write(np.zeros((1000, 1000), np.uint8), compression="zlib")
    fault(tmp_path / "a.tif", "limit of 0.5", max_pixels=0.5)


# TIFF: every codec, photometric interpretation, orientation, layout and depth


def values(dtype, *shape, bits=24):
    if np.dtype(dtype).kind == "f":
        return RNG.normal(size=shape).astype(dtype)
    info = np.iinfo(dtype)
    low, high = max(info.min, -(2**bits)), min(info.max, 2**bits - 1)
    return RNG.integers(low, high, shape, endpoint=True).astype(dtype)


LOSSLESS = ("none", "lzw", "zlib", "zstd", "packbits", "lzma", "lerc", "webp", "jpeg2000", "jpegxl")
FORMS = {  # dtype, bits, channels, photometric, planar configuration
    "grey 1": ("bool", 1, 1, "minisblack", None),
    "white 1": ("bool", 1, 1, "miniswhite", None),
    "grey 8": ("uint8", 8, 1, "minisblack", None),
    "white 8": ("uint8", 8, 1, "miniswhite", None),
    "grey 2": ("uint8", 2, 1, "minisblack", None),
    "grey 4": ("uint8", 4, 1, "minisblack", None),
    "white 4": ("uint8", 4, 1, "miniswhite", None),
    "grey 12": ("uint16", 12, 1, "minisblack", None),
    "white 12": ("uint16", 12, 1, "miniswhite", None),
    "grey 16": ("uint16", 16, 1, "minisblack", None),
    "white 16": ("uint16", 16, 1, "miniswhite", None),
    "grey i16": ("int16", 16, 1, "minisblack", None),
    "grey i32": ("int32", 32, 1, "minisblack", None),
    "grey f16": ("float16", 16, 1, "minisblack", None),
    "grey f32": ("float32", 32, 1, "minisblack", None),
    "grey f64": ("float64", 64, 1, "minisblack", None),
    "palette 8": ("uint8", 8, 1, "palette", None),
    "palette 4": ("uint8", 4, 1, "palette", None),
    "rgb 8": ("uint8", 8, 3, "rgb", "contig"),
    "rgb 8 planar": ("uint8", 8, 3, "rgb", "separate"),
    "rgba 8": ("uint8", 8, 4, "rgb", "contig"),
    "rgb 16": ("uint16", 16, 3, "rgb", "contig"),
    "rgb 16 planar": ("uint16", 16, 3, "rgb", "separate"),
    "6 bands 16": ("uint16", 16, 6, "minisblack", "contig"),
    "6 bands 16 planar": ("uint16", 16, 6, "minisblack", "separate"),
    "6 bands f32 planar": ("float32", 32, 6, "minisblack", "separate"),
}


def stored_tiff(path, codec, form, orientation, **layout):
    """Write a form by tifffile and imagecodecs; the upright image that was meant."""
    dtype, bits, channels, photometric, planar = FORMS[form]
    packed = bits in (2, 4, 12)
    if dtype == "bool":
        meant = RNG.integers(0, 2, (16, 32, 1)).astype(bool)
    else:
        meant = values(dtype, 16, 32, channels, bits=min(bits, 24))
    stored = orient(meant, INVERSE[orientation])
    width = stored.shape[1]
    colormap = RNG.integers(0, 65536, (3, 2 ** min(bits, 8))).astype(np.uint16)
    if photometric == "miniswhite":
        stored = ~stored if dtype == "bool" else stored.dtype.type(2**bits - 1) - stored
    if packed:  # written as bytes, whose tags are then made those of fewer or more bits
        planes = np.unpackbits(stored.astype(">u2").view(np.uint8), axis=2)[..., -bits:]
        stored = np.packbits(planes.reshape(len(stored), -1), axis=1)[..., None]
    tifffile.imwrite(
        path,
        stored.transpose(2, 0, 1) if planar == "separate" else stored.squeeze(),
        photometric="minisblack" if packed and photometric == "palette" else photometric,
        planarconfig=planar,
        colormap=colormap if photometric == "palette" and not packed else None,
        compression=None if codec == "none" else codec,
        compressionargs=CODEC_SETTINGS.get(codec, {}),
        extratags=[(274, "H", 1, orientation, True)]
        + [(320, "H", 3 * 2**bits, colormap.ravel().tolist(), True)]
        * (packed and photometric == "palette"),
        metadata=None,
        **layout,
    )
    if packed:
        with tifffile.TiffFile(path, mode="r+b") as file:
            for tag, value in ((256, width), (258, bits), (262, PHOTOMETRIC[photometric])):
                file.pages[0].tags[tag].overwrite(value)
    if photometric == "palette":
        return (colormap >> 8).astype(np.uint8).T[meant[..., 0]]
    if bits == 1:
        return meant.astype(np.uint8) * 255
    if bits in (2, 4):
        return meant * np.uint8(255 // (2**bits - 1))
    return meant.astype(dtype if dtype in ("uint8", "uint16") else "float32")


PHOTOMETRIC = {"miniswhite": 0, "minisblack": 1, "palette": 3}
INVERSE = {1: 1, 2: 2, 3: 3, 4: 4, 5: 5, 6: 8, 7: 7, 8: 6}
STORED = {"webp": 2, "jpegxl": 14, "lerc": 17, "jpeg2000": 13}
CODEC_SETTINGS = {
    "webp": {"lossless": True},
    "jpegxl": {"lossless": True},
    "lerc": {"level": 0},
    "jpeg2000": {"level": 0, "reversible": True},
}
LAYOUTS = ({}, {"tile": (16, 16)}, {"rowsperstrip": 8}, {"byteorder": ">"})


@pytest.mark.parametrize("codec", LOSSLESS)
def test_tiff_of_every_codec_form_and_orientation(tmp_path, codec):
    """What a codec can store at all is read as it was meant."""
    path, read = tmp_path / "a.tif", Counter[str]()
    turned = {form: (1, 2 + number % 7) for number, form in enumerate(FORMS)}
    if codec == "none":
        turned = dict.fromkeys(FORMS, range(1, 9))
    for form, orientation in ((name, turn) for name in FORMS for turn in turned[name]):
        layout = LAYOUTS[(orientation + len(form)) % (3 if codec in CODEC_SETTINGS else 4)]
        if FORMS[form][1] in (2, 4, 12) and codec in CODEC_SETTINGS:
            continue
        if (codec, form) in (("jpeg2000", "grey i32"), ("jpegxl", "grey f16")):
            continue  # which the encoders do not keep exactly
        if "tile" in layout and FORMS[form][1] % 8:
            layout = {}
        try:
            expected = stored_tiff(path, codec, form, orientation, **layout)
        except (ValueError, NotImplementedError, RuntimeError, KeyError):
            continue
        assert_reads(path, expected)
        read[form] += 1
    assert set(read.values()) == {8 if codec == "none" else 2}
    assert len(read) == STORED.get(codec, len(FORMS))


PILLOW = ("raw", "group3", "group4", "tiff_ccitt", "tiff_lzw", "jpeg", "zstd", "packbits")
REFUSED = {"CMYK": "SEPARATED", "LAB": "CIELAB", "YCbCr": "YCBCR without JPEG"}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("codec", PILLOW)
def test_tiff_that_pillow_writes_is_what_pillow_reads(tmp_path, codec):
    path, read, rgb = tmp_path / "a.tif", Counter[str](), Image.fromarray(pixels(16, 32, 3))
    for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "YCbCr", "CMYK", "LAB", "I;16", "F"):
        image = Image.frombytes("LAB", (32, 16), rgb.tobytes()) if mode == "LAB" else None
        if mode in ("I;16", "F"):
            image = Image.fromarray(values({"I;16": "uint16", "F": "float32"}[mode], 16, 32))
        image = image or rgb.convert(mode)
        for white, orientation in itertools.product((None, 0), (1, 6)):
            tags = {} if white is None else {262: 0}
            if tags and mode not in ("1", "L"):
                continue
            try:
                image.save(path, compression=codec, tiffinfo=tags)
                with Image.open(path) as plain:
                    shown = {"1": "L", "P": "RGB"}.get(mode, plain.mode)
                    upright = np.asarray(plain.convert(shown))
                image.save(path, compression=codec, tiffinfo={**tags, 274: orientation})
            except OSError:
                continue
            read[mode] += 1
            if mode in REFUSED and not (mode == "YCbCr" and codec == "jpeg"):
                fault(path, REFUSED[mode], "no single conversion to RGB")
            else:
                assert_reads(path, orient(upright.reshape(16, 32, -1), orientation))
    bilevel = codec in ("group3", "group4", "tiff_ccitt")
    if codec == "raw":  # Pillow 12 cannot write YCbCr so
        read["YCbCr"] += 1
    assert len(read) == (1 if bilevel else 7 if codec == "jpeg" else 11)


@pytest.mark.parametrize("subsampling", [(1, 1), (2, 1), (2, 2)])
@pytest.mark.parametrize("planar", ["contig", "separate"])
def test_tiff_of_jpeg_is_what_pillow_reads(tmp_path, planar, subsampling):
    path, rgb = tmp_path / "a.tif", pixels(32, 48, 3)
    options = {"subsampling": subsampling} if planar == "contig" else {}
    stored = rgb if planar == "contig" else rgb.transpose(2, 0, 1)
    tifffile.imwrite(
        path, stored, photometric="rgb", planarconfig=planar, compression="jpeg", **options
    )
    assert_reads(path, np.asarray(Image.open(path)))


def test_channels_pages_and_stacks(tmp_path):
    path, planes = tmp_path / "a.tif", values("uint16", 3, 6, 9)
    tifffile.imwrite(path, planes, imagej=True, metadata={"axes": "CYX"})
    np.testing.assert_array_equal(read_image(path), planes.transpose(1, 2, 0))
    tifffile.imwrite(path, planes, photometric="minisblack")
    for read in (read_image, image_info):
        with refused(r"a\.tif: has 3 pages"):
            read(path)
    np.testing.assert_array_equal(read_image(path, 3), planes[..., None])
    color = values("uint8", 4, 6, 9, 3)
    for some in (color, color[:1]):
        tifffile.imwrite(path, some, photometric="rgb", compression="lzw")
        np.testing.assert_array_equal(read_image(path, 3), some)
    turned = [(274, "H", 1, 6, True)]
    tifffile.imwrite(path, color, photometric="rgb", extratags=turned)
    np.testing.assert_array_equal(read_image(path, 3), np.rot90(color, -1, (1, 2)))


def test_tiffs_that_are_refused(tmp_path):
    path = tmp_path / "scan 3.tif"

    def refuse(message, array, dims=2, **options):
        tifffile.imwrite(path, array, **options)
        with refused(message):
            read_image(path, dims)

    for dtype, bad in itertools.product(("float16", "float32", "float64"), (np.nan, -np.inf)):
        array = values(dtype, 6, 9)
        array[2, 7] = bad
        refuse(r"scan 3\.tif: 1 values are NaN.*row 2, column 7", array)
    refuse("16777217", np.full((4, 4), 2**24 + 1, np.uint32))
    refuse("infinite", np.full((4, 4), 1e300))
    refuse("complex64", np.ones((4, 4), np.complex64))
    refuse("CIELAB", values("uint8", 6, 9, 3), photometric="cielab")
    for dtype in ("float32", "int16"):
        refuse("says that 0 is white", values(dtype, 6, 9), photometric="miniswhite")
    many = values("uint8", 2, 3, 6, 9)
    refuse("axes TZYX", many, 3, imagej=True, metadata={"axes": "TZYX"})
    tifffile.imwrite(path, many[0, 0])
    with tifffile.TiffWriter(path, append=True) as file:
        file.write(many[0, 0, ::2])
    fault(path, "holds 2 images of different shapes")


def test_a_damaged_16_bit_png_is_refused(tmp_path):
    """Also where torchvision's decoder ends the process."""
    path, image = tmp_path / "a.png", pixels(24, 24, 3, dtype=np.uint16)
    whole = imagecodecs.png_encode(image)
    for place in range(60, len(whole) - 16, 97):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        fault(path, "damaged or truncated")
    path.write_bytes(whole[: len(whole) // 2])
    fault(path, "damaged or truncated")


def test_a_missing_codec_is_named(tmp_path, monkeypatch):
    tifffile.imwrite(tmp_path / "a.tif", pixels(8, 8), compression="zstd")

    def missing(*_):
        raise ValueError("<COMPRESSION.ZSTD: 50000> requires the 'imagecodecs' package")

    monkeypatch.setattr(tifffile.TiffPageSeries, "asarray", missing)
    fault(tmp_path / "a.tif", "pip install -U imagecodecs")
