"""The training loop, the same for every job: batch -> loss -> step -> validation -> checkpoint.

Step k is a function of the weights before it and of the images at stream positions
[k B, (k + 1) B), whose order, augmentation and noise depend on nothing else. So a run that was
killed goes on bit for bit, and the number of processes and the size of the micro-batches change
a step by float rounding only.
"""

from __future__ import annotations

import math
import signal
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import Tensor
from tqdm import tqdm

from ddpm_unet import native
from ddpm_unet.config import TrainConfig
from ddpm_unet.data.loader import shares
from ddpm_unet.errors import UserError
from ddpm_unet.evaluation.plots import plot_metrics
from ddpm_unet.randomness import torch_seeds
from ddpm_unet.training.accelerator import laid_out, open_accelerator
from ddpm_unet.training.checkpoint import prune_checkpoints, write_checkpoint
from ddpm_unet.training.job import Batch, Job
from ddpm_unet.training.optimizer import (
    build_optimizer,
    learning_rate_factor,
    set_learning_rates,
)
from ddpm_unet.training.post_hoc import Snapshots
from ddpm_unet.training.processes import end_together, leave, on_main, peer_lost
from ddpm_unet.training.resuming import resume
from ddpm_unet.training.run_folder import RunFolder, disk_faults
from ddpm_unet.training.settings import check_training
from ddpm_unet.training.sharding import whole, whole_norm
from ddpm_unet.training.signals import StopRequest
from ddpm_unet.training.state import NOWHERE, TrainingState

PATIENCE = 3
"""So many non-finite losses in a row stop a run."""


def train(job: Job, run: RunFolder, settings: Any) -> None:
    """Train to step `settings.train.steps`, going on from the run's newest good checkpoint.

    Args:
        job: What is trained.
        run: Where everything is written.
        settings: All settings, kept in the run folder; `resume`, `seed`, `tracker` and `train`
            are read here.

    Raises:
        UserError: The run folder cannot be used, the disk is full, the loss stays non-finite, or
            another process died.
        SystemExit: SIGTERM or Ctrl-C came; a checkpoint was written first. Or, on processes
            other than the main one, that met a UserError.
    """
    check_training(settings.train)
    accelerator = open_accelerator(run, settings)
    training = Training(job, run, settings.train, accelerator, settings.seed)
    try:
        on_main(accelerator, lambda: run.claim(settings, settings.resume))
        if accelerator.log_with:
            accelerator.init_trackers(run.path.name)
        with StopRequest() as request:
            training.resume()
            training.introduce()
            training.run_steps(request)
        leave(accelerator)
    except RuntimeError as error:
        if not peer_lost(error):
            raise
        raise UserError(
            f"{run.path}: another process of this run has ended; see its message, and start the "
            "same command again"
        ) from error
    finally:
        run.release()
    if not training.finished:
        sys.exit(128 + (request.received or signal.SIGTERM))


