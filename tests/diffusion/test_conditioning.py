"""Conditioning, its dropout, self-conditioning, and guidance in closed form."""

import math
from functools import partial

import numpy as np
import pytest
import torch
from oracles import Mixture, Oracle, gaussian_flow

from ddpm_unet.diffusion.conditioning import (
    autoguidance,
    classifier_free_guidance,
    concat_cond,
    draw_dropped,
    drop_cond,
    own_estimate,
)
from ddpm_unet.diffusion.process import GaussianDiffusion
from ddpm_unet.diffusion.sampling import Noise, sample


def test_planes_go_into_the_network_behind_the_noisy_image():
    seen = []

    def network(x, t, class_labels):
        seen.append((x, t, class_labels))
        return x[:, :3]

    x, t, labels = torch.randn(2, 3, 4, 4), torch.tensor([5, 5]), torch.tensor([0, 1])
    planes, estimate = torch.randn(2, 2, 4, 4), torch.randn(2, 3, 4, 4)
    told = {"concat_cond": planes, "estimate": estimate, "class_labels": labels}
    assert torch.equal(concat_cond(network)(x, t, **told), x)
    assert torch.equal(seen[0][0], torch.cat([x, estimate, planes], 1))
    assert seen[0][2] is labels
    concat_cond(network)(x, t, class_labels=labels)
    assert seen[1][0] is x


def test_what_is_withheld_is_the_null_class_and_zeros():
    conditions = {
        "class_labels": torch.tensor([4, 5, 6]),
        "context": torch.randn(3, 2, 7),
        "context_mask": torch.tensor([[True, False]] * 3),
        "concat_cond": torch.randn(3, 1, 4, 4),
        "estimate": torch.randn(3, 1, 4, 4),
    }
    told = drop_cond(conditions, torch.tensor([False, True, False]), 9)
    assert told["class_labels"].tolist() == [4, 9, 6]
    assert told["class_labels"].dtype == torch.int64
    for name in ("context", "concat_cond"):
        assert (told[name][1] == 0).all()
        assert torch.equal(told[name][[0, 2]], conditions[name][[0, 2]])
    for name in ("context_mask", "estimate"):
        assert torch.equal(told[name], conditions[name])
    assert drop_cond(conditions, torch.tensor(True), 9)["class_labels"].tolist() == [9, 9, 9]


def test_the_share_withheld_is_a_function_of_seed_and_position():
    found = draw_dropped(3, range(20_000), 0.15)
    assert abs(float(found.float().mean()) - 0.15) < 4 * (0.15 * 0.85 / 20_000) ** 0.5
    assert torch.equal(draw_dropped(3, range(500, 600), 0.15), found[500:600])
    assert not torch.equal(draw_dropped(4, range(20_000), 0.15), found)
    assert not draw_dropped(3, range(1000), 0.0).any()
    assert draw_dropped(3, range(1000), 1.0).all()


@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
def test_half_of_the_images_are_told_the_denoisers_own_estimate(prediction_type):
    config = GaussianDiffusion(prediction_type=prediction_type)
    data = Mixture([1.0], [[0.2, -0.1]], [[[0.03, 0.01], [0.01, 0.02]]])
    oracle = Oracle(data, config)
    weight = torch.ones((), requires_grad=True)

    def denoiser(x, t, estimate, class_labels):
        assert (estimate == 0).all()
        assert class_labels.tolist() == list(range(40))
        return weight * torch.cat(
            [oracle(row[None], time[None]) for row, time in zip(x, t, strict=True)]
        )

    noisy = torch.randn(40, 2, 3, 3, generator=torch.Generator().manual_seed(0))
    timesteps = torch.arange(0, 1000, 25)
    arguments = (config, denoiser, noisy, timesteps, 7, range(100, 140))
    found = own_estimate(*arguments, class_labels=torch.arange(40))
    assert not found.requires_grad
    told = (found != 0).flatten(1).any(1)
    assert 10 < told.sum() < 30
    for row, x, t in zip(found[told], noisy[told], timesteps[told], strict=True):
        vectors = x.double().flatten(1).T
        known = data.image(vectors, oracle.abar(int(t))).T.reshape(2, 3, 3).clamp(-1, 1)
        torch.testing.assert_close(row.double(), known, rtol=0, atol=2e-2 if t > 900 else 1e-3)


