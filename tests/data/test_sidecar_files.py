"""What a denoiser goes by: found by the names of the images, cut and turned with them."""

import sys

import numpy as np
import pytest
import tifffile
import torch
from data_files import refused, write
from PIL import Image
from safetensors.numpy import save_file

from ddpm_unet.config import ImageDataConfig
from ddpm_unet.data import histology
from ddpm_unet.data.conditioning import ConcatCondition, known_around_holes, lowered, one_hot
from ddpm_unet.data.sources import held_out, open_images, open_stream
from ddpm_unet.errors import UserError

RNG = np.random.default_rng(0)
SIZES = [(24, 40), (32, 24), (48, 24)]


@pytest.fixture
def folder(tmp_path):
    """Colour pictures in two folders, with a condition that is the image's own red channel."""
    for number, size in enumerate(SIZES):
        image = RNG.integers(0, 256, (*size, 3), np.uint8)
        name = f"{'ab'[number % 2]}/{number}"
        write(tmp_path / f"images/{name}.png", image)
        write(tmp_path / f"red/{name}.bmp", image[..., 0])
        write(tmp_path / f"small/{name}.png", image[::4, ::4])
        write(tmp_path / f"masks/{name}.png", image[..., 0] // 86)
    return tmp_path


def config(folder, **settings):
    return ImageDataConfig(**({"source": f"{folder}/images", "size": 16} | settings))


@pytest.mark.parametrize("settings", [{}, {"memory_limit": 0}, {"fit": "resize"}])
def test_conditions_are_cut_and_turned_with_the_picture(folder, settings):
    chosen = config(folder, condition=f"{folder}/red", **settings)
    stream = open_stream(chosen, seed=1)
    batch = stream.__getitems__(range(40))
    assert batch["condition"].dtype == torch.uint8
    torch.testing.assert_close(batch["condition"], batch["image"][:, :1], rtol=0, atol=0)
    # Without a condition the images are the same.
    plain = config(folder, **settings)
    alone = open_stream(plain, seed=1).__getitems__(range(40))
    assert torch.equal(alone["image"], batch["image"])
    assert alone.keys() == {"image", "position"}


def test_volumes_have_conditions_too(tmp_path):
    for number in range(3):
        volume = RNG.integers(0, 256, (10, 12, 14), np.uint8)
        for name, values in (("images", volume), ("masks", volume // 86)):
            (tmp_path / name).mkdir(exist_ok=True)
            tifffile.imwrite(tmp_path / name / f"{number}.tif", values)
    chosen = config(tmp_path, size=8, dims=3, condition=f"{tmp_path}/masks", condition_classes=3)
    batch = open_stream(chosen, seed=1).__getitems__(range(20))
    assert batch["condition"].shape == (20, 1, 8, 8, 8)
    assert torch.equal(batch["condition"], (batch["image"] // 86).short())


def test_validation_has_its_conditions_too(folder):
    for number in range(3, 60):
        image = np.full((16, 16), number, np.uint8)
        write(folder / f"images/{number}.png", image)
        write(folder / f"red/{number}.png", image)
    grid = held_out(config(folder, condition=f"{folder}/red", channels=1))
    batch = grid.__getitems__(range(len(grid)))
    assert torch.equal(batch["condition"], batch["image"])
    both = config(folder, condition=f"{folder}/red", channels=1, include_held_out=True)
    assert len(open_images(both)) == 60


def test_smaller_conditions_are_enlarged_by_their_pixels(folder):
    settings = {"condition": f"{folder}/small", "flips": False, "rot90": False}
    images = open_images(config(folder, **settings))
    for number in range(3):
        wanted = images[number][:, ::4, ::4].repeat_interleave(4, 1).repeat_interleave(4, 2)
        assert torch.equal(images.condition[number], wanted)


@pytest.mark.parametrize("settings", [{"scale": 0.5, "size": 8}, {"fit": "resize", "size": 20}, {}])
def test_classes_are_never_mixed(folder, settings):
    """Linear interpolation between the classes 0 and 2 would give 1."""
    for number, size in enumerate(SIZES):
        mask = RNG.integers(0, 2, size, np.uint8) * 2
        write(folder / f"masks/{'ab'[number % 2]}/{number}.png", mask)
    images = open_images(
        config(folder, condition=f"{folder}/masks", condition_classes=3, **settings)
    )
    assert images.condition.layout.dtype == np.int16
    for number in range(3):
        assert set(images.condition[number].unique().tolist()) == {0, 2}
        assert images.condition[number].shape[1:] == images[number].shape[1:]


def test_palettes_are_class_indices(folder):
    image = Image.open(folder / "masks/a/0.png")
    image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    image.save(folder / "masks/a/0.png")
    chosen = config(folder, condition=f"{folder}/masks", condition_classes=3)
    images = open_images(chosen)
    assert torch.equal(images.condition[0], (images[0][:1] // 86).short())
    assert "a condition image each" in images.describe()


def grey(height, width, *channels):
    return np.zeros((height, width, *channels), np.uint8)


@pytest.mark.parametrize(
    ("file", "image", "message"),
    [
        ("1.bmp", None, r"images/b/1\.png: has no condition; add \S+red/b/1 as an image"),
        ("1.bmp", grey(12, 16), r"1\.bmp: is 16 x 12 pixels, its image 24 x 32; make it as"),
        ("1.bmp", grey(64, 48), r"1\.bmp: is 48 x 64 pixels, its image 24 x 32"),
    ],
)
def test_files_that_are_no_conditions(folder, file, image, message):
    path = folder / "red/b" / file
    if image is None:
        path.unlink()
    else:
        write(path, image)
    with refused(message):
        open_images(config(folder, condition=f"{folder}/red"))


BUILTIN = "builtin:histology"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"condition_classes": 3}, "has the class 2.., but the 3 classes are numbered 0 to 2"),
        ({"condition": "nowhere"}, "condition nowhere: no such folder"),
        ({"condition_classes": 1}, "data.condition_classes 1: must be between 2"),
        ({"condition": "builtin:nucleus"}, "other images a folder of their own"),
        ({"condition": "lower:3"}, "lower:3: give a whole number above 1 that divides size 16"),
        ({"condition": "lower"}, "data.condition lower: give a whole number"),
        ({"condition": "hole", "condition_classes": 3}, "condition_classes 3: is for masks"),
        ({"source": BUILTIN}, "files are found by name for images of a folder only"),
        ({"source": BUILTIN, "condition": "builtin:nucleus"}, "null: builtin:nucleus is a mask"),
        ({"text_encoder": "clip"}, "data.text_encoder: reads captions; set data.context"),
    ],
)
def test_settings_without_conditions_to_match(folder, settings, message):
    with refused(message):
        open_images(config(folder, **({"condition": f"{folder}/red"} | settings)))


def test_the_built_in_masks_lie_on_their_nuclei():
    try:
        types = histology.micrograph("all", "types")[..., 0]
    except UserError as error:
        pytest.skip(str(error))
    chosen = ImageDataConfig(
        condition="builtin:nucleus-type", condition_classes=4, include_held_out=True
    )
    images = open_images(chosen)
    assert len(images) == 2  # the stroma has no mask
    found = torch.cat([images.condition[i] for i in range(2)], dim=2)[0]
    np.testing.assert_array_equal(found.numpy(), types)
    batch = open_stream(chosen, 0, images).__getitems__(range(32))
    assert batch["condition"].shape == (32, 1, 64, 64)
    grey = batch["image"].float().mean(1, keepdim=True)
    nucleus = batch["condition"] > 0
    assert grey[nucleus].mean() < grey[~nucleus].mean() - 20  # haematoxylin is dark


def test_sequences_follow_their_pictures(folder):
    vectors = [RNG.normal(size=(length, 5)).astype(np.float32) for length in (1, 4, 2)]
    (folder / "vectors/a").mkdir(parents=True)
    (folder / "vectors/b").mkdir()
    np.save(folder / "vectors/a/0.npy", vectors[0][0])  # one vector
    save_file({"context": vectors[1], "x": vectors[2]}, folder / "vectors/b/1.safetensors")
    np.save(folder / "vectors/a/2.npy", vectors[2].astype(np.float64))
    chosen = config(folder, context=f"{folder}/vectors")
    stream = open_stream(chosen, seed=3)
    batch, numbers = stream.__getitems__(range(20)), stream.windows(range(20)).image
    order = [0, 2, 1]  # a/0, a/2, b/1
    for row, mask, number in zip(batch["context"], batch["context_mask"], numbers, strict=True):
        wanted = vectors[order[number]]
        assert mask.tolist() == [i < len(wanted) for i in range(4)]
        np.testing.assert_array_equal(row[mask], wanted)
        assert (row[~mask] == 0).all()
    assert "up to 4 vectors each" in stream.images.describe()


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((2, 3, 4)), "is no sequence of vectors"),
        (np.zeros((0, 4)), "is no sequence of vectors"),
        (np.zeros(0), "is no sequence of vectors"),
        (np.array([np.nan, 1]), "finite numbers"),
        (np.array(["a"]), "finite numbers"),
        (np.array([{}], dtype=object), "is missing or damaged .*allow_pickle"),
        (np.zeros((2, 7)), r"b/1.npy: has vectors of 7 numbers, \S+a/0.npy of 5"),
    ],
)
def test_files_that_are_no_sequences(folder, array, message):
    for name in ("a/0", "a/2", "b/1"):
        path = folder / f"vectors/{name}.npy"
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, np.zeros((1, 5)))
    np.save(folder / "vectors/b/1.npy", array)
    with refused(message):
        open_images(config(folder, context=f"{folder}/vectors"))
    (folder / "vectors/b/1.npy").write_bytes(b"")
    with refused(r"1\.npy: is missing or damaged"):
        open_images(config(folder, context=f"{folder}/vectors"))


