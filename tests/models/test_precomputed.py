import pytest
import torch
from diffusers_twins import randomise
from small import SMALL, noise

from ddpm_unet.config import UNetConfig
from ddpm_unet.models import UNet, precomputed
from ddpm_unet.models.precomputed import precompute_time_embeddings

TIMES = torch.tensor([900.0, 41.5, 41.5, 3.0])


def network(**settings):
    unet = UNet(UNetConfig(**SMALL | settings)).eval().double()
    randomise(unet)
    return unet


def images(batch=2):
    return noise(batch, 3, 8, 10, seed=1, dtype=torch.float64)


@pytest.mark.parametrize("form", ["default", "scale_shift"])
@torch.inference_mode()
def test_the_same_prediction_at_every_timestep_it_was_told(form):
    unet = network(resnet_time_scale_shift=form)
    tabled = precompute_time_embeddings(unet, TIMES)
    unet.time_embedding.forward = None  # asks nothing of it any more
    for t in TIMES:
        expected = network(resnet_time_scale_shift=form)(images(), t)
        torch.testing.assert_close(tabled(images(), t.expand(2)), expected)
    torch.testing.assert_close(tabled(images(), 3), expected)


@torch.inference_mode()
def test_other_timesteps_and_several_at_once():
    unet = network()
    tabled = precompute_time_embeddings(unet, TIMES)
    for t in (torch.tensor([7, 7]), torch.tensor([900, 3]), torch.tensor([900, 8]), 7.25):
        torch.testing.assert_close(tabled(images(), t), unet(images(), t))


@torch.inference_mode()
def test_classes():
    unet = network(num_class_embeds=3)
    tabled = precompute_time_embeddings(unet, TIMES)
    t, labels = TIMES[:1].expand(4), torch.tensor([2, 0, 0, 1])
    given = images(4), t
    torch.testing.assert_close(
        tabled(*given, class_labels=labels), unet(*given, class_labels=labels)
    )
    with pytest.raises(ValueError, match="class_labels missing"):
        tabled(*given)
    with pytest.raises(ValueError, match="without class embedding"):
        precompute_time_embeddings(network(), TIMES)(*given, class_labels=labels)


@torch.inference_mode()
def test_a_context_is_attended_to():
    unet = network(cross_attention_dim=6, attention_head_dim=2, **{
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    })  # fmt: skip
    context = noise(2, 5, 6, seed=2, dtype=torch.float64)
    given = images(), TIMES[:1].expand(2), context
    torch.testing.assert_close(precompute_time_embeddings(unet, TIMES)(*given), unet(*given))


def test_the_weights_are_shared_and_the_network_is_as_before():
    unet = network()
    before = {name: weights.clone() for name, weights in unet.state_dict().items()}
    tabled = precompute_time_embeddings(unet, TIMES)
    assert tabled.conv_in.weight is unet.conv_in.weight
    after = unet.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], weights) for name, weights in before.items())


def test_no_table_where_it_would_be_too_large_or_classes_are_no_numbers(monkeypatch):
    unet = network(class_embed_type="timestep")
    assert precompute_time_embeddings(unet, TIMES) is unet
    unet = network()
    assert precompute_time_embeddings(unet, TIMES) is not unet
    monkeypatch.setattr(precomputed, "LARGEST", 100)
    assert precompute_time_embeddings(unet, TIMES) is unet
