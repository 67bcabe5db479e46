"""Training to segment: what is learnt, resumed, kept and when it stops."""

import json

import pytest
from short_runs import files, kill, run
from small_cells import CHANGES, changed, records

from ddpm_unet.data.preprocessing import Preprocessing
from ddpm_unet.errors import UserError
from ddpm_unet.models.segmenter import load_segmentation_model
from ddpm_unet.training.from_config import build_pixel_job
from ddpm_unet.training.pixelwise import PixelwiseJob

LIKE_OTHERS = ("scratch", "classic, same", "focal, weighted")


@pytest.mark.parametrize("way", [w for w in CHANGES if w not in LIKE_OTHERS])
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
    kept = Preprocessing.read(folder.model, model.in_channels)
    assert kept == Preprocessing(3, dtype="uint8", highest=kept.highest)
    assert 200 < kept.highest <= 255


@pytest.mark.parametrize(("way", "batches"), [("features", 10), ("joint", 14), ("teaching", 10)])
def test_killed_after_a_validation_and_resumed_ends_bit_for_bit_the_same(
    settings, tmp_path, way, batches
):
    settings = changed(settings, way)
    whole = run(settings)
    settings.run = str(tmp_path / "killed")
    kill(settings, batches)
    assert files(run(settings)) == files(whole)


class ScriptedJob(PixelwiseJob):
    """Validates with given scores instead of real ones."""

    series = (0.3, 0.5, 0.4, 0.45, 0.2, 0.9)

    def validate(self, model, accelerator):
        return {"mean_dice": self.series[round(self.step / 2) - 1]}

    def losses(self, model, batch):
        self.step = int(batch["position"][-1] + 1) / 4
        return super().losses(model, batch)


def scripted(settings):
    settings.train.validate_every = settings.train.checkpoint_every = 2
    return build_pixel_job(settings, ScriptedJob)


def test_the_best_model_is_kept_and_without_patience_training_goes_on(settings):
    settings.train.steps = 10
    whole = run(settings, scripted(settings))
    best = files(whole)
    assert records(whole, "mean_dice") == list(ScriptedJob.series[:5])
    state = json.loads((whole.checkpoints / "00000010" / "state.json").read_text())
    assert (state["best_step"], state["best"], state["worse"]) == (4, 0.5, 3)
    assert files(run(settings, scripted(settings))) == best


def test_the_kept_model_is_the_average_of_its_step(settings, tmp_path):
    settings.train.lr_schedule = "constant"
    settings.train.steps = 10
    whole = run(settings, scripted(settings))
    settings.train.steps = 4
    settings.run = str(tmp_path / "short")
    short = run(settings, scripted(settings))
    kept, ended = (
        {k: v for k, v in files(folder).items() if k.startswith("model") and ".md" not in k}
        for folder in (whole, short)
    )
    assert kept == ended


def test_early_stopping_ends_and_stays_ended(settings, tmp_path):
    settings.train.steps, settings.train.early_stopping_patience = 100, 3
    stopped = run(settings, scripted(settings))
    ended = files(stopped)
    assert records(stopped, "mean_dice") == list(ScriptedJob.series[:5])
    assert files(run(settings, scripted(settings))) == ended
    settings.run = str(tmp_path / "killed")
    kill(settings, 8, ScriptedJob)
    assert files(run(settings, scripted(settings))) == ended


def test_patience_needs_pictures_that_validate(settings):
    settings.data.split.validation, settings.train.early_stopping_patience = 0, 2
    with pytest.raises(UserError, match=r"train\.early_stopping_patience 2: no image validates"):
        build_pixel_job(settings)


def test_the_check_is_told_once_training_begins(settings, capsys):
    job = build_pixel_job(settings)
    assert capsys.readouterr().out == ""
    assert "masks: 0, 255: read as values" in job.describe()
    assert "3 images train, 1 validate" in job.describe()
    assert job.name(0).endswith(".png")
