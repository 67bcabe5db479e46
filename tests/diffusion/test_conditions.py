import numpy as np
import pytest
import torch
from ddpm_unet.diffusion.conditions import (
    SelfConditioning,
    beside_the_input,
    withheld,
    withhold,
)
from ddpm_unet.diffusion.objective import Objective
from oracles import Mixture, Oracle

from ddpm_unet.config import DiffusionConfig
from ddpm_unet.diffusion.samplers import make_scheduler
from ddpm_unet.diffusion.sampling import sample


def test_planes_go_into_the_network_behind_the_noisy_image():
    seen = []

    def network(x, t, class_labels):
        seen.append((x, t, class_labels))
        return x[:, :3]

    x, t, labels = torch.randn(2, 3, 4, 4), torch.tensor([5, 5]), torch.tensor([0, 1])
    planes, estimate = torch.randn(2, 2, 4, 4), torch.randn(2, 3, 4, 4)
    told = {"planes": planes, "estimate": estimate, "class_labels": labels}
    assert torch.equal(beside_the_input(network)(x, t, **told), x)
    assert torch.equal(seen[0][0], torch.cat([x, estimate, planes], 1))
    assert seen[0][2] is labels
    beside_the_input(network)(x, t, class_labels=labels)
    assert seen[1][0] is x


def test_what_is_withheld_is_the_null_class_and_zeros():
    conditions = {
        "class_labels": torch.tensor([4, 5, 6]),
        "context": torch.randn(3, 2, 7),
        "context_mask": torch.tensor([[True, False]] * 3),
        "planes": torch.randn(3, 1, 4, 4),
        "estimate": torch.randn(3, 1, 4, 4),
    }
    told = withhold(conditions, torch.tensor([False, True, False]), 9)
    assert told["class_labels"].tolist() == [4, 9, 6]
    assert told["class_labels"].dtype == torch.int64
    for name in ("context", "planes"):
        assert (told[name][1] == 0).all()
        assert torch.equal(told[name][[0, 2]], conditions[name][[0, 2]])
    for name in ("context_mask", "estimate"):
        assert torch.equal(told[name], conditions[name])
    assert withhold(conditions, torch.tensor(True), 9)["class_labels"].tolist() == [9, 9, 9]


def test_the_share_withheld_is_a_function_of_seed_and_position():
    found = withheld(3, range(20_000), 0.15)
    assert abs(float(found.float().mean()) - 0.15) < 4 * (0.15 * 0.85 / 20_000) ** 0.5
    assert torch.equal(withheld(3, range(500, 600), 0.15), found[500:600])
    assert not torch.equal(withheld(4, range(20_000), 0.15), found)
    assert not withheld(3, range(1000), 0.0).any()
    assert withheld(3, range(1000), 1.0).all()


@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
def test_half_of_the_images_are_told_the_denoisers_own_estimate(prediction_type):
    config = DiffusionConfig(prediction_type=prediction_type)
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
    own = SelfConditioning(config)
    arguments = (denoiser, noisy, timesteps, 7, range(100, 140))
    found = own.estimate(*arguments, class_labels=torch.arange(40))
    assert not found.requires_grad
    told = (found != 0).flatten(1).any(1)
    assert 10 < told.sum() < 30
    for row, x, t in zip(found[told], noisy[told], timesteps[told], strict=True):
        vectors = x.double().flatten(1).T
        known = data.image(vectors, oracle.abar(int(t))).T.reshape(2, 3, 3).clamp(-1, 1)
        torch.testing.assert_close(row.double(), known, rtol=0, atol=2e-2 if t > 900 else 1e-3)


def test_which_images_are_told_depends_on_the_position_alone():
    objective = Objective(DiffusionConfig())
    images = torch.full((64, 1, 2, 2), 0.5)

    def told(positions):
        timesteps, noise = objective.draw(0, positions, (1, 2, 2))
        noisy = objective.add_noise(images[: len(positions)], timesteps, noise)
        estimate = SelfConditioning(DiffusionConfig()).estimate(
            lambda x, t, estimate: torch.ones_like(x), noisy, timesteps, 5, positions
        )
        return (estimate != 0).flatten(1).any(1)

    together = told(range(64))
    assert torch.equal(told(np.arange(20, 40)), together[20:40])


@pytest.mark.parametrize("sampler", ["ddpm", "ddim", "dpm++", "heun"])
def test_the_sampler_tells_the_image_of_the_step_before(sampler):
    told, predicted = [], []

    def denoiser(x, t, estimate):
        told.append(estimate.clone())
        return torch.tanh(x) * 0.9 + 0.1 * estimate

    sample(
        denoiser,
        make_scheduler(sampler, DiffusionConfig()),
        (1, 3, 3),
        seed=0,
        indices=range(2),
        steps=6,
        self_conditioning=True,
        callback=lambda moment: predicted.append(moment.x0.clone()),
    )
    assert (told[0] == 0).all()
    for estimate, image in zip(told[1:], predicted, strict=False):
        assert torch.equal(estimate, image.clamp(-1, 1))
