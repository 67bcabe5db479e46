import json

import pytest
import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler, UNet2DConditionModel, UNet2DModel
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from ddpm_unet.config import ClassicConfig, HeadConfig, UNetConfig
from ddpm_unet.errors import UserError
from ddpm_unet.models.classic import ClassicUNet
from ddpm_unet.models.pixel_features import activations
from ddpm_unet.models.segmenter import Segmenter, load_segmentation_model
from ddpm_unet.models.unet import UNet

SMALL = {
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    "block_out_channels": (8, 16),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "attention_head_dim": 8,
}
CONTEXT = SMALL | {
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    "attention_head_dim": 2,
    "cross_attention_dim": 12,
}
FEATURES = {"transfer": "features", "feature_timesteps": (5, 50), "feature_alphas": (0.9, 0.5)}
TRANSFERS = [{"transfer": "finetune"}, {"transfer": "frozen"}, {"transfer": "joint"}, FEATURES]


def randomise(network: nn.Module) -> nn.Module:
    """Weights that are nowhere zero, as a trained network's."""
    with torch.no_grad():
        for p in network.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return network


def segmenter(unet: dict | None = None, **head) -> Segmenter:
    torch.manual_seed(0)
    network = UNet(UNetConfig(**(SMALL | {"dropout": 0.2} | (unet or {}))))
    return randomise(Segmenter(network, HeadConfig(**({"num_classes": 3} | head))))


def images(*shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(1)) * 2 - 1


@pytest.fixture(scope="module")
def denoiser_folder(tmp_path_factory):
    """A pipeline's folder as diffusers writes it."""
    folder = tmp_path_factory.mktemp("denoiser")
    torch.manual_seed(0)
    randomise(UNet2DModel(**SMALL)).save_pretrained(folder / "unet")
    DDPMScheduler(beta_schedule="scaled_linear").save_pretrained(folder / "scheduler")
    return folder


@pytest.fixture(scope="module")
def stable_diffusion_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sd")
    torch.manual_seed(0)
    randomise(UNet2DConditionModel(**CONTEXT)).save_pretrained(folder / "unet")
    return folder


@pytest.mark.parametrize("transfer", TRANSFERS)
@pytest.mark.parametrize("size", [(16, 16), (19, 7)])
def test_scores_for_every_pixel_of_any_size(transfer, size):
    network = segmenter(**transfer).eval()
    assert network(images(2, 3, *size)).shape == (2, 3, *size)
    assert (network.margin, network.valid_size(19)) == (0, 19)


@pytest.mark.parametrize("transfer", [{"transfer": "finetune"}, FEATURES])
def test_volumes(transfer):
    network = segmenter({"dims": 3, "in_channels": 1, "out_channels": 1}, **transfer).eval()
    assert network(images(1, 1, 8, 5, 6)).shape == (1, 3, 8, 5, 6)


def test_both_outputs_equal_separate_calls_and_take_one_pass():
    network = segmenter(transfer="joint").eval()
    x, t = images(2, 3, 16, 16), torch.tensor([7, 400])
    passes = []
    network.unet.conv_in.register_forward_hook(lambda *_: passes.append(1))
    prediction, logits = network(x, t, both=True)
    assert len(passes) == 1
    torch.testing.assert_close(prediction, network.unet(x, t), rtol=0, atol=0)
    torch.testing.assert_close(logits, network(x, t), rtol=0, atol=0)


def test_timestep_is_the_configured_one_unless_given():
    network = segmenter(timestep=30).eval()
    x = images(1, 3, 8, 8)
    assert torch.equal(network(x), network(x, 30))
    assert not torch.equal(network(x), network(x, 0))


@pytest.mark.parametrize("transfer", TRANSFERS)
def test_gradients_reach_what_is_trained_and_nothing_else(transfer):
    network = segmenter(**transfer).train()
    before = {name: value.clone() for name, value in network.unet.state_dict().items()}
    both = transfer["transfer"] == "joint"
    out = network(images(2, 3, 16, 16), both=both)
    loss = out.square().mean() if not both else out[0].square().mean() + out[1].square().mean()
    loss.backward()
    frozen = {
        "finetune": ("unet.conv_norm_out.", "unet.conv_out."),
        "joint": (),
        "frozen": ("unet.",),
        "features": ("unet.",),
    }[transfer["transfer"]]
    for name, p in network.named_parameters():
        reached = p.grad is not None and bool(p.grad.any())
        assert reached == p.requires_grad == (not name.startswith(frozen)), name
    torch.optim.SGD([p for p in network.parameters() if p.requires_grad], 0.1).step()
    same = [torch.equal(value, before[name]) for name, value in network.unet.state_dict().items()]
    assert all(same) == (frozen == ("unet.",))


