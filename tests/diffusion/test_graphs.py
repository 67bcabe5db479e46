"""An evaluation as one graph: nothing breaks it, and no step or batch makes another."""

from functools import partial

import pytest
import torch

from ddpm_unet.diffusion.conditioning import classifier_free_guidance, concat_cond
from ddpm_unet.diffusion.edm import EDMDiffusion
from ddpm_unet.diffusion.process import GaussianDiffusion
from ddpm_unet.diffusion.samplers import SAMPLERS, make_sampler
from ddpm_unet.diffusion.sampling import sample
from ddpm_unet.models import UNet

GAUSSIAN = GaussianDiffusion(prediction_type="v_prediction")


@pytest.fixture
def graphs():
    torch.compiler.reset()
    yield Graphs()
    torch.compiler.reset()


class Graphs:
    """torch.compile, whole or not at all, by a backend that counts and computes as it is."""

    def __init__(self):
        self.count = 0

    def __call__(self, function):
        return torch.compile(function, backend=self.backend, fullgraph=True)

    def backend(self, module, inputs):
        self.count += 1
        return module.forward


def smooth(x, t):
    return torch.tanh(x) * (0.5 + t.reshape(-1, 1, 1, 1) / 2000)


def drawn(network, sampler, graph, conds=({}, {}), **options):
    """Images of a batch for each cond."""
    return torch.cat(
        [
            sample(
                partial(network, **cond), sampler, (3, 8, 8), seed=1, steps=6, graph=graph,
                indices=range(2 * number, 2 * number + 2), **options,
            )
            for number, cond in enumerate(conds)
        ]
    )  # fmt: skip


@pytest.mark.parametrize(
    ("sampler", "diffusion"),
    [
        *((name, GAUSSIAN) for name in SAMPLERS),
        ("ddim", GaussianDiffusion(clip_sample=False)),
        *((name, EDMDiffusion()) for name in ("heun", "churn", "unipc")),
    ],
)
def test_is_one_for_all_steps_and_batches(sampler, diffusion, graphs):
    expected = drawn(smooth, sampler, None, diffusion=diffusion)
    assert torch.equal(drawn(smooth, sampler, graphs, diffusion=diffusion), expected)
    assert graphs.count == 1


def test_holds_learned_variances(graphs):
    def network(x, t):
        return torch.cat([smooth(x, t), torch.sin(x)], dim=1)

    learned = {"diffusion": GaussianDiffusion(variance_type="learned_range")}
    expected = drawn(network, "ddpm", None, **learned)
    assert torch.equal(drawn(network, "ddpm", graphs, **learned), expected)
    assert graphs.count == 1


def test_holds_network_conditioning_and_guidance(graphs):
    torch.manual_seed(0)
    unet = UNet(
        sample_size=8, in_channels=8, out_channels=3, block_out_channels=(8,), num_class_embeds=3,
        down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",), layers_per_block=1,
        norm_num_groups=4,
    ).eval()  # fmt: skip
    network = classifier_free_guidance(concat_cond(unet), 2.0, null_class=2)
    conds = [
        {"class_labels": torch.tensor(labels), "concat_cond": torch.randn(2, 2, 8, 8)}
        for labels in ([0, 1], [1, 1])
    ]
    options = {"diffusion": GAUSSIAN, "conds": conds, "self_conditioning": True}
    expected = drawn(network, "dpm++", None, **options)
    assert torch.equal(drawn(network, "dpm++", graphs, **options), expected)
    assert graphs.count == 1


def test_of_an_interval_is_one_within_and_one_outside(graphs):
    def network(x, t, class_labels):
        return smooth(x, t) + class_labels.reshape(-1, 1, 1, 1) / 3

    guided = classifier_free_guidance(network, 2.0, 2, interval=(200, 700))
    options = {"diffusion": GAUSSIAN, "conds": [{"class_labels": torch.tensor([0, 1])}] * 2}
    expected = drawn(guided, "ddim", None, **options)
    assert torch.equal(drawn(guided, "ddim", graphs, **options), expected)
    assert graphs.count <= 4


def test_leaves_schedulers_outside(graphs):
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.PNDMScheduler()  # keeps predictions
    made = make_sampler(scheduler, GaussianDiffusion())
    expected = drawn(smooth, made, None)
    assert torch.equal(drawn(smooth, made, graphs), expected)
    assert graphs.count == 1
