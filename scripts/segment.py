"""Segment images of any size: `python scripts/segment.py --model runs/x/model IMAGES...`."""

from ddpm_unet.cli import run

if __name__ == "__main__":
    run("segment")
