"""Put generated images beside real ones: `python scripts/compare.py samples=generated`."""

from ddpm_unet.cli import run

if __name__ == "__main__":
    run("compare")
