"""Which images to label first."""

import numpy as np
import pytest
import torch
from PIL import Image

from ddpm_unet import Denoiser, GaussianDiffusion, UNet
from ddpm_unet.commands import suggest as command
from ddpm_unet.data.preprocessing import Preprocessing
from ddpm_unet.errors import UserError
from ddpm_unet.inference import suggest as suggesting
from ddpm_unet.inference.suggest import describe, greedy_medoids, suggest, windows
from ddpm_unet.models.segmenter import Segmenter


def denoiser(**changes):
    torch.manual_seed(0)
    shape = {"in_channels": 1, "out_channels": 1, "block_out_channels": (8,), "norm_num_groups": 4}
    blocks = {"down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",)}
    unet = UNet(layers_per_block=1, add_attention=False, **blocks, **{**shape, **changes})
    return Denoiser(unet, GaussianDiffusion())


def kinds(per_kind=3):
    """Dark, light and striped images, alike within a kind; the kind of image i is i % 3."""
    rng = np.random.default_rng(0)
    stripes = np.where(np.arange(16) % 4 < 2, 10, 240) * np.ones((16, 1))
    grounds = (np.full((16, 16), 20.0), np.full((16, 16), 230.0), stripes)
    return [
        np.clip(grounds[i % 3] + rng.normal(0, 2, (16, 16)), 0, 255).astype(np.uint8)
        for i in range(3 * per_kind)
    ]


def test_of_clusters_each_gives_one_before_any_gives_two():
    rng = np.random.default_rng(0)
    centres = np.array([[0, 0], [10, 0], [0, 10], [10, 10], [5, 30]])
    points = np.repeat(centres, 4, axis=0) + rng.normal(0, 0.1, (20, 2))
    order = greedy_medoids(points, 20)
    assert sorted(order) == list(range(20))
    assert {number // 4 for number in order[:5]} == set(range(5))


def test_each_choice_lowers_the_sum_of_distances_as_much_as_any_could():
    points = np.random.default_rng(1).normal(size=(12, 3))
    scaled = points / points.std(axis=0)
    away = np.linalg.norm(scaled[:, None] - scaled[None], axis=-1)
    order = greedy_medoids(points, 6)
    for k in range(6):
        rest = [i for i in range(12) if i not in order[:k]]
        sums = {i: away[:, [*order[:k], i]].min(axis=1).sum() for i in rest}
        assert sums[order[k]] == pytest.approx(min(sums.values()), rel=1e-6)


def test_a_constant_feature_counts_for_nothing():
    points = np.array([[0.0, 7.0], [1.0, 7.0], [5.0, 7.0]])
    assert greedy_medoids(points, 2) == [1, 2]


def test_one_image_of_each_kind_is_suggested():
    order = suggest(denoiser(), kinds(), 3)
    assert {number % 3 for number in order} == {0, 1, 2}
    assert suggest(denoiser(), kinds()) == [*order, *suggest(denoiser(), kinds())[3:]]


def test_a_description_is_of_all_windows_together(monkeypatch):
    network = Segmenter.from_denoiser(denoiser(), transfer="features", feature_timesteps=(0,))
    image = torch.rand(1, 20, 33, generator=torch.Generator().manual_seed(0)) * 2 - 1
    monkeypatch.setattr(suggesting, "WINDOW", 16)
    parts = windows(image)
    assert [tuple(part.shape) for part in parts[:3]] == [(1, 10, 11)] * 3
    assert len(parts) == 6
    got = describe(network.eval(), image)
    with torch.no_grad():
        layers = list(zip(*(network.activations(part[None]) for part in parts), strict=True))
    pixels = [torch.cat([a.flatten(2) for a in layer], dim=2)[0].double() for layer in layers]
    expected = [torch.cat([p.mean(1) for p in pixels]),
                torch.cat([p.std(1, correction=0) for p in pixels])]  # fmt: skip
    np.testing.assert_allclose(got, torch.cat(expected), rtol=1e-6, atol=1e-9)


def test_too_many_and_unfitting_images_are_refused():
    with pytest.raises(UserError, match=r"count 10: there are 9 images; give 1 to 9"):
        suggest(denoiser(), kinds(), 10)
    with pytest.raises(UserError, match="takes images of 3 channels, these have 1"):
        suggest(denoiser(in_channels=3, out_channels=3), kinds(), 1)
    grey = denoiser(in_channels=3, out_channels=3)
    assert len(suggest(grey, kinds(), 2, repeat_grey=True)) == 2


def test_the_command_names_images_and_writes_the_list(tmp_path, capsys):
    for i, image in enumerate(kinds()):
        Image.fromarray(image).save(tmp_path / f"{i}.png")
    denoiser().save_pretrained(tmp_path / "model")
    Preprocessing(1).write(tmp_path / "model")
    listed = tmp_path / "lists" / "first.txt"
    command.main(f"{tmp_path} --model {tmp_path / 'model'} --count 3 --out {listed}".split())
    names = capsys.readouterr().out.split()
    assert listed.read_text().split() == names
    assert {int(name.rsplit("/", 1)[-1][0]) % 3 for name in names} == {0, 1, 2}
    with pytest.raises(UserError, match="--count 20"):
        command.main(f"{tmp_path} --model {tmp_path / 'model'} --count 20".split())


def test_of_equal_images_each_is_named_once():
    assert sorted(greedy_medoids(np.ones((4, 3)), 4)) == [0, 1, 2, 3]
    assert sorted(greedy_medoids(np.array([[0.0], [0.0], [9.0]]), 3)) == [0, 1, 2]
