"""Labelled images, their parts, and windows of them."""

from dataclasses import replace

import numpy as np
import pytest
import tifffile
import torch
from data_files import write
from PIL import Image

from ddpm_unet.config import AugmentConfig, PairDataConfig
from ddpm_unet.data.cells import border_weights, connected_cells
from ddpm_unet.data.check import check_pairs
from ddpm_unet.data.labelled import LabelledSet, pair_stream
from ddpm_unet.data.windows import rare_pixel

RNG = np.random.default_rng(0)


@pytest.fixture
def folders(tmp_path):
    for number in range(4):
        mask = (RNG.random((60, 50)) > 0.3).astype(np.uint8)
        mask[:2] = 9
        write(tmp_path / f"images/{number}.tif", RNG.integers(0, 65536, (60, 50, 2), np.uint16))
        write(tmp_path / f"masks/{number}.png", mask)
    return tmp_path


def open_set(root, parts=None, border=False, **settings):
    settings = {"ignore_value": 9, "size": 16} | settings
    config = PairDataConfig(images=f"{root}/images", masks=f"{root}/masks", **settings)
    return LabelledSet(check_pairs(config), parts, border)


def files(root, number):
    image = tifffile.imread(root / f"images/{number}.tif")
    return image, np.asarray(Image.open(root / f"masks/{number}.png"))


def test_whole_pictures(folders):
    pictures = open_set(folders)
    assert len(pictures) == 4
    assert pictures.name(2) == f"{folders}/images/2.tif"
    image, mask = files(folders, 2)
    item = pictures[2]
    assert item.keys() == {"image", "mask"}
    wanted = torch.from_numpy(image.astype(np.float32)).permute(2, 0, 1) / 32767.5 - 1
    torch.testing.assert_close(item["image"], wanted)
    assert item["mask"].dtype == torch.int64
    np.testing.assert_array_equal(item["mask"], np.where(mask == 9, -100, mask.astype(int)))


def test_parts_are_windows_of_pictures(folders):
    parts = [{"name": "3"}, {"name": "1", "rows": [10, 31]}, {"name": "1", "columns": [40, 50]}]
    pictures = open_set(folders, parts)
    assert pictures.sizes.tolist() == [[60, 50], [21, 50], [60, 10]]
    image, mask = files(folders, 1)
    np.testing.assert_array_equal(pictures.item(1)["image"], image[10:31].transpose(2, 0, 1))
    np.testing.assert_array_equal(pictures.item(2)["image"], image[:, 40:].transpose(2, 0, 1))
    np.testing.assert_array_equal(pictures.item(2)["mask"][2:], mask[2:, 40:])
    assert len(open_set(folders, [])) == 0


def test_scale_halves_images_smoothly_and_masks_by_the_nearest_pixel(folders):
    full, half = open_set(folders), open_set(folders, scale=0.5)
    assert half.sizes.tolist() == [[30, 25]] * 4
    mask = half.item(0)["mask"]
    np.testing.assert_array_equal(mask, full.item(0)["mask"][1::2, 1::2])
    image = full.item(0)["image"].astype(float)
    np.testing.assert_allclose(half.item(0)["image"].mean(), image.mean(), rtol=0.02)
    assert half.item(0)["image"].std() < 0.8 * image.std()
    double = open_set(folders, scale=2.0).item(0)["mask"]
    np.testing.assert_array_equal(double, full.item(0)["mask"].repeat(2, 0).repeat(2, 1))


def test_kept_and_streamed_sets_are_the_same(folders):
    kept, streamed = (
        open_set(folders, [{"name": "1", "rows": [5, 55]}], border=True, memory_limit=limit)
        for limit in (100, 0)
    )
    assert kept.item(0)["mask"] is kept.item(0)["mask"]
    assert streamed.item(0)["mask"] is not streamed.item(0)["mask"]
    for key, value in kept[0].items():
        torch.testing.assert_close(streamed[0][key], value)
    np.testing.assert_array_equal(kept.class_pixels, streamed.class_pixels)


def test_border_weights_are_balanced_over_the_parts(folders):
    parts = [{"name": "0"}, {"name": "2", "columns": [0, 30]}]
    pictures = open_set(folders, parts, border=True, border_w0=3.0, border_sigma=2.0)
    masks = [pictures.item(i)["mask"] for i in range(2)]
    counts = sum(np.array([(mask == c).sum() for c in (0, 1)]) for mask in masks)
    np.testing.assert_array_equal(pictures.class_pixels, counts)
    balance = counts.sum() / 2 / counts
    wanted = border_weights(masks[0], connected_cells(masks[0], [1]), balance, 3.0, 2.0)
    np.testing.assert_allclose(pictures[0]["weight"], wanted, rtol=1e-6)
    assert pictures[1]["weight"].shape == (60, 30)
    assert (pictures[0]["weight"][:2] == 0).all()


def test_numbered_objects_are_the_cells(folders):
    touching = np.zeros((60, 50), np.uint16)
    touching[5:20, 5:20], touching[5:20, 22:40] = 700, 3
    for number in range(4):
        Image.fromarray(touching).save(folders / f"masks/{number}.png")
    weight = open_set(folders, border=True, mask_kind="instances")[0]["weight"].numpy()
    near, far = weight[10, 20], weight[50, 20]
    np.testing.assert_allclose(near - far, 10 * np.exp(-(3**2) / 50), rtol=1e-4)


PLAIN = AugmentConfig(
    flips=False, rot90=False, elastic_sigma=0, brightness=0, contrast=0, gamma=0, noise=0
)
SIZES = [(64, 64), (40, 80), (10, 24)]


