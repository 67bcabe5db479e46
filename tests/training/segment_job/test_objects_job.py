"""From masks that number objects to a model's folder that tells touching ones apart."""

import csv
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from short_runs import run

from ddpm_unet.commands.segment import main
from ddpm_unet.config import (
    AugmentConfig,
    ClassicConfig,
    PairDataConfig,
    SegmentConfig,
    SplitConfig,
    TrainConfig,
)
from ddpm_unet.data.cells import interiors
from ddpm_unet.data.dataset import as_dataset
from ddpm_unet.errors import UserError
from ddpm_unet.evaluation.metrics import object_scores
from ddpm_unet.inference.objects import CHOICES
from ddpm_unet.inference.predictor import Predictor
from ddpm_unet.models.classic import ClassicUNet
from ddpm_unet.models.segmenter import load_segmentation_model
from ddpm_unet.training.from_config import build_pixel_job
from ddpm_unet.training.train import train


@pytest.fixture(scope="module")
def dominoes(tmp_path_factory):
    """Bright rectangles in touching pairs, with a dark line between the two of each."""
    folder, rng = tmp_path_factory.mktemp("dominoes"), np.random.default_rng(0)
    for name in ("images", "masks"):
        (folder / name).mkdir()
    for number in range(6):
        image, mask = np.full((64, 64), 40.0), np.zeros((64, 64), np.uint16)
        for place, (top, left) in enumerate([(4, 4), (4, 36), (34, 4), (34, 36)]):
            top, left = (at + int(rng.integers(0, 4)) for at in (top, left))
            for half in (0, 1):
                across = slice(left + 9 * half, left + 9 + 9 * half)
                mask[top : top + 18, across] = 2 * place + half + 1
                image[top : top + 18, across] = 200
            image[top : top + 18, left + 8 : left + 10] = 120
        image = (image + rng.normal(0, 5, image.shape)).clip(0, 255).astype(np.uint8)
        Image.fromarray(image).save(folder / "images" / f"{number}.png")
        Image.fromarray(mask).save(folder / "masks" / f"{number}.png")
    return folder


def settings(folder, path):
    return SegmentConfig(
        run=str(path),
        init="scratch",
        architecture="classic",
        objects=True,
        data=PairDataConfig(
            images=f"{folder}/images",
            masks=f"{folder}/masks",
            mask_kind="instances",
            size=48,
            augment=AugmentConfig(elastic_sigma=0),
            split=SplitConfig(validation=0, test=2),
        ),
        classic=ClassicConfig(depth=2, base_width=8, padding="same", norm="batch", dropout=0),
        train=TrainConfig(
            steps=60, batch_size=4, lr=1e-2, warmup_steps=2, ema_decay=0.8, sample_every=0,
            checkpoint_every=60, validate_every=0,
        ),
    )  # fmt: skip


@pytest.fixture(scope="module")
def trained(dominoes, tmp_path_factory):
    config = settings(dominoes, tmp_path_factory.mktemp("objects") / "run")
    job = build_pixel_job(config)
    folder = run(config, job)
    return folder, job.score_test(folder, torch.device("cpu"))


def test_the_test_scores_objects(trained, dominoes):
    folder, scores = trained
    assert scores["ap50"] > 0.9
    assert scores["count_error"] < 1
    with open(folder.path / "scores.csv", newline="") as file:
        rows = [*csv.DictReader(file)]
    assert len(rows) == 2
    assert np.mean([float(row["ap50"]) for row in rows]) == pytest.approx(scores["ap50"])
    assert json.loads((folder.path / "scores.json").read_text())["pq"] == scores["pq"]


def test_the_folder_says_all(trained, dominoes):
    folder, _ = trained
    about = json.loads((folder.model / "preprocessing.json").read_text())
    assert about["objects"] == 18 * 9
    predictor = Predictor.from_pretrained(folder.model)
    assert (predictor.num_classes, predictor.class_names) == (2, ("background", "foreground"))
    result = predictor(dominoes / "images" / "5.png")
    assert len(result.objects) == result.labels.max() == 8
    assert result.probabilities.shape == (2, 64, 64)


def test_finished_predictions_are_scored(trained, dominoes, tmp_path, capsys):
    folder, scores = trained
    out, truth = str(tmp_path / "out"), ["--truth", f"{dominoes}/masks"]
    images = [f"{dominoes}/images/{number}.png" for number in (4, 5)]
    main([*images, "--model", str(folder.model), "--out", out, *truth])
    at_once = json.loads((tmp_path / "out" / "scores.json").read_text())
    for name in ("mean_dice", "ap50", "pq", "aji", "count_error"):
        assert at_once[name] == pytest.approx(scores[name], abs=1e-6), name
    assert len((tmp_path / "out" / "objects.csv").read_text().splitlines()) == 1 + 16
    kinds = ["--data.mask_kind", "instances"]
    (tmp_path / "out" / "scores.json").unlink()
    main([out, *truth, *kinds])
    assert json.loads((tmp_path / "out" / "scores.json").read_text()) == at_once
    for path in (tmp_path / "out").glob("*_objects.tif"):
        path.unlink()
    main([out, *truth, *kinds])  # of the masks alone, whose objects touch
    alone = json.loads((tmp_path / "out" / "scores.json").read_text())
    assert alone["mean_dice"] == at_once["mean_dice"]
    assert (alone["ap50"], alone["count_error"]) == (0.5, 4)  # two halves are half of each
    assert "2 masks by those in" in capsys.readouterr().out


