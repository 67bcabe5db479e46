"""Bits per dimension of held-out images under a denoiser: `python scripts/likelihood.py`."""

from ddpm_unet.cli import run

if __name__ == "__main__":
    run("likelihood")
