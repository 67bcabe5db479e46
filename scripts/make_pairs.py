"""Make pictures to predict, with baselines: `python scripts/make_pairs.py pansharpening`."""

from ddpm_unet.cli import run

if __name__ == "__main__":
    run("make-pairs")
