"""Checkpoints of other toolkits, their architecture read off the tensors' names and shapes.

Each module knows one toolkit: `config` is the architecture, `rename` the weights by the names of
`UNet`, `peer` the toolkit's own network, to compare with. What tensors do not say is asked for.
Nothing but safetensors is read.
"""

from __future__ import annotations

from os import PathLike
from pathlib import Path
from typing import Protocol

from torch import Tensor

from ddpm_unet.config import UNetConfig
from ddpm_unet.config.foreign import ForeignConfig
from ddpm_unet.errors import UserError
from ddpm_unet.models.foreign import compvis, guided_diffusion, monai
from ddpm_unet.models.foreign.checkpoint import Checkpoint, PeerNetwork
from ddpm_unet.models.pretrained import read_file, single


class Peer(Protocol):
    """A module of this package."""

    NAME: str
    PEER: str
    ANCHOR: str

    def config(self, given: Checkpoint) -> UNetConfig:
        """The architecture."""

    def rename(self, given: Checkpoint) -> dict[str, Tensor]:
        """The weights by the names of `UNet`."""

    def peer(self, given: Checkpoint, config: UNetConfig) -> PeerNetwork:
        """The toolkit's own network with these weights."""


PEERS: tuple[Peer, ...] = (guided_diffusion, compvis, monai)
PICKLES = (".pt", ".pth", ".ckpt", ".bin", ".pkl")


def read(file: str | PathLike[str], told: ForeignConfig) -> tuple[UNetConfig, dict[str, Tensor]]:
    """The architecture of another toolkit's network, and its weights by the names of `UNet`.

    Args:
        file: A safetensors file.
        told: What its tensors do not say.

    Returns:
        The weights are in float32.

    Raises:
        UserError: No safetensors file, an unknown toolkit, a network that `UNet` cannot hold, or
            something that must be told.
    """
    peer, given = recognise(file, told)
    config = peer.config(given)
    weights = peer.rename(given)
    return config, {name: single(t, f"{file}: {name}") for name, t in weights.items()}


def recognise(file: str | PathLike[str], told: ForeignConfig) -> tuple[Peer, Checkpoint]:
    """Which toolkit a file is of, and the tensors of the network in it.

    Raises:
        UserError: No safetensors file, none of these toolkits, or several networks.
    """
    file = Path(file)
    if file.suffix in PICKLES:
        raise UserError(f"{file} is a pickle, which is never loaded; {pickle_cure(file)}")
    weights = compvis.name_average(read_file(file))
    found = [
        (peer, name.removesuffix(peer.ANCHOR))
        for peer in PEERS
        for name in weights
        if f".{name}".endswith(f".{peer.ANCHOR}")
        and told.prefix in (None, name.removesuffix(peer.ANCHOR))
    ]
    if not found:
        names = ", ".join(peer.NAME for peer in PEERS)
        raise UserError(
            f"{file}: holds no U-Net of {names}{f' at {told.prefix}' if told.prefix else ''};"
            f" its first tensor is {min(weights, default='none')}; of diffusers' networks name the"
            " folder"
        )
    if len(found) > 1:
        prefixes = " or ".join(prefix or "''" for _, prefix in found)
        raise UserError(f"{file}: holds {len(found)} networks; choose by --prefix {prefixes}")
    peer, prefix = found[0]
    own = {n.removeprefix(prefix): t for n, t in weights.items() if n.startswith(prefix)}
    return peer, Checkpoint(file, peer.NAME, own, told)


def pickle_cure(file: Path) -> str:
    """The command by which a person who trusts a pickle makes a safetensors file of it."""
    return (
        'if you trust it: python -c "from torch import load; from safetensors.torch import'
        f" save_file; w = load('{file}', 'cpu', weights_only=True); w = w.get('state_dict',"
        " w.get('ema', w.get('model', w))); save_file({k: v.clone() for k, v in w.items() if"
        f" hasattr(v, 'clone')}}, '{file.with_suffix('.safetensors')}')\""
    )
