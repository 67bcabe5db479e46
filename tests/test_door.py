"""What `import ddpm_unet` gives: at once, lazily, typed, with examples that run."""

import doctest
import os
import subprocess
import sys

import pytest
import torch

import ddpm_unet

ROOT = os.path.dirname(os.path.dirname(ddpm_unet.__file__))
NAMES = [
    "ClassicUNet", "Denoiser", "GaussianDiffusion", "Predictor", "Segmenter", "UNet", "sample",
    "train",
]  # fmt: skip


def python(*arguments, **options):
    environment = os.environ | {"PYTHONPATH": ROOT}
    return subprocess.run(
        [sys.executable, *arguments], env=environment, capture_output=True, text=True, **options
    )


class Said(doctest.OutputChecker):
    """Progress that an example prints, and does not show, is not held against it."""

    def check_output(self, want, got, optionflags):
        return not want or super().check_output(want, got, optionflags)


def test_the_import_loads_nothing():
    """Of Python's own modules only; so it takes milliseconds."""
    program = "import sys; old = set(sys.modules); import ddpm_unet; print(*set(sys.modules) - old)"
    done = python("-c", program, check=True)
    loaded = {name.split(".")[0] for name in done.stdout.split()}
    assert not loaded & {"torch", "numpy", "yaml", "diffusers", "accelerate", "scipy", "PIL"}
    assert len(done.stdout.split()) < 60


def test_names():
    assert sorted(n for n in ddpm_unet.__all__ if n != "__version__") == NAMES
    assert set(ddpm_unet.__all__) <= set(dir(ddpm_unet))
    assert ddpm_unet.__version__[0].isdigit()
    with pytest.raises(AttributeError, match="no attribute 'Unet'"):
        ddpm_unet.Unet  # noqa: B018


@pytest.mark.parametrize("name", NAMES)
def test_the_example_of_each_name_runs(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    value = getattr(ddpm_unet, name)
    assert value.__doc__
    finder = doctest.DocTestFinder(recurse=False)
    examples = [t for t in finder.find(value, name, globs={}) if t.examples]
    assert examples, f"{name} has no example"
    for test in examples:
        result = doctest.DocTestRunner(checker=Said()).run(test)
        assert result.failed == 0


def test_a_users_types_are_checked(tmp_path):
    (tmp_path / "user.py").write_text(
        "from ddpm_unet import Denoiser, GaussianDiffusion, Predictor, UNet\n"
        "unet = UNet(in_channels=1, out_channels=1)\n"
        "denoiser = Denoiser(unet, GaussianDiffusion(num_timesteps=10))\n"
        "images = denoiser.sample(2, steps=4)\n"
        "reveal_type(images)\n"
        "Denoiser(3, GaussianDiffusion())\n"
        "Predictor.from_pretrained(3)\n"
    )
    (tmp_path / "mypy.ini").write_text(  # what lies in the wheel; torch's own types take a minute
        "[mypy]\nfollow_imports = silent\n"
        "[mypy-torch.*,torchvision.*,diffusers.*,scipy.*,PIL.*,matplotlib.*,skimage.*]\n"
        "follow_imports = skip\n"
    )
    done = python("-m", "mypy", "user.py", cwd=tmp_path)
    assert 'Revealed type is "numpy.ndarray' in done.stdout
    assert 'incompatible type "int"; expected "UNet"' in done.stdout
    assert 'argument 1 to "from_pretrained"' in done.stdout.lower()


def test_the_process_stays_as_it_was():
    """No seed, no thread, no allocator, no compiling by construction and prediction."""
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    unet = ddpm_unet.UNet(
        sample_size=8, in_channels=1, out_channels=1, block_out_channels=(8,), layers_per_block=1,
        norm_num_groups=4,
    )  # fmt: skip
    torch.set_rng_state(state)
    ddpm_unet.sample(unet, ddpm_unet.GaussianDiffusion(num_timesteps=10), 2, steps=4, seed=3)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == threads
