"""Many samples of one picture: their mean, their spread, and whether the spread tells the error."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ddpm_unet.evaluation.plots import pyplot


@dataclass(frozen=True)
class Calibration:
    """How the spread of samples and the error of their mean go together, over all pixels.

    Were truth and samples drawn from one distribution, `ratio` would be 1 and `bin_rmse` equal
    `bin_spread`.

    Args:
        rmse: Root mean square error of the mean.
        spread: Root mean square of the spread.
        ratio: spread / rmse: below 1 the samples are too sure, above 1 too unsure.
        correlation: Of the ranks of spread and absolute error (Spearman), -1 to 1.
        bin_spread: Root mean square of the spread in bins of equally many pixels, `[bins]`.
        bin_rmse: Root mean square error in them, `[bins]`.
    """

    rmse: float
    spread: float
    ratio: float
    correlation: float
    bin_spread: Tensor
    bin_rmse: Tensor


def mean_and_spread(samples: Tensor) -> tuple[Tensor, Tensor]:
    """What N samples of each picture say, `[B, ...]` each.

    Args:
        samples: `[B, N, ...]`, N at least 2.

    Returns:
        Their mean; and the standard deviation that the error of that mean has if the truth is one
        sample more: the unbiased variance of the samples times 1 + 1/N, its root (Fortin 2014,
        eq. 15).
    """
    count = samples.shape[1]
    if count < 2:
        raise ValueError("one sample has no spread; give 2 or more of each picture")
    spread = (samples.var(dim=1) * (1 + 1 / count)).sqrt()
    return samples.mean(dim=1), spread


def calibration(mean: Tensor, spread: Tensor, truth: Tensor, bins: int = 10) -> Calibration:
    """Hold the spread against the error, pixel by pixel.

    Args:
        mean: Of the samples, any shape.
        spread: From `mean_and_spread`, of that shape.
        truth: Of that shape.
        bins: Of equally many pixels, from the smallest spread to the largest.

    Raises:
        ValueError: Fewer pixels than bins.
    """
    error, spread = (mean - truth).double().flatten(), spread.double().flatten()
    if len(error) < bins:
        raise ValueError(f"{len(error)} pixels do not fill {bins} bins")
    order = spread.argsort()
    rmse, all_spread = _root_mean_square(error), _root_mean_square(spread)
    return Calibration(
        rmse=float(rmse),
        spread=float(all_spread),
        ratio=float(all_spread / rmse),
        correlation=_rank_correlation(spread, error.abs()),
        bin_spread=torch.stack([_root_mean_square(part) for part in spread[order].chunk(bins)]),
        bin_rmse=torch.stack([_root_mean_square(part) for part in error[order].chunk(bins)]),
    )


def plot_reliability(found: Calibration, path: Path) -> None:
    """Plot the errors of the bins against the spreads that foretold them, with the diagonal."""
    plt = pyplot()
    figure, axis = plt.subplots(figsize=(4.2, 4), layout="constrained")
    spread, error = found.bin_spread.numpy(), found.bin_rmse.numpy()
    end = 1.05 * max(spread.max(), error.max())
    axis.plot([0, end], [0, end], color="grey", lw=1, ls="--", label="calibrated")
    axis.plot(spread, error, marker="o", label="bins of equally many pixels")
    axis.set(xlim=(0, end), ylim=(0, end), xlabel="spread of the samples")
    axis.set(ylabel="root mean square error of their mean", aspect="equal")
    axis.grid(alpha=0.3)
    axis.legend()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _root_mean_square(values: Tensor) -> Tensor:
    return values.square().mean().sqrt()


def _rank_correlation(a: Tensor, b: Tensor) -> float:
    ranks = torch.stack([values.argsort().argsort().double() for values in (a, b)])
    return float(torch.corrcoef(ranks)[0, 1])
