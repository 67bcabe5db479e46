"""Random files and interruptions: a result that is right, or one line."""

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
from runs import kill, run
from safetensors.torch import load_file
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
from ddpm_unet.errors import UserError
from ddpm_unet.training import loop
from ddpm_unet.training.checkpoint import checkpoint_paths
from ddpm_unet.training.from_config import build_pixel_job
from ddpm_unet.training.run_folder import RunFolder

NETWORK = UNetConfig(**TINY)


def examples(count: int) -> settings:
    return settings(
        max_examples=count, derandomize=True, deadline=None, database=None,
        phases=[Phase.explicit, Phase.generate], suppress_health_check=list(HealthCheck),
    )  # fmt: skip


# --- files


@st.composite
def arrays(draw, mask):
    """Pixels of one type, range and number of channels, for one file."""
    usual = st.sampled_from(["uint8", "uint16", "float32"] if not mask else ["uint8"])
    odd = st.sampled_from(["int16", "int32", "float32", "bool", "uint16"])
    dtype = draw(st.one_of(usual, usual, odd))
    channels = draw(st.sampled_from([1, 1, 1, 3, 2, 4, 5]))
    most = draw(st.sampled_from([1, 255, 2, 7, 300, 65535] if mask else [255, 4095, 65535]))
    if dtype == "float32" and draw(st.booleans()):
        most = 1
    return dtype, channels, most, draw(st.integers(0, 2**16))


def pixels(rng, kind, levels):
    dtype, channels, most, _ = kind
    values = rng.integers(0, levels, (20, 24, 1)) / max(levels - 1, 1)
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


@examples(50)
@given(
    image=arrays(mask=False), mask=arrays(mask=True), codecs=st.tuples(CODECS, CODECS),
    levels=st.sampled_from([2, 2, 3, 1]), kind=st.sampled_from(["auto", "threshold", "instances"]),
)  # fmt: skip
def test_any_files_are_segmented_or_refused_in_one_line(image, mask, codecs, levels, kind):
    rng = np.random.default_rng(image[-1])
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        for folder, what, codec, count in (
            ("images", image, codecs[0], 256), ("masks", mask, codecs[1], levels)
        ):  # fmt: skip
            (home / folder).mkdir()
            for number in range(2):
                write(home / folder / str(number), pixels(rng, what, count), codec)
        data = PairDataConfig(str(home / "images"), str(home / "masks"), size=8, mask_kind=kind)
        config = SegmentConfig(
            run=str(home / "run"), init="scratch", data=data, model=NETWORK,
            predict=PredictConfig(tile=96), head=HeadConfig(),
            train=TrainConfig(steps=2, batch_size=2, warmup_steps=1, sample_every=0, native=False),
        )  # fmt: skip
        try:
            loop.train(build_pixel_job(config), RunFolder(home / "run"), config)
            predictor = Predictor.from_pretrained(home / "run" / "model")
            for file in sorted((home / "images").iterdir()):
                assert predictor(file).mask.shape == (20, 24)
            larger = np.tile(pixels(rng, image, 256), (3, 2, 1))
            with suppress(UserError):  # types that arrays, unlike files, do not come in
                assert predictor(larger).mask.shape == (60, 48)
            event("segmented")
        except UserError as error:
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


@examples(6)
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
