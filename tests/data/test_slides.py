"""Windows of TIFFs in pieces are those of the decoded image, and decode no more than they need."""

from dataclasses import replace

import numpy as np
import pytest
import tifffile
from data_files import refused
from PIL import Image

from ddpm_unet.config import ImageDataConfig
from ddpm_unet.data.folder import Folder
from ddpm_unet.data.image_set import PackedImages, open_collection
from ddpm_unet.data.pixels import Fit
from ddpm_unet.data.reading import Reading, read_image
from ddpm_unet.data.sources import open_stream
from ddpm_unet.data.windows import cut_window

TILES = {"tile": (32, 48)}
WAYS = {
    "rgb jpeg": ((3,), np.uint8, {**TILES, "compression": "jpeg", "photometric": "rgb"}),
    "rgb planes": ((3,), np.uint8, {**TILES, "planarconfig": "separate", "photometric": "rgb"}),
    "grey 16 bit lzw, predictor": ((), np.uint16, {**TILES, "compression": "lzw", "predictor": 2}),
    "float": ((), np.float32, {**TILES, "compression": "zlib"}),
    "white is zero": ((), np.uint8, {**TILES, "photometric": "miniswhite"}),
    "palette": ((), np.uint8, {
        **TILES, "photometric": "palette",
        "colormap": np.random.default_rng(1).integers(0, 65536, (3, 256), np.uint16),
    }),
    "bits": ((), np.bool_, TILES),
    "strips": ((3,), np.uint8, {"rowsperstrip": 7, "photometric": "rgb"}),
    "one strip": ((), np.uint8, {}),
    "turned": ((), np.uint8, {**TILES, "extratags": [(274, "H", 1, 6, True)]}),
}  # fmt: skip


def values(shape, dtype, seed=0):
    rng = np.random.default_rng(seed)
    if np.dtype(dtype).kind == "f":
        return rng.random(shape, np.float32)
    return rng.integers(0, 2 if dtype is np.bool_ else np.iinfo(dtype).max, shape).astype(dtype)


@pytest.mark.parametrize(
    ("way", "scale"),
    [*((way, scale) for way in WAYS for scale in (1.0, 0.37)), ("float", 1.3), ("rgb jpeg", 0.5)],
)
def test_windows_are_those_of_the_decoded_image(tmp_path, way, scale):
    samples, dtype, options = WAYS[way]
    options = {"photometric": "minisblack", **options}
    data = values((150, 170, *samples), dtype)
    if options.get("planarconfig") == "separate":
        data = np.moveaxis(data, -1, 0)
    tifffile.imwrite(tmp_path / "a.tif", data, **options)
    collection = Folder(tmp_path)
    fit = Fit(50, scale=scale)
    streamed, packed = (open_collection(collection, fit, memory_limit=m) for m in (0, 100))
    assert isinstance(packed, PackedImages)
    assert not isinstance(streamed, PackedImages)
    assert streamed.layout.in_pieces.tolist() == [way not in ("one strip", "turned")]
    most = streamed.layout.sizes[0] - 50
    for corner in np.array([(0, 0), (13, 77), (32, 48), (95, 7), most]).clip(0, most):
        found, expected = (
            cut_window(images.planes(0), corner.tolist(), (50, 50)) for images in (streamed, packed)
        )
        assert found.dtype == expected.dtype == packed.layout.dtype
        # Resized bytes are rounded from weights of 16 bits, here from weights of float32.
        level = 0 if scale == 1 else 1e-4 if found.dtype.kind == "f" else 1
        np.testing.assert_allclose(found.astype(float), expected, rtol=0, atol=level)


def pyramid(path, base, options):
    with tifffile.TiffWriter(path, ome=True) as file:
        file.write(base, subifds=1, **options)
        file.write(base[::2, ::2], subfiletype=1, **options)