def test_what_has_no_objects_is_refused(dominoes, tmp_path):
    for change, message in (
        ({"task": "regress"}, 'objects: is for task "segment"'),
        ({"classic": ClassicConfig(one_logit=True, padding="same")}, "one_logit"),
    ):
        config = settings(dominoes, tmp_path / "run")
        for name, value in change.items():
            setattr(config, name, value)
        if "task" in change:
            config.data.mask_kind = "auto"
        with pytest.raises(UserError, match=message):
            build_pixel_job(config).build_model()


def test_objects_from_python(dominoes, tmp_path):
    """Label images as masks; those that touch come out apart, as from the command line."""

    def pairs(numbers):
        return [
            tuple(
                np.array(Image.open(dominoes / kind / f"{n}.png")) for kind in ("images", "masks")
            )
            for n in numbers
        ]

    model = ClassicUNet(num_classes=3, depth=2, base_width=8, padding="same", norm="batch",
                        dropout=0.0)  # fmt: skip
    options = {"steps": 60, "batch_size": 4, "lr": 1e-2, "ema_decay": 0.8, "size": 48}
    train(model, pairs(range(4)), run=tmp_path, objects=True, validation=pairs([4]), **options)
    about = json.loads((tmp_path / "model" / "preprocessing.json").read_text())
    assert about["objects"] == 18 * 9
    assert about["sure"] in CHOICES
    predictor = Predictor.from_pretrained(tmp_path / "model")
    (image, mask), = pairs([5])  # fmt: skip
    assert object_scores(predictor(image).labels, mask.astype(np.int32))["ap50"] > 0.9


def test_what_number_objects():
    """The mask of two classes, an item's own numbers, or connected pieces."""
    image, numbers = np.zeros((8, 8), np.uint8), np.zeros((8, 8), np.int64)
    numbers[1:5, 1:4], numbers[1:5, 4:7] = 3, 7
    classes, two = np.where(numbers == 7, 2, numbers > 0), (numbers > 0).astype(np.int64)
    for item, count, found, touching in (
        ((image, numbers), 2, {0, 3, 7}, True),
        ({"image": image, "objects": numbers}, 2, {0, 3, 7}, True),
        ({"image": image, "mask": classes, "objects": numbers}, 3, {0, 3, 7}, True),
        ((image, classes), 3, {0, 1, 2}, True),
        ((image, two), 2, {0, 1}, False),
    ):
        data = as_dataset([item], num_classes=count, objects=True)
        seen = data[0]
        assert set(seen["objects"].unique().tolist()) == found
        assert seen["mask"].max() == count - 1
        assert (seen["interior"][2, 3] == 0) == touching
        assert data.small_object == (12 if touching else 24)
    with pytest.raises(UserError, match="class 7, not 0 to 2"):
        as_dataset([(image, numbers)], num_classes=3, objects=True)[0]
    with pytest.raises(UserError, match="objects: the last output"):
        train(ClassicUNet(num_classes=2, padding="same"), [(image, two)], run="x", objects=True)


def test_the_probability_of_interiors_is_chosen_on_validation_images(dominoes, tmp_path):
    """Of planes that part objects at 0.7 and above alone; the folder keeps it, and it is used."""
    config = replace(settings(dominoes, tmp_path / "run"))
    config.data.split = SplitConfig(validation=2, test=0)
    config.train.steps = 1
    job = build_pixel_job(config)
    folder = run(config, job)

    def planes(model, item):
        cells = item["objects"]
        inside = torch.from_numpy(interiors(cells.numpy()))
        rims = (cells > 0) & (inside == 0)
        classes = torch.nn.functional.one_hot((cells > 0).long()).movedim(-1, 0).float()
        return torch.cat([classes, (0.75 * inside + 0.65 * rims)[None]])

    job.planes = planes
    assert job.choose_sure(load_segmentation_model(folder.model), folder.model) == 0.7
    assert job.target.sure == 0.7
    predictor = Predictor.from_pretrained(folder.model)
    assert predictor(dominoes / "images" / "5.png").label.keywords["sure"] == 0.7
    with predictor.open(dominoes / "images" / "5.png") as source:
        assert source.label.keywords["sure"] == 0.7
