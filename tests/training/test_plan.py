"""A plan by the data: what drawn images give, what is made of it, and a budget of time."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

from ddpm_unet.commands import train as commands
from ddpm_unet.config import DenoiseConfig, SegmentConfig
from ddpm_unet.config.reading import build, read_file
from ddpm_unet.data.preprocessing import Preprocessing
from ddpm_unet.training.fingerprint import (
    Fingerprint,
    Objects,
    chosen_images,
    look_at,
    measure,
    texture_size,
    widths,
)
from ddpm_unet.training.from_config import build_pixel_job
from ddpm_unet.training.loop import time_steps, trial_score
from ddpm_unet.training.plan import (
    FORWARD,
    SCRATCH,
    Plan,
    Start,
    of_steps,
    plan_denoiser,
    plan_segmentation,
    schedule,
)

SEEN = Preprocessing(3, 0.25, (0.0, 99.0), dtype="uint8")


def discs(diameter, size=256, step=64):
    """Discs on a grid, `bool [size, size]`, their numbers, and none at its ends."""
    rows, columns = np.mgrid[:size, :size]
    across = (rows % step - step / 2) ** 2 + (columns % step - step / 2) ** 2
    inside = across < (diameter / 2) ** 2
    return inside, inside * (1 + rows // step * (size // step) + columns // step)


def look(image=None, **changes):
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (64, 80, 1), np.uint8) if image is None else image
    return replace(look_at(image), **changes)


def found(count=12, objects=None, looks=None, **changes):
    looks = (look(**changes),) * min(count, 4) if looks is None else looks
    return Fingerprint(count, tuple(looks), objects)


def planned(*args, given=None, device="cpu", start=SCRATCH, **changes):
    return plan_segmentation(Plan(found(*args, **changes), device, given or {}, start))


def objects_of(width, thin=100.0, **changes):
    return Objects(((thin,), (width,) * 9), **changes)


@pytest.mark.parametrize("diameter", [9, 21, 47])
def test_the_width_of_discs_and_strips(diameter):
    inside, numbers = discs(diameter)
    assert np.median(widths(numbers)) == pytest.approx(diameter, abs=1.5)
    strips = np.zeros((96, 96), int)
    strips[:, 20 : 20 + diameter], strips[:, 4] = 1, 2
    assert widths(strips) == [diameter, 1.0]
    measured = measure([(inside.astype(np.int16), numbers)], 2)
    assert measured.typical == pytest.approx(diameter, abs=1.5)
    assert measured.shares[1] == pytest.approx(inside.mean())
    assert measured.touching == 0
    halves = np.where(inside, np.arange(256) // 32 + 1, 0)
    assert measure([(inside.astype(np.int16), halves)], 2).touching == 1


@pytest.mark.parametrize("noise", [0, 0.5])
@pytest.mark.parametrize("diameter", [8, 24, 60])
def test_the_size_of_texture(diameter, noise):
    """Discs at random places, in white noise or not."""
    rng, size = np.random.default_rng(0), 512
    image, (rows, columns) = np.zeros((size, size)), np.mgrid[:size, :size]
    for row, column in rng.uniform(0, size, (round(0.2 * size**2 / diameter**2), 2)):
        image += (rows - row) ** 2 + (columns - column) ** 2 < (diameter / 2) ** 2
    image += noise * rng.standard_normal(image.shape)
    assert texture_size(image) == pytest.approx(diameter, rel=0.2)
    assert texture_size(np.ones((20, 20))) == 0


def test_what_an_image_shows():
    grey = np.random.default_rng(0).integers(50, 150, (40, 60, 1), np.uint8)
    opaque = np.full_like(grey, 255)
    assert look_at(np.concatenate([grey] * 3 + [opaque], axis=-1)).channels == 1
    assert look_at(np.concatenate([grey, grey, 255 - grey], axis=-1)).channels == 3
    seen = look_at(grey)
    assert (seen.size, seen.top, seen.dtype) == ((40, 60), 255, "uint8")
    assert (seen.low, seen.high) == pytest.approx((50, 149), abs=1)
    assert seen.thumbnail.shape == (16, 16)
    assert look_at(grey[:5, :7]).thumbnail.shape == (16, 16)
    assert look_at(np.float32(grey)).top == 0
    assert look_at(np.repeat(grey[None], 8, 0)).size == (8, 40, 60)
    markers = look_at(np.concatenate([grey, 255 - grey], axis=-1))
    assert (markers.channels, markers.low, markers.high) == pytest.approx((2, 50, 205), abs=1)


def test_grey_images_come_as_the_denoiser_of_colours_saw_its_own():
    start = Start("runs/d", "given", SEEN)
    for given, channels in (({}, 3), ({"head.repeat_grey": True}, 1)):
        assert planned(start=start, given=given).values["data.channels"] == channels
    assert planned().values["data.channels"] == 1


def test_an_opaque_alpha_is_no_channel():
    rgba = np.full((64, 80, 4), 255, np.uint8)
    rgba[..., :3] = np.random.default_rng(0).integers(0, 256, (64, 80, 3))
    assert planned(image=rgba).values["data.channels"] == 3


def test_images_of_one_value_have_a_plan():
    blank = look_at(np.full((16, 16, 1), 128, np.uint8))
    assert planned(looks=[blank] * 5).values["data.value_range"] == "percentiles"


@pytest.mark.parametrize(
    ("objects", "scale", "size"),
    [
        (objects_of(24.0), 1.0, 96),
        (objects_of(10.0), 1.0, 64),
        (objects_of(48.0), 0.5, 96),
        (objects_of(100.0), 0.1875, 96),
        (objects_of(48.0, thin=3.0), 1.0, 128),
        (objects_of(48.0, thin=6.0), 0.5, 96),
        (Objects(((100.0,), (48.0,) * 9 + (12.0,) * 2)), 0.5, 96),
        (None, 1.0, 64),
    ],
)
def test_scale_and_window_by_the_objects(objects, scale, size):
    """Objects of 24 pixels, small ones of 8 and the thinnest class of 3 are enough."""
    values = planned(objects=objects, size=(1000, 1000), texture=9.0).values
    assert (values["data.scale"], values["data.size"]) == (scale, size)


def test_the_window_is_no_larger_than_the_smallest_image():
    looks = [look(size=(500, 500)), look(size=(100, 43))]
    assert planned(2, objects_of(24.0), looks).values["data.size"] == 40


def test_objects_that_touch_are_parted():
    plan = planned(objects=objects_of(24.0, touching=0.2))
    assert plan.values["objects"] is True
    assert plan.values["data.augment.elastic_sigma"] == 0
    assert planned(objects=objects_of(24.0, touching=0.0)).values["objects"] is False
    assert "objects" not in planned(objects=objects_of(24.0)).values


def test_windows_seek_rare_classes():
    plan = planned(objects=objects_of(24.0, shares=(0.9, 0.0, 0.06, 0.04)))
    assert plan.values["data.foreground"] == 0.33
    assert "the rarest class covers 4.0% of the pixels" in str(plan)
    for shares in ((0.8, 0.2), (1.0,), ()):
        assert "data.foreground" not in planned(objects=objects_of(24.0, shares=shares)).values


@pytest.mark.parametrize(
    ("changes", "value_range"),
    [
        ([{"low": 5, "high": 240, "top": 255}] * 2, None),
        ([{"low": 100, "high": 3000, "brightest": 3500, "top": 65535}] * 2, (100, 3500)),
        (
            [
                {"low": 0, "high": 20, "brightest": 30, "top": 255},
                {"low": 0, "high": 200, "brightest": 220, "top": 255},
            ],
            "percentiles",
        ),
        ([{"low": -900, "high": 1200, "brightest": 1500, "top": 0}] * 2, (-900, 1500)),
    ],
)
def test_black_and_white(changes, value_range):
    looks = [look(**each) for each in changes]
    assert planned(2, looks=looks).values["data.value_range"] == value_range


@pytest.mark.parametrize(
    ("count", "validation", "test"),
    [(1, 0.2, 0), (2, 1, 0), (3, 1, 0), (9, 2, 0), (10, 2, 2), (200, 16, 40), (1000, 16, 50)],
)
def test_what_is_kept_to_validate_and_to_test(count, validation, test):
    values = planned(count, size=(300, 300)).values
    assert (values["data.split.validation"], values["data.split.test"]) == (validation, test)


def test_the_only_image_may_be_too_small_to_part():
    assert planned(1, size=(60, 80)).values["data.split.validation"] == 0


def test_slices_are_kept_in_order_and_other_images_shuffled():
    rng = np.random.default_rng(0)
    drift = np.cumsum(rng.standard_normal((12, 16, 16)), axis=0)
    for thumbnails, by in ((drift, "blocks"), (rng.standard_normal((12, 16, 16)), "files")):
        looks = [look(thumbnail=each) for each in thumbnails]
        assert planned(12, looks=looks).values["data.split.by"] == by
    assert chosen_images(5) == [0, 1, 2, 3, 4]
    many = chosen_images(1000)
    assert (len(many), many[0], many[-1]) == (32, 0, 999)
    assert all(b - a == 1 for a, b in zip(many[::2], many[1::2], strict=True))


def test_a_denoiser_is_the_start_and_its_images_are_followed():
    start = Start("runs/a/model", "starting from it", SEEN)
    plan = planned(objects=objects_of(24.0), start=start, size=(1000, 1000))
    values = plan.values
    assert (values["init"], values["architecture"]) == ("runs/a/model", "unet")
    assert (values["data.scale"], values["data.value_range"]) == (0.25, (0.0, 99.0))
    assert values["head.transfer"] == "finetune"
    scratch = planned(objects=objects_of(24.0), given={"architecture": "unet"}).values
    assert (scratch["data.scale"], scratch["init"]) == (1.0, "scratch")
    assert planned().values["architecture"] == "classic"
    large = planned(device="cuda").values
    assert large["train.batch_size"] > planned().values["train.batch_size"]


def test_given_settings_win_and_the_rest_goes_by_them():
    given = {"data.size": 32, "train.lr": 1e-5, "data.images": "a", "loss.name": "dice"}
    plan = planned(given=given)
    assert {name: plan.values[name] for name in given} == given
    assert plan.values["train.batch_size"] == 16  # of windows of 32, no more
    text = str(plan)
    for line in ("size: 32", "lr: 1.0e-05", "images: a", "name: dice"):
        (written,) = [each for each in text.splitlines() if each.strip().startswith(line)]
        assert written.endswith("# given")


@pytest.mark.parametrize("kind", [SegmentConfig, DenoiseConfig])
def test_a_plan_is_a_recipe(kind, tmp_path):
    """Every choice is a setting, has its reason, and is read as it was."""
    if kind is SegmentConfig:
        starts = (SCRATCH, Start("m", "it fits"))
        plans = [
            planned(objects=objects_of(9, touching=t), start=s) for s in starts for t in (0, 1)
        ]
        plans += [planned(size=(30, 40, 50))]
        plans += [planned(given={"init": "scratch", "architecture": "unet"}, device="cuda")]
    else:
        plans = [plan_denoiser(Plan(found(), device)) for device in ("cpu", "cuda")]
        plans += [plan_denoiser(Plan(found(size=(30, 40, 50)), "cpu"))]
    for plan in plans:
        plan.apply(of_steps(77), "tried")
        path = tmp_path / "plan.yaml"
        path.write_text(str(plan))
        assert str(plan).startswith("# found: ")
        values = read_file(kind, path)
        assert values.keys() == plan.values.keys()
        assert build(kind, values) == build(kind, plan.values)
        assert all(reason for _, reason in plan.choices.values())


def test_the_window_of_a_denoiser_spans_four_objects():
    for texture, scale in ((16.0, 1.0), (32.0, 0.5), (100.0, 0.1875), (3.0, 1.0)):
        plan = plan_denoiser(Plan(found(texture=texture, size=(2000, 2000)), "cpu"))
        assert (plan.values["data.size"], plan.values["data.scale"]) == (64, scale)
    start = Start("runs/a", "given", SEEN)
    plan = plan_denoiser(Plan(found(size=(160, 180)), "cpu", start=start))
    assert (plan.values["data.size"], plan.values["data.scale"]) == (40, 0.25)
    tiny = plan_denoiser(Plan(found(texture=100.0, size=(40, 50)), "cpu")).values
    assert (tiny["data.size"], tiny["data.scale"]) == (40, 1.0)


class Clock:
    """Time that passes by work alone."""

    now = 0.0

    def __call__(self):
        return self.now

    def work(self, seconds):
        self.now += seconds


def test_a_step_is_timed_after_it_has_warmed_up():
    clock, times = Clock(), iter([100.0, 2.0, 3.0, 2.0, 9.0, 2.5])
    assert time_steps(lambda: clock.work(next(times)), clock) == 2.5
    slow, calls = Clock(), []
    assert time_steps(lambda: (calls.append(0), slow.work(30.0)), slow, seconds=20) == 30
    assert len(calls) == 2


@pytest.mark.parametrize("minutes", [1, 20])
@pytest.mark.parametrize("step", [0.05, 2.5])
@pytest.mark.parametrize(("validation", "preview", "test"), [(0, 0, 0), (6, 3, 4), (100, 50, 10)])
def test_a_budget_is_kept(minutes, step, validation, preview, test):
    """By a training that passes the time of every step, validation, preview and of the test."""
    chosen = schedule(step, minutes, validation=validation, preview=preview, test=test, spent=3)
    clock, first = Clock(), None
    for number in range(1, chosen["steps"] + 1):
        clock.work(step)
        last = number == chosen["steps"]
        if last or number % chosen["validate_every"] == 0:
            clock.work(FORWARD * step * validation)
        if last or number % chosen["sample_every"] == 0:
            clock.work(FORWARD * step * preview)
            first = first or clock()
    clock.work(FORWARD * step * test + 3)
    if chosen["steps"] > 10:  # else even the fewest take longer
        assert clock() <= 60 * minutes
        assert clock() >= 60 * minutes * 0.5
    if 20 * FORWARD * step * preview < 40:
        assert first <= 60
    assert schedule(step, minutes, wanted=12)["steps"] == 12


def test_the_schedule_fits_any_number_of_steps():
    for steps in (1, 2, 10, 999, 10**6):
        chosen = of_steps(steps)
        assert chosen["steps"] == steps
        assert min(v for k, v in chosen.items() if k.endswith("every")) >= 1
        assert chosen["warmup_steps"] < steps
        assert math.ceil(steps / chosen["validate_every"]) <= 8


@pytest.fixture
def home(tmp_path, monkeypatch):
    """Grey images and masks, and a clock by which a step takes two seconds."""
    from PIL import Image

    rng = np.random.default_rng(0)
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
    for number in range(10):
        mask = np.kron(rng.integers(0, 2, (4, 4)), np.ones((8, 8)))
        grey = 255 * (0.2 + 0.5 * mask) + rng.normal(0, 5, mask.shape)
        Image.fromarray(grey.clip(0, 255).astype(np.uint8)).save(tmp_path / f"images/{number}.png")
        Image.fromarray((255 * mask).astype(np.uint8)).save(tmp_path / f"masks/{number}.png")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("ddpm_unet.training.loop.seconds_a_step", lambda *_: 10.0)
    return tmp_path


def test_masks_that_number_objects_are_known(home):
    from PIL import Image

    from ddpm_unet.training.planned import look_at_pairs, plan_pairs

    squares = np.kron(np.arange(1, 145).reshape(12, 12), np.pad(np.ones((5, 5)), (0, 3)))
    for number, count in enumerate((144, 120, 110, 130, 101, 119, 137, 105, 128, 142)):
        mask = np.where(squares > count, 0, squares).astype(np.uint16)
        Image.fromarray(np.where(mask, 200, 20).astype(np.uint8)).save(f"images/{number}.png")
        Image.fromarray(mask).save(f"masks/{number}.png")
    values = {"data.images": "images", "data.masks": "masks", "init": "scratch"}
    plan, report = plan_pairs(look_at_pairs(values), SCRATCH, "cpu")
    assert plan.values["data.mask_kind"] == report.config.mask_kind == "instances"
    assert "mask_kind: instances" in str(plan)
    assert "# masks number objects" in str(plan)
    assert plan.found.objects.touching == 0
    assert plan.found.objects.typical == 5


FLAGS = "--data.images images --data.masks masks --classic.base_width 4 --train.batch_size 2"


DENOISER = (
    "--data.source images --model.block_out_channels=[8,8] --train.batch_size=2 --train.steps=2 "
    "--preview.steps=2 --preview.num_images=1"
)


def test_two_folders_are_enough(home, capsys):
    """A run by a plan; its plan as a recipe gives the same; the same command does not plan anew."""
    arguments = [*FLAGS.split(), "--minutes=1.6"]
    commands.train_seg(arguments)
    said, run = capsys.readouterr().out, home / "runs/images_segmenter"
    plan = yaml.safe_load((run / "plan.yaml").read_text())
    assert (run / "plan.yaml").read_text() in said
    assert "base_width: 4 " in said
    assert plan["data"] | {"augment": 0} == {
        "images": "images", "masks": "masks", "channels": 1, "value_range": plan["data"][
        "value_range"], "scale": 1.0, "size": 32, "augment": 0,
        "split": {"by": "files", "validation": 2, "test": 2},
    }  # fmt: skip
    assert {"run", "minutes", "resume"}.isdisjoint(plan)
    assert "on 2 test image(s)" in said
    assert list((run / "samples").glob("*.png"))
    commands.train_seg(["--config", str(run / "plan.yaml"), "--run", "again"])
    states = [load_file(next((at / "model").glob("*.safetensors"))) for at in (run, home / "again")]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    capsys.readouterr()
    commands.train_seg(arguments)
    assert "plan, also in" not in capsys.readouterr().out


def test_images_alone_are_enough_for_a_denoiser(home):
    commands.train_ddpm(DENOISER.split())
    run = home / "runs/images_denoiser"
    plan = yaml.safe_load((run / "plan.yaml").read_text())
    assert (plan["data"]["size"], plan["train"]["steps"]) == (32, 2)
    assert plan["model"]["down_block_types"] == ["DownBlock2D", "AttnDownBlock2D"]
    assert (run / "model/model_index.json").is_file()
    commands.train_seg([*FLAGS.split(), "--train.steps=1", "--run=seg"])
    said = yaml.safe_load(Path("seg/plan.yaml").read_text())
    assert said["init"] == "runs/images_denoiser/model"
    assert said["architecture"] == "unet"


def test_a_plan_from_a_denoiser_goes_on(home):
    flags = "--data.source=images --train.batch_size=2 --preview.steps=2 --preview.num_images=1"
    small = "--model.block_out_channels=[8,8] --train.steps=2 --run=first"
    commands.train_ddpm([*flags.split(), *small.split()])
    for steps in (2, 3):
        further = f"--init=first/model --run=second --train.steps={steps}"
        commands.train_ddpm([*flags.split(), *further.split()])
    saved = yaml.safe_load(Path("second/config.yaml").read_text())
    assert (saved["model"]["block_out_channels"], saved["train"]["steps"]) == ([8, 8], 3)


@pytest.mark.parametrize("better", ["unet", "classic"])
def test_the_way_to_begin_that_validates_better_is_taken(home, monkeypatch, capsys, better):
    commands.train_ddpm(DENOISER.split())
    capsys.readouterr()

    def score(job, settings):
        assert 10 <= settings.train.steps < 20
        return float(settings.architecture == better)

    monkeypatch.setattr("ddpm_unet.training.loop.trial_score", score)
    commands.train_seg([*FLAGS.split(), "--minutes=20"])
    said = capsys.readouterr().out
    plan = yaml.safe_load(Path("runs/images_segmenter/plan.yaml").read_text())
    scores = f"{better == 'unet':.3f}, 2015's network {better == 'classic':.3f}"
    assert f"mean_dice of the validation images: runs/images_denoiser/model {scores}" in said
    assert "trying 2015's network: 10 steps of 10 s" in said
    assert "# the better of those tried" in said
    assert plan["architecture"] == better
    assert plan["init"] == {"unet": "runs/images_denoiser/model", "classic": "scratch"}[better]


def test_a_trial_is_the_training_and_leaves_nothing(home):
    """Its score is that of the same training, after the random numbers that were before it."""
    arguments = "run: own\ndata: {images: images, masks: masks, size: 16}\ninit: scratch\n"
    arguments += "architecture: classic\nclassic: {depth: 2, base_width: 4, padding: same}\n"
    arguments += "train: {batch_size: 2, steps: 7, validate_every: 7, lr: 0.01}\n"
    (home / "own.yaml").write_text(arguments)
    settings = build(SegmentConfig, read_file(SegmentConfig, Path("own.yaml")))
    torch.manual_seed(5)
    score = trial_score(build_pixel_job(settings), settings)
    drawn = torch.rand(3)
    torch.manual_seed(5)
    assert torch.equal(drawn, torch.rand(3))
    assert not Path("own").exists()
    commands.train_seg(["--config=own.yaml"])
    lines = map(json.loads, Path("own/metrics.jsonl").read_text().splitlines())
    assert [line["mean_dice"] for line in lines if "mean_dice" in line] == [score]


def test_a_budget_and_steps_are_not_both_given(home):
    with pytest.raises(Exception, match=r"minutes 3: --train.steps is given too"):
        commands.train_seg([*FLAGS.split(), "--minutes", "3", "--train.steps", "5"])


def test_a_budget_of_a_recipe_sets_its_schedule(home):
    """Flags win, and a run that has begun keeps its schedule."""
    text = "run: own\ndata: {images: images, masks: masks, size: 16}\ninit: scratch\n"
    text += "architecture: classic\nclassic: {depth: 2, base_width: 4, padding: same}\n"
    text += "train: {batch_size: 2, steps: 500}\n"
    (home / "own.yaml").write_text(text)
    arguments = ["--config=own.yaml", "--minutes=1", "--train.validate_every=3"]
    commands.train_seg(arguments)
    saved = yaml.safe_load(Path("own/config.yaml").read_text())["train"]
    assert (saved["steps"], saved["validate_every"]) == (schedule(10.0, 1)["steps"], 3)
    commands.train_seg([*arguments, "--minutes=5"])
    assert yaml.safe_load(Path("own/config.yaml").read_text())["train"]["steps"] == saved["steps"]
