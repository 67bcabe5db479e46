"""Measure how like real images generated ones are: `python scripts/evaluate.py --steps 50`."""

from ddpm_unet.cli import run

if __name__ == "__main__":
    run("evaluate")
