"""How like real images generated ones are: distances of distributions, and plain statistics.

Images are first described (`describe`): features of a network for the distances, and a few
numbers that a person can read. Descriptions are small, add up over batches and processes, and are
compared by `compare`, always beside the figures of real images against other real ones.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ddpm_unet.evaluation.plots import grid, pyplot

NEIGHBOURS_PRECISION, NEIGHBOURS_DENSITY = 3, 5
KID_SUBSETS, KID_SUBSET_SIZE = 100, 1000


@dataclass(frozen=True)
class Description:
    """What is kept of N images.

    Args:
        features: Of an extractor, `float32 [N, D]`.
        colour: Mean of each channel, grey levels 0 to 255, `float32 [N, C]`.
        contrast: Standard deviation within each image, grey levels, `float32 [N]`.
        spectrum: Power at each whole number of cycles per image, from 1 on, averaged over
            directions and channels, grey levels squared, `float32 [N, S]`.
    """

    features: Tensor
    colour: Tensor
    contrast: Tensor
    spectrum: Tensor

    def __len__(self) -> int:
        return len(self.features)

    def __getitem__(self, chosen: slice) -> Description:
        return Description(**{name: value[chosen] for name, value in self.tensors().items()})

    def tensors(self) -> dict[str, Tensor]:
        """By name, to be written to a file."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @staticmethod
    def join(parts: Iterable[Description]) -> Description:
        """Of all images of the parts, in order."""
        rows = [part.tensors() for part in parts]
        return Description(**{name: torch.cat([row[name] for row in rows]) for name in rows[0]})


@torch.inference_mode()
def describe(images: Tensor, extractor: nn.Module, batch_size: int = 32) -> Description:
    """Describe images `uint8 [N, C, H, W]`, C 1 or 3 (the extractor sees grey images as RGB).

    The extractor takes `uint8 [B, 3, H, W]`, B at most batch_size, to features `[B, D]`.
    """
    device = next((p.device for p in extractor.parameters()), images.device)
    return Description.join(
        _describe(batch.to(device), extractor) for batch in images.split(batch_size)
    )


def _describe(images: Tensor, extractor: nn.Module) -> Description:
    levels = images.float()
    power = torch.fft.fft2(levels, norm="forward").abs().square().mean(1)
    cycles = [torch.fft.fftfreq(n, 1 / n, device=images.device) for n in images.shape[2:]]
    radius = torch.hypot(cycles[0][:, None], cycles[1][None]).round().long().flatten()
    bins = min(images.shape[2:]) // 2 + 1
    kept = radius < bins
    sums = power.new_zeros(len(images), bins).index_add_(1, radius[kept], power.flatten(1)[:, kept])
    found = extractor(images.expand(-1, 3, -1, -1))
    return Description(
        features=found.flatten(1).float().cpu(),
        colour=levels.mean((2, 3)).cpu(),
        contrast=levels.std((1, 2, 3)).cpu(),
        spectrum=(sums / torch.bincount(radius[kept]))[:, 1:].cpu(),
    )


def frechet_distance(a: Tensor, b: Tensor) -> float:
    """Fréchet distance of the Gaussians fitted to features `[N, D]`, `[M, D]` (Heusel 2017, eq. 6).

    With centred features A = Q_A R_A, the trace of the root of the covariances' product is the
    sum of the singular values of R_A R_B^T, which is exact for any N and M of at least 2.
    """
    means, roots = [], []
    for features in (a.double(), b.double()):
        means.append(features.mean(0))
        centred = (features - means[-1]) / (len(features) - 1) ** 0.5
        roots.append(torch.linalg.qr(centred, mode="r").R if len(centred) > centred.shape[1]
                     else centred)  # fmt: skip
    traces = sum(root.square().sum() for root in roots)
    overlap = torch.linalg.svdvals(roots[0] @ roots[1].T).sum()
    return float((means[0] - means[1]).square().sum() + traces - 2 * overlap)