@pytest.mark.parametrize("transfer", TRANSFERS)
def test_dropout_acts_only_in_a_unet_that_is_trained(transfer):
    network = segmenter(**transfer).train()
    assert network.head.training
    assert network.unet.training == (transfer["transfer"] in ("finetune", "joint"))
    assert not network.eval().unet.training


def per_pixel(network: Segmenter, x: Tensor, chunk: int) -> Tensor:
    """Baranchuk 2022 as written: enlarge, concatenate, classify so many pixels at a time."""
    head = network.head
    size = x.shape[2:]
    columns = torch.cat(
        [
            F.interpolate(a, size, mode="bilinear")
            for a in activations(network.unet, network.config, x, (None, None, None))
        ],
        dim=1,
    )
    columns = columns.movedim(1, -1).flatten(0, -2)

    def classify(rows: Tensor) -> Tensor:
        rows = F.linear(rows, head.first.weight.flatten(1), head.bias.flatten())
        for layer in head.rest:
            if isinstance(layer, nn.Conv2d):
                rows = F.linear(rows, layer.weight.flatten(1), layer.bias)
            elif isinstance(layer, nn.BatchNorm2d):
                mean, var = layer.running_mean, layer.running_var
                rows = F.batch_norm(rows, mean, var, layer.weight, layer.bias, layer.training)
            else:
                rows = rows.relu()
        return rows

    rows = torch.cat([classify(part) for part in columns.split(chunk)])
    return rows.unflatten(0, (len(x), *size)).movedim(-1, 1)


@pytest.mark.parametrize("chunk", [1, 50, 10_000])
def test_features_equal_the_enlarged_and_concatenated_ones(chunk):
    network = segmenter(**FEATURES, feature_layers=(3, 0, 2)).double().eval()
    for p in network.head.buffers():
        p.copy_(torch.rand(p.shape) + 0.5)
    x = images(2, 3, 9, 14).double()
    torch.testing.assert_close(network(x), per_pixel(network, x, chunk))


