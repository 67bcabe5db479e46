"""Train a U-Net to segment from a handful of masks: `python scripts/train_seg.py`."""

from ddpm_unet.cli import run

if __name__ == "__main__":
    run("train-seg")
