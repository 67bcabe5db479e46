"""Moved to ddpm_unet.config.reading."""

from ddpm_unet.config.reading import check_limits as check_limits
