import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from accelerate import Accelerator
from PIL import Image
from safetensors.torch import save_file
from torch import nn
from torchvision import models

from ddpm_unet.config import (
    ClassicConfig,
    DiffusionConfig,
    HeadConfig,
    ImageDataConfig,
    PairDataConfig,
    PredictConfig,
    SegmentConfig,
    SegmentLossConfig,
    SplitConfig,
    TrainConfig,
    UNetConfig,
)
from ddpm_unet.diffusion.objective import Objective
from ddpm_unet.errors import UserError
from ddpm_unet.evaluation.rand import thinned_scores
from ddpm_unet.inference.pipeline import write_pipeline
from ddpm_unet.inference.segmentation import Preparation
from ddpm_unet.models.segmenter import load_segmentation_model
from ddpm_unet.models.unet import UNet
from ddpm_unet.training.loop import train
from ddpm_unet.training.losses import segmentation_loss
from ddpm_unet.training.run_folder import RunFolder
from ddpm_unet.training.scoring import score_test
from ddpm_unet.training.segment import SegmentJob

UNET = UNetConfig(
    block_out_channels=(8, 16),
    down_block_types=("DownBlock2D", "AttnDownBlock2D"),
    up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    layers_per_block=1,
    norm_num_groups=4,
    sample_size=16,
)
DIFFUSION = DiffusionConfig(num_train_timesteps=300, beta_schedule="squaredcos_cap_v2")
CLASSIC = ClassicConfig(depth=2, base_width=4, dropout=0.1)


@pytest.fixture(autouse=True)
def no_curves(monkeypatch):
    """They take longer than the training."""
    monkeypatch.setattr("ddpm_unet.training.loop.plot_metrics", lambda records, path: None)


