"""Train an autoencoder for latent denoising: `accelerate launch scripts/train_autoencoder.py`."""

from pathlib import Path

from ddpm_unet.command_line import read_settings, user_errors
from ddpm_unet.config import AutoencodeConfig

DEFAULT = Path(__file__).parents[1] / "configs" / "histology_autoencoder.yaml"


def main() -> None:
    settings, name = read_settings(AutoencodeConfig, DEFAULT)
    settings.run = settings.run or f"runs/{name}"

    from ddpm_unet.training.autoencode import AutoencodeJob
    from ddpm_unet.training.loop import train
    from ddpm_unet.training.run_folder import RunFolder

    train(AutoencodeJob(settings), RunFolder(Path(settings.run)), settings)


if __name__ == "__main__":
    with user_errors():
        main()