class Training:
    """One run of a job: its state, and what is done with it step by step."""

    def __init__(
        self, job: Job, run: RunFolder, config: TrainConfig, accelerator: Accelerator, seed: int
    ) -> None:
        self.job, self.run, self.config, self.accelerator = job, run, config, accelerator
        self.seed = seed
        set_seed(seed)
        native.enable(config.native)
        network: Any = laid_out(job.build_model(), config.channels_last, accelerator.device)
        if config.gradient_checkpointing:
            network.enable_gradient_checkpointing()
        if config.compile:
            network.compile()
        optimizer = build_optimizer(job.parameter_groups(network), config)
        self.model, self.optimizer = accelerator.prepare(network, optimizer)
        self.network = accelerator.unwrap_model(self.model, keep_torch_compile=True)
        self.state = TrainingState(
            self.network,
            getattr(self.optimizer, "optimizer", self.optimizer),
            config.ema_decay,
            config.ema_sigma_rel,
            accelerator.device,
        )
        self.saved: int | None = None
        self.finished = False

    def introduce(self) -> None:
        """Say what is about to run, and on what."""
        a = self.accelerator
        count = sum(p.numel() for p in self.network.parameters())
        self._say(
            f"{self.job.describe()}\n"
            f"network: {count:,} parameters; {a.num_processes} process"
            f"{'es' if a.num_processes > 1 else ''} on {a.device.type}, precision "
            f"{a.mixed_precision if a.mixed_precision != 'no' else 'float32'}\n"
            f"run folder: {self.run.path}"
        )

    def run_steps(self, request: StopRequest) -> None:
        """Train to the last step, or until `request` has received a signal."""
        state, config = self.state, self.config
        batches: Iterator[Batch] = iter(())
        if state.step < config.steps:
            batches = self.job.batches(self.network, state.step, self.accelerator)
        with tqdm(
            total=config.steps,
            initial=state.step,
            desc=self.run.path.name,
            unit="step",
            disable=not self.accelerator.is_main_process,
        ) as progress:
            while state.step < config.steps and not self._agreed(request) and not self._stale():
                loss, norm = self._optimize(batches)
                state.step += 1
                self._watch(loss)
                progress.update()
                if self._due(config.log_every):
                    progress.set_postfix(loss=f"{self._log(norm):.4f}", refresh=False)
                if self._due(config.validate_every):
                    self._validate()
                if self._due(config.sample_every):
                    self._draw()
                if state.powers and self._due(config.ema_every):
                    self._snapshot()
                if self._stale() or self._due(config.checkpoint_every):
                    self._checkpoint()
        self.finished = state.step == config.steps or self._stale()
        if not self.finished:
            if self.saved != state.step:
                self._checkpoint()
            self._say(
                f"stopped after step {state.step}: a checkpoint is written, "
                "the same command goes on from it"
            )
            return
        if state.best_step is None:
            self._export()
        best = "" if state.best_step is None else f", the best, of step {state.best_step},"
        self._say(f"done after step {state.step}: the model{best} is in {self.run.model}")

    def _optimize(self, batches: Iterator[Batch]) -> tuple[Tensor, Tensor]:
        """One optimiser step; gives this process's part of the loss and the gradient's norm."""
        state, config, accelerator = self.state, self.config, self.accelerator
        first = state.step * config.batch_size
        passes = len(
            shares(
                range(first, first + config.batch_size),
                accelerator.process_index,
                accelerator.num_processes,
                config.micro_batch,
            )
        )
        set_learning_rates(self.optimizer, learning_rate_factor(state.step, config))
        self.model.train()
        loss = torch.zeros_like(state.loss_sum)
        for number in range(1, passes + 1):
            batch = next(batches)
            positions = batch["position"]
            batch = {
                key: value.to(accelerator.device, non_blocking=True) for key, value in batch.items()
            } | {"position": positions}
            torch.manual_seed(torch_seeds(self.seed, "dropout", positions[:1])[0])
            sync = nullcontext() if number == passes else accelerator.no_sync(self.model)
            with sync:
                losses = self.job.losses(self.model, batch)
                part = losses.sum() / config.batch_size
                # Processes average their gradients; the loss is a sum over them.
                accelerator.backward(part * accelerator.num_processes)
            loss += part.detach()
            self._suspect(losses.detach(), positions)
        parameters = [p for _, p in state.named]
        norm = whole_norm(accelerator.clip_grad_norm_(parameters, config.clip_norm or math.inf))
        self._update(norm)
        return loss, norm

    def _update(self, norm: Tensor) -> None:
        """Apply the gradient unless it is not finite, and average; count the steps left out."""
        bad = ~torch.isfinite(norm)
        scaled = self.accelerator.scaler is not None
        if not scaled:
            self.optimizer.optimizer.grad_scale = None
            self.optimizer.optimizer.found_inf = bad.float()
        self.state.update(self.optimizer.step, scaled)
        self.optimizer.zero_grad(set_to_none=True)
        self.state.skipped += bad

    def _suspect(self, losses: Tensor, positions: Tensor) -> None:
        """Remember the first stream position of this process whose loss is not finite."""
        positions = positions.to(losses.device, non_blocking=True)
        bad = torch.where(torch.isfinite(losses), NOWHERE, positions)
        self.state.suspect = torch.minimum(self.state.suspect, bad.min())

    def _watch(self, loss: Tensor) -> None:
        """Sum up the loss for the log; count non-finite ones in a row, and at the third, stop."""
        state = self.state
        loss = torch.as_tensor(self.accelerator.reduce(loss, "sum"))
        state.loss_sum += loss
        state.loss_steps += 1
        finite = torch.isfinite(loss) & (state.nonfinite < PATIENCE)
        state.nonfinite = torch.where(finite, 0, state.nonfinite + 1)
        state.suspect = torch.where(finite, NOWHERE, state.suspect)
        if not self._looks() or state.nonfinite < PATIENCE:
            return
        position = int(self.accelerator.gather(state.suspect).min())
        fault = UserError(
            f"{self.run.path}: the loss was not finite {PATIENCE} steps in a row, first for the "
            f"image at stream position {position} ({self.job.name(position)}); the last good "
            "checkpoint is kept. Lower train.lr, or look for bad values in that image"
        )
        end_together(self.accelerator, fault)

    def _looks(self) -> bool:
        """Whether the device is waited for after this step: on the CPU, and at log steps."""
        return self.accelerator.device.type == "cpu" or self._due(self.config.log_every)

    def _due(self, every: int) -> bool:
        return every > 0 and (self.state.step % every == 0 or self.state.step == self.config.steps)

    def _agreed(self, request: StopRequest) -> bool:
        """Whether any process was asked to stop; the processes ask each other when they look."""
        if self.accelerator.num_processes == 1:
            return bool(request.received)
        if not self._looks():
            return False
        asked = torch.tensor(request.received, device=self.accelerator.device)
        return bool(torch.as_tensor(self.accelerator.reduce(asked, "sum")))

    def _log(self, norm: Tensor) -> float:
        state = self.state
        loss = float(state.loss_sum) / state.loss_steps
        state.loss_sum.zero_()
        state.loss_steps = 0
        self._record(
            loss=loss,
            grad_norm=float(norm),
            lr=self.optimizer.param_groups[0]["lr"],
            skipped=int(state.skipped),
        )
        return loss

    def _validate(self) -> None:
        state = self.state
        self.model.eval()
        with state.ema.applied(), torch.inference_mode():
            values = self.job.validate(self.network, self.accelerator)
        if not values:
            return
        self._record(**values)
        if self.job.criterion is None:
            return
        if values[self.job.criterion] > state.best:
            state.best, state.best_step, state.worse = values[self.job.criterion], state.step, 0
            self._export()
        else:
            state.worse += 1

    def _stale(self) -> bool:
        return 0 < self.config.early_stopping_patience <= self.state.worse

    def _draw(self) -> None:
        self.model.eval()
        with self.state.ema.applied(), torch.inference_mode():
            path = self.run.samples / f"{self.state.step:08d}.png"
            self.job.draw(self.network, self.accelerator, path)

    def _record(self, **values: float) -> None:
        images = self.state.step * self.config.batch_size
        line = {"step": self.state.step, "images": images, **values}
        on_main(self.accelerator, lambda: self.run.log(line))
        self.accelerator.log(values, step=self.state.step)

    def _checkpoint(self) -> None:
        state, scaler = self.state, self.accelerator.scaler
        tensors = state.tensors(self.accelerator.is_main_process)
        numbers = state.numbers() | {
            "images": state.step * self.config.batch_size,
            "scaler": scaler.state_dict() if scaler else None,
        }

        def write() -> None:
            numbers["metrics_size"] = self.run.metrics_size()
            write_checkpoint(self.run.checkpoints, state.step, tensors, numbers)
            prune_checkpoints(self.run.checkpoints, self.config.keep_checkpoints)
            with disk_faults(self.run.path / "loss.png"):
                plot_metrics(self.run.read_metrics(), self.run.path / "loss.png")

        on_main(self.accelerator, write)
        self.saved = state.step
        if state.best_step is None:
            self._export()

    def _snapshot(self) -> None:
        kept, step = Snapshots(self.run.averages), self.state.step
        averages = self.state.snapshot(self.accelerator.is_main_process)
        on_main(self.accelerator, lambda: kept.write(step, averages))

    def _export(self) -> None:
        with self.state.ema.applied():
            weights = whole(self.network.state_dict().items(), self.accelerator.is_main_process)

        def write() -> None:
            with disk_faults(self.run.model):
                self.job.export(self.network, weights, self.run.model)

        on_main(self.accelerator, write)

    def resume(self) -> None:
        """Go on from the newest good checkpoint, if there is one."""
        if resume(self.state, self.run, self.accelerator):
            self.saved = self.state.step

    def _say(self, text: str) -> None:
        if self.accelerator.is_main_process:
            tqdm.write(text)
