"""Checkpoints of other code bases, their architecture read off the tensors' names and shapes.

guided-diffusion and improved-diffusion, latent-diffusion and Stable Diffusion 1.x and 2.x, MONAI.
What tensors do not say is asked for. Nothing but safetensors is read.
"""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from ddpm_unet.config import CheckpointHints, UNetConfig
from ddpm_unet.errors import UserError
from ddpm_unet.models.convert.checkpoint import Checkpoint
from ddpm_unet.models.convert.monai import Monai
from ddpm_unet.models.convert.openai import GuidedDiffusion, LatentDiffusion, name_average
from ddpm_unet.models.pretrained import Folder, read_file, single

KINDS: tuple[type[Checkpoint], ...] = (GuidedDiffusion, LatentDiffusion, Monai)
PICKLES = (".pt", ".pth", ".ckpt", ".bin", ".pkl")


def read(
    file: Folder, hints: CheckpointHints | None = None
) -> tuple[UNetConfig, dict[str, Tensor]]:
    """The architecture of another code base's network, and its float32 weights by names of `UNet`.

    Raises:
        UserError: No safetensors file, an unknown code base, a network that `UNet` cannot hold, or
            something that is asked for.
    """
    given = recognise(file, hints or CheckpointHints())
    config, weights = given.config(), given.renamed()
    return config, {name: single(t, f"{file}: {name}") for name, t in weights.items()}


def recognise(file: Folder, hints: CheckpointHints) -> Checkpoint:
    """Of which code base a file is, and the tensors of the network in it.

    Raises:
        UserError: No safetensors file, none of these code bases, or several networks.
    """
    file = Path(file)
    if file.suffix in PICKLES:
        raise UserError(f"{file} is a pickle, which is never loaded; {pickle_cure(file)}")
    weights = name_average(read_file(file))
    found = [
        (kind, name.removesuffix(kind.ANCHOR))
        for kind in KINDS
        for name in weights
        if f".{name}".endswith(f".{kind.ANCHOR}")
        and hints.prefix in (None, name.removesuffix(kind.ANCHOR))
    ]
    if not found:
        names = ", ".join(kind.NAME for kind in KINDS)
        raise UserError(
            f"{file}: holds no U-Net of {names}{f' at {hints.prefix}' if hints.prefix else ''};"
            f" its first tensor is {min(weights, default='none')}; of diffusers' networks name the"
            " folder"
        )
    if len(found) > 1:
        prefixes = " or ".join(prefix or "''" for _, prefix in found)
        raise UserError(f"{file}: holds {len(found)} networks; choose by prefix {prefixes}")
    kind, prefix = found[0]
    own = {n.removeprefix(prefix): t for n, t in weights.items() if n.startswith(prefix)}
    return kind(file, own, hints)


def pickle_cure(file: Path) -> str:
    """The command by which a person who trusts a pickle makes a safetensors file of it."""
    return (
        'if you trust it: python -c "from torch import load; from safetensors.torch import'
        f" save_file; w = load('{file}', 'cpu', weights_only=True); w = w.get('state_dict',"
        " w.get('ema', w.get('model', w))); save_file({k: v.clone() for k, v in w.items() if"
        f" hasattr(v, 'clone')}}, '{file.with_suffix('.safetensors')}')\""
    )
