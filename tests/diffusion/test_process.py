"""The forward process, its losses and weightings against diffusers and closed forms."""

import math

import diffusers
import pytest
import torch
from oracles import Mixture, Oracle
from torch import nn

from ddpm_unet.config import DiffusionConfig
from ddpm_unet.diffusion.edm import make_diffusion
from ddpm_unet.diffusion.process import GaussianDiffusion, alphas_cumprod, coefficients
from ddpm_unet.errors import UserError

TYPES = ["epsilon", "sample", "v_prediction"]
SCHEDULES = ["linear", "scaled_linear", "squaredcos_cap_v2"]


def batch(diffusion, n=6, shape=(3, 4, 5)):
    images = torch.rand(n, *shape) * 2 - 1
    return images, *diffusion.draw(0, range(n), shape)


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("steps", [1000, 100])
def test_schedules_are_those_of_diffusers(name, steps):
    scheduler = diffusers.DDPMScheduler(beta_schedule=name, num_train_timesteps=steps)
    diffusion = GaussianDiffusion(steps, name)
    betas = torch.tensor(diffusion.betas())
    torch.testing.assert_close(betas, scheduler.betas, rtol=2e-6, atol=1e-7)
    found = diffusion.alphas_cumprod.double()
    torch.testing.assert_close(found, scheduler.alphas_cumprod.double(), rtol=1e-4, atol=1e-9)


def test_end_points():
    abar = alphas_cumprod()
    assert abar[0] == 1 - 1e-4
    assert abar[-1].item() == pytest.approx(4.0358e-5, rel=1e-4)  # Ho 2020: L_T is about 1e-5
    cosine = alphas_cumprod(beta_schedule="squaredcos_cap_v2")
    assert max(abar.diff().max(), cosine.diff().max()) < 0
    assert cosine[499].item() == pytest.approx(0.4938, abs=1e-4)  # cos^2 of nearly 45 degrees
    assert 0 < cosine[-1] < 1e-8


def test_logistic_schedule():
    """Jabri 2022, algorithm 1: symmetric about the middle; diffusers is told the betas."""
    diffusion = GaussianDiffusion(501, "logistic")
    abar = diffusion.alphas_cumprod_float64
    time = torch.arange(1, 501, dtype=torch.float64) / 501
    curve = (torch.sigmoid(3 - 6 * time) - 1 / (1 + math.exp(3))) / math.tanh(1.5)
    torch.testing.assert_close(abar[:-1], curve, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(abar[:-1] + abar[:-1].flip(0), torch.ones_like(curve))


@pytest.mark.parametrize("shift", [0.5, 0.25])
def test_a_shift_moves_the_log_snr(shift):
    """Hoogeboom 2023, eq. 4: as much noise is seen in an average of 1/shift x 1/shift pixels."""
    plain, shifted = (torch.logit(alphas_cumprod(snr_shift=s)) for s in (1.0, shift))
    torch.testing.assert_close(shifted, plain + 2 * math.log(shift))


@pytest.mark.parametrize("schedule", [*SCHEDULES, "logistic"])
def test_zero_terminal_snr_leaves_noise_alone(schedule):
    settings = {"beta_schedule": schedule, "prediction_type": "sample"}
    diffusion = GaussianDiffusion(**settings, rescale_betas_zero_snr=True)
    abar = diffusion.alphas_cumprod_float64
    assert abar[-1] == 0
    assert abar[0] == pytest.approx(float(alphas_cumprod(beta_schedule=schedule)[0]), rel=1e-9)
    theirs = diffusers.DDPMScheduler.from_config(diffusion.scheduler_config()).alphas_cumprod
    torch.testing.assert_close(abar, theirs.double(), rtol=2e-3, atol=1e-6)
    noise = torch.randn(1, 3, 4, 4)
    last = torch.tensor([999])
    assert torch.equal(diffusion.add_noise(torch.ones(1, 3, 4, 4), last, noise), noise)
    with pytest.raises(UserError, match="min_snr: would give the last timestep"):
        diffusion.check_loss(weighting="min_snr")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_timesteps": 0}, "num_timesteps 0: give at least 1"),
        ({"beta_start": 0.0}, "need 0 < beta_start"),
        ({"beta_start": 0.1, "beta_end": 0.01}, "need 0 < beta_start"),
        ({"beta_end": 1.0}, "need 0 < beta_start"),
        ({"beta_schedule": "sigmoid"}, "unknown beta_schedule"),
        ({"snr_shift": 0.0}, "snr_shift"),
        ({"variance_type": "learned"}, "unknown variance_type"),
        ({"prediction_type": "velocity"}, "'velocity' is none of epsilon"),
        ({"rescale_betas_zero_snr": True}, "with prediction_type epsilon the last timestep says"),
    ],
)
def test_impossible_processes_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        GaussianDiffusion(**settings)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"num_timesteps": 500, "beta_schedule": "squaredcos_cap_v2", "clip_sample": False},
        {"beta_schedule": "logistic", "prediction_type": "v_prediction", "num_timesteps": 50},
        {"rescale_betas_zero_snr": True, "prediction_type": "sample"},
        {"snr_shift": 0.5, "variance_type": "learned_range", "beta_end": 0.03},
    ],
)
def test_a_process_comes_back_from_the_configuration_of_a_scheduler(settings):
    diffusion = GaussianDiffusion(**settings)
    saved = diffusion.scheduler_config()
    assert GaussianDiffusion.from_scheduler_config(saved).config == diffusion.config
    assert GaussianDiffusion(**diffusion.config).config == diffusion.config
    theirs = diffusers.DDPMScheduler.from_config(saved)
    again = GaussianDiffusion.from_scheduler_config(dict(theirs.config)).config
    assert again == {**diffusion.config, "snr_shift": again["snr_shift"]}
    torch.testing.assert_close(
        diffusion.alphas_cumprod, theirs.alphas_cumprod, rtol=1e-3, atol=1e-6
    )