def test_a_level_of_a_pyramid(tmp_path):
    base = values((400, 300, 3), np.uint8)
    options = {"tile": (64, 64), "photometric": "rgb", "metadata": {"axes": "YXS"}}
    pyramid(tmp_path / "slide.ome.tif", base, options)
    for level, expected in ((0, base), (1, base[::2, ::2])):
        folder = Folder(tmp_path, Reading(level=level))
        assert folder.info(0).size == expected.shape[:2]
        np.testing.assert_array_equal(folder.read(0), expected)
        window = folder.read_window(0, (30, 40), (70, 80))
        np.testing.assert_array_equal(window, expected[30:100, 40:120])
    with refused(r"slide.ome.tif: has 2 resolutions, no level 2; lower"):
        Folder(tmp_path, Reading(level=2)).info(0)
    (tmp_path / "png").mkdir()
    Image.fromarray(base).save(tmp_path / "png" / "a.png")
    with refused(r"a.png: has no resolutions"):
        Folder(tmp_path / "png", Reading(level=1)).info(0)
    with refused(r"data\.level 1: is of files of a folder"):
        open_stream(ImageDataConfig(level=1), 0)


def test_a_slide_beyond_max_pixels_trains_by_windows_and_is_never_decoded(tmp_path, monkeypatch):
    base = values((600, 800), np.uint8)
    tifffile.imwrite(tmp_path / "slide.tif", base, tile=(64, 64), compression="zlib")
    with refused("over the limit"):
        read_image(tmp_path / "slide.tif", max_pixels=0.1)
    decoded, init = [], tifffile.TiffPage.decode.func

    def counted(page):
        decode = init(page)
        return lambda *a, **k: decoded.append(1) or decode(*a, **k)

    monkeypatch.setattr(tifffile.TiffPage, "decode", property(counted))
    config = ImageDataConfig(
        source=str(tmp_path), size=32, max_pixels=0.1, rot90=False, flips=False
    )
    stream = open_stream(config, 0)
    batch = stream.__getitems__(range(10))
    assert 10 <= len(decoded) <= 40
    windows = stream.windows(np.arange(10))
    for image, (top, left) in zip(batch["image"], windows.corner, strict=True):
        np.testing.assert_array_equal(image[0], base[top : top + 32, left : left + 32])
    decoded.clear()
    halved = open_stream(replace(config, scale=0.5), 0).__getitems__(range(10))
    assert halved["image"].shape == (10, 1, 32, 32)
    assert 40 <= len(decoded) <= 90
    for change, cure in (
        ({"scale": 0.06}, r"a window: 534 x 534 x 1 is 0 million pixels, .* or raise level"),
        ({"fit": "resize"}, "over the limit .* or set fit crop"),
        ({"value_range": "percentiles"}, "over the limit .* or give value_range two numbers"),
    ):
        with refused(cure):
            open_stream(replace(config, **change), 0)


def test_the_index_of_a_folder_knows_what_is_in_pieces(tmp_path, cache):
    (tmp_path / "images").mkdir()
    tifffile.imwrite(tmp_path / "images" / "a.tif", values((100, 90), np.uint8), tile=(32, 32))
    first = Folder(tmp_path / "images")
    assert cache.exists()
    again = Folder(tmp_path / "images")
    assert first.info(0) == again.info(0)
    assert again.info(0).in_pieces


def test_a_file_that_shrank_or_is_damaged_is_said(tmp_path):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, values((200, 200), np.uint8), tile=(32, 32), compression="zlib")
    assert Reading().window(path, (150, 150), (40, 40)).shape == (40, 40, 1)
    tifffile.imwrite(path, values((100, 100), np.uint8), tile=(32, 32), compression="zlib")
    with refused("has changed while it was in use"):
        Reading().window(path, (150, 150), (40, 40))
    data = bytearray(path.read_bytes())
    data[-3000:] = bytes(3000)
    path.write_bytes(data)
    with refused(r"a.tif: is damaged"):
        Reading().window(path, (50, 50), (50, 50))
