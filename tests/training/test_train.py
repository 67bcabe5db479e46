"""`ddpm_unet.train`: any network and data set, resumed bit for bit, without a trace."""

import random
import signal
import threading

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from small import TINY
from torch import nn
from torch.utils.data import TensorDataset

from ddpm_unet import ClassicUNet, Denoiser, Segmenter, UNet, train
from ddpm_unet.errors import UserError

GENERATOR = torch.Generator().manual_seed(0)
IMAGES = torch.rand(12, 1, 8, 8, generator=GENERATOR)
PAIRS = [(image, (image[0] > 0.5).long()) for image in IMAGES]
NUMBERS = [{"image": image, "target": 1 - 2 * image} for image in torch.rand(8, 1, 16, 16)]


def unet(**changes):
    torch.manual_seed(0)
    settings = {**TINY, "in_channels": 1, "out_channels": 1, "add_attention": False} | changes
    return UNet(sample_size=8, **settings)


def weights(model):
    return torch.cat([p.detach().ravel() for p in model.parameters()])


class Labelled:
    """As torchvision's sets are: arrays and numbers."""

    classes = ("a", "b")

    def __len__(self):
        return 12

    def __getitem__(self, index):
        return (IMAGES[index, 0].numpy() * 255).astype(np.uint8), index % 2


@pytest.mark.parametrize(
    "data",
    [list(IMAGES), IMAGES, TensorDataset(IMAGES), Labelled()],
    ids=lambda d: type(d).__name__,
)
def test_a_denoiser_of_any_data_set(data, tmp_path):
    before = weights(unet())
    model = train(unet(), data, run=tmp_path, steps=3, batch_size=4, validation=data)
    assert not torch.equal(weights(model), before)
    assert not model.training
    denoiser = Denoiser.from_pretrained(tmp_path / "model")
    assert torch.equal(weights(denoiser.unet), weights(model))
    assert "val_loss" in (tmp_path / "metrics.jsonl").read_text()


def test_a_resumed_run_ends_bit_for_bit_alike_and_leaves_no_trace(tmp_path):
    whole = train(unet(), IMAGES, run=tmp_path / "a", steps=6, batch_size=4)
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    handlers = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]
    train(unet(), IMAGES, run=tmp_path / "b", steps=3, batch_size=4, warmup_steps=0)
    resumed = train(unet(), IMAGES, run=tmp_path / "b", steps=6, batch_size=4)
    assert torch.equal(weights(resumed), weights(whole))
    assert [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)] == handlers
    torch.set_rng_state(states[2])
    train(unet(), IMAGES, run=tmp_path / "c", steps=1, batch_size=4)
    assert (random.getstate(), np.random.get_state()[1].tolist()) == states[:2]


def test_in_a_thread(tmp_path):
    found = []
    thread = threading.Thread(
        target=lambda: found.append(train(unet(), IMAGES, run=tmp_path, steps=2, batch_size=4))
    )
    thread.start()
    thread.join()
    assert len(found) == 1


@pytest.mark.parametrize(
    ("classic", "pairs", "outputs", "score"),
    [(False, PAIRS, 2, "mean_dice"), (True, PAIRS, 2, "mean_dice"), (False, NUMBERS, 1, "psnr")],
)
def test_a_network_of_pixels_keeps_its_best_model(classic, pairs, outputs, score, tmp_path):
    torch.manual_seed(0)
    model = Segmenter(unet(), num_classes=outputs)
    if classic:
        model = ClassicUNet(in_channels=1, depth=2, base_width=4, padding="same")
    trained = train(
        model, pairs, run=tmp_path, steps=6, batch_size=4, lr=1e-2, validation=pairs[:4],
        validate_every=2, flips=True,
    )  # fmt: skip
    assert score in (tmp_path / "metrics.jsonl").read_text()
    kept = type(trained).from_pretrained(tmp_path / "model")
    assert torch.equal(weights(kept), weights(trained))


def test_own_loss_and_own_network(tmp_path):
    class Autoencoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Conv2d(1, 1, 3, padding=1)

        def forward(self, x):
            return self.layer(x)

    def loss(model, batch):
        return (model(batch["image"]) - batch["image"]).square().mean()

    model = Autoencoder()
    before = float(loss(model, {"image": IMAGES * 2 - 1}))
    train(model, IMAGES, run=tmp_path, loss=loss, steps=40, batch_size=4, lr=1e-2, ema_decay=0.5)
    assert float(loss(model, {"image": IMAGES * 2 - 1})) < 0.5 * before
    assert load_file(tmp_path / "model" / "model.safetensors").keys() == model.state_dict().keys()


def test_what_does_not_fit_is_said_by_argument(tmp_path):
    for model, data, extra, words in (
        (unet(in_channels=3), IMAGES, {}, "in_channels=1"),
        (unet(), IMAGES, {"learning_rate": 1}, "learning_rate: is no argument of train"),
        (ClassicUNet(in_channels=1, depth=2, base_width=4), PAIRS, {}, 'padding="same"'),
        (Segmenter(unet(), num_classes=2), IMAGES, {}, "mask"),
        (Segmenter(unet(), num_classes=2), NUMBERS, {}, "num_classes=1"),
    ):
        with pytest.raises(UserError, match=words):
            train(model, data, run=tmp_path / "run", steps=1, batch_size=2, **extra)
    train(unet(), IMAGES, run=tmp_path / "run", steps=1, batch_size=2)
    with pytest.raises(UserError, match="holds a run already"):
        train(unet(), IMAGES, run=tmp_path / "run", steps=2, batch_size=2, resume=False)