def test_tables_are_buffers_that_stay_float32_and_are_not_saved():
    diffusion = GaussianDiffusion().half()
    assert {b.dtype for b in diffusion.buffers()} == {torch.float32}
    assert torch.equal(diffusion.snr(torch.arange(1000)), GaussianDiffusion().signal_to_noise)
    assert not diffusion.state_dict()
    assert {b.device.type for b in diffusion.to("meta").buffers()} == {"meta"}


@pytest.mark.parametrize("kind", TYPES)
def test_targets_are_what_their_names_say_and_lead_back(kind):
    abar = alphas_cumprod()
    image, noise = torch.randn(2, 1000, dtype=torch.float64)
    angle = abar.sqrt().acos()  # v is dx/d(angle) of x = cos x_0 + sin eps (Salimans 2022)
    targets = {
        "epsilon": noise, "sample": image,
        "v_prediction": angle.cos() * noise - angle.sin() * image,
    }  # fmt: skip
    mix = coefficients(kind, abar)
    x = mix["sqrt_alphas_cumprod"] * image + mix["sqrt_one_minus_alphas_cumprod"] * noise
    target = mix["target_from_x0"] * image + mix["target_from_noise"] * noise
    torch.testing.assert_close(target, targets[kind])
    for name, truth in (("x0", image), ("noise", noise)):
        found = mix[f"{name}_from_x"] * x + mix[f"{name}_from_prediction"] * target
        torch.testing.assert_close(found, truth, rtol=1e-9, atol=1e-9)
    diffusion = GaussianDiffusion(prediction_type=kind)
    images, t, noise = batch(diffusion)
    x_t, target = diffusion.add_noise(images, t, noise), diffusion.target(images, t, noise)
    found = diffusion.predict_noise(x_t, t, target)
    torch.testing.assert_close(found, noise, rtol=1e-3, atol=1e-3)
    found = (
        diffusion.predict_x0(x_t, t, target) * diffusion.snr(t).clamp(max=1)[:, None, None, None]
    )
    known = images * diffusion.snr(t).clamp(max=1)[:, None, None, None]
    torch.testing.assert_close(found, known, rtol=1e-3, atol=1e-3)
    scheduler = diffusers.DDPMScheduler()
    torch.testing.assert_close(x_t, scheduler.add_noise(images, noise, t))
    if kind == "v_prediction":
        torch.testing.assert_close(target, scheduler.get_velocity(images, noise, t))


