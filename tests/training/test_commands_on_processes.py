"""Every command on two processes (gloo, on the CPU) writes what it does on one."""

import json
import runpy
import sys
from functools import partial
from pathlib import Path

import pytest
import yaml
from forked import finish, in_processes
from safetensors.torch import load_file
from small import TINY, Means, write_images

from ddpm_unet import cli
from ddpm_unet.data.conditioning import ConcatCondition
from ddpm_unet.diffusion.process import GaussianDiffusion
from ddpm_unet.evaluation import extractors
from ddpm_unet.evaluation.plots import pyplot
from ddpm_unet.inference.conditioning import Conditioning
from ddpm_unet.inference.pipeline import write_pipeline
from ddpm_unet.models import UNet
from ddpm_unet.models.segmenter import Segmenter

SCRIPTS = Path(__file__).parents[2] / "scripts"
NETWORK = {name: list(v) if isinstance(v, tuple) else v for name, v in TINY.items()}
TRAIN = {"steps": 2, "batch_size": 4, "warmup_steps": 1, "validate_every": 2, "sample_every": 2}
FLAGS = {
    "train-ddpm": "--config denoise.yaml --run OUT",
    "train-seg": "--config segment.yaml --run OUT",
    "train-autoencoder": "--config autoencode.yaml --run OUT",
    "sample": "--model model --num_images 5 --batch_size 2 --steps 2 --out OUT",
    "segment": "images --model segmenter --tile 96 --probabilities tiff --out OUT",
    "evaluate": "--model model --steps 2 --num_images 9 --batch_size 2 --extractor means --out OUT",
    "likelihood": "--model model --images 5 --parts 4 --batch_size 2 --all --out OUT",
    "uncertainty": "--model guided --images images --targets targets --tiles 3 --samples 3"
    " --steps 2 --batch_size 2 --out OUT",
}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Images, masks, targets, two denoisers and a segmenter, all tiny."""
    pyplot()  # once, not in every process
    home = tmp_path_factory.mktemp("home")
    write_images(home / "images", 24, 16, 16, 3)
    write_images(home / "targets", 24, 16, 16, 3, most=200)
    write_images(home / "masks", 24, 16, 16, most=1)
    denoise = {"data": {"source": "images", "size": 8}, "model": NETWORK, "train": TRAIN}
    denoise["preview"] = {"num_images": 2, "steps": 2, "validation_images": 3}
    segment = {"data": {"images": "images", "masks": "masks", "size": 8}, "init": "scratch"}
    segment |= {"model": NETWORK, "train": TRAIN, "predict": {"tile": 96}}
    small = {"latent_channels": 3, "block_out_channels": [8, 16], "norm_num_groups": 4}
    autoencode = {**denoise, "model": small}
    files = {"denoise": denoise, "segment": segment, "config": denoise, "autoencode": autoencode}
    for name, settings in files.items():
        (home / f"{name}.yaml").write_text(yaml.safe_dump(settings))
    small = UNet(**NETWORK, sample_size=8)
    write_pipeline(home / "model", small, GaussianDiffusion())
    told = Conditioning(image_channels=3, concat_cond=ConcatCondition("image", 3))
    guided = UNet(**NETWORK, sample_size=8, in_channels=6)
    write_pipeline(home / "guided", guided, GaussianDiffusion())
    told.write(home / "guided")
    Segmenter(small).save_pretrained(home / "segmenter")
    return home


def start(command: str, out: str) -> None:
    flags = FLAGS[command].replace("OUT", out).split()
    if command != "uncertainty":
        return cli.run(command, flags)
    import uncertainty

    sys.argv = ["uncertainty.py", *flags]
    return uncertainty.main()


@pytest.mark.parametrize(
    "command", ["check", "ema --length 0.1", "report", "push a/b", "convert a b", "compare.py a=b"]
)
def test_what_is_the_work_of_one_process_is_refused_to_two(command, monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    name, *flags = command.split()
    monkeypatch.setattr("sys.argv", [name, *flags])
    script = partial(runpy.run_path, str(SCRIPTS / name), run_name="__main__")
    with pytest.raises(SystemExit) as stopped:
        script() if name.endswith(".py") else cli.run(name, flags)
    said = "error: 2 processes were started, and this is the work of one; start it without"
    assert (stopped.value.code, capsys.readouterr().err[: len(said)]) == (2, said)


def test_every_script_is_shared_or_the_work_of_one():
    """A new command must be in one of the lists above, a new script guarded by `user_errors`."""
    assert {*FLAGS} - {"uncertainty"} == cli.SHARED
    plain = [p for p in SCRIPTS.glob("*/*.py") if p.parent.name in ("examples", "experiments")]
    texts = {p.name: p.read_text() for p in plain if "__main__" in p.read_text()}
    free = {name for name, text in texts.items() if "user_errors" not in text}
    assert free <= {
        "network_cost.py", "network_diagram.py", "reliability.py", "reliability_runs.py",
    }  # fmt: skip
    assert [name for name, text in texts.items() if "shared=True" in text] == ["uncertainty.py"]


def written(folder):
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def untimed(file: Path) -> dict[str, object]:
    """What a file of an evaluation says, but for the time it took."""
    if file.suffix == ".safetensors":
        return {k: v.tolist() for k, v in load_file(file).items() if k != "seconds"}
    return {k: v for k, v in json.loads(file.read_text()).items() if k != "seconds_per_image"}


@pytest.mark.parametrize("command", [command for command in FLAGS if command != "train-ddpm"])
def test_two_processes_write_what_one_does(command, home, monkeypatch):
    monkeypatch.chdir(home)
    monkeypatch.setitem(extractors.EXTRACTORS, "means", Means)
    folders = [home / f"{command}{count}" for count in (1, 2)]
    for count, folder in zip((1, 2), folders, strict=True):
        finish(in_processes(count, lambda name=folder.name: start(command, name)))
    one, two = map(written, folders)
    assert one == two != []
    if command.startswith("train"):  # compared, to rounding, in test_processes
        page = (folders[1] / "report.html").read_text()
        assert "<dt>processes</dt><dd>2</dd>" in page
        assert "model/README.md" in two
        return
    for name in one:
        files = [folder / name for folder in folders]
        if command == "evaluate" and name != "page.png":  # says how long it took, too
            first, second = map(untimed, files)
            assert first == second, name
        else:
            assert files[0].read_bytes() == files[1].read_bytes(), name


def test_a_stopped_sampling_job_goes_on_on_two_processes(home, monkeypatch):
    """Only the shards that are missing are drawn."""
    monkeypatch.chdir(home)
    monkeypatch.setitem(FLAGS, "sample", f"{FLAGS['sample']} --npz")
    for count, name in ((1, "whole"), (2, "stopped")):
        finish(in_processes(count, lambda name=name: start("sample", name)))
    shards = [name for name in written(home / "whole") if name.endswith(".npz")]
    assert shards == ["00000-00001.npz", "00002-00003.npz", "00004-00004.npz"]
    (home / "stopped" / shards[1]).unlink()
    times = {name: (home / "stopped" / name).stat().st_mtime_ns for name in shards[::2]}
    finish(in_processes(2, lambda: start("sample", "stopped")))
    for name in shards:
        assert (home / "whole" / name).read_bytes() == (home / "stopped" / name).read_bytes()
    assert times == {name: (home / "stopped" / name).stat().st_mtime_ns for name in times}
