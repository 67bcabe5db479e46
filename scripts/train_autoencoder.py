"""Train an autoencoder for latent denoising: `accelerate launch scripts/train_autoencoder.py`."""

from ddpm_unet.cli import run

if __name__ == "__main__":
    run("train-autoencoder")
