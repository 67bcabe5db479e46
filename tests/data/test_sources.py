"""Choosing a source, what it holds out, and settings that cannot be."""

import pytest
from PIL import Image

from ddpm_unet.config import ImageDataConfig
from ddpm_unet.data.sources import held_out, open_images, open_stream
from ddpm_unet.errors import UserError


def write_folder(root, number):
    for i in range(number):
        path = root / "ab"[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8), i).save(path)


def values(images):
    return [int(images[i].max()) for i in range(len(images))]


def test_a_folder_keeps_about_one_in_twenty(tmp_path):
    write_folder(tmp_path, 200)
    config = ImageDataConfig(source=str(tmp_path), size=8, class_labels=True)
    train, kept = open_images(config), held_out(config)
    assert 4 <= len(kept) <= 20
    assert sorted(values(train) + values(kept.images)) == list(range(200))
    assert train.labels.tolist() == [value % 2 for value in values(train)]
    assert train.classes == ("a", "b")
    assert f"{len(kept.images)} more held out for validation" in train.describe()
    config.include_held_out = True
    assert sorted(values(open_images(config))) == list(range(200))
    # New files move no old one to the other side.
    Image.new("L", (8, 8), 250).save(tmp_path / "a" / "new.png")
    again = held_out(config)
    assert set(values(kept.images)) == set(values(again.images)) - {250}


def test_a_small_folder_keeps_nothing(tmp_path):
    write_folder(tmp_path, 19)
    config = ImageDataConfig(source=str(tmp_path), size=8)
    assert len(open_images(config)) == 19
    assert held_out(config) is None


def test_twenty_images_keep_at_least_one(tmp_path):
    """Of these names no hash is divisible by twenty."""
    for i in range(20):
        Image.new("L", (8, 8), i).save(tmp_path / f"x{i}.png")
    config = ImageDataConfig(source=str(tmp_path), size=8)
    kept = held_out(config)
    assert len(kept) >= 1
    assert len(open_images(config)) + len(kept) == 20


def test_the_summary(tmp_path):
    write_folder(tmp_path, 4)
    (tmp_path / "notes.txt").write_text("")
    config = ImageDataConfig(source=str(tmp_path), size=8, class_labels=True, channels=3)
    assert open_stream(config, seed=0).describe() == (
        "4 images, 8 x 8, 3 channels, uint8, 2 classes, 0.0 MB in memory, "
        "nothing held out for validation (fewer than 20 images), "
        "1 other files passed over (1 .txt), mirrored and turned by quarters at random "
        "(where left and up matter, set flips and rot90 to false)"
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"scale": float("nan")}, "data.scale nan"),
        ({"scale": 0.5, "fit": "resize"}, "data.scale 0.5: has no effect with fit resize"),
        ({"workers": -1}, "data.workers -1"),
        ({"memory_limit": -1}, "data.memory_limit -1"),
        ({"max_pixels": 0.0}, "data.max_pixels 0"),
        ({"source": "builtin:imagenet"}, "builtin:imagenet: the built-in sets are"),
        ({"source": "builtin:histology", "class_labels": True}, "has no class for each image"),
        ({"source": ""}, "data.source: is empty"),
    ],
)
def test_settings_that_cannot_be(tmp_path, settings, message):
    write_folder(tmp_path, 2)
    config = ImageDataConfig(**({"source": str(tmp_path), "size": 8} | settings))
    for build in (open_images, held_out):
        with pytest.raises(UserError, match=message):
            build(config)
