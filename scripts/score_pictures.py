"""Score predicted images: `python scripts/score_pictures.py --targets DIR name=DIR ...`."""

from ddpm_unet.cli import run

if __name__ == "__main__":
    run("score-images")
