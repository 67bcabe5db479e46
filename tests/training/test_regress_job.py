import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import short_runs
import tifffile
import torch
from accelerate import Accelerator
from PIL import Image
from small import SMALL

from ddpm_unet.config import (
    AugmentConfig,
    ClassicConfig,
    HeadConfig,
    PairDataConfig,
    PredictConfig,
    RegressionConfig,
    SegmentConfig,
    SplitConfig,
    TrainConfig,
    UNetConfig,
)
from ddpm_unet.data.check import check_pairs
from ddpm_unet.data.preprocessing import Preprocessing, Targets
from ddpm_unet.data.reading import read_image
from ddpm_unet.errors import UserError
from ddpm_unet.evaluation.image_quality import image_scores
from ddpm_unet.inference.predictor import Predictor
from ddpm_unet.inference.results import write_regression
from ddpm_unet.models.segmenter import load_segmentation_model
from ddpm_unet.training.from_config import build_pixel_job


def write_pairs(root, count=4, size=(40, 48), dtype=np.uint8):
    """Smooth pictures, and 60 % of the first channel with 40 % of the second one's negative."""
    rng = np.random.default_rng(0)
    top = np.iinfo(dtype).max
    for name in ("images", "targets"):
        (root / name).mkdir(parents=True, exist_ok=True)
    for number in range(count):
        coarse = rng.random((*(n // 8 for n in size), 3))
        for axis in range(len(size)):
            coarse = coarse.repeat(8, axis)
        image = (255 * coarse).round().astype(np.uint8)
        share = image / 255
        target = (top * (0.6 * share[..., 0] + 0.4 * (1 - share[..., 1]))).round().astype(dtype)
        options = {"photometric": "minisblack"}
        tifffile.imwrite(
            root / f"images/{number}.tif", image, photometric="rgb", planarconfig="contig"
        )
        tifffile.imwrite(root / f"targets/{number}.tif", target, **options)
    return root


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    return write_pairs(tmp_path_factory.mktemp("pairs"))


@pytest.fixture
def settings(pairs, tmp_path):
    """A training that takes a second."""
    return SegmentConfig(
        run=str(tmp_path / "run"),
        task="regress",
        init="scratch",
        architecture="classic",
        data=data_of(pairs),
        model=UNetConfig(**SMALL),
        classic=ClassicConfig(depth=2, base_width=8, dropout=0, padding="same", norm="batch"),
        predict=PredictConfig(tile=96),
        train=TrainConfig(
            steps=4, batch_size=4, lr=1e-2, warmup_steps=2, ema_decay=0.9, checkpoint_every=100,
            validate_every=4, sample_every=4,
        ),
    )  # fmt: skip


def data_of(root, **changes):
    data = PairDataConfig(images=f"{root}/images", masks=f"{root}/targets", size=16, **changes)
    data.augment.elastic_sigma = 0
    return data


def run(settings):
    job = build_pixel_job(settings)
    return short_runs.run(settings, job), job


def test_a_known_linear_map_is_learnt_and_written_in_the_targets_units(settings, tmp_path, capsys):
    pairs = write_pairs(tmp_path / "deep", dtype=np.uint16)
    settings.data = data_of(pairs, split=SplitConfig(validation=1, test=1))
    settings.train.steps = settings.train.validate_every = 80
    settings.train.sample_every = 0
    settings.classic.norm = "none"
    folder, job = run(settings)
    scores = job.score_test(folder, torch.device("cpu"))
    assert scores["psnr"] > 23  # a constant has 14
    assert f"psnr {scores['psnr']:.4f}" in " ".join(capsys.readouterr().out.split())
    written = json.loads((folder.path / "scores.json").read_text())
    (image,) = written.pop("images")
    assert written == scores
    assert image["psnr"] == pytest.approx(scores["psnr"])
    model = load_segmentation_model(folder.model)
    preparation = Preprocessing.read(folder.model, model.in_channels)
    targets = Targets(1, "uint16", 0.0, 65535.0)
    wanted = Preprocessing(3, targets=targets, dtype="uint8", highest=preparation.highest)
    assert preparation == wanted
    predictor = Predictor.from_pretrained(folder.model)
    for kind in ("tiff", "png"):
        with predictor.open(pairs / "images/3.tif") as source:
            write_regression(source, tmp_path / "3", preparation.targets, kind)
    truth = read_image(pairs / "targets/3.tif")
    written = read_image(tmp_path / "3_predicted.tif")
    assert (written.dtype, written.shape) == (np.float32, truth.shape)
    unit = [torch.from_numpy(a.astype(np.float32)[..., 0])[None] / 32767.5 - 1
            for a in (written, truth)]  # fmt: skip
    assert image_scores(*unit) == pytest.approx(scores, rel=1e-3)
    rounded = read_image(tmp_path / "3_predicted.png")
    assert rounded.dtype == np.uint16
    assert np.abs(rounded - written.clip(0, 65535)).max() <= 0.5 + 1e-2


WAYS = {
    "unet": {"architecture": "unet"},
    "unpadded": {"classic": {"padding": "valid", "norm": "none"}},
    "nested": {"classic": {"decoder": "nested", "deep_supervision": True}},
    "residual": {"regression": RegressionConfig("huber", residual=True)},
    "ssim": {"regression": RegressionConfig("ssim")},
}


@pytest.mark.parametrize("way", WAYS)
def test_every_network_and_loss_trains_and_is_read_again(settings, way):
    changes = dict(WAYS[way])
    settings.classic = replace(settings.classic, **changes.pop("classic", {}))
    folder, job = run(replace(settings, **changes))
    metrics = folder.read_metrics()
    assert {"psnr", "ssim", "mae"} < set(metrics[-1])
    model = load_segmentation_model(folder.model)
    assert Preprocessing.read(folder.model, model.in_channels).residual == (way == "residual")
    with torch.inference_mode():
        again = job.validate(model, Accelerator(cpu=True))
    assert again == pytest.approx({name: metrics[-1][name] for name in again}, rel=1e-4)
    assert Image.open(folder.samples / "00000004.png").size == (3 * 48, 40)


def batch_of(root, **changes):
    """Of pictures whose targets are themselves."""
    augment = AugmentConfig(elastic_sigma=2, **changes)
    data = PairDataConfig(
        images=f"{root}/images", masks=f"{root}/same", size=16, augment=augment,
        split=SplitConfig(validation=0),
    )  # fmt: skip
    settings = SegmentConfig(task="regress", data=data, train=TrainConfig(steps=1, batch_size=16))
    job = build_pixel_job(settings)
    network = torch.nn.Module()
    network.margin = 0
    return job.stream(network, Accelerator(cpu=True)).__getitems__(range(16))


@pytest.fixture
def same(tmp_path):
    write_pairs(tmp_path)
    (tmp_path / "same").mkdir()
    for path in (tmp_path / "images").iterdir():
        picture = tifffile.imread(path)
        picture[0, 0] = 255 - picture[0, 0]  # one that equals its image is refused
        tifffile.imwrite(tmp_path / "same" / path.name, picture, photometric="rgb")
    return tmp_path


def test_input_and_target_move_together_and_only_the_input_may_change_in_intensity(same):
    plain, changed = batch_of(same), batch_of(same, intensity=True)
    near = [(batch["image"] - batch["target"]).abs().flatten(1).median(1).values
            for batch in (plain, changed)]  # fmt: skip
    assert near[0].max() < 1e-6
    assert near[1].min() > 1e-3
    assert torch.equal(plain["target"], changed["target"])
    unmoved = batch_of(same, flips=False, rot90=False)
    assert not torch.equal(unmoved["target"], plain["target"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architecture": "unet", "head": HeadConfig(transfer="joint")}, "head.transfer joint"),
        ({"classic": ClassicConfig(one_logit=True)}, "classic.one_logit"),
        ({"regression": RegressionConfig("ssim"), "size": 8}, "under its window of 11"),
        ({"mask_kind": "classes"}, "data.mask_kind classes: is for task"),
        ({"foreground": 0.5}, "data.foreground: is for task"),
        ({"masks": "builtin:nucleus"}, "are masks, not images to predict"),
        ({"target_range": (1.0, 0.0)}, "data.target_range"),
    ],
)
def test_settings_that_do_not_fit(settings, changes, message):
    own = {key: changes[key] for key in changes if hasattr(settings, key)}
    rest = {key: changes[key] for key in changes if not hasattr(settings, key)}
    settings = replace(settings, data=replace(settings.data, **rest), **own)
    with pytest.raises(UserError, match=message):
        build_pixel_job(settings)


def test_a_residual_needs_a_channel_for_each_of_the_targets(settings, same):
    for path in (same / "images").iterdir():
        Image.fromarray(tifffile.imread(path)[..., 0]).save(path)
    settings.data.images, settings.data.masks = f"{same}/images", f"{same}/same"
    settings.regression.residual = True
    with pytest.raises(UserError, match="the targets have 3 channels"):
        build_pixel_job(settings)


def faults(root, **changes):
    with pytest.raises(UserError) as fault:
        check_pairs(data_of(root, mask_kind="images", **changes)).target_images()
    return str(fault.value)


def test_pairs_at_fault_get_one_line_each(tmp_path):
    def rewrite(array, number=1):
        write_pairs(tmp_path)
        tifffile.imwrite(tmp_path / f"targets/{number}.tif", array, photometric="minisblack")

    target = f"{tmp_path}/targets/1.tif"
    floats = np.linspace(0, 1, 40 * 48, dtype=np.float32).reshape(40, 48)
    rewrite(np.zeros((40, 44), np.uint8))
    assert faults(tmp_path) == (
        f"{target}: is 44 x 40 but its image is 48 x 40 ({tmp_path}/images/1.tif); save the "
        "target at the size of the image"
    )
    rewrite(np.where(floats > 0.5, np.nan, floats))
    assert faults(tmp_path).startswith(f"{target}: 960 values are NaN or infinite, the first at")
    rewrite(40 * floats)
    assert faults(tmp_path) == (
        f"{target}: float values from 0 to 40, not within 0 to 1; say what is black and white "
        "with data.target_range, for instance [0, 40]"
    )
    rewrite(floats)
    assert faults(tmp_path) == (
        f"{target}: has 1 channel of float32, but {tmp_path}/targets/0.tif 1 channel of uint8; "
        "convert one"
    )
    Path(target).unlink()
    assert faults(tmp_path) == (
        f"{tmp_path}/images/1.tif: has no target in {tmp_path}/targets; add its target, move it "
        "away, or set data.skip_unlabelled true"
    )
    write_pairs(tmp_path)
    check_pairs(data_of(tmp_path, mask_kind="images")).target_images()


def test_without_torchmetrics_one_line_says_what_to_install(settings, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchmetrics.functional.image", None)
    with pytest.raises(UserError, match=r"torchmetrics cannot be imported .*ddpm-unet\[metrics"):
        build_pixel_job(settings)
