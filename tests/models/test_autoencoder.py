"""The autoencoder is diffusers' own, in another scale, and nothing else is one."""

import json
import re

import pytest
import torch
from diffusers import AutoencoderKL, VQModel
from small import AUTOENCODER

from ddpm_unet.errors import UserError
from ddpm_unet.models import autoencoder
from ddpm_unet.models.autoencoder import Autoencoder, autoencoder_of

CONFIG = "config.json"


@pytest.fixture(scope="module")
def peer():
    torch.manual_seed(0)
    return AutoencoderKL(
        **AUTOENCODER, latent_channels=5, scaling_factor=0.4, shift_factor=0.25
    ).eval()


@pytest.fixture
def folder(peer, tmp_path):
    peer.save_pretrained(tmp_path / "pipeline" / "vae")
    return tmp_path / "pipeline" / "vae"


@pytest.mark.parametrize("parts", [1, 2, 100])
def test_it_encodes_and_decodes_as_diffusers_does(peer, folder, parts, monkeypatch):
    monkeypatch.setattr(autoencoder, "PIXELS", parts * 16 * 12)
    ours = Autoencoder(folder)
    images = torch.rand(3, 3, 16, 12, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.autocast("cpu", torch.bfloat16):
        mean, deviation = ours.encode(images)
        short = ours.decode(mean)
    with torch.autocast("cpu", torch.float16):
        decoded = ours.decode(mean)
    assert short.dtype == decoded.dtype == torch.float32
    assert not torch.equal(short, decoded)
    torch.testing.assert_close(short, decoded, atol=0.05, rtol=0.05)
    with torch.no_grad():
        found = peer.encode(images).latent_dist
        torch.testing.assert_close(mean / 0.4 + 0.25, found.mode())
        torch.testing.assert_close(deviation / 0.4, found.std)
        torch.testing.assert_close(decoded, peer.decode(found.mode()).sample, atol=1e-5, rtol=1e-4)
    assert mean.shape == (3, 5, 8, 6)
    assert (ours.channels, ours.latent_channels, ours.factor) == (3, 5, 2)


def test_a_copy_is_read_by_diffusers_and_has_the_same_fingerprint(peer, folder, tmp_path):
    ours = Autoencoder(folder.parent)  # of a pipeline
    ours.write(tmp_path / "copy")
    read = AutoencoderKL.from_pretrained(tmp_path / "copy", local_files_only=True)
    assert (read.config.scaling_factor, read.config.shift_factor) == (0.4, 0.25)
    for name, value in read.state_dict().items():
        assert torch.equal(value, peer.state_dict()[name])
    copy = Autoencoder(tmp_path / "copy")
    assert copy.fingerprint() == ours.fingerprint()
    with torch.no_grad():
        copy.network.post_quant_conv.bias += 1e-3
    assert copy.fingerprint() != ours.fingerprint()
    copy.write(folder)
    assert Autoencoder(folder).fingerprint() == ours.fingerprint(), "what is there stays"


def test_where_a_pipeline_has_its_autoencoder(folder):
    (folder.parent / "unet").mkdir()
    for place in (folder.parent, folder.parent / "unet"):
        found = autoencoder_of(place)
        assert found is not None
        assert found.folder.resolve() == folder.resolve()
    folder.rename(folder.parent / "elsewhere")
    assert autoencoder_of(folder.parent) is None


def test_sizes(folder):
    ours = Autoencoder(folder)
    assert ours.latent_size(14, "--size") == 7
    with pytest.raises(UserError, match=re.escape("--size 15: the autoencoder makes one latent")):
        ours.latent_size(15, "--size")
    with pytest.raises(UserError, match=r"multiple, such as 2$"):
        ours.latent_size(1, "data.size")


def no_folder(folder):
    return folder.parent / "nowhere"


def nothing_in_it(folder):
    (folder / CONFIG).unlink()
    return folder


def other_kind(folder):
    VQModel(block_out_channels=(4,), norm_num_groups=2).save_pretrained(folder)
    return folder


def other_shapes(folder):
    settings = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps(settings | {"latent_channels": 3}))
    return folder


def no_network(folder):
    settings = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps(settings | {"block_out_channels": [3, 3]}))
    return folder


def truncated(folder):
    file = folder / "diffusion_pytorch_model.safetensors"
    file.write_bytes(file.read_bytes()[:-9])
    return folder


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (no_folder, "nowhere does not exist; name the folder of an autoencoder"),
        (nothing_in_it, "vae has no config.json; name the folder of an autoencoder"),
        (other_kind, "vae: is a VQModel, no autoencoder; give the folder of a diffusers Auto"),
        (other_shapes, "has shape [10, 8, 3, 3], not [6, 8, 3, 3]; take the weights of this"),
        (no_network, "config.json: makes no AutoencoderKL (num_channels (3) must be"),
        (truncated, "is damaged or missing"),
    ],
)
def test_what_is_no_autoencoder_is_said_in_one_line(folder, change, message):
    with pytest.raises(UserError, match=re.escape(message)) as caught:
        Autoencoder(change(folder))
    assert "\n" not in str(caught.value)