def test_a_noise_level_has_the_time_and_the_meaning_of_its_timestep():
    for kind in TYPES:
        diffusion = GaussianDiffusion(prediction_type=kind)
        abar = diffusion.alphas_cumprod_float64
        for t in (0, 10, 700, 999):
            sigma = math.sqrt((1 - abar[t]) / abar[t])
            c_in, time, c_skip, c_out = diffusion.preconditioning(sigma)
            assert time == pytest.approx(t, abs=1e-6)
            x, prediction = torch.randn(2, 1, 1, dtype=torch.float64)
            known = diffusion.predict_x0(c_in * x, torch.tensor([t]), prediction)
            torch.testing.assert_close(c_skip * x + c_out * prediction, known, rtol=1e-4, atol=1e-4)
    sigmas = diffusion.sigmas(7).log()
    torch.testing.assert_close(sigmas[:-1].diff(), sigmas[:-1].diff()[:1].expand(6))


def test_loss_is_the_mean_squared_error_of_each_image():
    diffusion = GaussianDiffusion()
    images, t, noise = batch(diffusion)

    def network(x, timesteps, shift):
        assert torch.equal(timesteps, t)
        assert torch.equal(x, diffusion.add_noise(images, t, noise))
        return noise + shift[:, None, None, None]

    shift = torch.arange(6.0)
    losses = diffusion.losses(network, images, t, noise, shift=shift)
    torch.testing.assert_close(losses, shift**2)
    assert diffusion.loss(network, images, t, noise, shift=shift) == losses.mean()


def test_what_is_not_given_is_drawn():
    diffusion, seen = GaussianDiffusion(50), []

    def network(x, t):
        seen.append(t)
        return torch.zeros_like(x)

    images = torch.zeros(2000, 1, 4, 4)
    first, second = (
        diffusion.losses(network, images, generator=torch.Generator().manual_seed(1))
        for _ in range(2)
    )
    assert torch.equal(first, second)
    assert torch.equal(*seen)
    assert seen[0].unique().tolist() == list(range(50))
    assert first.mean() == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize(("weighting", "gamma"), [("min_snr", 5.0), ("p2", 1.0), ("p2", 0.5)])
def test_weightings(weighting, gamma):
    """Stated for one prediction type, they make the losses of all the same."""
    snr = GaussianDiffusion().signal_to_noise.double()
    of_noise = {"min_snr": snr.clamp(max=gamma) / snr, "p2": (1 + snr) ** -gamma}[weighting]
    known = {
        "epsilon": of_noise, "sample": of_noise * snr, "v_prediction": of_noise * snr / (1 + snr)
    }  # fmt: skip
    data = Mixture([1.0], [[0.2, -0.1]], [[[0.04, 0.015], [0.015, 0.01]]])
    images, _, noise = batch(GaussianDiffusion(), 5, (2, 8, 8))
    t = torch.tensor([5, 50, 300, 700, 999])
    losses = []
    for kind in TYPES:
        diffusion = GaussianDiffusion(prediction_type=kind)
        found = diffusion.loss_weights(weighting, gamma)
        torch.testing.assert_close(found, known[kind], rtol=1e-4, atol=1e-9)
        oracle = Oracle(data, diffusion)

        def network(x, timesteps, oracle=oracle):
            return torch.cat([oracle(x[i : i + 1], timesteps[i : i + 1]) for i in range(5)])

        losses.append(diffusion.losses(network, images, t, noise, weighting=weighting, gamma=gamma))
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-3, atol=0)
    torch.testing.assert_close(losses[2], losses[0], rtol=1e-3, atol=0)


def test_weightings_of_the_settings():
    assert DiffusionConfig(min_snr_gamma=4.0).loss_options["gamma"] == 4.0
    assert DiffusionConfig(p2_gamma=0.5).loss_options["weighting"] == "p2"
    assert "weighting" not in DiffusionConfig().loss_options
    with pytest.raises(UserError, match="two weightings"):
        _ = DiffusionConfig(p2_gamma=0.5, min_snr_gamma=5.0).loss_options
    for arguments in (("min_snr", 0.0), ("snr", None)):
        with pytest.raises(UserError, match=r"gamma 0|unknown weighting 'snr'"):
            GaussianDiffusion().loss_weights(*arguments)
    assert not make_diffusion(DiffusionConfig(), latents=True).clip_sample
    assert make_diffusion(DiffusionConfig(num_train_timesteps=7)).num_timesteps == 7


