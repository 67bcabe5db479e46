"""Train a U-Net to segment from a handful of masks: `python scripts/train_seg.py`.

With --task regress it learns to predict pictures from pictures instead.

Without --init it starts from the newest run's denoiser that takes such images, and says which.
With --check it only looks at the images and masks, and says what it found.
"""

import os
import sys
from pathlib import Path

from ddpm_unet.command_line import read_settings, user_errors
from ddpm_unet.config import SegmentConfig

REPOSITORY = Path(__file__).parents[1]
DEFAULT = REPOSITORY / "configs" / "histology_nuclei.yaml"
SHIPPED = REPOSITORY / "samples" / "histology64" / "model"


def main() -> None:
    arguments = [a for a in sys.argv[1:] if a != "--check"]
    settings, name = read_settings(SegmentConfig, DEFAULT, arguments)

    from ddpm_unet.data.targets import picture_settings

    data = picture_settings(settings.data) if settings.task == "regress" else settings.data
    if len(arguments) < len(sys.argv) - 1:
        from ddpm_unet.data.check import print_check

        print_check(data)
        return
    settings.run = settings.run or f"runs/{name}"

    from ddpm_unet.training.initial_denoiser import choose_denoiser
    from ddpm_unet.training.loop import train
    from ddpm_unet.training.regress import RegressJob
    from ddpm_unet.training.run_folder import RunFolder, models_at_hand
    from ddpm_unet.training.scoring import score_test
    from ddpm_unet.training.segment import SegmentJob

    run = RunFolder(Path(settings.run))
    settings.init = settings.init or run.setting("init")
    if settings.architecture == "unet" and not settings.init:
        cure = "train one with scripts/train_ddpm.py, or give --init DIR or --init scratch"
        folders = models_at_hand(SHIPPED, "model_index.json", cure)
        denoiser, told = choose_denoiser(settings, data, folders, cure)
        settings.init = str(denoiser)
        if os.environ.get("RANK", "0") == "0":
            print(told)
    job = RegressJob(settings) if settings.task == "regress" else SegmentJob(settings)
    train(job, run, settings)
    score_test(job, run)


if __name__ == "__main__":
    with user_errors():
        main()
