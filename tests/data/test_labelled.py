import numpy as np
import pytest
import tifffile
import torch
from data_files import write
from PIL import Image

from ddpm_unet.config import PairDataConfig
from ddpm_unet.data.check import check_pairs
from ddpm_unet.data.labelled import LabelledSet
from ddpm_unet.data.masks import border_weights, connected_cells
from ddpm_unet.errors import UserError

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


def test_it_describes_itself(folders):
    assert "4 labelled images or parts, 12,000 pixels: class 0 " in open_set(folders).describe()
    scaled = open_set(folders, scale=0.5).describe()
    assert "4 labelled images or parts, 3,000 pixels at data.scale 0.5: class 0 " in scaled


def test_value_range_is_what_becomes_black_and_white(folders):
    image, _ = files(folders, 0)
    item = open_set(folders, value_range=(1000.0, 3000.0))[0]
    wanted = ((image.clip(1000, 3000) - 1000.0) / 1000 - 1).transpose(2, 0, 1)
    np.testing.assert_allclose(item["image"], wanted, atol=1e-6)


def test_a_set_with_faults_is_not_opened(folders):
    (folders / "masks/0.png").unlink()
    with pytest.raises(UserError, match=r"0\.tif: has no mask"):
        open_set(folders)
