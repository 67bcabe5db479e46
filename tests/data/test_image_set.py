"""Pixel values, fitting images, and cutting windows from packed and streamed ones."""

import pickle
from multiprocessing.reduction import ForkingPickler

import numpy as np
import pytest
import tifffile
import torch
from data_files import refused
from PIL import Image

from ddpm_unet.data.collection import ArrayCollection, Selection
from ddpm_unet.data.folder import Folder
from ddpm_unet.data.image_set import ImageSet, PackedImages, open_collection, survey
from ddpm_unet.data.pixels import Fit, convert_channels, resize, to_unit
from ddpm_unet.data.windows import cut_window

RNG = np.random.default_rng(0)
DTYPES = ["uint8", "uint16", "float32"]


def image(dtype, *shape):
    if dtype == "float32":
        return RNG.random(shape, np.float32)
    return RNG.integers(0, np.iinfo(dtype).max, shape, endpoint=True).astype(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", [PackedImages, ImageSet])
@pytest.mark.parametrize("sizes", [[(9, 13), (8, 8), (30, 10)], [(8, 9, 12), (11, 8, 13)]])
def test_cut_is_slicing(dtype, kind, sizes):
    """Also the last window of the last image, up to its corner."""
    arrays = [image(dtype, *size, 3) for size in sizes]
    collection = ArrayCollection(arrays, "a")
    images = kind(collection, Fit(8), survey(collection, Fit(8)))
    kept = [np.moveaxis(a * 2 - 1 if dtype == "float32" else a, -1, 0) for a in arrays]
    for i, size in enumerate(sizes):
        np.testing.assert_array_equal(images[i].numpy(), kept[i])
        last = np.subtract(size, 8)
        for corner in [*RNG.integers(0, last + 1, (20, len(size))).tolist(), last.tolist()]:
            window = cut_window(images.item(i)["image"], corner, [8] * len(size))
            assert window.dtype == dtype
            wanted = kept[i][(..., *(slice(start, start + 8) for start in corner))]
            np.testing.assert_array_equal(window, wanted)
    assert f"{len(sizes)} {'images' if len(sizes) == 3 else 'volumes'}, " in images.describe()


def test_scale_and_resize_have_the_sizes_they_say():
    wide = image("uint8", 20, 31, 3)
    half = Fit(8, scale=0.5).apply(wide, "a")
    assert half.shape == (3, 10, 16)
    fit = Fit(8, mode="resize")
    fitted = fit.apply(wide, "a")
    assert fitted.shape == (3, 8, 8)
    scaled = resize(wide.transpose(2, 0, 1), 8, 12)
    np.testing.assert_array_equal(fitted, scaled[:, :, 2:10])
    up = fit.apply(image("uint8", 1, 1, 3), "a")
    assert up.shape == (3, 8, 8)
    np.testing.assert_array_equal(up, np.broadcast_to(up[:, :1, :1], up.shape))


@pytest.mark.parametrize("dtype", DTYPES)
def test_halving_is_antialiased_and_keeps_depth(dtype):
    """Inside an image, halving weighs four neighbours 1 3 3 1 along each axis."""
    planes = image(dtype, 3, 16, 20)
    found = resize(planes, 8, 10)
    assert found.dtype == dtype
    weights = np.array([1, 3, 3, 1]) / 8
    block = planes[:, 3:7, 5:9].astype(np.float64)
    expected = np.einsum("cyx,y,x->c", block, weights, weights)
    tolerance = {"uint8": 1.01, "uint16": 0.51, "float32": 1e-6}[dtype]
    np.testing.assert_allclose(found[:, 2, 3], expected, atol=tolerance)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_resampling_of_volumes_is_that_of_slices_and_then_across_them(dtype):
    planes = (RNG.random((2, 9, 12, 10)) * 200).astype(dtype)
    found = resize(planes, 4, 6, 15)
    assert (found.shape, found.dtype) == ((2, 4, 6, 15), dtype)
    slices = [resize(planes[:, z].astype(np.float32), 6, 15) for z in range(9)]
    across = np.stack(slices, axis=1).reshape(2, 9, 90)
    wanted = resize(across, 4, 90).reshape(2, 4, 6, 15)
    np.testing.assert_allclose(found, wanted, atol=1e-3 if dtype == "float32" else 0.51)
    np.testing.assert_array_equal(resize(planes, 9, 12, 10), planes)


def test_small_images_are_named(tmp_path):
    Image.new("L", (16, 7)).save(tmp_path / "1.png")
    with refused(r"1\.png: 16 x 7 pixels hold no window of 8 x 8"):
        open_collection(Folder(tmp_path), Fit(8))
    Image.new("L", (16, 15)).save(tmp_path / "1.png")
    with refused(r"8 x 8 pixels at scale 0.5 hold no window of 9"):
        open_collection(Folder(tmp_path), Fit(9, scale=0.5))


def test_parts_and_joins():
    one = ArrayCollection(image("uint8", 3, 8, 8, 1), "one", np.array([5, 6, 7]), ("x",) * 8)
    two = ArrayCollection(image("uint8", 2, 8, 8, 1), "two", np.array([1, 2]), ("x",) * 8)
    joined = Selection((one, np.array([2, 0])), (two, None))
    assert [joined.name(i) for i in range(len(joined))] == ["one[2]", "one[0]", "two[0]", "two[1]"]
    assert joined.labels.tolist() == [7, 5, 1, 2]
    np.testing.assert_array_equal(joined.read(1), one.images[0])
    np.testing.assert_array_equal(joined.read(3), two.images[1])


def test_packed_images_travel_to_spawned_workers_as_shared_memory():
    collection = ArrayCollection(image("uint16", 4, 8, 8, 1), "a")
    images = open_collection(collection, Fit(8))
    assert isinstance(images, PackedImages)
    assert not images.flat.is_shared()
    ForkingPickler.dumps(images)
    assert images.flat.is_shared()


@pytest.mark.parametrize("dtype", DTYPES)
def test_large_sets_are_decoded_once_into_a_file(dtype, tmp_path, monkeypatch):
    monkeypatch.setattr("ddpm_unet.data.collection.CACHE", tmp_path)
    (tmp_path / "files").mkdir()
    for number, shape in enumerate([(9, 13, 3), (30, 10, 3)]):
        tifffile.imwrite(tmp_path / f"files/{number}.tif", image(dtype, *shape))
    collection = Folder(tmp_path / "files")
    limits = {"memory_limit": 0, "disk_limit": 1}
    found = open_collection(collection, Fit(8), **limits)
    assert isinstance(found, PackedImages)
    whole = PackedImages(collection, Fit(8), found.layout)
    assert found.fingerprint() == whole.fingerprint()
    assert found.digest == whole.digest
    (path,) = (tmp_path / "images").iterdir()
    assert path.stat().st_size == found.layout.nbytes
    assert f"MB in {path}" in found.describe()

    def refuse(*_):
        raise AssertionError("decoded again")

    with monkeypatch.context() as patch:
        patch.setattr(Folder, "read", refuse)
        again = PackedImages(collection, Fit(8), found.layout, path)
        sent = pickle.loads(ForkingPickler.dumps(again))
    for other in (again, sent):
        for index in range(2):
            assert torch.equal(other[index], whole[index])
    tifffile.imwrite(tmp_path / "files/1.tif", image(dtype, 30, 10, 3))
    changed = open_collection(collection, Fit(8), **limits)
    assert len(list((tmp_path / "images").iterdir())) == 2
    assert torch.equal(changed[0], whole[0])
    assert not torch.equal(changed[1], whole[1])
    streamed = open_collection(collection, Fit(8), memory_limit=0)
    assert "set disk_limit to 1)" in streamed.describe()
    in_memory = ArrayCollection([image(dtype, 9, 13, 3)], "a")
    assert "read as needed" in open_collection(in_memory, Fit(8), **limits).describe()
    usage = type("Usage", (), {"free": 10})
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage)
    with refused(r"cannot be written \(no space left\); set disk_limit to 0"):
        open_collection(collection, Fit(9), **limits)
    assert len(list((tmp_path / "images").iterdir())) == 2


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("have", [1, 2, 3, 4])
@pytest.mark.parametrize("want", [1, 3, 4])
def test_channels(have, want, dtype):
    floats = dtype is np.float32
    picture = image(np.dtype(dtype).name, 3, 4, have)
    opaque = 1 if floats else np.iinfo(dtype).max
    found = convert_channels(picture, want, "a.png")
    assert found.dtype == dtype
    assert found.shape == (3, 4, want)
    if have >= 3 and want == 1:
        luma = 0.299 * picture[..., 0] + 0.587 * picture[..., 1] + 0.114 * picture[..., 2]
        np.testing.assert_allclose(found[..., 0], luma, atol=1e-6 if floats else 0.51)
    else:
        colour = picture[..., : 1 if have < 3 else 3]
        shown = found[..., : 1 if want == 1 else 3]
        np.testing.assert_array_equal(shown, np.broadcast_to(colour, shown.shape))
    if want == 4:
        alpha = picture[..., -1] if have in (2, 4) else opaque
        np.testing.assert_array_equal(found[..., 3], np.broadcast_to(alpha, (3, 4)))


def test_many_channels_are_no_colours():
    with refused(r"a\.tif.*5 channels"):
        convert_channels(image("uint8", 2, 2, 5), 3, "a.tif")
    assert convert_channels(image("uint8", 2, 2, 5), None, "a.tif").shape == (2, 2, 5)


def test_unit_range_ends():
    assert to_unit(np.array([0, 255], np.uint8)).tolist() == [-1, 1]
    assert to_unit(np.array([0, 65535], np.uint16)).tolist() == [-1, 1]
    assert to_unit(np.array([0, 0.5, 1], np.float32)).tolist() == [-1, 0, 1]
    camera = np.array([0, 100, 2148, 4196, 65535], np.uint16)
    assert to_unit(camera, (100, 4196)).tolist() == [-1, -1, 0, 1, 1]
    for outside in (-0.1, 1.1):
        with refused(r"a\.tif.*data\.value_range"):
            to_unit(np.array([0.5, outside], np.float32), name="a.tif")
