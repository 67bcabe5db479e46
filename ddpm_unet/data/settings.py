"""What the settings of both kinds of data must obey, before any file is looked at."""

from __future__ import annotations

from ddpm_unet.config import ImageDataConfig, PairDataConfig
from ddpm_unet.config.reading import check_limits
from ddpm_unet.errors import UserError


def check_data_settings(config: ImageDataConfig | PairDataConfig) -> None:
    """Refuse numbers, windows and value ranges that no images could satisfy.

    Raises:
        UserError: Names the setting.
    """
    check_limits(config, "data.")
    target_range = config.target_range if isinstance(config, PairDataConfig) else None
    for name, found in (("value_range", config.value_range), ("target_range", target_range)):
        if found is None or found == "percentiles":
            continue
        low, high = found
        if not low < high:
            raise UserError(
                f"data.{name} [{low:g}, {high:g}]: must be two numbers, black below white"
            )
    pixels = config.size**config.dims / 1e6
    if pixels > config.max_pixels:
        raise UserError(
            f"data.size {config.size}: is {pixels:.3g} million pixels a window, over "
            f"data.max_pixels {config.max_pixels:g}; lower the one or raise the other"
        )
