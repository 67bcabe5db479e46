"""What a launcher says is honoured or refused before the first step; other systems import."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import accelerate
import pytest
import torch
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.state import AcceleratorState
from accelerate.utils.launch import prepare_multi_gpu_env
from short_runs import run
from small import TINY
from torch import nn

from ddpm_unet import GaussianDiffusion, UNet, cli
from ddpm_unet.commands.sample import parse as parse_sample
from ddpm_unet.config import TrainConfig
from ddpm_unet.errors import UserError
from ddpm_unet.inference.pipeline import write_pipeline
from ddpm_unet.training import distributed
from ddpm_unet.training.distributed import (
    COMPILED_FROM,
    check_launch,
    compiling,
    in_memory_format,
    launched_precision,
    launched_sharding,
    loader_processes,
)


@pytest.mark.parametrize(
    ("said", "words"),
    [
        (
            {"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "4"},
            "steps 4: .* set it to 1, and train.micro",
        ),
        ({"ACCELERATE_DOWNCAST_BF16": "true"}, "downcast_bf16 true: .* is for TPUs"),
        ({"ACCELERATE_USE_SAGEMAKER": "true"}, "use_sagemaker true: is not supported"),
        ({"ACCELERATE_USE_MEGATRON_LM": "banana"}, "use_megatron_lm banana: is not supported"),
    ],
)
def test_what_would_be_ignored_is_refused(said, words):
    with pytest.raises(UserError, match=words):
        check_launch(said)


FSDP = ["--use_fsdp", "--fsdp_version"]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ([*FSDP, "1"], "fsdp_version 1: .* set it to 2"),
        (
            [*FSDP, "2", "--fsdp_offload_params", "true"],
            "fsdp_offload_params true: is not supported",
        ),
        ([*FSDP, "2", "--fsdp_auto_wrap_policy", "SIZE_BASED_WRAP"], "set TRANSFORMER_BASED_WRAP"),
        (["--use_megatron_lm"], "use_megatron_lm true: is not supported; take FSDP"),
        ([*FSDP, "2", "--use_parallelism_config", "true"], "parallelism_config"),
        (["--dynamo_backend", "eager"], "dynamo_backend eager: .* set it to no"),
    ],
)
def test_flags_of_accelerate_launch_are_refused_before_the_first_step(
    settings, monkeypatch, flags, words
):
    """The environment that the launcher itself makes of its flags."""
    given = launch_command_parser().parse_args([*flags, "--num_processes", "1", "script.py"])
    said = prepare_multi_gpu_env(_validate_launch_command(given)[0])
    for name, value in said.items():
        if name.startswith(("ACCELERATE_", "FSDP_", "MEGATRON_", "PARALLELISM_")):
            monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=words) as caught:
        run(settings)
    assert "\n" not in str(caught.value)
    assert not Path(settings.run).exists()


@pytest.mark.parametrize("device", ["banana", "cuda:99"])
def test_a_device_that_is_none_is_refused(settings, monkeypatch, device):
    monkeypatch.setenv("ACCELERATE_TORCH_DEVICE", device)
    with pytest.raises(UserError, match=f"ACCELERATE_TORCH_DEVICE {device}: .*; set another"):
        run(settings)
    assert not Path(settings.run).exists()


NO_VALUE = {
    "ACCELERATE_DEBUG_MODE": "banana", "ACCELERATE_CPU_AFFINITY": "7",
    "ACCELERATE_USE_CPU": "maybe",
    "ACCELERATE_DYNAMO_USE_DYNAMIC": "banana", "ACCELERATE_FP8_BACKEND": "banana",
}  # fmt: skip


@pytest.mark.parametrize(("name", "value"), NO_VALUE.items())
def test_a_value_that_accelerate_does_not_take_is_refused_in_its_name(monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    monkeypatch.setenv("FSDP_VERSION", "2")
    AcceleratorState._reset_state(reset_partial_state=True)  # variables are read as it is made
    with (
        distributed.own_accelerator(),
        pytest.raises(UserError, match=rf"^{name} {value}: acceler"),
    ):
        distributed.open_processes()


@pytest.mark.parametrize("command", ["sample", "segment images", "evaluate", "likelihood"])
def test_commands_refuse_what_a_training_refuses(monkeypatch, tmp_path, capsys, command):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    write_pipeline(tmp_path / "model", UNet(**TINY, sample_size=8), GaussianDiffusion())
    with pytest.raises(SystemExit):
        cli.run(command.split()[0], [*command.split()[1:], "--model", "model"])
    assert capsys.readouterr().err.startswith(
        "error: accelerate's use_deepspeed true: is not supported"
    )


def test_a_variable_that_accelerate_reads_as_it_is_imported_is_refused_in_one_line():
    said = {"ACCELERATE_USE_MEGATRON_LM": "banana"}
    code = "from ddpm_unet.cli import main; main(['sample', '--model', 'nowhere'])"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=os.environ | said, capture_output=True, text=True)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert done.stderr.startswith("error: ACCELERATE_USE_MEGATRON_LM banana: accelerate does not")


def test_the_precision_of_a_launcher_is_that_of_other_commands_too(monkeypatch):
    def precision(*flags):
        return parse_sample(flags).precision

    assert precision() == "fp32"
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    assert (precision(), precision("--precision", "fp32")) == ("bf16", "fp32")
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp8")
    with pytest.raises(UserError, match="accelerate's mixed_precision fp8: set bf16, fp16 or no"):
        precision()


HONOURED = """ACCELERATE_MIXED_PRECISION ACCELERATE_USE_CPU ACCELERATE_USE_FSDP
    ACCELERATE_TORCH_DEVICE FSDP_RESHARD_AFTER_FORWARD FSDP_TRANSFORMER_CLS_TO_WRAP"""
WITHOUT_EFFECT = """ACCELERATE_BYPASS_DEVICE_MAP ACCELERATE_CPU_AFFINITY ACCELERATE_DEBUG_MODE
    ACCELERATE_DEBUG_RDV_FILE ACCELERATE_ENABLE_RICH ACCELERATE_ALLOW_CP_STANDALONE
    FSDP_BACKWARD_PREFETCH FSDP_FORWARD_PREFETCH FSDP_CPU_RAM_EFFICIENT_LOADING
    FSDP_STATE_DICT_TYPE FSDP_SYNC_MODULE_STATES FSDP_USE_ORIG_PARAMS"""  # speed, files not written
OF_THE_REFUSED = (
    "ACCELERATE_DEEPSPEED_", "ACCELERATE_CONFIG_DS_", "ACCELERATE_GRADIENT_CLIPPING",
    "ACCELERATE_DYNAMO_", "ACCELERATE_FP8_", "ACCELERATE_SAGEMAKER_",
    "FSDP_ACTIVATION_CHECKPOINTING_OFFLOAD", "FSDP_MIN_NUM_PARAMS", "MEGATRON_LM_",
    "PARALLELISM_CONFIG_",
)  # fmt: skip


def test_every_variable_that_accelerate_reads_is_known():
    """A new one must be honoured, refused, or listed above."""
    package = Path(accelerate.__file__).parent
    files = [package / "state.py", package / "accelerator.py", package / "commands/launch.py"]
    text = "".join(f.read_text() for f in [*files, *(package / "utils").glob("*.py")])
    names = set(re.findall(r"[\"'](ACCELERATE_[A-Z0-9_]*[A-Z0-9]|FSDP_[A-Z_]*[A-Z])[\"']", text))
    assert len(names) > 40
    known = {*HONOURED.split(), *WITHOUT_EFFECT.split(), *distributed.ACCEPTED, *distributed.FSDP}
    assert [n for n in sorted(names - known) if not n.startswith(OF_THE_REFUSED)] == []


def test_what_accelerate_launch_always_says_is_taken():
    check_launch({
        "ACCELERATE_DYNAMO_BACKEND": "NO", "ACCELERATE_USE_CPU": "True",
        "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "1", "ACCELERATE_MIXED_PRECISION": "no",
    })  # fmt: skip


@pytest.mark.parametrize(
    ("own", "launched", "expected"),
    [
        (None, None, "no"), (None, "bf16", "bf16"), ("bf16", "no", "bf16"), ("no", "no", "no"),
        ("bf16", "bf16", "bf16"),
    ],
)  # fmt: skip
def test_the_precision_is_that_of_the_settings_else_that_of_the_launcher(own, launched, expected):
    said = {} if launched is None else {"ACCELERATE_MIXED_PRECISION": launched}
    assert launched_precision(TrainConfig(mixed_precision=own), said) == expected


@pytest.mark.parametrize(("own", "launched"), [("no", "bf16"), ("fp16", "bf16"), (None, "fp8")])
def test_two_precisions_and_unknown_ones_are_refused(own, launched):
    with pytest.raises(UserError, match="mixed_precision"):
        launched_precision(
            TrainConfig(mixed_precision=own), {"ACCELERATE_MIXED_PRECISION": launched}
        )


def test_sharding_is_what_the_launcher_says():
    asked = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
    assert launched_sharding({}) is None
    assert launched_sharding(asked).reshard
    assert not launched_sharding(asked | {"FSDP_RESHARD_AFTER_FORWARD": "false"}).reshard
    assert launched_sharding(asked | {"FSDP_AUTO_WRAP_POLICY": "NO_WRAP"}).classes == ()
    named = launched_sharding(asked | {"FSDP_TRANSFORMER_CLS_TO_WRAP": "UpBlock, DownBlock"})
    assert named.classes == ("UpBlock", "DownBlock")
    for change, words in (
        ({"FSDP_VERSION": "1"}, "fsdp_version 1"),
        ({"FSDP_OFFLOAD_PARAMS": "true"}, "fsdp_offload_params"),
        ({"FSDP_ACTIVATION_CHECKPOINTING": "true"}, "train.gradient_checkpointing"),
        ({"FSDP_AUTO_WRAP_POLICY": "SIZE_BASED_WRAP"}, "TRANSFORMER_BASED_WRAP"),
        ({"FSDP_IGNORED_MODULES": "head"}, "fsdp_ignored_modules"),
        ({"FSDP_SHARDING_STRATEGY": "HYBRID_SHARD"}, "fsdp_sharding_strategy"),
    ):
        with pytest.raises(UserError, match=words):
            launched_sharding(asked | change)


@pytest.mark.parametrize(
    ("setting", "dims", "device", "expected"),
    [
        (None, 2, "cpu", False),
        (None, 3, "cpu", True),
        (None, 2, "cuda", True),
        (True, 2, "cpu", True),
        (False, 3, "cuda", False),
    ],
)
def test_the_faster_memory_format_is_the_default(setting, dims, device, expected):
    layer = (nn.Conv2d if dims == 2 else nn.Conv3d)(4, 4, 3)
    weight = in_memory_format(layer, setting, torch.device(device)).weight
    last = torch.channels_last if dims == 2 else torch.channels_last_3d
    assert weight.is_contiguous(memory_format=last) == expected
    assert weight.is_contiguous() != expected


def test_a_gpu_compiles_what_wins_back_the_time(monkeypatch, tmp_path):
    gpu, cpu = map(torch.device, ("cuda", "cpu"))
    monkeypatch.setattr(distributed, "find_spec", lambda _: True)
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda _: (8, 0))
    monkeypatch.setenv("CC", "cc")
    (tmp_path / "Python.h").touch()
    monkeypatch.setattr("sysconfig.get_path", lambda _: str(tmp_path))
    assert compiling(None, gpu, COMPILED_FROM)
    assert not compiling(None, gpu, COMPILED_FROM - 1)
    assert not compiling(None, cpu, COMPILED_FROM)
    for asked, device in ((True, cpu), (True, gpu), (False, cpu), (False, gpu)):
        assert compiling(asked, device, 1) == compiling(asked, device, 10**9) == asked
    with monkeypatch.context() as old:
        old.setattr("torch.cuda.get_device_capability", lambda _: (6, 1))
        assert not compiling(None, gpu, COMPILED_FROM)
    (tmp_path / "Python.h").unlink()
    assert not compiling(None, gpu, COMPILED_FROM)


def test_a_gpu_gets_loader_processes_where_loading_is_work(monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: range(16), raising=False)
    gpu, cpu = map(torch.device, ("cuda", "cpu"))
    work = SimpleNamespace(laborious=True)
    assert loader_processes(None, work, gpu) == 8
    assert loader_processes(None, work, cpu) == 0
    assert loader_processes(None, object(), gpu) == 0
    assert loader_processes(0, work, gpu) == 0
    assert loader_processes(3, object(), cpu) == 3
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert loader_processes(None, work, gpu) == 4


def test_nothing_is_imported_or_named_that_windows_lacks():
    """Neither fcntl nor resource, no signal or function of `os` but those of every system."""
    package = Path(distributed.__file__).parents[1]
    lacking = "fork getuid geteuid setsid killpg getpgid mkfifo uname nice statvfs pread pwrite"
    lacking += " posix_fadvise posix_fallocate O_DIRECTORY O_NOFOLLOW sched_setaffinity chown"
    for file in package.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = {alias.name for alias in node.names} | {getattr(node, "module", None)}
                assert names.isdisjoint({"fcntl", "resource", "pwd", "grp", "termios"}), file
            if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "os":
                assert node.attr not in lacking.split(), file
            if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "signal":
                assert not node.attr.startswith("SIG") or node.attr in ("SIGTERM", "SIGINT"), file


@pytest.mark.parametrize(("status", "requeued"), [(138, True), (0, False), (1, False)])
def test_the_page_s_slurm_job_queues_itself_again_when_it_was_stopped(tmp_path, status, requeued):
    """With stand-ins for SLURM's commands and python."""
    page = (Path(__file__).parents[2] / "docs" / "many_gpus.md").read_text()
    job = re.search(r"```bash\n(#!/bin/bash.*?)```", page, re.DOTALL)[1]
    stand_ins = {
        "srun": 'for i in 0 1; do SLURM_PROCID=$i SLURM_LOCALID=$i "$@" || s=$?; done; exit $s',
        "scontrol": 'if [ "$1" = show ]; then echo host1; else echo "$@" >> said; fi',
        "python": f"echo $RANK/$WORLD_SIZE $LOCAL_RANK $MASTER_ADDR >> said; exit {status}",
    }
    for name, lines in stand_ins.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{lines}\n")
        (tmp_path / name).chmod(0o755)
    place = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_NTASKS": "2", "SLURM_JOB_ID": "7"}
    found = subprocess.run(["bash", "-c", job], cwd=tmp_path, env=place, check=False)
    assert found.returncode == status
    said = ["0/2 0 host1", "1/2 1 host1", *["requeue 7"] * requeued]
    assert (tmp_path / "said").read_text().splitlines() == said
