import json

import pytest
import torch
from diffusers import UNet2DModel
from small_segmenters import FEATURES, TRANSFERS, images, segmenter

from ddpm_unet.config import ClassicConfig, HeadConfig
from ddpm_unet.errors import UserError
from ddpm_unet.models.classic import ClassicUNet
from ddpm_unet.models.layers import ResidualBlock
from ddpm_unet.models.segmenter import Segmenter, load_segmentation_model
from ddpm_unet.models.unet import UNet


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


def test_blocks_that_never_learnt_begin_at_random_where_all_is_trained():
    def second_convolutions(transfer, value):
        unet = UNet(block_out_channels=(8, 16), norm_num_groups=4, sample_size=8)
        blocks = [m for m in unet.modules() if isinstance(m, ResidualBlock)]
        for block in blocks[1:]:
            torch.nn.init.constant_(block.conv2.weight, value)
        Segmenter(unet, num_classes=2, transfer=transfer)
        return [block.conv2.weight.detach().std().item() for block in blocks]

    learnt = second_convolutions("finetune", 0.1)
    assert learnt[0] > 0.05
    assert max(learnt[1:]) < 1e-6
    assert min(second_convolutions("finetune", 0.0)) > 0.03
    for transfer in ("joint", "frozen"):
        assert max(second_convolutions(transfer, 0.0)) == 0


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

    for text, message in (
        (json.dumps(config | {"num_clases": 3}), "did you mean num_classes"),
        (json.dumps(config | {"num_classes": 4}), r"conv\.weight has shape"),
        ("{", "not readable"),
    ):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(UserError, match=message):
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
        ({"transfer": "freeze"}, "transfer is 'freeze'; it must be one of finetune"),
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
