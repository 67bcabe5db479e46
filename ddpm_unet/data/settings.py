"""What the settings of both kinds of data must obey, before any file is looked at."""

from __future__ import annotations

from ddpm_unet.config import ImageDataConfig, PairDataConfig
from ddpm_unet.config.limits import check_limits
from ddpm_unet.errors import UserError


def check_data_settings(config: ImageDataConfig | PairDataConfig) -> None:
    """Refuse numbers, windows and value ranges that no pictures could satisfy.

    Raises:
        UserError: Names the setting.
    """
    check_limits(config, "data.")
    if config.value_range is not None and config.value_range != "percentiles":
        low, high = config.value_range
        if not low < high:
            raise UserError(
                f"data.value_range [{low:g}, {high:g}]: must be two numbers, black below white"
            )
    pixels = config.size**config.dims / 1e6
    if pixels > config.max_pixels:
        raise UserError(
            f"data.size {config.size}: is {pixels:.3g} million pixels a window, over "
            f"data.max_pixels {config.max_pixels:g}; lower the one or raise the other"
        )
