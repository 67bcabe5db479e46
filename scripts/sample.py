"""Draw images from a trained denoiser: `python scripts/sample.py --steps 1000`."""

from ddpm_unet.cli import run

if __name__ == "__main__":
    run("sample")