def kernel_distance(a: Tensor, b: Tensor, size: int = KID_SUBSET_SIZE) -> tuple[float, float]:
    """KID (Binkowski 2018): unbiased squared MMD with the kernel (x.y / D + 1)^3.

    Mean and standard deviation over random subsets of `size` (at most half of the images) of
    features `[N, D]` and `[M, D]`, N and M at least 4.
    """
    size = min(size, len(a) // 2, len(b) // 2)
    random = torch.Generator().manual_seed(0)
    found = []
    for _ in range(KID_SUBSETS):
        x, y = (f[torch.randperm(len(f), generator=random)[:size]] for f in (a, b))
        found.append(kernel_discrepancy(x, y))
    return float(np.mean(found)), float(np.std(found))


def kernel_discrepancy(x: Tensor, y: Tensor) -> float:
    """Unbiased squared maximum mean discrepancy of `[N, D]` and `[N, D]`, of the KID's kernel."""
    x, y, count = x.double(), y.double(), len(x)
    xx, yy, xy = ((a @ b.T / a.shape[1] + 1) ** 3 for a, b in ((x, x), (y, y), (x, y)))
    within = xx.sum() - xx.trace() + yy.sum() - yy.trace()
    return float(within / (count * (count - 1)) - 2 * xy.mean())


def nearest(a: Tensor, b: Tensor, k: int = 1, chunk: int = 1024) -> tuple[Tensor, Tensor]:
    """Distance and index of the k-th nearest of `b` `[M, D]` for each of `a`, `[N]` each."""
    tables = (torch.cdist(part, b).kthvalue(k, dim=1) for part in a.split(chunk))
    distances, indices = zip(*tables, strict=True)
    return torch.cat(distances), torch.cat(indices)


def manifold_scores(real: Tensor, generated: Tensor, chunk: int = 1024) -> dict[str, float]:
    """Fidelity and variety apart, from balls that reach to an image's k-th neighbour of its kind.

    Returns:
        Of features `[N, D]` and `[M, D]` "precision", the share of the generated within a ball of
        real ones, and "recall", the share of the real within a ball of generated ones
        (Kynkäänniemi 2019, k = 3); "density", how many balls of real ones a generated one is in,
        over k, and "coverage", the share of real balls that have a generated one in them (Naeem
        2020, k = 5).
    """

    def radius(features: Tensor, k: int) -> Tensor:
        return nearest(features, features, min(k + 1, len(features)), chunk)[0]

    wide, narrow = radius(real, NEIGHBOURS_DENSITY), radius(real, NEIGHBOURS_PRECISION)
    made = radius(generated, NEIGHBOURS_PRECISION)
    precise = density = 0.0
    recalled, covered = (torch.zeros(len(real), dtype=torch.bool) for _ in range(2))
    for part, reach in zip(generated.split(chunk), made.split(chunk), strict=True):
        table = torch.cdist(part, real)
        precise += float((table <= narrow).any(1).sum())
        inside = table < wide
        density += float(inside.sum()) / NEIGHBOURS_DENSITY
        recalled |= (table <= reach[:, None]).any(0)
        covered |= inside.any(0)
    return {
        "precision": precise / len(generated),
        "recall": float(recalled.float().mean()),
        "density": density / len(generated),
        "coverage": float(covered.float().mean()),
    }


def compare(generated: Description, real: Description) -> dict[str, float]:
    """All scores of generated images against real ones, of equal counts for comparable figures.

    Returns:
        "fd", "kid", "kid_std", the four of `manifold_scores`; "colour", the largest difference of
        a channel's mean, in grey levels; "colour_spread", "contrast", the standard deviation of
        the images' means, and the mean contrast, each over that of the real ones; "spectrum", the
        root mean square of the difference of log10 power over all scales.
    """
    kid, kid_std = kernel_distance(real.features, generated.features)
    decades = generated.spectrum.mean(0).log10() - real.spectrum.mean(0).log10()
    return {
        "fd": frechet_distance(real.features, generated.features),
        "kid": kid,
        "kid_std": kid_std,
        **manifold_scores(real.features, generated.features),
        "colour": float((generated.colour.mean(0) - real.colour.mean(0)).abs().max()),
        "colour_spread": float(generated.colour.mean(1).std() / real.colour.mean(1).std()),
        "contrast": float(generated.contrast.mean() / real.contrast.mean()),
        "spectrum": float(decades.square().mean().sqrt()),
    }


def copying(generated: Description, training: Description, real: Description) -> float:
    """Whether a model repeats its training images.

    The median distance of features from a generated image to the nearest training image, over that
    from another real image: near 1 for a model that invents as nature does, near 0 for copies.
    """
    made, other = (nearest(x.features, training.features)[0].median() for x in (generated, real))
    return float(made / other)


Scores = dict[str, dict[str, float]]
"""What `compare` and `copying` give, by set of images."""


def evaluate(sets: dict[str, Description], reference: Description, real: Description) -> Scores:
    """Compare every set, and first "real", other real images, with the reference."""
    return {
        name: compare(found, reference) | {"copying": copying(found, reference, real)}
        for name, found in {"real": real, **sets}.items()
    }


def table(scores: Scores) -> str:
    """The scores in Markdown, a row a set."""
    names = list(scores["real"])
    lines = [f"| images | {' | '.join(names)} |", f"|---|{'---|' * len(names)}"]
    for name, row in scores.items():
        lines.append(f"| {name} | {' | '.join(f'{row[key]:.3g}' for key in names)} |")
    return "\n".join(lines)


def plot_fidelity(
    scores: Scores, found: dict[str, Description], shown: dict[str, Tensor], path: Path
) -> None:
    """Write a page: images under their scores, and what they have in colours, scales, neighbours.

    `found` has the sets, "real", and first the "reference"; `shown` some images of each set,
    `[B, C, H, W]` in [-1, 1].
    """
    plt = pyplot()
    columns = max(3, len(shown))
    figure, axes = plt.subplots(2, columns, figsize=(4.6 * columns, 9.4), layout="constrained")
    for axis in axes.flat:
        axis.axis("off")
    for axis, (name, images) in zip(axes[0], shown.items(), strict=False):
        row = scores.get(name)
        caption = row and (
            f"FD {row['fd']:.1f}, KID {row['kid']:.4f}\n"
            f"precision {row['precision']:.2f}, recall {row['recall']:.2f}"
        )
        axis.imshow(np.asarray(grid(images)), interpolation="nearest")
        axis.set_title(f"{name}\n{caption or ''}", fontsize=10)
    reference = found["reference"].features
    panels: dict[str, dict[str, Tensor]] = {
        "power, by cycles per image": {n: d.spectrum.mean(0) for n, d in found.items()},
        "mean of an image, grey levels": {n: d.colour.mean(1) for n, d in found.items()},
        "distance to the nearest image of the reference": {
            n: nearest(d.features, reference)[0] for n, d in found.items() if n != "reference"
        },
    }
    for number, (axis, (title, lines)) in enumerate(zip(axes[1], panels.items(), strict=False)):
        whole = torch.cat(list(lines.values()))
        edges = np.linspace(float(whole.min()), float(whole.max()), 25)
        for name, values in lines.items():
            look = {"label": name, "color": f"C{list(found).index(name)}"}
            if number == 0:
                axis.loglog(np.arange(1, len(values) + 1), values, **look)
            else:
                axis.stairs(np.histogram(values, edges)[0] / len(values), edges, **look)
        axis.set_title(title, fontsize=10)
        axis.axis("on")
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    figure.savefig(path, dpi=100)
    plt.close(figure)