@pytest.fixture(scope="module")
def varied(tmp_path_factory):
    root = tmp_path_factory.mktemp("pairs")
    rng = np.random.default_rng(0)
    for number, size in enumerate(SIZES):
        image = rng.integers(1, 256, size, np.uint8)
        write(root / f"images/{number}.png", image)
        write(root / f"masks/{number}.png", (image > 99).astype(np.uint8))
    return root


def stream(root, seed=0, border=False, context=0, **settings):
    settings = {"size": 16, "augment": PLAIN} | settings
    config = PairDataConfig(images=f"{root}/images", masks=f"{root}/masks", **settings)
    return pair_stream(LabelledSet(check_pairs(config), border=border), seed, context)


def test_image_and_mask_are_the_same_window_turned_for_each_position(varied):
    turning = replace(PLAIN, rot90=True, flips=True)
    plain, turned = (
        stream(varied, augment=augment).__getitems__(range(60)) for augment in (PLAIN, turning)
    )
    for batch in (plain, turned):
        assert torch.equal(batch["mask"], ((batch["image"][:, 0] + 1) * 127.5 > 99.5).long())
    unturned = [
        torch.equal(*images) for images in zip(plain["image"], turned["image"], strict=True)
    ]
    assert 0 < sum(unturned) < 30


def test_a_picture_smaller_than_the_window_is_mirrored(varied):
    pairs = stream(varied)
    small = next(p for p in range(29) if pairs.name(p).endswith("2.png"))
    window = pairs.__getitems__([small])["image"][0, 0]
    image = pairs.images[2]["image"][0]
    mirrored = torch.nn.functional.pad(image[None], (0, 0, 3, 3), mode="reflect")[0]
    assert any(torch.equal(window, mirrored[:, left : left + 16]) for left in range(9))


def test_what_stands_at_a_position_depends_on_nothing_else(varied):
    one, two = (stream(varied, augment=AugmentConfig()) for _ in range(2))
    state = torch.get_rng_state()
    whole = one.__getitems__(range(12))
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(7)
    for position in (11, 0, 5):
        single = two[position]
        for key, value in single.items():
            assert torch.equal(value, whole[key][position])
    other = stream(varied, seed=1, augment=AugmentConfig()).__getitems__(range(12))
    assert not torch.equal(other["image"], whole["image"])


@pytest.mark.parametrize("augment", [PLAIN, replace(PLAIN, flips=True, rot90=True)])
def test_context_surrounds_the_same_window(varied, augment):
    narrow, wide = (
        stream(varied, border=True, augment=augment, context=n).__getitems__(range(12))
        for n in (0, 5)
    )
    assert wide["image"].shape == (12, 1, 26, 26)
    assert torch.equal(wide["image"][..., 5:-5, 5:-5], narrow["image"])
    assert torch.equal(wide["mask"], narrow["mask"])
    assert torch.equal(wide["weight"], narrow["weight"])


def test_context_beyond_the_picture_is_the_picture_mirrored(tmp_path):
    picture = np.random.default_rng(0).integers(0, 256, (16, 16), np.uint8)
    write(tmp_path / "images/0.png", picture)
    write(tmp_path / "masks/0.png", (picture > 99).astype(np.uint8))
    found = stream(tmp_path, context=5)[7]["image"][0]
    expected = np.pad(picture, 5, mode="reflect") / np.float32(127.5) - 1
    np.testing.assert_array_equal(found, expected)


def test_a_share_of_the_windows_seeks_rare_classes(tmp_path):
    mask = np.zeros((200, 160), np.uint8)
    mask[150:154, 3:9], mask[20:22, 100:102], mask[:5] = 1, 2, 9  # 24 and 4 pixels, some unknown
    write(tmp_path / "images/0.png", RNG.integers(0, 256, (200, 160, 3), np.uint8))
    write(tmp_path / "masks/0.png", mask)
    settings = {"mask_kind": "classes", "augment": AugmentConfig(False, False, elastic_sigma=0)}

    def stream(share):
        return pair_stream(open_set(tmp_path, foreground=share, **settings), seed=1)

    batches = [stream(share).__getitems__(range(1000)) for share in (0, 0.33, 1)]
    holds = [
        torch.stack([(batch["mask"] == c).any(-1).any(-1) for c in (1, 2)]) for batch in batches
    ]
    assert holds[0].any(0).float().mean() < 0.1
    assert holds[1].any(0).float().mean() == pytest.approx(0.33, abs=0.06)
    assert holds[2].any(0).all()
    assert holds[2].float().mean(1).tolist() == pytest.approx([0.5, 0.5], abs=0.1)
    tops = (batches[2]["mask"] == 2).any(-1).float().argmax(-1)[holds[2][1]]
    assert tops.unique().numel() >= 15  # anywhere in the window
    elsewhere = (batches[0]["image"] == batches[1]["image"]).flatten(1).all(1)
    assert elsewhere.float().mean() == pytest.approx(0.67, abs=0.06)  # these stay as they were
    alone = stream(1)[17]
    torch.testing.assert_close(alone["image"], batches[2]["image"][17], rtol=0, atol=0)


def test_nothing_is_rarer_where_all_is_alike():
    assert rare_pixel(np.zeros((4, 4), int), 0.9, 0.9) is None
    assert rare_pixel(np.full((4, 4), -100), 0.9, 0.9) is None
    volume = np.zeros((3, 4, 5), int)
    volume[2, 3, 4] = 3
    assert rare_pixel(volume, 0.99, 0.99).tolist() == [2, 3, 4]
