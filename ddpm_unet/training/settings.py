"""Settings of the loop that no training could use."""

from __future__ import annotations

from ddpm_unet.config import PreviewConfig, TrainConfig
from ddpm_unet.config.reading import check_limits
from ddpm_unet.errors import UserError


def check_training(config: TrainConfig) -> None:
    """Refuse a loop that could not run, or could lose what it did.

    Raises:
        UserError: Names the setting.
    """
    check_limits(config, "train.")
    if config.micro_batch > config.batch_size:
        raise UserError(
            f"train.micro_batch {config.micro_batch}: is more than train.batch_size "
            f"{config.batch_size}; lower it, or set 0 for each process's whole share"
        )
    if len(set(config.ema_sigma_rel)) < len(config.ema_sigma_rel):
        raise UserError("train.ema_sigma_rel: has a length twice; give each once")


def check_preview(config: PreviewConfig, timesteps: int) -> None:
    """Refuse grids that could not be drawn from a chain of `timesteps`.

    Raises:
        UserError: Names the setting.
    """
    check_limits(config, "preview.")
    if config.steps > timesteps:
        raise UserError(f"preview.steps {config.steps}: must be between 1 and {timesteps}")
