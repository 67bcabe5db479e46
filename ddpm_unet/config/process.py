"""Moved to ddpm_unet.config.training."""

from ddpm_unet.config.training import *  # noqa: F403