def write_cells(folder, channels, count=4):
    """Noisy pictures of bright discs, and masks of 0 and 255."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:40, :48]
    for number in range(count):
        cells = np.zeros((40, 48), bool)
        for _ in range(6):
            centre = rng.uniform(4, 36, 2)
            cells |= (y - centre[0]) ** 2 + (x - centre[1]) ** 2 < 30
        image = np.where(cells, 170, 80)[..., None] + rng.normal(0, 20, (40, 48, channels))
        image = image.clip(0, 255).astype(np.uint8)
        for name, array in (("images", image.squeeze()), ("masks", cells.astype(np.uint8) * 255)):
            (folder / name).mkdir(exist_ok=True)
            Image.fromarray(array).save(folder / name / f"{number}.png")
    return folder


@pytest.fixture(scope="session")
def cells(tmp_path_factory):
    return write_cells(tmp_path_factory.mktemp("cells"), 3)


@pytest.fixture(scope="session")
def grey_cells(tmp_path_factory):
    return write_cells(tmp_path_factory.mktemp("grey"), 1)


@pytest.fixture(scope="session")
def denoiser(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("denoiser") / "model"
    write_pipeline(folder, UNet(UNET), DIFFUSION)
    return folder


@pytest.fixture
def settings(cells, denoiser, tmp_path):
    """A training that takes a second."""
    return SegmentConfig(
        run=str(tmp_path / "run"),
        init=str(denoiser),
        data=pair_data(cells),
        unlabelled=ImageDataConfig(source=f"{cells}/images"),
        model=UNET,
        head=HeadConfig(feature_timesteps=(20, 60), feature_widths=(16, 8)),
        classic=replace(CLASSIC),
        predict=PredictConfig(tile=96),
        train=TrainConfig(
            steps=14,
            batch_size=4,
            lr=5e-3,
            warmup_steps=2,
            ema_decay=0.9,
            checkpoint_every=6,
            validate_every=4,
            sample_every=0,
            log_every=2,
        ),
    )


def pair_data(folder, **changes):
    data = PairDataConfig(images=f"{folder}/images", masks=f"{folder}/masks", size=16, **changes)
    data.augment.elastic_sigma = 1.0
    return data


def run(settings, job=None):
    folder = RunFolder(Path(settings.run))
    train(job or SegmentJob(settings), folder, settings)
    return folder


def files(folder):
    """Bytes of every file that a run is judged by."""
    paths = [p for part in ("model", "checkpoints") for p in (folder / part).rglob("*.*")]
    return {str(p.relative_to(folder)): p.read_bytes() for p in [*paths, folder / "metrics.jsonl"]}


def records(folder, key):
    return [r[key] for r in folder.read_metrics() if key in r]


CHANGES = {
    "finetune": {},
    "frozen": {"transfer": "frozen"},
    "features": {"transfer": "features"},
    "joint": {"transfer": "joint"},
    "scratch": {"init": "scratch"},
    "classic, same": {"architecture": "classic", "padding": "same"},
    "classic, valid": {"architecture": "classic"},
    "teaching": {"architecture": "classic", "padding": "same", "rmsprop": True},
    "nested": {"architecture": "classic", "padding": "same", "decoder": "nested"},
    "border": {"loss": "border"},
    "focal, weighted": {"loss": "focal", "weights": (0.5, 2.0)},
}


def changed(settings, way):
    changes = CHANGES[way]
    settings.head.transfer = changes.get("transfer", "finetune")
    settings.init = changes.get("init", settings.init)
    settings.architecture = changes.get("architecture", "unet")
    settings.init = "scratch" if settings.architecture == "classic" else settings.init
    settings.classic.decoder = changes.get("decoder", "unet")
    settings.classic.deep_supervision = settings.classic.decoder == "nested"
    settings.classic.padding = changes.get("padding", "valid")
    settings.loss.name = changes.get("loss", settings.loss.name)
    settings.loss.class_weights = changes.get("weights", ())
    if changes.get("rmsprop"):
        settings.classic.one_logit = True
        settings.train.optimizer, settings.train.lr = "rmsprop", 1e-3
    return settings


@pytest.mark.parametrize("way", CHANGES)
def test_training_lowers_the_loss_and_finds_the_cells(settings, way):
    settings = changed(settings, way)
    settings.train.steps = settings.train.checkpoint_every = 36
    settings.train.validate_every = settings.train.log_every = 12
    folder = run(settings)
    losses = records(folder, "loss")
    assert losses[-1] < 0.8 * losses[0]
    assert records(folder, "mean_dice")[-1] > (0.6 if way == "frozen" else 0.75)
    model = load_segmentation_model(folder.model)
    assert model.config.class_names == ("value 0", "value 255")
    assert Preparation.read(folder.model, model) == Preparation(3)


class Killed(BaseException):
    """Stands for SIGKILL: nothing is written any more."""


class KilledJob(SegmentJob):
    """Dies at the n-th batch."""

    left = 0

    def losses(self, model, batch):
        self.left -= 1
        if self.left == 0:
            raise Killed
        return super().losses(model, batch)


@pytest.mark.parametrize(
    ("way", "batches"),
    [("finetune", 10), ("features", 10), ("joint", 14), ("teaching", 10)],
)
def test_killed_after_a_validation_and_resumed_ends_bit_for_bit_the_same(
    settings, tmp_path, way, batches
):
    settings = changed(settings, way)
    whole = run(settings)
    settings.run = str(tmp_path / "killed")
    job = KilledJob(settings)
    job.left = batches
    with pytest.raises(Killed):
        run(settings, job)
    assert files(run(settings).path) == files(whole.path)


class ScriptedJob(SegmentJob):
    """Validates with given scores instead of real ones."""

    series = (0.3, 0.5, 0.4, 0.45, 0.2, 0.9)

    def __init__(self, config):
        super().__init__(config)
        self.seen = 0

    def validate(self, model, accelerator):
        return {"mean_dice": self.series[round(self.step / 2) - 1]}

    def losses(self, model, batch):
        self.step = int(batch["position"][-1] + 1) / 4
        return super().losses(model, batch)


def scripted(settings):
    settings.train.validate_every = settings.train.checkpoint_every = 2
    return ScriptedJob(settings)


def test_the_best_model_is_kept_and_without_patience_training_goes_on(settings):
    settings.train.steps = 10
    whole = run(settings, scripted(settings))
    best = files(whole.path)
    assert records(whole, "mean_dice") == list(ScriptedJob.series[:5])
    state = json.loads((whole.checkpoints / "00000010" / "state.json").read_text())
    assert (state["best_step"], state["best"], state["worse"]) == (4, 0.5, 3)
    assert files(run(settings, scripted(settings)).path) == best


def test_the_kept_model_is_the_average_of_its_step(settings, tmp_path):
    settings.train.lr_schedule = "constant"
    settings.train.steps = 10
    whole = run(settings, scripted(settings))
    settings.train.steps = 4
    settings.run = str(tmp_path / "short")
    short = run(settings, scripted(settings))
    kept, ended = (
        {k: v for k, v in files(folder.path).items() if k.startswith("model")}
        for folder in (whole, short)
    )
    assert kept == ended


def test_early_stopping_ends_and_stays_ended(settings, tmp_path):
    settings.train.steps, settings.train.patience = 100, 3
    stopped = run(settings, scripted(settings))
    ended = files(stopped.path)
    assert records(stopped, "mean_dice") == list(ScriptedJob.series[:5])
    again = run(settings, scripted(settings))
    assert files(again.path) == ended
    settings.run = str(tmp_path / "killed")

    class Stopped(KilledJob, ScriptedJob):
        left = 8

    with pytest.raises(Killed):
        run(settings, Stopped(settings))
    assert files(run(settings, scripted(settings)).path) == ended


def test_patience_needs_pictures_that_validate(settings):
    settings.data.split.validation, settings.train.patience = 0, 2
    with pytest.raises(UserError, match=r"train\.patience 2: no picture validates"):
        SegmentJob(settings)


class Bright(nn.Module):
    """Class 1 where the first channel is above 0."""

    margin = 0
    step = 1
    in_channels = 3
    unet = SimpleNamespace(config=UNetConfig())

    def forward(self, images):
        return torch.cat([-images[:, :1], images[:, :1]], dim=1)


def test_scores_are_the_overlap_counted_by_hand(cells, settings, tmp_path):
    """Pixels of all pictures together, unlabelled ones left out."""
    for number in range(3):
        image = np.asarray(Image.open(cells / "images" / f"{number}.png"))
        mask = np.asarray(Image.open(cells / "masks" / f"{number}.png")) // 255
        mask[:10] = 7
        for name, array in (("images", image), ("masks", mask)):
            (tmp_path / name).mkdir(exist_ok=True)
            Image.fromarray(array).save(tmp_path / name / f"{number}.png")
    settings.data = pair_data(tmp_path, ignore_value=7, split=SplitConfig(validation=2))
    scores = SegmentJob(settings).validate(Bright(), Accelerator(cpu=True))
    found, true = [], []
    for number in (1, 2):
        found.append(np.asarray(Image.open(tmp_path / f"images/{number}.png"))[10:, :, 0] > 127.5)
        true.append(np.asarray(Image.open(tmp_path / f"masks/{number}.png"))[10:] == 1)
    found, true = np.stack(found), np.stack(true)
    dice = [2 * (a & b).sum() / (a.sum() + b.sum()) for a, b in ((found, true), (~found, ~true))]
    iou = [(a & b).sum() / (a | b).sum() for a, b in ((found, true), (~found, ~true))]
    expected = {
        "mean_dice": np.mean(dice),
        "mean_iou": np.mean(iou),
        "pixel_error": (found != true).mean(),
        "dice_class 0": dice[1],
        "dice_class 1": dice[0],
        "iou_class 0": iou[1],
        "iou_class 1": iou[0],
    }
    assert scores == pytest.approx(expected)
    assert 0.5 < scores["mean_dice"] < 1


def test_a_class_that_is_nowhere_has_no_score(settings):
    scores = SegmentJob(settings).scores(torch.tensor([[7, 0], [0, 0]]))
    assert scores == {
        "mean_dice": 1.0,
        "mean_iou": 1.0,
        "pixel_error": 0.0,
        "dice_value 0": 1.0,
        "iou_value 0": 1.0,
    }


def test_one_labelled_picture_is_cut_in_strips(settings, tmp_path):
    write_cells(tmp_path, 3, count=1)
    settings.data = pair_data(tmp_path, split=SplitConfig(validation=0.4, gap=4))
    job = SegmentJob(settings)
    assert job.labelled.sizes.tolist() == [[40, 25]]
    assert job.validation.sizes.tolist() == [[40, 19]]
    assert "its columns 29 to 47 validate" in job.describe()
    folder = run(settings, job)
    assert len(records(folder, "mean_dice")) == 4
    assert yaml.safe_load((folder.path / "split.yaml").read_text())["validation"] == [
        {"name": "0", "columns": [29, 48]}
    ]


def test_pictures_kept_to_test_are_scored_in_the_end(settings, capsys):
    settings.data.split = SplitConfig(validation=1, test=1)
    job = SegmentJob(settings)
    folder = run(settings, job)
    scores = score_test(job, folder)
    assert json.loads((folder.path / "scores.json").read_text()) == scores
    assert f"mean_dice {scores['mean_dice']:.4f}" in capsys.readouterr().out
    assert Image.open(folder.path / "test.png").size == (96, 40)
    model = load_segmentation_model(folder.model)
    with torch.inference_mode():
        item = job.test[0]
        predicted = model(item["image"][None]).argmax(dim=1)[0]
    error = (predicted != item["mask"]).float().mean()
    assert scores["pixel_error"] == pytest.approx(float(error), abs=0.02)


def test_cells_are_scored_as_partitions(cells, settings):
    """The thinned scores of the tested masks and of the probabilities of their class."""
    settings.data.split, settings.cell_class = SplitConfig(test=2), 1
    job = SegmentJob(settings)
    scores = job.further_scores(Bright(), job.test, torch.device("cpu"))
    truth, cell = [], []
    for number in (1, 2):
        truth.append(np.asarray(Image.open(cells / f"masks/{number}.png")) == 255)
        picture = np.asarray(Image.open(cells / f"images/{number}.png"))[..., 0] / 127.5 - 1.0
        logits = Bright()(torch.from_numpy(picture).float()[None, None])
        cell.append(logits.softmax(dim=1)[0, 1].numpy())
    expected = thinned_scores(truth, cell)
    assert scores == pytest.approx({"v_rand": expected.v_rand, "v_info": expected.v_info})
    settings.cell_class = None
    assert job.further_scores(Bright(), job.test, torch.device("cpu")) == {}


@pytest.mark.parametrize("cell", [2, -1])
def test_cells_of_no_class(settings, cell):
    settings.cell_class = cell
    with pytest.raises(UserError, match=f"cell_class {cell}"):
        SegmentJob(settings)


def test_without_a_test_part_nothing_is_scored(settings):
    job = SegmentJob(settings)
    folder = run(settings, job)
    assert score_test(job, folder) == {}
    assert not (folder.path / "scores.json").exists()


def test_the_builtin_pictures_are_tested_on_the_held_out_third(settings):
    settings.data = PairDataConfig(scale=0.25, size=16)
    job = SegmentJob(settings)
    assert (job.labelled.sizes[0, 1], job.test.sizes.tolist()) == (250, [[375, 125]])
    settings.data.include_held_out = True
    assert SegmentJob(settings).test is None


def test_samples_show_mask_and_prediction(settings, tmp_path):
    job = SegmentJob(settings)
    job.draw(Bright(), Accelerator(cpu=True), tmp_path / "a.png")
    picture = np.asarray(Image.open(tmp_path / "a.png"))
    image, mask = (
        np.asarray(Image.open(f"{p}/3.png")) for p in (settings.data.images, settings.data.masks)
    )
    assert picture.shape == (40, 96, 3)
    for side, classes in ((picture[:, :48], mask > 0), (picture[:, 48:], image[..., 0] > 127.5)):
        tinted = (side != image).any(axis=2)
        assert (tinted & ~classes).sum() == 0
        assert (classes & ~tinted).sum() < 0.02 * classes.sum()


def test_the_check_is_told_once_training_begins(settings, capsys):
    job = SegmentJob(settings)
    assert capsys.readouterr().out == ""
    assert "masks: 0, 255: read as values" in job.describe()
    assert "3 pictures train, 1 validate" in job.describe()
    assert job.name(0).endswith(".png")


def test_faults_stop_before_training(settings, tmp_path):
    write_cells(tmp_path, 3, count=3)
    (tmp_path / "masks" / "1.png").unlink()
    settings.data = pair_data(tmp_path)
    with pytest.raises(UserError, match=r"1\.png: has no mask"):
        SegmentJob(settings)


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (SegmentLossConfig(class_weights=(1.0,)), "1 numbers for 2 classes"),
        (SegmentLossConfig("border", class_weights=(1.0, 2.0)), "leave one of the two out"),
    ],
)
def test_class_weights_that_fit_nothing(settings, loss, message):
    settings.loss = loss
    with pytest.raises(UserError, match=message):
        SegmentJob(settings)


def first_batch(job, model):
    return next(job.batches(model, 0, Accelerator(cpu=True)))


@pytest.mark.parametrize("name", ["cross_entropy+dice", "border"])
def test_the_loss_is_the_configured_one_with_its_weights(settings, name):
    settings.loss.name = name
    weights = None
    if name != "border":
        settings.loss.class_weights = (0.25, 4.0)
        weights = torch.tensor([0.25, 4.0])
    job = SegmentJob(settings)
    model = job.build_model().eval()
    batch = first_batch(job, model)
    assert ("weight" in batch) == (name == "border")
    expected = segmentation_loss(
        name,
        model(batch["image"]),
        batch["mask"],
        class_weights=weights,
        pixel_weights=batch.get("weight"),
    )
    torch.testing.assert_close(job.losses(model, batch), expected)


def test_grey_images_and_a_denoiser_of_colours(settings, grey_cells):
    settings.data = pair_data(grey_cells)
    with pytest.raises(UserError, match="set repeat_grey to repeat the grey channel"):
        run(settings)
    settings.run += " of grey"
    settings.head.repeat_grey, settings.head.transfer = True, "joint"
    settings.unlabelled.source = f"{grey_cells}/images"
    folder = run(settings)
    model = load_segmentation_model(folder.model)
    assert Preparation.read(folder.model, model).channels == 1
    assert records(folder, "mean_dice")


def joint_job(settings):
    settings.head.transfer = "joint"
    return SegmentJob(settings)


def test_joint_training_adds_the_denoising_loss_of_the_denoisers_own_process(settings):
    settings.loss.denoise_weight = 0.3
    settings.diffusion.min_snr_gamma = 5.0
    job = joint_job(settings)
    model = job.build_model().eval()
    for parameter in model.unet.parameters():  # those that begin at 0 hide what goes in
        nn.init.normal_(parameter, std=0.2)
    batch = first_batch(job, model)
    images = batch["unlabelled"].float() / 127.5 - 1
    objective = Objective(replace(DIFFUSION, min_snr_gamma=5.0))
    timesteps, noise = objective.draw(0, batch["position"], images.shape[1:], torch.device("cpu"))
    denoising = objective.losses(model.unet, images, timesteps, noise)
    segmenting = segmentation_loss("cross_entropy+dice", model(batch["image"]), batch["mask"])
    assert denoising.min() > 0.01
    torch.testing.assert_close(job.losses(model, batch), segmenting + 0.3 * denoising)


def test_unlabelled_images_are_as_fine_as_the_labelled_ones(settings):
    settings.data.scale, settings.unlabelled.scale = 0.5, 0.8
    settings.data.value_range = (0.0, 200.0)
    joint = joint_job(settings).joint
    assert joint.settings.scale == pytest.approx(0.4)
    assert (joint.settings.size, joint.settings.channels) == (16, 3)
    assert joint.settings.value_range == (0.0, 200.0)


def test_joint_training_from_scratch_has_the_configured_process(settings):
    settings.init, settings.diffusion = "scratch", DiffusionConfig(num_train_timesteps=50)
    assert len(joint_job(settings).joint.objective.draw(0, [0], (1,), "cpu")[0]) == 1
    settings.init = str(Path(settings.init) / "nowhere")
    with pytest.raises(UserError, match=r"has no scheduler/scheduler_config\.json"):
        joint_job(settings)


def test_windows_that_a_network_without_padding_cannot_give(settings):
    settings.architecture, settings.init, settings.data.size = "classic", None, 17
    with pytest.raises(UserError, match=r"data\.size 17: .* next that fits is 18"):
        SegmentJob(settings).build_model()


def test_the_published_windows(settings):
    """388 x 388 labelled pixels from 572 x 572 of a picture mirrored at its borders."""
    settings.architecture, settings.init, settings.data.size = "classic", None, 388
    settings.classic = ClassicConfig(base_width=1)
    settings.train.batch_size = 1
    job = SegmentJob(settings)
    model = job.build_model()
    batch = first_batch(job, model)
    assert batch["image"].shape == (1, 3, 572, 572)
    assert batch["mask"].shape == (1, 388, 388)
    assert job.losses(model, batch).shape == (1,)


def test_a_network_from_scratch_has_the_dimensions_of_the_data(settings):
    settings.init, settings.model = "scratch", replace(UNET, dims=3)
    assert SegmentJob(settings).build_model().unet.config.dims == settings.data.dims == 2


def test_under_deep_supervision_every_output_is_taught(settings):
    settings = changed(settings, "nested")
    settings.classic.depth = 3
    job = SegmentJob(settings)
    model = job.build_model().train()
    model.encoder.dropout.p = 0.0
    batch = first_batch(job, model)
    outputs = model(batch["image"])
    assert len(outputs) == 2
    losses = [segmentation_loss(settings.loss.name, x, batch["mask"]) for x in outputs]
    assert (losses[0] != losses[1]).all()
    torch.testing.assert_close(job.losses(model, batch), (losses[0] + losses[1]) / 2)


def test_an_encoder_of_torchvision_starts_from_given_weights(settings, tmp_path):
    settings.architecture = "classic"
    settings.classic = ClassicConfig(
        encoder="resnet18", decoder="ternaus", depth=2, base_width=2, padding="same"
    )
    torch.manual_seed(3)
    weights = models.resnet18().state_dict()
    save_file(weights, tmp_path / "weights.safetensors")
    settings.init = str(tmp_path / "weights.safetensors")
    model = SegmentJob(settings).build_model()
    assert torch.equal(model.encoder.network.conv1.weight, weights["conv1.weight"])
