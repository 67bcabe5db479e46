"""Train a U-Net to denoise: `accelerate launch scripts/train_ddpm.py`."""

from pathlib import Path

from ddpm_unet.command_line import read_settings, user_errors
from ddpm_unet.config import DenoiseConfig

DEFAULT = Path(__file__).parents[1] / "configs" / "histology64.yaml"


def main() -> None:
    settings, name = read_settings(DenoiseConfig, DEFAULT)
    settings.run = settings.run or f"runs/{name}"

    from ddpm_unet.training.denoise import DenoiseJob
    from ddpm_unet.training.loop import train
    from ddpm_unet.training.run_folder import RunFolder

    train(DenoiseJob(settings), RunFolder(Path(settings.run)), settings)


if __name__ == "__main__":
    with user_errors():
        main()
