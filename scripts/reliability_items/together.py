"""Several processes, sharded weights and several hosts."""

import hashlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

from reliability_items.children import Child, finish, free_port, torchrun
from reliability_items.ends import difference, digest
from reliability_items.place import SCRIPTS, TRAININGS, place

SETTINGS = SCRIPTS.parent / "configs" / "accelerate"


def processes() -> Iterator[str]:
    """Two processes and one with the same batches of 5 images, so 2 and 3 a process in one and two
    passes: 50 steps; and runs that change the number of processes half-way. Distances are
    relative: of all weights together (Euclidean norms), and the largest of a logged loss.
    """
    for job in TRAININGS:
        with place() as here:
            one = finish(here, job, "one")
            again = finish(here, job, "again", micro_batch=1)
            yield f"{job}, 1 process in passes of 2 and of 1: {difference(one, again)}"
            torchrun(2, here.arguments(job, "two"))
            yield f"{job}, 1 and 2 processes: {difference(one, here.root / 'two')}"
            torchrun(2, here.arguments(job, "fewer", steps=25))
            finish(here, job, "fewer")
            yield f"{job}, 2 processes, then 1: {difference(one, here.root / 'fewer')}"
            finish(here, job, "more", steps=25)
            torchrun(2, here.arguments(job, "more"))
            yield f"{job}, 1 process, then 2: {difference(one, here.root / 'more')}"


def sampling() -> Iterator[str]:
    """37 images in batches of 5 by 4 DDIM steps."""
    with place() as here:
        model = finish(here, "denoise", "run", steps=4) / "model"
        found = []
        for number in (1, 2, 3):
            out = here.root / str(number)
            flags = ["--num_images=37", "--batch_size=5", "--steps=4", "--sampler=ddim"]
            sample = [str(SCRIPTS / "sample.py"), f"--model={model}", f"--out={out}", *flags]
            torchrun(number, sample)
            found.append(
                {f.name: hashlib.sha256(f.read_bytes()).hexdigest() for f in out.glob("[0-9]*")}
            )
        equal = [len(found[0].items() & other.items()) for other in found[1:]]
        yield f"1 process: {len(found[0])} files; equal to them on 2 and 3 processes: {equal}"


def sharded() -> Iterator[str]:
    """FSDP2 on two CPU processes (gloo): trains, saves, resumes, and goes on unsharded."""
    flags = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
    for job in TRAININGS:
        with place() as here:
            one = finish(here, job, "one")
            for run, middle in (("whole", 50), ("resumed", 25)):
                for steps in sorted({middle, 50}):
                    torchrun(2, here.arguments(job, run, steps=steps), **flags)
            equal = digest(here.root / "whole") == digest(here.root / "resumed")
            yield f"{job}, FSDP2 and 1 process: {difference(one, here.root / 'whole')}"
            yield f"{job}, FSDP2 resumed at step 25 equals FSDP2 bit for bit: {equal}"
            torchrun(2, here.arguments(job, "unsharded", steps=25), **flags)
            finish(here, job, "unsharded")
            yield f"{job}, FSDP2, then 1 process: {difference(one, here.root / 'unsharded')}"


def hosts() -> Iterator[str]:
    """The files of configs/accelerate as they are, but for the number of processes: `accelerate
    launch` on one host, and twice, as on two hosts that meet on the loopback address.
    """
    for job in TRAININGS:
        with place() as here:
            one = finish(here, job, "one")
            for name, machines in (("one_host", 1), ("hosts", 2), ("hosts_fsdp", 2)):
                port = free_port()
                started = [
                    subprocess.Popen(
                        [
                            sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch",
                            f"--config_file={SETTINGS / name}.yaml",
                            f"--num_processes={2 * machines}", f"--machine_rank={rank}",
                            "--main_process_ip=127.0.0.1", f"--main_process_port={port}",
                            *here.arguments(job, name),
                        ],
                        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                    )
                    for rank in range(machines)
                ]  # fmt: skip
                said = [process.communicate(timeout=600)[0] for process in started]
                assert all(process.returncode == 0 for process in started), "\n".join(said)
                counted = re.search(r"\d+ processes", said[0])
                yield (
                    f"{job}, {name}.yaml, {counted[0] if counted else '?'} on {machines} host(s), "
                    f"and 1 process: {difference(one, here.root / name)}"
                )


def faults() -> Iterator[str]:
    """A fault that only one of two processes meets ends both."""
    with place() as here:
        training = [*here.arguments("denoise", "run", steps=2000), "--data.memory_limit=0"]
        picture = here.root / "pictures" / "03.png"
        whole = picture.read_bytes()
        command = [
            sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2",
            f"--master_port={free_port()}", "--", *training,
        ]  # fmt: skip

        def end(process: subprocess.Popen[str]) -> str:
            begin = time.monotonic()
            said = process.communicate(timeout=120)[0].replace(str(here.root), "")
            lines = re.findall(r"error: [^\r\n]*", said)
            return f"both had ended {time.monotonic() - begin:.0f} s later, saying {lines}"

        def start() -> subprocess.Popen[str]:
            streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
            return subprocess.Popen(command, text=True, **streams)  # type: ignore[call-overload]

        process = start()
        while not list(here.root.glob("run/checkpoints/00*")):
            time.sleep(0.01)
        picture.write_bytes(whole[:200])
        yield f"a picture truncated during training: {end(process)}"
        picture.write_bytes(whole)
        child = Child(training, here.root / "log")
        while "going on" not in child.log.read_text():
            time.sleep(0.01)
        yield f"a run folder in use, from the start of both: {end(start())}"
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
