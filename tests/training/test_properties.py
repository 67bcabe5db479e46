"""Random files and interruptions: a result that is right, or one line."""

import re
import tempfile
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from hypothesis import HealthCheck, Phase, event, given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file
from short_runs import kill, run
from small import TINY

from ddpm_unet import Predictor
from ddpm_unet.config import (
    DenoiseConfig,
    HeadConfig,
    ImageDataConfig,
    PairDataConfig,
    PredictConfig,
    SegmentConfig,
    TrainConfig,
    UNetConfig,
)
from ddpm_unet.data.check import check_pairs
from ddpm_unet.errors import UserError
from ddpm_unet.training import loop
from ddpm_unet.training.checkpoint import checkpoint_paths
from ddpm_unet.training.from_config import build_pixel_job
from ddpm_unet.training.run_folder import RunFolder

NETWORK = UNetConfig(**{**TINY, "in_channels": None, "out_channels": None})


def examples(count: int) -> settings:
    return settings(
        max_examples=count, derandomize=True, deadline=None, database=None,
        phases=[Phase.explicit, Phase.generate], suppress_health_check=list(HealthCheck),
    )  # fmt: skip


# --- files


@st.composite
def arrays(draw, mask):
    """Pixels of one type, range and number of channels, for one file."""
    usual = ["uint8", "uint8", "uint8" if mask else "uint16", "uint16", "float32"]
    dtype = draw(st.sampled_from([*usual, *usual, "int16", "int32", "bool"]))
    channels = draw(st.sampled_from([1, 1, 1, 1, 1, 3, 3, 2, 4] + [5] * (not mask)))
    most = draw(st.sampled_from([1, 255, 2, 7, 300, 65535] if mask else [255, 4095, 65535]))
    if dtype == "float32" and draw(st.booleans()):
        most = 1
    return dtype, channels, most, draw(st.integers(0, 2**16))


def pixels(rng, kind, levels):
    return scaled(rng.integers(0, levels, (20, 24, 1)) / max(levels - 1, 1), kind)


def scaled(values, kind):
    """Values `[H, W, 1]` from 0 to 1 as the pixels of a file."""
    dtype, channels, most, _ = kind
    top = min(most, np.iinfo(dtype).max) if dtype not in ("float32", "bool") else most
    values = values if dtype == "float32" and top == 1 else np.round(values * top)
    return np.repeat(values, channels, -1).astype(dtype)


def write(path, array, codec):
    """As a person's programs would: TIFF of some codec, PNG, JPEG or a palette."""
    plain = array.dtype == np.uint8 and array.shape[-1] in (1, 3, 4)
    if codec in ("png", "jpg", "palette") and plain and (codec != "jpg" or array.shape[-1] < 4):
        image = Image.fromarray(array.squeeze(-1) if array.shape[-1] == 1 else array)
        if codec == "palette":
            image = image.convert("L").convert("P")
        image.save(path.with_suffix(".jpg" if codec == "jpg" else ".png"))
        return
    named = {"photometric": "minisblack", "planarconfig": "contig"} if array.shape[-1] > 1 else {}
    packed = codec if codec in ("lzw", "deflate", "packbits", "zstd") else None
    array = array[..., 0] if array.shape[-1] == 1 else array
    tifffile.imwrite(path.with_suffix(".tif"), array, compression=packed, **named)


CODECS = st.sampled_from(["png", "jpg", "palette", "lzw", "deflate", "packbits", "zstd", "none"])


TABLE = ((0, 0, 0), (200, 30, 30), (20, 20, 220))


