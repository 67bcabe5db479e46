"""Moved to ddpm_unet.config.reading."""

from ddpm_unet.config.reading import from_plain as from_plain
from ddpm_unet.config.reading import read_json as read_json