def test_features_train_like_the_enlarged_and_concatenated_ones():
    network = segmenter(**FEATURES).double().train()
    x = images(2, 3, 9, 14).double()
    grads = [
        torch.autograd.grad(out.square().mean(), list(network.head.parameters()))
        for out in (network(x), per_pixel(network, x, 10_000))
    ]
    for ours, theirs in zip(*grads, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_features_noise_images_by_the_schedule():
    network = segmenter(**FEATURES)
    x = images(2, 3, 16, 16)
    seen = []
    network.unet.conv_in.register_forward_hook(lambda m, args, y: seen.append(args[0]))
    embedded = []
    network.unet.time_embedding.register_forward_hook(lambda m, args, y: embedded.append(y))
    network(x)
    assert len(seen) == 2
    network.unet.embed(5), network.unet.embed(50)
    torch.testing.assert_close(embedded[:2], embedded[2:])
    noises = [
        (noisy - a**0.5 * x) / (1 - a) ** 0.5
        for noisy, a in zip(seen, FEATURES["feature_alphas"], strict=True)
    ]
    for noise in (noises[0], noises[1]):
        torch.testing.assert_close(noise, noises[0][:1].expand_as(noise), rtol=1e-4, atol=1e-5)
    assert abs(noises[0].mean()) < 0.1
    assert abs(noises[0].std() - 1) < 0.1
    torch.manual_seed(5)
    network.eval()
    assert torch.equal(network(x), network(x))


class LargestTensor(TorchDispatchMode):
    """Notes the size of the largest tensor that any operation makes."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else (out,):
            if isinstance(tensor, Tensor):
                self.numel = max(self.numel, tensor.numel())
        return out


def test_features_are_never_concatenated_at_the_size_of_the_image():
    network = segmenter(**FEATURES, feature_widths=(4, 4)).eval()
    size = 32 * 32
    with LargestTensor() as largest:
        network(images(1, 3, 32, 32))
    assert sum(network.head.channels) * size == 96 * size
    assert largest.numel <= 24 * size  # what the U-Net itself makes at its finest level


@pytest.mark.parametrize("transfer", TRANSFERS)
@pytest.mark.parametrize("decay", [1.0, 0.5])
def test_layerwise_groups_hold_every_trained_parameter_once(transfer, decay):
    network = segmenter(**transfer)
    groups = network.parameter_groups(1.0, decay)
    grouped = [id(p) for group in groups for p in group["params"]]
    trained = [id(p) for p in network.parameters() if p.requires_grad]
    assert len(grouped) == len(set(grouped))
    assert set(grouped) == set(trained)
    rate = {id(p): group["lr"] for group in groups for p in group["params"]}
    unet = network.unet
    if transfer["transfer"] in ("frozen", "features"):
        assert set(rate.values()) == {1.0}
        return
    order = [
        network.head.conv,
        unet.up_blocks[1].resnets[0].conv1,
        unet.up_blocks[0].resnets[0].conv1,
    ]
    order += [unet.mid_block.resnets[0].conv1, unet.down_blocks[1].resnets[0].conv1]
    order += [unet.down_blocks[0].resnets[0].conv1, unet.conv_in]
    assert [rate[id(layer.weight)] for layer in order] == [decay**i for i in range(7)]
    assert rate[id(unet.time_embedding.linear_1.weight)] == decay**6


def test_starts_from_a_folder_of_diffusers(denoiser_folder):
    theirs = UNet2DModel.from_pretrained(denoiser_folder, subfolder="unet").eval()
    network = Segmenter.from_denoiser(denoiser_folder, HeadConfig(transfer="joint"), in_channels=3)
    x, t = images(2, 3, 16, 16), torch.tensor([3, 900])
    with torch.no_grad():
        prediction, _ = network.eval()(x, t, both=True)
        torch.testing.assert_close(prediction, theirs(x, t).sample, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("sub", ["", "unet"])
def test_features_take_the_schedule_of_the_denoiser(denoiser_folder, sub):
    config = HeadConfig(transfer="features", feature_timesteps=(50, 999))
    network = Segmenter.from_denoiser(denoiser_folder / sub, config)
    betas = torch.linspace(0.0001**0.5, 0.02**0.5, 1000, dtype=torch.float64) ** 2
    expected = (1 - betas).cumprod(0)[[50, 999]].tolist()
    assert network.config.feature_alphas == pytest.approx(expected, rel=1e-3)
    with pytest.raises(UserError, match="0 to 999"):
        Segmenter.from_denoiser(
            denoiser_folder, HeadConfig(transfer="features", feature_timesteps=(1000,))
        )


def test_features_without_a_schedule_say_what_to_set(stable_diffusion_folder):
    with pytest.raises(UserError, match="set feature_alphas"):
        Segmenter.from_denoiser(stable_diffusion_folder, HeadConfig(transfer="features"))


def test_missing_context_is_a_zero_vector(stable_diffusion_folder):
    network = Segmenter.from_denoiser(stable_diffusion_folder, HeadConfig())
    network.eval()
    x = images(2, 4, 16, 16)
    with torch.no_grad():
        alone = network(x)
        torch.testing.assert_close(alone, network(x, context=torch.zeros(2, 77, 12)))
        assert not torch.allclose(alone, network(x, context=torch.ones(2, 77, 12)))
        cross = network.unet.mid_block.attentions[0].transformer_blocks[0].attn2
        out = []
        cross.register_forward_hook(lambda m, args, y: out.append(y))
        network(x)
    torch.testing.assert_close(out[0], cross.to_out[0].bias.expand_as(out[0]))


def test_class_conditional_unet_is_told_the_configured_class():
    network = segmenter({"num_class_embeds": 10}, class_label=4).eval()
    x = images(2, 3, 8, 8)
    assert torch.equal(network(x), network(x, class_labels=torch.tensor([4, 4])))
    assert not torch.equal(network(x), network(x, class_labels=torch.tensor([4, 5])))
    with pytest.raises(UserError, match="set class_label"):
        segmenter({"num_class_embeds": 10})(x)


def test_channels_are_never_guessed(denoiser_folder):
    with pytest.raises(UserError, match=r"3 channels, these have 1; set repeat_grey"):
        Segmenter.from_denoiser(denoiser_folder, HeadConfig(), in_channels=1)
    with pytest.raises(UserError, match=r"3 channels, these have 5; convert"):
        Segmenter.from_denoiser(denoiser_folder, HeadConfig(), in_channels=5)
    with pytest.raises(UserError, match=r"3 channels, these have 1"):
        segmenter()(images(1, 1, 8, 8))


def test_grey_images_are_repeated_on_demand(denoiser_folder):
    config = HeadConfig(repeat_grey=True)
    network = Segmenter.from_denoiser(denoiser_folder, config, in_channels=1).eval()
    assert network.in_channels == 1
    grey = images(2, 1, 8, 8)
    assert torch.equal(network(grey), network(grey.repeat(1, 3, 1, 1)))


@pytest.mark.parametrize("transfer", TRANSFERS)
def test_saved_and_read_again_bit_by_bit(transfer, tmp_path):
    names, colors = ("a", "b", "c"), ((0, 0, 0), (255, 0, 0), (0, 0, 255))
    network = segmenter(**transfer, class_names=names, class_colors=colors, timestep=9)
    x = images(2, 3, 16, 16)
    network.train()(x)  # moves the batch statistics of a per-pixel head
    network.save_pretrained(tmp_path)
    again = load_segmentation_model(tmp_path)
    assert isinstance(again, Segmenter)
    assert not again.training
    assert again.config == network.config
    assert torch.equal(again(x), network.eval()(x))
    saved = json.loads((tmp_path / "config.json").read_text())
    assert saved["_class_name"] == "Segmenter"
    theirs = UNet2DModel.from_pretrained(tmp_path, subfolder="unet")
    assert all(torch.equal(v, network.unet.state_dict()[k]) for k, v in theirs.state_dict().items())


def test_given_weights_are_written_instead(tmp_path):
    network = segmenter()
    average = {name: value + 1 for name, value in network.state_dict().items()}
    network.save_pretrained(tmp_path, average)
    again = Segmenter.from_pretrained(tmp_path).state_dict()
    assert all(torch.equal(again[name], value) for name, value in average.items())
    del average["head.conv.bias"]
    with pytest.raises(UserError, match=r"head\.conv\.bias is missing"):
        network.save_pretrained(tmp_path, average)


def test_each_folder_is_read_as_what_it_is(tmp_path):
    ClassicUNet(ClassicConfig(base_width=2, depth=2)).save_pretrained(tmp_path / "classic")
    segmenter().save_pretrained(tmp_path / "segmenter")
    assert isinstance(load_segmentation_model(tmp_path / "classic"), ClassicUNet)
    with pytest.raises(UserError, match=r"only a U-Net\+\+ can do without its coarse levels"):
        load_segmentation_model(tmp_path / "classic", levels=2)
    with pytest.raises(UserError, match="holds a Segmenter, which needs all its levels"):
        load_segmentation_model(tmp_path / "segmenter", levels=2)
    assert isinstance(load_segmentation_model(tmp_path / "segmenter"), Segmenter)


def test_folders_that_cannot_be_read_say_what_they_lack(tmp_path, denoiser_folder):
    with pytest.raises(UserError, match=r"does not exist; name the model folder"):
        load_segmentation_model(tmp_path / "nothing")
    with pytest.raises(UserError, match=r"has no config\.json"):
        load_segmentation_model(tmp_path)
    with pytest.raises(UserError, match="UNet2DModel, which does not segment"):
        load_segmentation_model(denoiser_folder / "unet")
    segmenter().save_pretrained(tmp_path)
    with pytest.raises(UserError, match="is of a Segmenter; name the folder of a ClassicUNet"):
        ClassicUNet.from_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    weights = tmp_path / "head" / "diffusion_pytorch_model.safetensors"

    (tmp_path / "config.json").write_text(json.dumps(config | {"num_clases": 3}))
    with pytest.raises(UserError, match="did you mean num_classes"):
        load_segmentation_model(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config | {"num_classes": 4}))
    with pytest.raises(UserError, match=r"conv\.weight has shape"):
        load_segmentation_model(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match="not readable"):
        load_segmentation_model(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config))
    weights.unlink()
    with pytest.raises(UserError, match=r"head has no diffusion_pytorch_model\.safetensors"):
        load_segmentation_model(tmp_path)


def test_a_pipeline_is_pointed_at_training(tmp_path):
    (tmp_path / "model_index.json").write_text("{}")
    with pytest.raises(UserError, match="is a denoiser; train a segmenter from it with --init"):
        load_segmentation_model(tmp_path)


@pytest.mark.parametrize(
    ("head", "words"),
    [
        ({"transfer": "freeze"}, "transfer: 'freeze' is not supported; take one of finetune"),
        ({"num_classes": 0}, "must be between 1"),
        ({"class_label": 0}, "class_label 0: the U-Net knows 0 classes"),
        (FEATURES | {"feature_timesteps": (), "feature_alphas": ()}, "feature_timesteps is empty"),
        ({"class_names": ("a",)}, "class_names has 1 entries and num_classes is 3"),
        ({"transfer": "features"}, "feature_alphas has 0 entries and feature_timesteps 3"),
        (FEATURES | {"feature_layers": (4,)}, "0 to 3"),
        (FEATURES | {"feature_layers": ()}, "0 to 3"),
    ],
)
def test_impossible_settings_are_refused(head, words):
    with pytest.raises(UserError, match=words):
        segmenter(**head)


def test_features_read_their_own_timesteps():
    with pytest.raises(ValueError, match="neither t nor both"):
        segmenter(**FEATURES)(images(1, 3, 8, 8), 3)
