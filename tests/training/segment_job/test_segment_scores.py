"""Pictures that validate, and those kept to test: their scores, and what is drawn of them."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from PIL import Image
from short_runs import run
from small_cells import Bright, pair_data

from ddpm_unet.config import PairDataConfig, SplitConfig
from ddpm_unet.errors import UserError
from ddpm_unet.evaluation.card import write_pages
from ddpm_unet.evaluation.metrics import write_scores
from ddpm_unet.evaluation.rand import thinned_scores
from ddpm_unet.models.segmenter import load_segmentation_model
from ddpm_unet.training.from_config import build_pixel_job
from ddpm_unet.training.run_folder import RunFolder


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
    scores = build_pixel_job(settings).validate(Bright(), Accelerator(cpu=True))
    found, true = [], []
    for number in (1, 2):
        found.append(np.asarray(Image.open(tmp_path / f"images/{number}.png"))[10:, :, 0] > 127.5)
        true.append(np.asarray(Image.open(tmp_path / f"masks/{number}.png"))[10:] == 1)
    found, true = np.stack(found), np.stack(true)
    dice = [2 * (a & b).sum() / (a.sum() + b.sum()) for a, b in ((found, true), (~found, ~true))]
    iou = [(a & b).sum() / (a | b).sum() for a, b in ((found, true), (~found, ~true))]
    expected = {
        "mean_dice": np.mean(dice), "mean_iou": np.mean(iou), "dice_class 0": dice[1],
        "dice_class 1": dice[0], "iou_class 0": iou[1], "iou_class 1": iou[0],
        "pixel_error": (found != true).mean(),
    }  # fmt: skip
    assert scores == pytest.approx(expected)
    assert 0.5 < scores["mean_dice"] < 1


def test_a_class_that_is_nowhere_has_no_score(settings):
    scores = build_pixel_job(settings).target.compute(torch.tensor([[7, 0], [0, 0]]))
    assert scores == {
        "mean_dice": 1.0, "mean_iou": 1.0, "pixel_error": 0.0, "dice_value 0": 1.0,
        "iou_value 0": 1.0,
    }  # fmt: skip


def test_pictures_kept_to_test_are_scored_in_the_end(settings, capsys):
    settings.data.split = SplitConfig(validation=1, test=1)
    job = build_pixel_job(settings)
    folder = run(settings, job)
    scores = job.score_test(folder, torch.device("cpu"))
    written = json.loads((folder.path / "scores.json").read_text())
    (image,) = written.pop("images")
    assert written == scores
    assert image["name"] == job.test.name(0)
    assert {"dice", "boundary_f"} <= image.keys()
    assert scores["boundary_f"] == image["boundary_f"]
    assert f"mean_dice                {scores['mean_dice']:.4f}" in capsys.readouterr().out
    assert Image.open(folder.path / "test.png").size == (96, 40)
    assert Image.open(folder.path / "predictions" / "best.png").size == (96, 40)
    write_pages(folder.path)
    page = (folder.path / "report.html").read_text()
    assert f"best: {image['name']}, Dice" in page
    assert "4 pairs of" in page
    model = load_segmentation_model(folder.model)
    with torch.inference_mode():
        item = job.test[0]
        predicted = model(item["image"][None]).argmax(dim=1)[0]
    error = (predicted != item["mask"]).float().mean()
    assert scores["pixel_error"] == pytest.approx(float(error), abs=0.02)


def test_cells_are_scored_as_partitions(cells, settings):
    """The thinned scores of the tested masks and of the probabilities of their class."""
    settings.data.split, settings.cell_class = SplitConfig(test=2), 1
    job = build_pixel_job(settings)

    def predicted():
        items = (job.test[number] for number in (0, 1))
        return ((job.planes(Bright(), item), item) for item in items)

    scores = job.target.further_scores(predicted())
    truth, cell = [], []
    for number in (1, 2):
        truth.append(np.asarray(Image.open(cells / f"masks/{number}.png")) == 255)
        picture = np.asarray(Image.open(cells / f"images/{number}.png"))[..., 0] / 127.5 - 1.0
        logits = Bright()(torch.from_numpy(picture).float()[None, None])
        cell.append(logits.softmax(dim=1)[0, 1].numpy())
    expected = thinned_scores(truth, cell)
    assert scores["v_rand"] == pytest.approx(expected.v_rand)
    assert scores["v_info"] == pytest.approx(expected.v_info)
    settings.cell_class = None
    assert "v_rand" not in build_pixel_job(settings).target.further_scores(predicted())


@pytest.mark.parametrize("cell", [2, -1])
def test_cells_of_no_class(settings, cell):
    settings.cell_class = cell
    with pytest.raises(UserError, match=f"cell_class {cell}"):
        build_pixel_job(settings)


def test_a_test_of_unlabelled_images_is_said_to_be_none(settings, tmp_path, capsys):
    masks = tmp_path / "unlabelled"
    shutil.copytree(settings.data.masks, masks)
    for path in sorted(masks.iterdir())[-2:]:
        with Image.open(path) as mask:
            Image.fromarray(np.full_like(np.asarray(mask), 9)).save(path)
    data = replace(settings.data, masks=str(masks), ignore_value=9, mask_kind="classes")
    data.split = replace(data.split, test=2)
    job = build_pixel_job(replace(settings, data=data))
    assert job.score_test(RunFolder(tmp_path), torch.device("cpu")) == {}
    assert "no test: the masks of the images kept for it label no pixel" in capsys.readouterr().out
    assert "data.augment.flips" in job.description


def test_scores_of_nothing_are_null(tmp_path):
    write_scores(tmp_path, {"mean_dice": float("nan")}, [{"name": "a", "dice": float("nan")}])
    kept = json.loads((tmp_path / "scores.json").read_text())
    assert kept == {"mean_dice": None, "images": [{"name": "a", "dice": None}]}
    assert (tmp_path / "scores.csv").read_text() == "name,dice\na,\n"


def test_the_builtin_pictures_are_tested_on_the_held_out_third(settings):
    settings.data = PairDataConfig(scale=0.25, size=16)
    job = build_pixel_job(settings)
    assert (job.windows(0).images.sizes[0, 1], job.test.sizes.tolist()) == (250, [[375, 125]])
    settings.data.include_held_out = True
    assert build_pixel_job(settings).test is None


def test_samples_show_mask_and_prediction(settings, tmp_path):
    job = build_pixel_job(settings)
    job.preview(Bright(), Accelerator(cpu=True), tmp_path / "a.png")
    picture = np.asarray(Image.open(tmp_path / "a.png"))
    image, mask = (
        np.asarray(Image.open(f"{p}/3.png")) for p in (settings.data.images, settings.data.masks)
    )
    assert picture.shape == (40, 96, 3)
    for side, classes in ((picture[:, :48], mask > 0), (picture[:, 48:], image[..., 0] > 127.5)):
        tinted = (side != image).any(axis=2)
        assert (tinted & ~classes).sum() == 0
        assert (classes & ~tinted).sum() < 0.02 * classes.sum()
