from dataclasses import replace

import numpy as np
import pytest
import torch
from data_files import write

from ddpm_unet.config import AugmentConfig, PairDataConfig
from ddpm_unet.data.check import check_pairs
from ddpm_unet.data.labelled import LabelledSet, pair_stream

PLAIN = AugmentConfig(
    flips=False, rot90=False, elastic_sigma=0, brightness=0, contrast=0, gamma=0, noise=0
)
SIZES = [(64, 64), (40, 80), (10, 24)]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
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


def test_a_batch_is_what_the_loop_takes(folders):
    batch = stream(folders, border=True, augment=AugmentConfig()).__getitems__([3, 900, 4])
    shapes = {key: (value.dtype, tuple(value.shape)) for key, value in batch.items()}
    assert shapes == {
        "image": (torch.float32, (3, 1, 16, 16)),
        "mask": (torch.int64, (3, 16, 16)),
        "weight": (torch.float32, (3, 16, 16)),
        "position": (torch.int64, (3,)),
    }
    assert batch["position"].tolist() == [3, 900, 4]
    assert batch["image"].abs().max() <= 1
    assert all(value.is_contiguous() and type(value) is torch.Tensor for value in batch.values())
    assert "weight" not in stream(folders).__getitems__([0])


def test_image_and_mask_are_the_same_window_turned_for_each_position(folders):
    turning = replace(PLAIN, rot90=True, flips=True)
    plain, turned = (
        stream(folders, augment=augment).__getitems__(range(60)) for augment in (PLAIN, turning)
    )
    for batch in (plain, turned):
        assert torch.equal(batch["mask"], ((batch["image"][:, 0] + 1) * 127.5 > 99.5).long())
    unturned = [
        torch.equal(*images) for images in zip(plain["image"], turned["image"], strict=True)
    ]
    assert 0 < sum(unturned) < 30


def test_a_picture_smaller_than_the_window_is_mirrored(folders):
    pairs = stream(folders)
    small = next(p for p in range(29) if pairs.name(p).endswith("2.png"))
    window = pairs.__getitems__([small])["image"][0, 0]
    image = pairs.images[2]["image"][0]
    mirrored = torch.nn.functional.pad(image[None], (0, 0, 3, 3), mode="reflect")[0]
    assert any(torch.equal(window, mirrored[:, left : left + 16]) for left in range(9))


def test_what_stands_at_a_position_depends_on_nothing_else(folders):
    one, two = (stream(folders, augment=AugmentConfig()) for _ in range(2))
    state = torch.get_rng_state()
    whole = one.__getitems__(range(12))
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(7)
    for position in (11, 0, 5):
        single = two[position]
        for key, value in single.items():
            assert torch.equal(value, whole[key][position])
    other = stream(folders, seed=1, augment=AugmentConfig()).__getitems__(range(12))
    assert not torch.equal(other["image"], whole["image"])


@pytest.mark.parametrize("augment", [PLAIN, replace(PLAIN, flips=True, rot90=True)])
def test_context_surrounds_the_same_window(folders, augment):
    narrow, wide = (
        stream(folders, border=True, augment=augment, context=n).__getitems__(range(12))
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
