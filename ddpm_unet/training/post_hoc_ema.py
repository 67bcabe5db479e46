"""An average of the weights of any length, made after the training from snapshots of a few.

Karras 2024 (arXiv:2312.02696), section 3 and appendix C: an average is an integral of the weights
over time against a profile p(tau) = (g + 1) tau^g / t^(g+1) on [0, t]. A sum of the kept averages'
profiles that comes closest to a wanted profile gives the wanted average, by the same sum.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from ddpm_unet.errors import UserError
from ddpm_unet.files import finished
from ddpm_unet.models.pretrained import WEIGHTS, write_weights
from ddpm_unet.training.run_folder import disk_faults

BUFFERS = "buffers"
"""Group of what a network keeps besides weights, as it was at the snapshot."""


def exponent(length: float) -> float:
    """The profile's exponent g, whose relative standard deviation is `length` (eq. 3).

    The root above -1 of (g + 2)^2 (g + 3) length^2 = g + 1.
    """
    square = length**-2
    roots = np.roots([1, 7, 16 - square, 12 - square])
    return float(roots.real.max())


def log_inner_product(t_a: np.ndarray, g_a: np.ndarray, t_b: float, g_b: float) -> np.ndarray:
    """Logarithm of the integral of the product of two profiles (appendix C.3)."""
    scale = np.log((g_a + 1) * (g_b + 1) / (g_a + g_b + 1))
    shared = (g_a + g_b + 1) * np.log(np.minimum(t_a, t_b))
    return scale + shared - (g_a + 1) * np.log(t_a) - (g_b + 1) * np.log(t_b)


def solve(kept: Sequence[tuple[int, float]], step: int, length: float) -> tuple[np.ndarray, float]:
    """The sum of kept profiles (step and length of each) that comes closest to a wanted one.

    Its factors sum to one, which the paper leaves open: weights that stood still stay themselves.

    Returns:
        The factor of each, and the distance that is left as a share of the wanted profile's norm.
    """
    t = np.array([float(at) for at, _ in kept])
    g = np.array([exponent(each) for _, each in kept])
    wanted = exponent(length)
    gram = np.exp(np.stack([log_inner_product(t, g, *pair) for pair in zip(t, g, strict=True)]))
    target = np.exp(log_inner_product(t, g, float(step), wanted))
    norm = np.exp(log_inner_product(np.array([step]), np.array([wanted]), step, wanted))[0]
    # In units of the profiles' own norms, as those of early snapshots are tall.
    scale = 1 / np.sqrt(np.diag(gram))
    ones = scale / scale.max()
    system = np.block([[gram * np.outer(scale, scale), ones[:, None]], [ones, np.zeros(1)]])
    right = np.append(target * scale, 1 / scale.max())
    factors = scale * np.linalg.lstsq(system, right, rcond=1e-12)[0][:-1]
    square = 1 - 2 * factors @ target / norm + factors @ gram @ factors / norm
    return factors, float(np.sqrt(max(square, 0.0)))


@dataclass(frozen=True)
class Snapshots:
    """The averages that a training has kept in a folder.

    <step>.safetensors holds each in half precision, as `0.05/conv_in.bias`: length and name.
    """

    folder: Path

    def write(self, step: int, groups: dict[str, dict[str, Tensor]]) -> None:
        """Write the averages of a step, by length and name, and the buffers."""
        tensors = {
            f"{group}/{name}": (value.half() if group != BUFFERS else value).contiguous()
            for group, values in groups.items()
            for name, value in values.items()
        }
        with disk_faults(self._file(step)), finished(self._file(step)) as part:
            save_file(tensors, part)

    def steps(self) -> list[int]:
        """The steps of which there are averages."""
        files = self.folder.glob("*.safetensors") if self.folder.is_dir() else ()
        return sorted(int(path.stem) for path in files if re.fullmatch(r"\d{8}", path.stem))

    def reconstruct(self, length: float, step: int) -> tuple[dict[str, Tensor], float]:
        """The average of a length at a step, with its buffers, and the distance (see `solve`)."""
        kept: list[tuple[int, str, float]] = []
        for at in (at for at in self.steps() if at <= step):
            found = {name.split("/")[0] for name in self._names(at)} - {BUFFERS}
            kept += [(at, group, float(group)) for group in sorted(found)]
        factors, distance = solve([(at, each) for at, _, each in kept], step, length)
        total: dict[str, Tensor] = {}
        for (at, group, _), factor in zip(kept, factors.tolist(), strict=True):
            for name, value in self._read(at, group).items():
                add = factor * value.double()
                total[name] = total[name].add_(add) if name in total else add
        return {**total, **self._read(step, BUFFERS)}, distance

    def _file(self, step: int) -> Path:
        return self.folder / f"{step:08d}.safetensors"

    def _names(self, step: int) -> list[str]:
        try:
            with safe_open(self._file(step), framework="pt") as file:
                return list(file.keys())
        except (OSError, SafetensorError) as error:
            raise UserError(
                f"{self._file(step)}: is damaged ({error}); move it away, the others may do"
            ) from error

    def _read(self, step: int, group: str) -> dict[str, Tensor]:
        prefix = f"{group}/"
        names = [name for name in self._names(step) if name.startswith(prefix)]
        with safe_open(self._file(step), framework="pt") as file:
            return {name.removeprefix(prefix): file.get_tensor(name) for name in names}


def put_in_place(weights: dict[str, Tensor], model: Path) -> None:
    """Replace the weights in a model's folder, whichever files hold them."""
    left = dict(weights)
    for path in sorted(model.rglob(WEIGHTS)):
        tensors, place = load_file(path), ".".join(path.parent.relative_to(model).parts)
        for name, old in tensors.items():
            full = next((n for n in (f"{place}.{name}", name) if n in left), None)
            if full is not None and left[full].shape == old.shape:
                tensors[name] = left.pop(full).to(old.dtype)
        write_weights(tensors, path.parent)
    if left:
        raise UserError(f"{model}: has no {next(iter(left))}, so it is not of this run")