def test_loss_of_the_best_denoiser_is_the_posterior_variance():
    diffusion = GaussianDiffusion()
    oracle = Oracle(Mixture([1.0], [[0.3]], [[[0.04]]]), diffusion)
    noise = diffusion.draw(0, [5], (1, 300, 300))[1]
    images = 0.3 + 0.2 * torch.randn(noise.shape, generator=torch.Generator().manual_seed(1))
    for t in (10, 200, 500):
        abar = oracle.abar(t)
        expected = abar * 0.04 / (abar * 0.04 + 1 - abar)  # Var[eps | x_t]
        loss = diffusion.losses(oracle, images, torch.tensor([t]), noise)
        assert loss.item() == pytest.approx(expected, rel=6 * math.sqrt(2 / noise.numel()))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_losses_are_float32_under_autocast(dtype):
    diffusion = GaussianDiffusion()
    images, t, noise = batch(diffusion)
    network, seen = nn.Conv2d(3, 3, 1), []

    def denoiser(x, _):
        seen.append(network(x))
        return seen[0]

    with torch.autocast("cpu", dtype=dtype):
        losses = diffusion.losses(denoiser, images, t, noise)
    assert (seen[0].dtype, losses.dtype) == (dtype, torch.float32)
    expected = (seen[0].float() - noise).square().mean((1, 2, 3))
    torch.testing.assert_close(losses, expected, rtol=1e-6, atol=0)
    losses.mean().backward()
    assert network.weight.grad.abs().sum() > 0


def test_draws_depend_on_seed_and_position_only_and_cover_the_chain():
    diffusion = GaussianDiffusion()
    t, noise = diffusion.draw(7, range(10), (3, 8, 8))
    assert (t.dtype, noise.dtype) == (torch.int64, torch.float32)
    for part in ([3], [9, 0, 4]):
        t_part, noise_part = diffusion.draw(7, part, (3, 8, 8))
        assert torch.equal(t_part, t[part])
        assert torch.equal(noise_part, noise[part])
    t_other, noise_other = diffusion.draw(8, range(10), (3, 8, 8))
    assert not torch.equal(t, t_other)
    assert not torch.equal(noise, noise_other)
    counts = torch.bincount(GaussianDiffusion(10).draw(0, range(20_000), ())[0], minlength=10)
    assert counts.shape == (10,)
    assert (counts - 2000).abs().max() < 5 * math.sqrt(20_000 * 0.1 * 0.9)


class Outputs(nn.Module):
    """Predicts what it learns, whatever it is shown."""

    def __init__(self, *shape):
        super().__init__()
        generator = torch.Generator().manual_seed(2)
        self.output = nn.Parameter(0.3 * torch.randn(shape, generator=generator))

    def forward(self, x, t):
        return self.output[:, : 2 * x.shape[1]]


@pytest.mark.parametrize("kind", TYPES)
def test_the_bound_moves_the_variances_and_the_simple_loss_the_mean(kind):
    images = torch.rand(4, 3, 5, 5) * 2 - 1
    t, noise = torch.tensor([0, 1, 400, 999]), torch.randn(images.shape)
    gradients, values = [], []
    for weight, variance in (
        (0.001, "fixed_small"),
        (0.001, "learned_range"),
        (1, "learned_range"),
    ):
        diffusion = GaussianDiffusion(prediction_type=kind, variance_type=variance)
        model = Outputs(4, 6, 5, 5)
        network = model if variance == "learned_range" else lambda x, t, m=model: m(x, t)[:, :3]
        losses = diffusion.losses(network, images, t, noise, vlb_weight=weight)
        losses.sum().backward()
        gradients.append(model.output.grad)
        values.append(losses.detach())
    plain, hybrid, heavy = gradients
    assert torch.equal(hybrid[:, :3], plain[:, :3])
    assert torch.equal(heavy[:, :3], plain[:, :3])
    assert hybrid[:, 3:].abs().amin() > 0
    assert torch.isfinite(heavy).all()
    torch.testing.assert_close(heavy[:, 3:], 1000 * hybrid[:, 3:])
    bound = values[1] - values[0]  # 0.001 times 1000 timesteps
    torch.testing.assert_close(values[2] - values[0], 1000 * bound, rtol=1e-2, atol=1e-2)
