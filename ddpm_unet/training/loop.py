"""The training loop, the same for every job: batch -> loss -> step -> validation -> checkpoint.

Step k is a function of the weights before it and of the images at stream positions
[k B, (k + 1) B), whose order, augmentation and noise depend on nothing else. So a run that was
killed goes on bit for bit, and the number of processes and the size of the micro-batches change
a step by float rounding only.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import Tensor
from tqdm import tqdm

from ddpm_unet.config import TrainConfig
from ddpm_unet.data.loader import shares
from ddpm_unet.errors import UserError
from ddpm_unet.evaluation.plots import plot_metrics
from ddpm_unet.randomness import torch_seeds
from ddpm_unet.training.checkpoint import newest_checkpoint, prune_checkpoints, write_checkpoint
from ddpm_unet.training.ema import EMA
from ddpm_unet.training.job import Batch, Job
from ddpm_unet.training.optimizer import (
    build_optimizer,
    learning_rate_factor,
    load_optimizer_state,
    optimizer_state,
    set_learning_rates,
)
from ddpm_unet.training.run_folder import RunFolder
from ddpm_unet.training.sharding import copy_into, whole
from ddpm_unet.training.signals import StopRequest

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
        UserError: The run folder cannot be used, the disk is full, or the loss stays non-finite.
        SystemExit: SIGTERM or Ctrl-C came; a checkpoint was written first.
    """
    config: TrainConfig = settings.train
    accelerator = Accelerator(
        cpu=not torch.accelerator.is_available(),
        mixed_precision=config.mixed_precision,
        log_with=None if settings.tracker == "none" else settings.tracker,
        project_dir=run.path,
    )
    if config.batch_size < accelerator.num_processes:
        raise UserError(
            f"train.batch_size = {config.batch_size} is less than the number of processes, "
            f"{accelerator.num_processes}; each needs at least one image"
        )
    if accelerator.is_main_process:
        run.claim(settings, settings.resume)
    accelerator.wait_for_everyone()
    try:
        if accelerator.log_with:
            accelerator.init_trackers(run.path.name)
        training = Training(job, run, config, accelerator, settings.seed)
        training.resume()
        training.introduce()
        with StopRequest() as request:
            training.run_steps(request)
        accelerator.end_training()
    finally:
        run.release()
    if not training.finished:
        sys.exit(128 + request.received)


