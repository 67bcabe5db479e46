"""scripts/benchmarks: fair turns, right arithmetic, and a page of whatever was measured."""

import json
import re
import sys
from dataclasses import replace
from mmap import mmap

import benchmarks.__main__ as benchmark
import pytest
import torch
from accelerate.state import AcceleratorState
from benchmarks import (
    allocator,
    gpu,
    growth_plots,
    inputs,
    many_images,
    memory,
    networks,
    sampling,
    training,
)
from benchmarks.page import page
from benchmarks.rows import DIFFUSERS, MONAI, OURS, Goal, Measured, Results, Row
from benchmarks.timing import Effort, Timer, quotients
from diffusers import UNet2DModel
from small import SMALL

from ddpm_unet.config import UNetConfig
from ddpm_unet.cpu import is_accelerated
from ddpm_unet.files import replace_json
from ddpm_unet.models.pretrained import settings_of
from ddpm_unet.training.loop import Training

ONCE = Effort(quick=True, seconds=0, least=1, most=1, warm_up=0)
TINY = UNetConfig(**SMALL, sample_size=8)
AT = {
    "date": "2026-01-02", "quick": False, "cpu": "a CPU", "processors": 2, "vectors": "AVX2",
    "memory_gb": 16, "threads": 2, "gpu": None, "matrix_gflops": {"1": 100.0, "2": 110.0},
    "versions": {"torch": "2.99"},
}  # fmt: skip


class Machine:
    """A clock that moves when work is done, slower in every round."""

    def __init__(self, slower=1.0):
        self.now, self.slowness, self.slower, self.calls = 0.0, 1.0, slower, []

    def work(self, name, seconds):
        def run():
            self.calls.append(name)
            self.now += seconds * self.slowness
            if name == "b":
                self.slowness *= self.slower

        return run

    def timer(self, effort):
        return Timer(effort, clock=lambda: self.now, rate=lambda: 100 / self.slowness)


def test_sides_take_turns_and_the_warm_up_does_not_count():
    machine = Machine()
    timer = machine.timer(Effort(seconds=1e9, least=1, most=3, warm_up=2))
    timer.alternate({"a": machine.work("a", 1.0), "b": machine.work("b", 3.0)})
    assert machine.calls == ["a", "b"] * 5
    assert timer.samples == {"a": [1.0] * 3, "b": [3.0] * 3}
    assert timer.rates == {"a": [100.0] * 3, "b": [100.0] * 3}


def test_a_slowing_machine_moves_no_ratio():
    machine = Machine(slower=1.5)
    timer = machine.timer(Effort(seconds=1e9, least=1, most=9))
    timer.alternate({"a": machine.work("a", 1.0), "b": machine.work("b", 3.0)})
    assert timer.samples["a"][-1] > 20 * timer.samples["a"][0]
    assert quotients(timer.samples["b"], timer.samples["a"]) == pytest.approx((3, 3, 3))
    done = [1.0 / s / r for s, r in zip(timer.samples["a"], timer.rates["a"], strict=True)]
    assert done == pytest.approx([0.01] * 9)


@pytest.mark.parametrize(("least", "seconds", "rounds"), [(2, 0, 2), (2, 30, 4), (2, 1e9, 6)])
def test_rounds_end_in_time(least, seconds, rounds):
    machine = Machine()
    timer = machine.timer(Effort(seconds=seconds, least=least, most=6))
    timer.alternate({"a": machine.work("a", 10.0)})
    assert len(timer.samples["a"]) == rounds


@pytest.fixture
def results(tmp_path):
    return Results(tmp_path / "docs" / "benchmarks.json")


def row(peers, **options):
    return Row("a row", "ms", peers, lambda effort: pytest.fail("measured"), **options)


def cells(text):
    """The lines of the first table without its head."""
    lines = [line for line in text.splitlines() if line.startswith("| a row") or "|  |  |" in line]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_the_page_of_a_row(results):
    measured = Measured(
        {OURS: [0.02, 0.04, 0.02], DIFFUSERS: [0.05, 0.10, 0.03], "other": [0.04, 0.04, 0.04]},
        rates={OURS: [1e12] * 3, DIFFUSERS: [1e12] * 3},
        per=2,
        gflop={OURS: 5.0, DIFFUSERS: 5.0, "other": 10.0},
        differences={DIFFUSERS: 1.234e-6},
        notes=["something", "more"],
    )
    results.add("x", measured, AT)
    rows = {"x": row({DIFFUSERS: Goal(1.5, 3.0), MONAI: Goal(1.1, 2.0)})}
    first, second, third = cells(page(results, rows))[:3]
    assert first[:5] == ["a row", "5", "10 ms", DIFFUSERS, "25 ms"]
    assert first[5] == "2.50x (2.00 to 2.50)"
    assert first[6] == "1.5x / 3x: reached"
    assert first[7:] == ["50 %, 20 %", "1.2e-06"]
    assert second[3:5] == [MONAI, "not installed"]
    assert second[6] == "1.1x / 2x"
    assert third[3] == "other"
    assert third[5].startswith("1.00x")  # half as fast, for twice the work
    text = page(results, rows)
    assert "- a row: something; more." in text
    assert "2026-01-02, a CPU, 2 processors (AVX2), 2 threads used, 16 GB, torch 2.99" in text


