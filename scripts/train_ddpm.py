"""Train a U-Net to denoise: `accelerate launch scripts/train_ddpm.py`."""

from ddpm_unet.cli import run

if __name__ == "__main__":
    run("train-ddpm")