@pytest.mark.parametrize("sampler", ["ddpm", "ddim", "dpm++", "heun"])
def test_the_sampler_tells_the_image_of_the_step_before(sampler):
    told, predicted = [], []

    def denoiser(x, t, estimate):
        told.append(estimate.clone())
        return torch.tanh(x) * 0.9 + 0.1 * estimate

    options = {"diffusion": GaussianDiffusion(), "seed": 0, "indices": range(2), "steps": 6}
    options["callback"] = lambda info: predicted.append(info.x0.clone())
    sample(denoiser, sampler, (1, 3, 3), self_conditioning=True, **options)
    assert (told[0] == 0).all()
    for estimate, image in zip(told[1:], predicted, strict=False):
        assert torch.equal(estimate, image.clamp(-1, 1))


NULL = 3
MEANS = [[-0.4, 0.0], [0.2, 0.3], [0.1, -0.5], [0.0, 0.1]]  # of the classes; the last is the null
COVARIANCE = [[0.03, 0.01], [0.01, 0.02]]


def gaussian(mean):
    return Mixture([1.0], [mean], [COVARIANCE])


class Classes:
    """The best denoiser of a Gaussian for each class, with a record of its evaluations."""

    def __init__(self, config):
        self.oracles = [Oracle(gaussian(mean), config) for mean in MEANS]
        self.seen = []

    def __call__(self, x, t, class_labels):
        self.seen.append((int(t[0]), class_labels.tolist()))
        rows = [
            self.oracles[label](row[None], t[:1])
            for row, label in zip(x, class_labels.tolist(), strict=True)
        ]
        return torch.cat(rows)


def shifted(scale, label):
    """Guidance between Gaussians of one covariance moves the mean: the score is linear in it."""
    null, mean = np.array(MEANS[NULL]), np.array(MEANS[label])
    return null + scale * (mean - null)


@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize("scale", [0.0, 1.0, 2.5, -1.0])
def test_guided_gaussians_are_gaussians_with_moved_means(prediction_type, scale):
    config = GaussianDiffusion(prediction_type=prediction_type)
    denoiser = Classes(config)
    guide = Oracle(gaussian(MEANS[NULL]), config)
    x = torch.randn(2, 2, 5, 4, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0, 2])
    for t in (3, 400, 999):
        times = torch.full((2,), t)
        known = torch.cat(
            [
                Oracle(gaussian(shifted(scale, label)), config)(row[None], times)
                for row, label in zip(x, labels.tolist(), strict=True)
            ]
        )
        for guided in (
            classifier_free_guidance(denoiser, scale, NULL),
            autoguidance(denoiser, lambda x, t, class_labels: guide(x, t), scale),
        ):
            found = guided(x, times, class_labels=labels)
            torch.testing.assert_close(found.double(), known, rtol=1e-3, atol=2e-4)


def test_sampling_with_guidance_ends_at_the_moved_mean():
    config = GaussianDiffusion()
    denoiser = Classes(config)
    guided = partial(classifier_free_guidance(denoiser, 3.0, NULL), class_labels=torch.tensor([1]))
    options = {"diffusion": config, "seed": 0, "indices": [0], "steps": 200}
    images = sample(guided, "ddim", (2, 40, 40), **options)
    start = Noise(0, [0], (2, 40, 40), "cpu").draw(1.0)[0].flatten(1).T.double().numpy()
    abar = float(Oracle(gaussian(MEANS[1]), config).table[-1])
    known = gaussian_flow(gaussian(shifted(3.0, 1)), start, abar)
    found = images[0].flatten(1).T.double().numpy()
    inside = (np.abs(known) < 0.95).all(1)  # the scheduler clips
    assert inside.mean() > 0.4
    np.testing.assert_allclose(found[inside], known[inside], atol=0.03)
    plain = gaussian_flow(gaussian(MEANS[1]), start, abar)
    assert np.abs(plain - known).max() > 0.3


@pytest.mark.parametrize("interval", [(-math.inf, math.inf), (200, 300)])
def test_one_evaluation_at_scale_one_and_outside_the_interval_else_of_twice_the_batch(interval):
    denoiser, labels = Classes(GaussianDiffusion()), torch.tensor([2, 1])
    x = torch.randn(2, 2, 3, 3)
    for t in (199, 200, 300, 301):
        times = torch.tensor([t, t])
        plain = denoiser(x, times, labels)
        denoiser.seen.clear()
        same = classifier_free_guidance(denoiser, 1.0, NULL, interval)
        assert torch.equal(same(x, times, class_labels=labels), plain)
        guided = classifier_free_guidance(denoiser, 2.0, NULL, interval)
        inside = interval[0] <= t <= interval[1]
        assert torch.equal(guided(x, times, class_labels=labels), plain) != inside
        assert denoiser.seen == [(t, [2, 1]), (t, [NULL, NULL, 2, 1] if inside else [2, 1])]
