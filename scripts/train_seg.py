"""Train a U-Net to segment from a handful of masks: `python scripts/train_seg.py`."""

from pathlib import Path

from ddpm_unet.command_line import read_settings, user_errors
from ddpm_unet.config import SegmentConfig

REPOSITORY = Path(__file__).parents[1]
DEFAULT = REPOSITORY / "configs" / "histology_nuclei.yaml"
SHIPPED = REPOSITORY / "samples" / "histology64" / "model"


def main() -> None:
    settings, name = read_settings(SegmentConfig, DEFAULT)
    settings.run = settings.run or f"runs/{name}"

    from ddpm_unet.training.loop import train
    from ddpm_unet.training.run_folder import RunFolder, newest_model
    from ddpm_unet.training.segment import SegmentJob, score_test

    run = RunFolder(Path(settings.run))
    settings.init = settings.init or run.setting("init") or str(newest_model() or SHIPPED)
    job = SegmentJob(settings)
    train(job, run, settings)
    score_test(job, run)


if __name__ == "__main__":
    with user_errors():
        main()
