"""Moved to ddpm_unet.config.reading."""

from ddpm_unet.config.reading import read_yaml as read_yaml
