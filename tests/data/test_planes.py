from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ddpm_unet.data.planes import Planes, known_around_holes, lowered, one_hot
from ddpm_unet.errors import UserError

IMAGES = torch.rand(6, 3, 16, 24, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_lower_resolutions_are_means_of_blocks() -> None:
    found = lowered(IMAGES, 4)
    blocks = IMAGES.reshape(6, 3, 4, 4, 6, 4).mean((3, 5), keepdim=True)
    wanted = blocks.expand(-1, -1, -1, 4, -1, 4).reshape(IMAGES.shape)
    torch.testing.assert_close(found, wanted)
    volumes = torch.rand(2, 1, 4, 8, 8)
    torch.testing.assert_close(lowered(volumes, 4).mean((2, 3, 4)), volumes.mean((2, 3, 4)))


def test_holes_are_boxes_that_the_position_decides() -> None:
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


def test_the_picture_is_zero_in_the_hole_and_untouched_around_it() -> None:
    planes = Planes("hole", 4).of_batch(IMAGES, None, 5, range(6))
    known = known_around_holes(5, range(6), (16, 24))
    assert torch.equal(planes[:, 3:] == 1, known)
    assert torch.equal(planes[:, 3:] == -1, ~known)
    assert torch.equal(planes[:, :3], torch.where(known, IMAGES, 0))


def test_classes_are_one_plane_each() -> None:
    mask = torch.tensor([[[[0, 2], [1, 2]]]], dtype=torch.int16)
    planes = Planes("classes", 4).of_batch(IMAGES, mask, 0, [0])
    assert planes.shape == (1, 4, 2, 2)
    assert planes.dtype == torch.float32
    assert torch.equal(planes.argmax(1, keepdim=True), mask.long())
    assert (planes.sum(1) == 1).all()


def test_pictures_are_in_the_range_of_the_model() -> None:
    condition = torch.tensor([[[[0, 255]]]], dtype=torch.uint8)
    planes = Planes("picture", 1).of_batch(IMAGES, condition, 0, [0])
    assert planes.tolist() == [[[[-1.0, 1.0]]]]


def test_people_see_planes_as_images() -> None:
    mask = torch.tensor([[[[0, 2], [1, 2]]]], dtype=torch.int16)
    shown = Planes("classes", 3).shown(one_hot(mask, 3), 3)
    assert shown[0].tolist() == [[[-1, 1], [0, 1]]] * 3
    planes = torch.rand(2, 4, 5, 6)
    assert torch.equal(Planes("hole", 4).shown(planes, 3), planes[:, :3])
    assert torch.equal(Planes("lower", 3, 2).shown(planes[:, :3], 3), planes[:, :3])
    assert Planes("picture", 4).shown(planes, 1).shape == (2, 1, 5, 6)


def test_a_file_gives_the_planes_that_training_saw(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 256, (8, 8, 4), np.uint8)
    values[..., 3] = np.where(np.arange(8) < 3, 0, 255)
    path = str(tmp_path / "a.png")
    unit = torch.from_numpy(values).permute(2, 0, 1)[None] / 127.5 - 1

    Image.fromarray(values[..., :3]).save(path)
    found = Planes("picture", 3).of_file(path)
    torch.testing.assert_close(found, unit[0, :3])
    found = Planes("lower", 3, 2).of_file(path)
    torch.testing.assert_close(lowered(found[None], 2)[0], found)
    torch.testing.assert_close(found[:, ::2, ::2], unit[0, :3])

    Image.fromarray(values).save(path)
    found = Planes("hole", 4).of_file(path)
    assert (found[3, :, :3] == -1).all()
    assert (found[3, :, 3:] == 1).all()
    assert (found[:3, :, :3] == 0).all()
    torch.testing.assert_close(found[:3, :, 3:], unit[0, :3, :, 3:])

    mask = values[..., 0] // 100
    Image.fromarray(mask).save(path)
    assert torch.equal(
        Planes("classes", 3).of_file(path), one_hot(torch.from_numpy(mask)[None, None], 3)[0]
    )
    with pytest.raises(UserError, match=r"a\.png: has the class 2, but the 2 classes"):
        Planes("classes", 2).of_file(path)
    with pytest.raises(UserError, match=r"a\.png: has 1 channels, the model goes by 3; save it so"):
        Planes("picture", 3).of_file(path)
    with pytest.raises(
        UserError, match=r"goes by 4 \(the last is its transparency, which is the hole\)"
    ):
        Planes("hole", 4).of_file(path)