def test_rows_of_memory_and_of_a_limit(results):
    results.add("m", Measured({OURS: [800.0], DIFFUSERS: [1000.0]}), AT)
    results.add("s", Measured({OURS: [1.5]}), AT)
    rows = {
        "m": replace(row({DIFFUSERS: Goal(1.0, 0.8)}, smaller=True), unit="MB"),
        "s": replace(row({}, within=Goal(2.0, 0.5)), unit="s"),
    }
    text = page(results, rows)
    assert (
        "| 800 MB | diffusers | 1,000 MB | 0.80x (0.80 to 0.80) | 1x / 0.8x: aim reached |" in text
    )
    assert "| 1.5 s |  |  |  | 2 s / 0.5 s: reached |" in text


@pytest.mark.parametrize("kind", ["step", "forward"])
def test_the_row_of_the_allocator_times_each_turn(kind, capsys):
    allocator.main(kind, 1)
    (seconds,) = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert seconds > 0


def test_one_row_alone_from_end_to_end(tmp_path, monkeypatch, capsys):
    kept = Results(tmp_path / "benchmarks.json")
    kept.add("help", Measured({OURS: [0.123456789]}), AT)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    arguments = ["--quick", "--only", "loop", "--device", "cpu", "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["benchmark.py", *arguments])
    benchmark.main()
    written = json.loads((tmp_path / "benchmarks.json").read_text())["rows"]
    assert written["help"]["samples"] == {OURS: [0.12346]}
    loop = written["loop"]
    assert len(loop["samples"][OURS]) == len(loop["samples"][DIFFUSERS]) >= 2
    assert loop["differences"][DIFFUSERS] < 1e-4
    assert loop["circumstances"]["quick"]
    text = (tmp_path / "benchmarks.md").read_text()
    assert text in capsys.readouterr().out
    assert "| DDPM loop without a network, a step |  |" in text


def test_work_of_the_cifar_network(tmp_path):
    replace_json(tmp_path / "config.json", settings_of(networks.cifar()))
    with torch.device("meta"):
        unet = networks.UNet(networks.cifar())
        twin = UNet2DModel.from_config(UNet2DModel.load_config(tmp_path))
    inputs = networks.random_batch(unet.config, 3)
    assert networks.gflop(unet, *inputs) == pytest.approx(12.44, rel=0.01)
    assert networks.gflop(twin, *inputs) == networks.gflop(unet, *inputs)
    assert networks.gflop(twin, *inputs, backward=True) == pytest.approx(37.4, rel=0.01)
    assert sum(p.numel() for p in unet.parameters()) == 35_746_307
    assert sum(p.numel() for p in networks.UNet(networks.SMALL).parameters()) == 164_563


def test_differences_see_what_differs():
    ours = networks.random_unet(TINY)
    theirs = networks.diffusers_twin(ours)
    x, t = networks.random_batch(TINY, 2)
    for network in (ours, theirs):
        output = network(x, t)
        getattr(output, "sample", output).square().mean().backward()
    assert networks.gradient_difference(ours, theirs) < 1e-5
    theirs.conv_in.weight.grad.mul_(1.5)
    assert networks.gradient_difference(ours, theirs) > 1e-3
    with torch.no_grad():
        assert networks.difference(ours(x, t), theirs(x, t).sample) < 1e-5
        theirs.conv_out.bias.add_(0.1)
        assert networks.difference(ours(x, t), theirs(x, t).sample) > 1e-3


def test_a_training_step_beside_its_peer(monkeypatch):
    monkeypatch.setattr(training, "cifar", lambda: TINY)
    monkeypatch.setattr(training, "installed", lambda peer: False)
    measured = training.step(ONCE, batch=2)
    assert measured.differences[DIFFUSERS] < 1e-4
    assert {side: len(found) for side, found in measured.samples.items()} == {OURS: 1, DIFFUSERS: 1}


def test_sampling_end_to_end_draws_the_same_pictures():
    unet = networks.random_unet(TINY)
    measured = sampling.end_to_end(ONCE, unet, sampling.GaussianDiffusion(), images=2, steps=5)
    assert measured.differences[DIFFUSERS] < 1e-4
    assert measured.per == 5
    single = networks.gflop(unet, *networks.random_batch(TINY, 1))
    assert measured.gflop[OURS] == pytest.approx(2 * single)


@pytest.mark.parametrize("task", gpu.catalogue())
def test_gpu_rows_on_a_cpu(task, capfd, monkeypatch):
    monkeypatch.setattr(Training, "_optimize", Training._optimize)  # the row counts its calls
    AcceleratorState._reset_state(reset_partial_state=True)
    lines = [gpu.measure(task, side, 0.01, "cpu", tiny=True) for side in (OURS, DIFFUSERS)
             if side in gpu.catalogue()[task].sides]  # fmt: skip
    found = gpu.measured([line | {"peak_memory_mb": 7.0} for line in lines])
    assert all(len(values) >= 3 for values in found.samples.values())
    assert found.rates == {}  # the peak of a CPU is not known
    assert task == "reverse_loop" or found.gflop[OURS] == found.gflop[DIFFUSERS] > 0
    assert "ours 7 MB" in found.notes[0]
    AcceleratorState._reset_state(reset_partial_state=True)


def test_the_shipped_model_is_measured_as_the_scripts_use_it():
    assert is_accelerated(networks.histology()[0])


def test_reading_pictures_gives_the_same_pixels(monkeypatch):
    monkeypatch.setattr(inputs, "BATCH", 256)
    measured = inputs.packed_images(ONCE)
    assert measured.differences[inputs.TORCHVISION] < 1e-6
    assert measured.per == 1024


def test_peak_memory_is_that_of_the_past():
    before = memory.resident("VmRSS")
    with mmap(-1, 320 * 2**20) as pages:
        pages.write(bytes(1) * len(pages))
    assert memory.resident("VmHWM") > before + 250


def curve(seconds, rates=None):
    sizes = [1, 2, 4, 8]
    rates = rates or [1.0] * 4
    return {
        "sizes": sizes,
        "work": sizes,
        "samples": [[s / r] for s, r in zip(seconds, rates, strict=True)],
        "rates": [[r] for r in rates],
        "note": "What is more.",
        "circumstances": AT,
    }


def test_growth_tells_where_a_line_bends(tmp_path):
    look = growth_plots.LOOKS["sampling_images"]
    text = growth_plots.told(look, curve([3, 4, 6, 20]))
    assert "1: 3 s (2.00 times), 2: 4 s (1.33 times), 4: 6 s (1.00 times), 8: 20 s (1.67" in text
    assert "Above the line up to 2 (at 1 by 1,500 ms)" in text
    assert "again from 8" in text
    assert text.endswith("What is more.\n")
    assert "Straight over the whole range" in growth_plots.told(look, curve([1.1, 2, 4, 8.5]))


def test_growth_plots_and_page(tmp_path, results):
    cases = {"1 process, 1 thread": [10.0, 12.0, 11.0], "2 processes, 1 thread each": [13.2]}
    results.add_growth("tiles_area", curve([1, 2, 4, 8]), {**AT})
    results.add_growth("processes", {"training": cases, "sampling": cases}, AT)
    growth_plots.plot_growth(results.growth, tmp_path)
    assert (tmp_path / "growth_tiles_area.png").stat().st_size > 10_000
    text = page(results, {})
    assert "![Overlap-tile" in text
    assert "| 2 processes, 1 thread each | 13.2 (1.20x) | 13.2 (1.20x) |" in text
    assert (
        "100 GFLOP/s on 1 thread, 110 GFLOP/s on 2 threads; two threads are 1.10 times one: they"
        in text
    )


@pytest.mark.parametrize(
    ("kind", "ways"),
    [
        ("files", many_images.WAYS[:-1]),
        ("tar", ("again",)),
        ("hf", ("first",)),
        ("slide", ("first", "segmented")),
    ],
)
def test_large_sets_are_made_and_measured(kind, ways, tmp_path, monkeypatch, capsys):
    if kind == "hf":
        pytest.importorskip("datasets")
    asked = []

    def here(kind, place, way, home, seconds):  # in place of new processes
        asked.append(way)
        assert len(list(place.rglob("*.png"))) == 70 * (kind == "files")
        if kind == "tar":  # whose index is then below `home`
            return in_processes(kind, place, way, home, seconds)
        return many_images.measure(kind, place, way, seconds)

    in_processes = many_images.in_processes
    monkeypatch.setattr(many_images.time, "sleep", lambda _: None)
    monkeypatch.setattr(many_images, "in_processes", here)
    monkeypatch.setattr("ddpm_unet.data.collection.CACHE", tmp_path)
    small = ["--count", "70", "--side", "600", "--seconds", "0"]
    many_images.main([kind, *small, "--ways", *ways])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"{kind}: made in ")
    assert [line.partition(":")[0] for line in lines[1:]] == [f"{kind}, {way}" for way in ways]
    assert all(
        re.search(r"start [\d.]+, own .*, shared .*, images/s [\d,.]+$", x)
        or re.search(r"segmented: seconds [\d.]+, peak .*, million pixels/s [\d.]+$", x)
        for x in lines[1:]
    )
    assert asked == list(ways)
    assert bool(list(tmp_path.rglob("images/*"))) == (kind == "files")