class Training:
    """Weights, their average, the optimiser and the step: what a checkpoint holds."""

    def __init__(
        self, job: Job, run: RunFolder, config: TrainConfig, accelerator: Accelerator, seed: int
    ) -> None:
        self.job, self.run, self.config, self.accelerator = job, run, config, accelerator
        self.seed = seed
        set_seed(seed)
        network: Any = job.build_model()
        if config.channels_last:
            network = network.to(memory_format=torch.channels_last)
        if config.gradient_checkpointing:
            network.enable_gradient_checkpointing()
        if config.compile:
            network.compile()
        optimizer = build_optimizer(job.parameter_groups(network), config, accelerator.device)
        self.model, self.optimizer = accelerator.prepare(network, optimizer)
        self.network = accelerator.unwrap_model(self.model, keep_torch_compile=True)
        self.named = [(n, p) for n, p in self.network.named_parameters() if p.requires_grad]
        self.ema = EMA([p for _, p in self.named], config.ema_decay)
        self.step = 0
        self.finished = False
        self.best = -math.inf
        self.best_step: int | None = None
        self.worse = 0
        self.loss_sum = torch.zeros((), dtype=torch.float64, device=accelerator.device)
        self.loss_steps = 0
        self.skipped = torch.zeros((), dtype=torch.int64, device=accelerator.device)
        self.nonfinite = torch.zeros((), dtype=torch.int64, device=accelerator.device)

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
        config = self.config
        batches: Iterator[Batch] = iter(())
        if self.step < config.steps:
            batches = self.job.batches(self.network, self.step, self.accelerator)
        progress = tqdm(
            total=config.steps,
            initial=self.step,
            desc=self.run.path.name,
            unit="step",
            disable=not self.accelerator.is_main_process,
        )
        stopping = False
        while self.step < config.steps and not stopping and not self._stale():
            loss, norm = self._optimize(batches)
            self.step += 1
            self._watch(loss)
            progress.update()
            if self._due(config.log_every):
                progress.set_postfix(loss=f"{self._log(norm):.4f}", refresh=False)
            if self._due(config.validate_every):
                self._validate()
            if self._due(config.sample_every):
                self._draw()
            stopping = self._agreed(request)
            if stopping or self._stale() or self._due(config.checkpoint_every):
                self._checkpoint()
        progress.close()
        self.finished = self.step == config.steps or self._stale()
        if not self.finished:
            self._say(
                f"stopped after step {self.step}: a checkpoint is written, "
                "the same command goes on from it"
            )
            return
        if self.best_step is None:
            self._export()
        best = "" if self.best_step is None else f", the best, of step {self.best_step},"
        self._say(f"done after step {self.step}: the model{best} is in {self.run.model}")

    def _optimize(self, batches: Iterator[Batch]) -> tuple[Tensor, Tensor]:
        """One optimiser step; gives this process's part of the loss and the gradient's norm."""
        config, accelerator = self.config, self.accelerator
        first = self.step * config.batch_size
        passes = len(
            shares(
                range(first, first + config.batch_size),
                accelerator.process_index,
                accelerator.num_processes,
                config.micro_batch,
            )
        )
        set_learning_rates(self.optimizer, learning_rate_factor(self.step, config))
        self.model.train()
        loss = torch.zeros_like(self.loss_sum)
        for number in range(1, passes + 1):
            batch = {
                key: value.to(accelerator.device, non_blocking=True)
                if isinstance(value, Tensor) and key != "position"
                else value
                for key, value in next(batches).items()
            }
            place = [int(batch["position"][0])]
            torch.manual_seed(torch_seeds(self.seed, "dropout", place)[0])
            sync = nullcontext() if number == passes else accelerator.no_sync(self.model)
            with sync:
                part = self.job.losses(self.model, batch).sum() / config.batch_size
                accelerator.backward(part * accelerator.num_processes)
            loss += part.detach()
        parameters = [p for _, p in self.named]
        norm = whole_norm(accelerator.clip_grad_norm_(parameters, config.clip_norm or math.inf))
        self._step_optimizer(norm)
        self.ema.update(self.step)
        return loss, norm

    def _step_optimizer(self, norm: Tensor) -> None:
        """Apply the gradient unless it is not finite; count the steps left out."""
        bad = ~torch.isfinite(norm)
        if self.accelerator.scaler is None:
            self.optimizer.optimizer.grad_scale = None
            self.optimizer.optimizer.found_inf = bad.float()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.skipped += bad

    def _watch(self, loss: Tensor) -> None:
        """Sum up the loss for the log; count non-finite ones in a row, and at the third, stop."""
        self.loss_sum += loss
        self.loss_steps += 1
        self.nonfinite = torch.where(torch.isfinite(loss), 0, self.nonfinite + 1)
        if self.accelerator.device.type != "cpu" and not self._due(self.config.log_every):
            return
        if self.accelerator.gather(self.nonfinite).max() >= PATIENCE:
            end = self.step * self.config.batch_size
            raise UserError(
                f"{self.run.path}: the loss was not finite {PATIENCE} steps in a row, up to "
                f"stream position {end - 1}; the last good checkpoint is kept. "
                "Lower train.lr, or look for bad values in the images"
            )

    def _due(self, every: int) -> bool:
        return every > 0 and (self.step % every == 0 or self.step == self.config.steps)

    def _agreed(self, request: StopRequest) -> bool:
        """Whether any process was asked to stop; the processes ask each other at log steps."""
        if self.accelerator.num_processes == 1:
            return bool(request.received)
        if not self._due(self.config.log_every):
            return False
        flag = torch.tensor(request.received, device=self.accelerator.device)
        request.received = int(self.accelerator.gather(flag).max())
        return bool(request.received)

    def _log(self, norm: Tensor) -> float:
        loss = float(self.accelerator.reduce(self.loss_sum.clone(), "sum")) / self.loss_steps
        self.loss_sum.zero_()
        self.loss_steps = 0
        self._record(
            loss=loss,
            grad_norm=float(norm),
            lr=self.optimizer.param_groups[0]["lr"],
            skipped=int(self.skipped),
        )
        return loss

    def _validate(self) -> None:
        self.model.eval()
        with self.ema.applied(), torch.inference_mode():
            values = self.job.validate(self.network, self.accelerator)
        if not values:
            return
        self._record(**values)
        if self.job.criterion is None:
            return
        if values[self.job.criterion] > self.best:
            self.best, self.best_step, self.worse = values[self.job.criterion], self.step, 0
            self._export()
        else:
            self.worse += 1

    def _stale(self) -> bool:
        return 0 < self.config.patience <= self.worse

    def _draw(self) -> None:
        self.model.eval()
        with self.ema.applied(), torch.inference_mode():
            path = self.run.samples / f"{self.step:08d}.png"
            self.job.draw(self.network, self.accelerator, path)

    def _record(self, **values: float) -> None:
        if self.accelerator.is_main_process:
            images = self.step * self.config.batch_size
            self.run.log({"step": self.step, "images": images, **values})
        self.accelerator.log(values, step=self.step)

    def _checkpoint(self) -> None:
        total = self.accelerator.reduce(self.loss_sum, "sum")
        self.loss_sum = total if self.accelerator.is_main_process else torch.zeros_like(total)
        scaler = self.accelerator.scaler
        tensors = {
            "model": {n: whole(t) for n, t in self.network.state_dict().items()},
            "ema": {n: whole(t) for (n, _), t in zip(self.named, self.ema.averages, strict=True)},
            "optimizer": optimizer_state(self.optimizer, self.named),
        }
        if self.accelerator.is_main_process:
            state = {
                "step": self.step,
                "images": self.step * self.config.batch_size,
                "loss_sum": float(total),
                "loss_steps": self.loss_steps,
                "skipped": int(self.skipped),
                "best": self.best if self.best_step else None,
                "best_step": self.best_step,
                "worse": self.worse,
                "scaler": scaler.state_dict() if scaler else None,
                "metrics_size": self.run.metrics_size(),
            }
            write_checkpoint(self.run.checkpoints, self.step, tensors, state)
            prune_checkpoints(self.run.checkpoints, self.config.keep_checkpoints)
            plot_metrics(self.run.read_metrics(), self.run.path / "loss.png")
        self.accelerator.wait_for_everyone()
        if self.best_step is None:
            self._export()

    def _export(self) -> None:
        with self.ema.applied():
            weights = {n: whole(t) for n, t in self.network.state_dict().items()}
        if self.accelerator.is_main_process:
            self.job.export(self.network, weights, self.run.model)
        self.accelerator.wait_for_everyone()

    def resume(self) -> None:
        """Go on from the newest good checkpoint, if there is one."""
        if self.accelerator.is_main_process:
            found = newest_checkpoint(self.run.checkpoints)
            self.run.cut_metrics(found[1]["metrics_size"] if found else 0)
        self.accelerator.wait_for_everyone()
        if not self.accelerator.is_main_process:
            found = newest_checkpoint(self.run.checkpoints)
        if found is None:
            return
        tensors, state, notes = found
        for note in notes:
            self._say(note)
        own = self.network.state_dict()
        for name, value in tensors["model"].items():
            copy_into(own[name], value)
        for (name, _), average in zip(self.named, self.ema.averages, strict=True):
            copy_into(average, tensors["ema"][name])
        load_optimizer_state(self.optimizer.optimizer, self.named, tensors["optimizer"])
        if self.accelerator.scaler and state["scaler"]:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        self.step = state["step"]
        if state["best_step"] is not None:
            self.best, self.best_step = state["best"], state["best_step"]
        self.worse = state["worse"]
        self.skipped.fill_(state["skipped"])
        if self.accelerator.is_main_process:
            self.loss_sum.fill_(state["loss_sum"])
        self.loss_steps = state["loss_steps"]
        self._say(f"going on from the checkpoint of step {self.step}")

    def _say(self, text: str) -> None:
        if self.accelerator.is_main_process:
            tqdm.write(text)


def whole_norm(norm: Tensor | float) -> Tensor:
    """The gradient norm as an ordinary tensor, also where it is sharded."""
    full = getattr(norm, "full_tensor", None)
    return full() if full else torch.as_tensor(norm)
