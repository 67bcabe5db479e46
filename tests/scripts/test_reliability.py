"""scripts/experiments/reliability.py, smaller than it is meant."""

import pytest
import reliability
import reliability_runs


@pytest.fixture(autouse=True)
def small(monkeypatch, tmp_path):
    monkeypatch.setattr(reliability, "TRAININGS", {"denoise": "train_ddpm.py"})
    monkeypatch.setitem(reliability_runs.TRAIN, "steps", 12)
    monkeypatch.setattr(reliability, "REPORT", tmp_path / "docs" / "reliability.md")
    monkeypatch.setattr("ddpm_unet.training.loop.plot_metrics", lambda records, path: None)
    monkeypatch.setattr("ddpm_unet.evaluation.report.plots", lambda curves: "")
    monkeypatch.setattr(reliability, "SIZES", {"kill": 1, "soak": 60, "folder": 60})


def test_a_killed_training_ends_as_one_left_alone(monkeypatch):
    monkeypatch.setattr("sys.argv", ["reliability.py", "folder", "kill"])
    reliability.main()
    text = reliability.REPORT.read_text()
    assert "60 images in " in text
    assert "denoise: 1 kills" in text
    found, expected = text.split(" files equal")[0].split("; ")[-1].split(" of ")
    assert found == expected
    assert text.index("## kill") < text.index("## folder")


def test_an_unknown_item_is_refused(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["reliability.py", "fire"])
    with pytest.raises(SystemExit):
        reliability.main()
    assert "fire: no such item; known are kill, signals" in capsys.readouterr().err
