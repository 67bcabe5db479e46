"""The training loop, the same for every job: batch -> loss -> step -> validation -> checkpoint.

Step k is a function of the weights before it and of the images at stream positions
[k B, (k + 1) B), whose order, augmentation and noise depend on nothing else. So a run that was
killed goes on bit for bit, and the number of processes and the size of the micro-batches change
a step by float rounding only, where neither batch normalisation nor dropout look at them.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from PIL import Image
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from tqdm.auto import tqdm

from ddpm_unet.config import TrainConfig
from ddpm_unet.config.reading import check_limits
from ddpm_unet.cpu import FusedAdamWEMA, accelerate_cpu, is_accelerated
from ddpm_unet.data.loader import make_loader, shares, step_batches
from ddpm_unet.errors import UserError
from ddpm_unet.evaluation.card import write_pages
from ddpm_unet.evaluation.plots import plot_metrics
from ddpm_unet.evaluation.report import ABOUT, versions
from ddpm_unet.files import replace_json
from ddpm_unet.randomness import torch_seeds
from ddpm_unet.training.checkpoint import ShardedWriter, prune_checkpoints, resume, write_checkpoint
from ddpm_unet.training.distributed import (
    Sharding,
    StopRequest,
    compiling,
    end_together,
    in_memory_format,
    leave,
    loader_processes,
    on_main,
    open_accelerator,
    own_accelerator,
    peer_lost,
    sharded,
    whole,
    whole_norm,
)
from ddpm_unet.training.job import Batch, Job
from ddpm_unet.training.post_hoc_ema import Snapshots
from ddpm_unet.training.run_folder import RunFolder, disk_faults
from ddpm_unet.training.state import NOWHERE, TrainingState, build_optimizer, learning_rate_factor

MAX_NONFINITE_STEPS = 3
"""So many non-finite losses in a row stop a run."""


def train(job: Job, run: RunFolder, settings: Any, signals: bool = True) -> nn.Module:
    """Train to step `settings.train.steps`, going on from the run's newest good checkpoint.

    The process is as before afterwards: its random generators, its signal handlers.

    Args:
        job: What is trained.
        run: Where everything is written.
        settings: A `RunConfig` with `train` and whatever else is to be kept in the run folder.
        signals: Take SIGTERM, SIGUSR1 and Ctrl-C as the wish to stop, with a checkpoint.

    Returns:
        The network, with its averaged weights (in a process of several, its own shards of them).

    Raises:
        UserError: The run folder cannot be used, the disk is full, the loss stays non-finite, or
            another process died.
        SystemExit: With `signals`, one came; a checkpoint was written first.
    """
    check_training(settings.train)
    with own_accelerator(), _own_state():
        accelerator, sharding = open_accelerator(settings.train, settings.tracker, run.path)
        training = Training(job, run, settings.train, accelerator, settings.seed, sharding)
        try:
            on_main(accelerator, lambda: run.claim(settings, settings.resume))
            if accelerator.log_with:
                accelerator.init_trackers(run.path.name)
            with StopRequest(signals) as request:
                training.resume()
                training.introduce()
                training.run_steps(request)
            if training.finished and job.reports:
                on_main(accelerator, lambda: write_pages(run.path))
            leave(accelerator)
        except RuntimeError as error:
            if not peer_lost(error):
                raise
            raise UserError(
                f"{run.path}: another process of this run has ended; see its message, and start "
                "the same command again"
            ) from error
        finally:
            run.release()
    if not training.finished:
        raise SystemExit(128 + training.stopped_by)
    training.state.ema._swap()
    return training.network.eval()


def seconds_a_step(job: Job, settings: Any) -> float:
    """The time of a training step of a job on this machine, and all processes, by some trial steps.

    They leave nothing behind; `settings` are those of `train`.
    """
    with _trial(job, settings, 100) as (trial, batches):

        def step() -> None:
            float(trial._optimize(batches)[0])  # waits for the device

        seconds = torch.tensor(time_steps(step), device=trial.accelerator.device)
        return float(torch.as_tensor(trial.accelerator.gather(seconds)).max())


def trial_score(job: Job, settings: Any) -> float:
    """The validation score, `Job.criterion`, after the training of `settings`.

    It leaves nothing behind.
    """
    assert job.criterion is not None
    with _trial(job, settings, settings.train.steps) as (trial, batches):
        for _ in range(settings.train.steps):
            trial._optimize(batches)
        with trial.state.averaged(), trial._no_gradient():
            return job.validate(trial.network, trial.accelerator)[job.criterion]


@contextmanager
def _trial(job: Job, settings: Any, steps: int) -> Iterator[tuple[Training, Iterator[Batch]]]:
    config, run = replace(settings.train, steps=steps), RunFolder(Path(settings.run))
    with own_accelerator(), _own_state():
        accelerator, sharding = open_accelerator(config, "none", run.path)
        trial = Training(job, run, config, accelerator, settings.seed, sharding)
        yield trial, trial._batches()


def time_steps(
    step: Callable[[], object],
    clock: Callable[[], float] = time.perf_counter,
    most: int = 5,
    seconds: float = 20.0,
) -> float:
    """Median seconds of some calls of `step`, after one that warms up."""
    step()
    begun = clock()
    times: list[float] = []
    while len(times) < most and (not times or clock() - begun < seconds):
        before = clock()
        step()
        times.append(clock() - before)
    return median(times)


def check_training(config: TrainConfig) -> None:
    """Refuse a loop that could not run, or could lose what it did."""
    check_limits(config, "train.")
    if config.micro_batch > config.batch_size:
        raise UserError(
            f"train.micro_batch {config.micro_batch}: is more than train.batch_size "
            f"{config.batch_size}; lower it, or set 0 for each process's whole share"
        )
    if len(set(config.ema_sigma_rel)) < len(config.ema_sigma_rel):
        raise UserError("train.ema_sigma_rel: has a length twice; give each once")


@contextmanager
def _own_state() -> Iterator[None]:
    """Leave the process's random generators as they were."""
    python, arrays, tensors = random.getstate(), np.random.get_state(), torch.get_rng_state()
    devices = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(arrays)
        torch.set_rng_state(tensors)
        if devices:
            torch.cuda.set_rng_state_all(devices)


