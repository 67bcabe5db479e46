"""A model with averaged weights of another length: `python scripts/ema.py --length 0.08`."""

from ddpm_unet.cli import run

if __name__ == "__main__":
    run("ema")