def test_captions_without_transformers(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    for name in ("a/0", "a/2", "b/1"):
        (folder / f"images/{name}.txt").write_text("a image")
    chosen = config(folder, context=f"{folder}/images", text_encoder=f"{folder}/encoder")
    with refused(r'captions need transformers; run `pip install "ddpm-unet'):
        open_images(chosen)


IMAGES = torch.rand(6, 3, 16, 24, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_lower_resolutions_are_means_of_blocks():
    found = lowered(IMAGES, 4)
    blocks = IMAGES.reshape(6, 3, 4, 4, 6, 4).mean((3, 5), keepdim=True)
    wanted = blocks.expand(-1, -1, -1, 4, -1, 4).reshape(IMAGES.shape)
    torch.testing.assert_close(found, wanted)
    volumes = torch.rand(2, 1, 4, 8, 8)
    torch.testing.assert_close(lowered(volumes, 4).mean((2, 3, 4)), volumes.mean((2, 3, 4)))


def test_holes_are_boxes_that_the_position_decides():
    known = known_around_holes(5, range(100), (16, 24))
    assert known.shape == (100, 1, 16, 24)
    for hole in ~known[:, 0]:
        rows, columns = hole.any(1), hole.any(0)
        assert torch.equal(hole, rows[:, None] & columns)
        for side, length in ((rows, 16), (columns, 24)):
            places = side.nonzero()[:, 0]
            assert length // 8 <= len(places) <= 5 * length // 8
            assert len(places) == places[-1] - places[0] + 1
    assert torch.equal(known_around_holes(5, range(40, 50), (16, 24)), known[40:50])
    assert not torch.equal(known_around_holes(6, range(100), (16, 24)), known)
    assert len({hole.numpy().tobytes() for hole in known}) > 95
    assert known_around_holes(5, range(3), (8, 8, 8)).shape == (3, 1, 8, 8, 8)


def test_the_image_is_zero_in_the_hole_and_untouched_around_it():
    values = ConcatCondition("hole", 4).of_batch(IMAGES, None, 5, range(6))
    known = known_around_holes(5, range(6), (16, 24))
    assert torch.equal(values[:, 3:] == 1, known)
    assert torch.equal(values[:, 3:] == -1, ~known)
    assert torch.equal(values[:, :3], torch.where(known, IMAGES, 0))


def test_people_see_conditions_as_images():
    mask = torch.tensor([[[[0, 2], [1, 2]]]], dtype=torch.int16)
    shown = ConcatCondition("classes", 3).shown(one_hot(mask, 3), 3)
    assert shown[0].tolist() == [[[-1, 1], [0, 1]]] * 3
    values = torch.rand(2, 4, 5, 6)
    assert torch.equal(ConcatCondition("hole", 4).shown(values, 3), values[:, :3])
    assert torch.equal(ConcatCondition("lower", 3, 2).shown(values[:, :3], 3), values[:, :3])
    assert ConcatCondition("image", 4).shown(values, 1).shape == (2, 1, 5, 6)


def test_a_file_gives_the_values_that_training_saw(tmp_path):
    values = np.random.default_rng(0).integers(0, 256, (8, 8, 4), np.uint8)
    values[..., 3] = np.where(np.arange(8) < 3, 0, 255)
    path = str(tmp_path / "a.png")
    unit = torch.from_numpy(values).permute(2, 0, 1)[None] / 127.5 - 1

    Image.fromarray(values[..., :3]).save(path)
    found = ConcatCondition("image", 3).of_file(path)
    torch.testing.assert_close(found, unit[0, :3])
    found = ConcatCondition("lower", 3, 2).of_file(path)
    torch.testing.assert_close(lowered(found[None], 2)[0], found)
    torch.testing.assert_close(found[:, ::2, ::2], unit[0, :3])

    Image.fromarray(values).save(path)
    found = ConcatCondition("hole", 4).of_file(path)
    assert (found[3, :, :3] == -1).all()
    assert (found[3, :, 3:] == 1).all()
    assert (found[:3, :, :3] == 0).all()
    torch.testing.assert_close(found[:3, :, 3:], unit[0, :3, :, 3:])

    mask = values[..., 0] // 100
    Image.fromarray(mask).save(path)
    assert torch.equal(
        ConcatCondition("classes", 3).of_file(path),
        one_hot(torch.from_numpy(mask)[None, None], 3)[0],
    )
    with refused(r"a\.png: has the class 2, but the 2 classes"):
        ConcatCondition("classes", 2).of_file(path)
    with refused(r"a\.png: has 1 channels, the model is conditioned on 3; save it so"):
        ConcatCondition("image", 3).of_file(path)
    with refused(r"is conditioned on 4 \(the last is its transparency, which is the hole\)"):
        ConcatCondition("hole", 4).of_file(path)
