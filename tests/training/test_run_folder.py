import os

import pytest

from ddpm_unet.config import DenoiseConfig
from ddpm_unet.errors import UserError
from ddpm_unet.training.run_folder import RunFolder, newest_models


def test_metrics_written_after_a_checkpoint_are_cut_and_lost_ones_an_error(tmp_path):
    run = RunFolder(tmp_path)
    run.log({"step": 1, "loss": 0.5})
    size = run.metrics_size()
    run.log({"step": 2, "loss": float("nan")})
    assert run.read_metrics()[1] == {"step": 2, "loss": None}
    run.cut_metrics(size)
    assert run.read_metrics() == [{"step": 1, "loss": 0.5}]
    run.metrics.write_text("")
    with pytest.raises(UserError, match="lost lines"):
        run.cut_metrics(size)


def test_another_training_is_refused_until_the_first_is_gone(tmp_path):
    first, second = RunFolder(tmp_path), RunFolder(tmp_path)
    first.claim(DenoiseConfig(), "auto")
    with pytest.raises(UserError, match="another run is using"):
        second.claim(DenoiseConfig(), "auto")
    first.release()
    second.claim(DenoiseConfig(), "auto")


def begun(folder):
    """A run folder with a checkpoint."""
    RunFolder(folder).claim(DenoiseConfig(), "auto")
    (folder / "checkpoints" / "00000001").mkdir()


def test_settings_that_may_not_change_are_refused_by_name_once_there_is_a_checkpoint(tmp_path):
    RunFolder(tmp_path).claim(DenoiseConfig(seed=3), "auto")
    begun(tmp_path)
    other = DenoiseConfig()
    other.train.steps *= 2
    other.data.workers = 2
    RunFolder(tmp_path).claim(other, "auto")
    other.model.block_out_channels = (32, 64, 64)
    with pytest.raises(UserError, match=r"model\.block_out_channels"):
        RunFolder(tmp_path).claim(other, "auto")


@pytest.mark.parametrize("content", [b"", b"- 1", b"a: [", b"\xff\xfe"])
def test_a_damaged_config_is_an_error(tmp_path, content):
    (tmp_path / "config.yaml").write_bytes(content)
    with pytest.raises(UserError, match="not a run's settings"):
        RunFolder(tmp_path).claim(DenoiseConfig(), "auto")


@pytest.mark.parametrize(
    "name", ["samples", "checkpoints", "model", "metrics.jsonl", "config.yaml"]
)
def test_what_is_in_the_way_is_named(tmp_path, name):
    folder = "." in name
    (tmp_path / name).mkdir() if folder else (tmp_path / name).touch()
    kinds = ("folder", "file") if folder else ("file", "folder")
    words = f"{name}: is a {kinds[0]} where the run needs a {kinds[1]}"
    with pytest.raises(UserError, match=words):
        RunFolder(tmp_path).claim(DenoiseConfig(), "auto")
    assert not (tmp_path / "config.yaml").is_file()


def test_a_damaged_line_of_the_metrics_is_named(tmp_path):
    folder = RunFolder(tmp_path)
    folder.log({"step": 1})
    folder.metrics.write_text('{"step":\n')
    with pytest.raises(UserError, match=r"metrics\.jsonl: holds a damaged line"):
        folder.read_metrics()


def test_the_newest_model_comes_first(tmp_path):
    assert newest_models(tmp_path) == []
    for age, name in enumerate(("b", "c", "a")):
        model = tmp_path / name / "model"
        model.mkdir(parents=True)
        (model / "model_index.json").write_text("{}")
        os.utime(model, (1000 - age, 1000 - age))
    assert newest_models(tmp_path) == [tmp_path / name / "model" for name in "bca"]
