"""Runs that are stopped: killed, or asked to end."""

import json
import os
import random
import shutil
import signal
import time
from collections.abc import Iterator

from ddpm_unet.training.checkpoint import checkpoint_paths
from reliability_items.children import Child, finish
from reliability_items.ends import digest
from reliability_items.place import TRAIN, TRAININGS, place


def kill(moments: int) -> Iterator[str]:
    """SIGKILL at random moments, the same command again after each; the end is compared with a
    run that was left alone: every file of the last checkpoint, metrics.jsonl and the model.
    """
    chance = random.Random(0)
    for job in TRAININGS:
        with place() as here:
            begin = time.monotonic()
            expected = digest(finish(here, job, "whole"))
            seconds = time.monotonic() - begin
            killed, half_written = 0, 0
            run = here.root / "killed"
            while killed < moments:
                child = Child(here.arguments(job, run), here.root / "log")
                if killed % 2:
                    time.sleep(chance.uniform(0, seconds / 3))
                else:  # inside the writing of one of the next checkpoints
                    for _ in range(chance.randint(1, 2)):
                        while not list(run.glob("checkpoints/.*")) and child.running():
                            time.sleep(0.0002)
                        time.sleep(chance.uniform(0, 0.012))
                if not child.running():
                    assert child.wait() == 0, child.log.read_text()
                    shutil.rmtree(run)
                    continue
                os.kill(child.pid, signal.SIGKILL)
                assert child.wait() == -signal.SIGKILL
                killed += 1
                half_written += bool(list(run.glob("checkpoints/.*")))
            found = digest(finish(here, job, "killed"))
            same = sum(found[name] == value for name, value in expected.items())
            lines = [json.loads(x) for x in (run / "metrics.jsonl").open()]
            steps = [x["step"] for x in lines if "loss" in x]
            yield (
                f"{job}: {killed} kills, {half_written} of them left a half-written checkpoint; "
                f"{same} of {len(expected)} files equal bit for bit; "
                f"{len(steps)} loss lines, {len(set(steps))} different, "
                f"{TRAIN['steps'] // TRAIN['log_every']} expected"  # type: ignore[operator]
            )


def signals() -> Iterator[str]:
    """SIGTERM and Ctrl-C in the middle, then the same command; a second run on one folder."""
    for job in TRAININGS:
        with place() as here:
            expected = digest(finish(here, job, "whole"))
            for number in (signal.SIGTERM, signal.SIGINT):
                run = here.root / number.name
                child = Child(here.arguments(job, run), here.root / "log")
                while not list(run.glob("checkpoints/00*")):
                    time.sleep(0.001)
                second = Child(here.arguments(job, run), here.root / "second")
                refused, why = second.wait(), second.errors()
                assert child.running(), "the first run ended before the second was refused"
                os.kill(child.pid, number)
                status = child.wait()
                last = checkpoint_paths(run / "checkpoints")[-1].name
                message = child.log.read_text().splitlines()[-1]
                equal = digest(finish(here, job, number.name)) == expected
                yield (
                    f"{job}: second run refused with status {refused} ({len(why)} line); "
                    f"{number.name}: status {status}, checkpoint of step {int(last)}, "
                    f"`{message}`; the end equals bit for bit: {equal}"
                )