@examples(30)
@given(
    image=arrays(mask=False), other=st.one_of(*[st.none()] * 4, arrays(mask=False)),
    mask=arrays(mask=True), codecs=st.tuples(CODECS, CODECS, CODECS),
    levels=st.sampled_from([2, 2, 3, 1]),
    kind=st.sampled_from(["auto", "auto", "threshold", "instances", "colors"]),
    seen=st.sampled_from([None, "percentiles", (0, 65535)]),
)  # fmt: skip
def test_any_files_are_segmented_or_refused_in_one_line(
    image, other, mask, codecs, levels, kind, seen
):
    rng = np.random.default_rng(image[-1])
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        classes = rng.integers(0, levels, (2, 20, 24))
        for folder in ("images", "masks", "again"):
            (home / folder).mkdir()
        for number in range(2):
            array = pixels(rng, other or image if number else image, 256)
            write(home / f"images/{number}", array, codecs[0])
            write(home / f"again/{number}", array, codecs[2])
            array = scaled(classes[number][..., None] / max(levels - 1, 1), mask)
            if kind == "colors":
                array = np.array(TABLE, np.uint8)[classes[number]]
            write(home / f"masks/{number}", array, codecs[1])
        data = PairDataConfig(
            str(home / "images"), str(home / "masks"), size=8, mask_kind=kind,
            class_colors=TABLE if kind == "colors" else (), nearest_color=codecs[1] == "jpg",
            value_range=seen,
        )  # fmt: skip
        config = SegmentConfig(
            run=str(home / "run"), init="scratch", data=data, model=NETWORK,
            predict=PredictConfig(tile=96), head=HeadConfig(),
            train=TrainConfig(steps=2, batch_size=2, warmup_steps=1, sample_every=0, native=False),
        )  # fmt: skip
        try:
            job = build_pixel_job(config)
            report = check_pairs(data)
            for truth, pair in zip(classes, report.pairs, strict=True):
                values = report.mask_code().read(pair.read_mask(), pair.mask_file)
                read = report.mask_code().classes(values, pair.mask_file)
                for level in np.unique(truth):  # one class each, but for loss of JPEG
                    if codecs[1] != "jpg":
                        assert len(np.unique(read[truth == level])) == 1
            loop.train(job, RunFolder(home / "run"), config)
            predictor = Predictor.from_pretrained(home / "run" / "model")
            for file in sorted((home / "images").iterdir()):
                found = predictor(file)
                assert found.mask.shape == (20, 24)
                (same,) = (home / "again").glob(f"{file.stem}.*")
                if not {".jpg"} & {file.suffix, same.suffix} and "palette" not in codecs:
                    assert (predictor(same).probabilities == found.probabilities).all()
            larger = np.tile(pixels(rng, image, 256), (3, 2, 1))
            with suppress(UserError):  # types that arrays, unlike files, do not come in
                assert predictor(larger).mask.shape == (60, 48)
            event("segmented")
        except UserError as error:
            event(re.sub(r"[^ ]*tmp[^ ]*|[0-9.]+", "#", str(error).splitlines()[-1])[:90])
            for line in str(error).splitlines():  # of a labelled set, a line for each file
                assert 10 < len(line) < 600, line
                assert "Traceback" not in line


# --- interruptions

CHANGES = st.fixed_dictionaries(
    {},
    optional={
        "train.checkpoint_every": st.integers(1, 4),
        "train.keep_checkpoints": st.integers(1, 3),
        "train.sample_every": st.sampled_from([0, 2]),
        "data.workers": st.sampled_from([0, 0, 1]),
        "data.memory_limit": st.sampled_from([0, 100]),
        "train.micro_batch": st.sampled_from([1, 2, 3]),
    },
)


def changed(config, folder, changes):
    """The settings with some other, for a run in a folder of its own."""
    groups = {"train": {}, "data": {}}
    for name, value in changes.items():
        group, _, leaf = name.partition(".")
        groups[group][leaf] = value
    return replace(
        config, run=str(folder), train=replace(config.train, **groups["train"]),
        data=replace(config.data, **groups["data"]),
    )  # fmt: skip


@examples(4)
@given(st.lists(st.tuples(st.integers(1, 5), CHANGES), min_size=1, max_size=3), CHANGES)
def test_any_stops_and_changes_end_as_a_run_without(blobs, stops, last):
    with tempfile.TemporaryDirectory() as name:
        config = DenoiseConfig(
            run=f"{name}/whole", data=ImageDataConfig(source=str(blobs), size=8), model=NETWORK,
            train=TrainConfig(
                steps=6, batch_size=4, warmup_steps=2, checkpoint_every=2, validate_every=0,
                sample_every=0, log_every=3, native=False,
            ),
        )  # fmt: skip
        config.preview = replace(config.preview, num_images=1, steps=1)
        whole = run(config)
        folder = Path(name, "stopped")
        for batches, changes in stops:
            with suppress(pytest.fail.Exception):  # what is left has fewer passes
                kill(changed(config, folder, changes), batches)
        stopped = run(changed(config, folder, last))
        ends = [checkpoint_paths(kept.checkpoints)[-1] for kept in (whole, stopped)]
        assert [end.name for end in ends] == ["00000006"] * 2
        exact = not any("train.micro_batch" in c for c in (*(c for _, c in stops), last))
        for file in ("model.safetensors", "ema.safetensors"):
            a, b = (load_file(end / file) for end in ends)
            for key in a:
                torch.testing.assert_close(b[key], a[key], rtol=0, atol=0 if exact else 1e-5)
