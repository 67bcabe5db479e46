"""Going on from a run's newest good checkpoint."""

from __future__ import annotations

from typing import Any

from accelerate import Accelerator
from torch import Tensor
from tqdm import tqdm

from ddpm_unet.errors import UserError
from ddpm_unet.training.checkpoint import checkpoint_paths, newest_checkpoint
from ddpm_unet.training.processes import on_main, share_json, share_tensors
from ddpm_unet.training.run_folder import RunFolder
from ddpm_unet.training.state import TrainingState


def resume(state: TrainingState, run: RunFolder, accelerator: Accelerator) -> bool:
    """Put `state` where the run's newest good checkpoint was; every process must call it.

    The main process says what it found, and cuts the metrics to what the checkpoint knew.

    Returns:
        Whether there was one.

    Raises:
        UserError: It is not of this training, no checkpoint is good, or metrics are lost.
    """

    def find() -> tuple[dict[str, dict[str, Tensor]], dict[str, Any] | None]:
        found = newest_checkpoint(run.checkpoints)
        if found and (why := state.difference(found[0], found[1])):
            raise UserError(
                f"{checkpoint_paths(run.checkpoints)[-1]}: {why}, so another version of "
                "this program wrote it; go on with that one, or choose another --run folder"
            )
        run.cut_metrics(found[1]["metrics_size"] if found else 0)
        for note in found[2] if found else ():
            tqdm.write(note)
        return (found[0], found[1]) if found else ({}, None)

    tensors, numbers = on_main(accelerator, find) or ({}, None)
    numbers = share_json(numbers, accelerator)
    if numbers is None:
        return False
    state.restore(share_tensors(tensors, accelerator), numbers)
    if accelerator.scaler and numbers["scaler"]:
        accelerator.scaler.load_state_dict(numbers["scaler"])
    if accelerator.is_main_process:
        tqdm.write(f"going on from the checkpoint of step {state.step}")
    return True
