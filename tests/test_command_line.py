import re
import subprocess
from pathlib import Path

import pytest
import torch
import torch._inductor.config

from ddpm_unet.cli import main, read_settings, user_errors
from ddpm_unet.config import AutoencodeConfig, DenoiseConfig, SegmentConfig
from ddpm_unet.errors import UserError

SCRIPTS = Path(__file__).parents[1] / "scripts"
CONFIGS = Path(__file__).parents[1] / "configs"


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "small.yaml"
    path.write_text("seed: 3\ntrain:\n  lr: 1e-3\n  steps: 10\n")
    return path


def test_flags_override_the_file_and_the_file_the_defaults(config):
    settings, name = read_settings(DenoiseConfig, config, ["--train.steps", "20"])
    assert (settings.seed, settings.train.lr, settings.train.steps) == (3, 1e-3, 20)
    assert settings.train.batch_size == DenoiseConfig().train.batch_size
    assert name == "small"


def test_config_flag_replaces_the_default_file(config, tmp_path):
    other = tmp_path / "other.yaml"
    other.write_text("train:\n  steps: 5\n")
    settings, name = read_settings(DenoiseConfig, config, [f"--config={other}"])
    assert (settings.seed, settings.train.steps, name) == (0, 5, "other")


def test_a_torchvision_of_another_build_is_explained_in_one_line(capsys):
    with pytest.raises(SystemExit) as stop, user_errors():
        raise RuntimeError("operator torchvision::nms does not exist")
    assert stop.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("lacking", ["compiler", "Python.h"])
def test_where_torch_cannot_compile_one_line_says_so(lacking, tmp_path, capsys):
    compiler = tmp_path / "c++"
    if lacking == "Python.h":
        compiler.write_text("#!/bin/sh\necho 'fatal error: Python.h: No such file' >&2; exit 1\n")
        compiler.chmod(0o755)
    changes = {"cpp.cxx": (None, str(compiler)), "force_disable_caches": True}
    with torch._inductor.config.patch(changes), pytest.raises(SystemExit) as stop, user_errors():
        torch.compile(lambda x: x.sin() + 1)(torch.ones(64))
    assert stop.value.code == 2
    said = capsys.readouterr().err.splitlines()
    (line,) = [line for line in said if "temporary cache dir kept" not in line]  # torch's own
    assert line.startswith("error: torch cannot compile the network here (")


def test_other_errors_keep_their_traceback():
    with pytest.raises(RuntimeError, match="a bug"), user_errors():
        raise RuntimeError("a bug")


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda p: p.stem)
def test_shipped_configurations_are_valid(path):
    kind = SegmentConfig if re.search(r"^  masks:", path.read_text(), re.M) else DenoiseConfig
    read_settings(AutoencodeConfig if "autoencoder" in path.stem else kind, path, [])


def test_a_run_goes_on_with_its_own_settings(tmp_path):
    run = tmp_path / "run"
    with pytest.raises(UserError, match="is no run folder; give one, or auto or never"):
        read_settings(DenoiseConfig, None, ["--resume", str(run)])
    run.mkdir()
    (run / "config.yaml").write_text("run: elsewhere\nseed: 7\ntrain:\n  steps: 10\n")
    settings, _ = read_settings(DenoiseConfig, None, [f"--resume={run}", "--train.steps=20"])
    assert (settings.run, settings.resume) == (str(run), "auto")
    assert (settings.seed, settings.train.steps) == (7, 20)
    with pytest.raises(UserError, match=r"--run: --resume .* has one already"):
        read_settings(DenoiseConfig, None, ["--resume", str(run), "--run", "x"])


def test_a_run_of_an_earlier_version_goes_on_in_the_words_of_this_one(tmp_path):
    (tmp_path / "config.yaml").write_text(
        "data:\n  mask_kind: pictures\n  augment: {turns: false}\n"
    )
    settings, _ = read_settings(SegmentConfig, None, ["--resume", str(tmp_path)])
    assert (settings.data.mask_kind, settings.data.augment.rot90) == ("images", False)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_completes_commands_and_flags(shell, tmp_path, capsys):
    main(["completion", shell])
    script = capsys.readouterr().out
    assert "train-autoencoder" in script
    for flag in ("--init_image", "--train.batch_size", "--data.images", "--license"):
        assert (f"-l {flag[2:]}\n" if shell == "fish" else f"{flag} ") in script, flag
    if shell != "bash":
        return
    (tmp_path / "script").write_text(script)
    for typed, expected in (("se", "segment"), ("sample --gui", "--guidance"),
                            ("train-seg --data.mask_k", "--data.mask_kind")):  # fmt: skip
        words = ["ddpm-unet", *typed.split()]
        asked = f"source ./script; COMP_WORDS=({' '.join(words)}); COMP_CWORD={len(words) - 1}; "
        command = ["bash", "-c", asked + "_ddpm_unet; echo ${COMPREPLY[@]}"]
        found = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
        assert expected in found.stdout.split()