class Training:
    """One run of a job: its state, and what is done with it step by step."""

    def __init__(
        self,
        job: Job,
        run: RunFolder,
        config: TrainConfig,
        accelerator: Accelerator,
        seed: int,
        sharding: Sharding | None = None,
    ) -> None:
        self.job, self.run, self.config, self.accelerator = job, run, config, accelerator
        self.seed = seed
        self.evaluate = job.evaluator() if config.evaluate_every else None
        if config.evaluate_every and self.evaluate is None:
            raise UserError(
                f"train.evaluate_every {config.evaluate_every}: is for denoisers of pixels; set it "
                "to 0"
            )
        set_seed(seed)
        network: Any = job.build_model()
        together = accelerator.num_processes > 1 and accelerator.device.type == "cuda"
        if together and has_batch_norm(network):
            network = nn.SyncBatchNorm.convert_sync_batchnorm(network)
        if sharding is None:  # which takes no strided parameters
            network = in_memory_format(network, config.channels_last, accelerator.device)
        if config.native and accelerator.device.type == "cpu":
            accelerate_cpu(network)
        if config.gradient_checkpointing:
            network.enable_gradient_checkpointing()
        passes = config.steps * max(map(len, self._shares(0)))
        self.compiled = sharding is None and compiling(config.compile, accelerator.device, passes)
        if self.compiled:
            network.compile()
        if sharding:
            network = accelerator.prepare_model(network, evaluation_mode=True)
            sharding.apply(network, accelerator.device)
        # Such a network meets the other processes in each pass, so all need equally many.
        self.even = sharding is not None or (together and has_batch_norm(network))
        optimizer = build_optimizer(job.parameter_groups(network), config)
        if sharding:
            self.model, self.optimizer = network, accelerator.prepare_optimizer(optimizer)
        else:
            self.model, self.optimizer = accelerator.prepare(network, optimizer)
        self.network = accelerator.unwrap_model(self.model, keep_torch_compile=True)
        self.state = TrainingState(
            self.network,
            getattr(self.optimizer, "optimizer", self.optimizer),
            config.ema_decay,
            config.ema_sigma_rel,
            accelerator.device,
        )
        if is_accelerated(self.network):
            self.state.fused = FusedAdamWEMA(self.state.optimizer, self.state.ema)
        self.saved: int | None = None
        self.finished = False
        self.stopped_by = 0
        large = sum(p.numel() for p in self.network.parameters()) > 1e6 * config.sharded_above
        self.shards = ShardedWriter(accelerator) if large else None

    def introduce(self) -> None:
        """Say what is about to run, and on what."""
        a = self.accelerator
        count, data = sum(p.numel() for p in self.network.parameters()), self.job.describe()
        trained = sum(p.numel() for _, p in self.state.named)
        about = {
            "data": data.splitlines(), "parameters": count, "device": a.device.type,
            "processes": a.num_processes, "precision": a.mixed_precision, "versions": versions(),
        }  # fmt: skip
        on_main(a, lambda: replace_json(self.run.path / ABOUT, about))
        self._say(
            f"{data}\n"
            f"network: {count:,} parameters"
            f"{f', of which {trained:,} are trained' if trained < count else ''}; "
            f"{a.num_processes} process"
            f"{'es' if a.num_processes > 1 else ''} on {a.device.type}, precision "
            f"{a.mixed_precision if a.mixed_precision != 'no' else 'float32'}"
            f"{', weights sharded' * sharded(self.network)}"
            f"{', compiled (train.compile)' * self.compiled}\n"
            f"run folder: {self.run.path}"
        )
        passes = max(map(len, self._shares(0)))
        parts = ["batch normalisation"] * (has_batch_norm(self.network) and not self.even)
        dropped = any(isinstance(m, nn.Dropout) and m.p for m in self.network.modules())
        parts += ["dropout"] * dropped
        if parts and (passes > 1 or a.num_processes > 1):
            self._say(
                f"{' and '.join(parts)}: of each pass of up to "
                f"{max(len(part) for own in self._shares(0) for part in own)} images, so another "
                "train.micro_batch or number of processes gives other weights"
            )

    def run_steps(self, request: StopRequest) -> None:
        """Train to the last step, or until `request` has received a signal."""
        state, config = self.state, self.config
        if state.step > config.steps:
            self._say(f"the run has done {state.step} steps, and train.steps is {config.steps}")
        batches: Iterator[Batch] = self._batches() if state.step < config.steps else iter(())
        with tqdm(
            total=max(config.steps, state.step),
            initial=state.step,
            desc=self.run.path.name,
            unit="step",
            disable=not self.accelerator.is_main_process,
        ) as progress:
            while state.step < config.steps and not self._agreed(request) and not self._stale():
                loss, norm = self._optimize(batches)
                self._watch(loss)
                progress.update()
                if self._due(config.log_every):
                    progress.set_postfix(loss=f"{self._log(norm):.4f}", refresh=False)
                if self._due(config.validate_every):
                    self._validate()
                if self._due(config.sample_every):
                    self._preview()
                if self.evaluate and self._due(config.evaluate_every):
                    path = self.run.samples / f"{state.step:08d}_evaluated.png"
                    with state.averaged(), self._no_gradient():
                        self._record(**self.evaluate(self.network, self.accelerator, path))
                    self._show(path, "evaluated")
                if state.powers and self._due(config.ema_every):
                    self._snapshot()
                if self._stale() or self._due(config.checkpoint_every):
                    self._checkpoint()
        self.finished = state.step >= config.steps or self._stale()
        if not self.finished and self.saved != state.step:
            self._checkpoint()
        if self.shards:
            self.shards.wait()
            if not self.finished and state.best_step is None:
                self._export()
        if not self.finished:
            self._say(
                f"stopped after step {state.step}: a checkpoint is written, "
                "the same command goes on from it"
            )
            return
        if state.best_step is None:
            self._export()
        best = "" if state.best_step is None else f", the best, of step {state.best_step},"
        self._say(f"done after step {state.step}: the model{best} is in {self.run.model}")

    def _batches(self) -> Iterator[Batch]:
        """This process's micro-batches from the present step to the last."""
        config, accelerator = self.config, self.accelerator
        stream = self.job.stream(self.network, accelerator)
        positions = step_batches(
            range(self.state.step, config.steps),
            config.batch_size,
            accelerator.process_index,
            accelerator.num_processes,
            config.micro_batch,
        )
        pinned = accelerator.device.type == "cuda"
        workers = loader_processes(self.job.workers, stream, accelerator.device)
        if workers and self.job.workers is None:
            self._say(f"data.workers: {workers} processes load (0 loads in the main one)")
        return make_loader(stream, positions, workers=workers, pin_memory=pinned)

    def _shares(self, step: int) -> list[list[range]]:
        """Every process's micro-batches of a step."""
        size, count = self.config.batch_size, self.accelerator.num_processes
        positions = range(step * size, (step + 1) * size)
        return [shares(positions, i, count, self.config.micro_batch) for i in range(count)]

    def _optimize(self, batches: Iterator[Batch]) -> tuple[Tensor, Tensor]:
        """One optimizer step; gives this process's part of the loss and the gradient's norm."""
        state, config, accelerator = self.state, self.config, self.accelerator
        every = self._shares(state.step)
        own = passes = len(every[accelerator.process_index])
        if self.even:
            passes = max(map(len, every))
        factor = learning_rate_factor(state.step, config)
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak_lr"] * factor
        self.model.train()
        loss = torch.zeros_like(state.loss_sum)
        for number in range(1, passes + 1):
            if number <= own:  # else the last batch again, of no weight
                batch = next(batches)
                positions = batch.pop("position")  # of use on the CPU
                batch = {k: v.to(state.suspect.device, non_blocking=True) for k, v in batch.items()}
                batch["position"] = positions
            torch.manual_seed(torch_seeds(self.seed, "dropout", positions[:1].tolist())[0])
            last = number == passes or sharded(self.network)
            with nullcontext() if last else accelerator.no_sync(self.model):
                losses = self.job.losses(self.model, batch).expand(len(positions))
                part = losses.sum() / config.batch_size * float(number <= own)
                # Processes average their gradients; the loss is a sum over them.
                accelerator.backward(part * accelerator.num_processes)
            loss += part.detach()
            finite = torch.isfinite(losses.detach())
            places = positions.to(finite.device, non_blocking=True)
            state.suspect = torch.where(finite, NOWHERE, places).min().minimum(state.suspect)
        parameters = [p for _, p in state.named]
        norm = whole_norm(accelerator.clip_grad_norm_(parameters, config.clip_norm or math.inf))
        scaled = accelerator.scaler is not None
        state.update(self.optimizer.step, ~torch.isfinite(norm), scaled)
        self.optimizer.zero_grad(set_to_none=True)
        state.step += 1
        return loss, norm

    def _watch(self, loss: Tensor) -> None:
        """Sum up the loss for the log; count non-finite ones in a row, and stop at some number."""
        state = self.state
        loss = torch.as_tensor(self.accelerator.reduce(loss, "sum"))
        state.loss_sum += loss
        state.loss_steps += 1
        finite = torch.isfinite(loss) & (state.nonfinite < MAX_NONFINITE_STEPS)
        state.nonfinite = torch.where(finite, 0, state.nonfinite + 1)
        state.suspect = torch.where(finite, NOWHERE, state.suspect)
        if not self._looks() or state.nonfinite < MAX_NONFINITE_STEPS:
            return
        position = int(self.accelerator.gather(state.suspect).min())
        fault = UserError(
            f"{self.run.path}: the loss was not finite {MAX_NONFINITE_STEPS} steps in a row, first "
            f"for the image at stream position {position} ({self.job.name(position)}); the last "
            "good checkpoint is kept. Lower train.lr, or look for bad values in that image"
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
            self.stopped_by = request.received
        elif self._looks():
            asked = torch.tensor([request.received], device=self.accelerator.device)
            self.stopped_by = int(self.accelerator.gather(asked).max())
        return bool(self.stopped_by)

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
        with state.averaged(), self._no_gradient():
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

    def _preview(self) -> None:
        with self.state.averaged(), self._no_gradient():
            path = self.run.samples / f"{self.state.step:08d}.png"
            self.job.preview(self.network, self.accelerator, path)
        self._show(path, "samples")

    def _show(self, path: Path, name: str) -> None:
        own = self.accelerator.is_main_process and path.is_file()  # some jobs draw nothing
        for tracker in self.accelerator.trackers if own else ():
            with Image.open(path) as drawn:
                images = {name: np.asarray(drawn.convert("RGB"))[None]}
            axes = {"dataformats": "NHWC"} if tracker.name == "tensorboard" else {}
            tracker.log_images(images, step=self.state.step, **axes)

    def _no_gradient(self) -> Any:
        """Inference mode, which gathers no shards that training could use again."""
        return torch.no_grad() if sharded(self.network) else torch.inference_mode()

    def _record(self, **values: float) -> None:
        images = self.state.step * self.config.batch_size
        line = {"step": self.state.step, "images": images, **values}
        on_main(self.accelerator, lambda: self.run.log(line))
        self.accelerator.log(values, step=self.state.step)

    def _checkpoint(self) -> None:
        state, scaler = self.state, self.accelerator.scaler
        main = self.accelerator.is_main_process
        tensors = {} if self.shards else state.tensors(main)
        numbers = state.numbers() | {
            "images": state.step * self.config.batch_size,
            "scaler": scaler.state_dict() if scaler else None,
            "data": self.job.digest,
        }

        def prune() -> None:
            prune_checkpoints(self.run.checkpoints, self.config.keep_checkpoints)

        def write() -> None:
            numbers["metrics_size"] = self.run.metrics_size()
            if not self.shards:
                write_checkpoint(self.run.checkpoints, state.step, tensors, numbers)
                prune()
            with disk_faults(self.run.path / "loss.png"):
                plot_metrics(self.run.read_metrics(), self.run.path / "loss.png")

        on_main(self.accelerator, write)
        if self.shards:
            self.shards.start(self.run.checkpoints, state, numbers, prune)
        self.saved = state.step
        if state.best_step is None and not self.shards:
            self._export()

    def _snapshot(self) -> None:
        kept, step = Snapshots(self.run.averages), self.state.step
        averages = self.state.snapshot(self.accelerator.is_main_process)
        on_main(self.accelerator, lambda: kept.write(step, averages))

    def _export(self) -> None:
        with self.state.averaged():
            weights = whole(self.network.state_dict().items(), self.accelerator.is_main_process)

        def write() -> None:
            with disk_faults(self.run.model):
                self.job.export(self.network, weights, self.run.model)

        on_main(self.accelerator, write)

    def resume(self) -> None:
        """Go on from the newest good checkpoint, if there is one."""
        if resume(self.state, self.run, self.accelerator, self.job.digest):
            self.saved = self.state.step
            changed = self.run.changed
            for name in sorted(changed.keys() - {"run", "resume", "preview"}):
                self._say("{} is {}, was {}".format(name, *reversed(changed[name])))
            self._say_jump(changed.get("train.steps", (self.config.steps,))[0])

    def _say_jump(self, planned: int) -> None:
        """Say how the learning rate jumps where a run of so many steps gets another number."""
        step, peak = self.state.step, self.optimizer.param_groups[0]["peak_lr"]
        config = replace(self.config, steps=planned)
        before = peak * learning_rate_factor(max(step - 1, 0), config)
        after = peak * learning_rate_factor(step, self.config)
        if planned != self.config.steps and abs(after - before) > 0.05 * peak:
            self._say(
                f"the learning rate jumps from {before:.3g} to {after:.3g}, as its "
                f"{self.config.lr_schedule} schedule is now one of {self.config.steps} steps"
            )

    def _say(self, text: str) -> None:
        if self.accelerator.is_main_process:
            tqdm.write(text)


def has_batch_norm(network: nn.Module) -> bool:
    """Whether a network normalises over batches in training."""
    return any(isinstance(module, _BatchNorm) for module in network.modules())
