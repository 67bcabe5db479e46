"""`builtin:histology`: two H&E micrographs, nuclei of the first labelled.

They ship inside the wheel of histolytics 0.3.0 (BSD-3-Clause), 1500 x 1500 pixels each: a nest
of ovarian carcinoma cells (labelled) and its stroma. The package itself is not imported. The
right third of the labelled micrograph is held out for scoring.

Limits: two fields of view, and reference masks that were probably made by a model.
"""

from __future__ import annotations

import hashlib
import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from ddpm_unet.data.reading import read_image
from ddpm_unet.errors import UserError

SOURCE, HELD_OUT = "builtin:histology", "builtin:histology/held-out"
TYPE_MASKS = "builtin:nucleus-type"
MASKS = ("builtin:nucleus", TYPE_MASKS)
INSTALL = "pip install --no-deps histolytics==0.3.0"
NEST, STROMA = "hgsc_nest.jpg", "hgsc_stromal_he.jpg"
INSTANCES, TYPES = "hgsc_nest_inst_mask.npz", "hgsc_nest_type_mask.npz"
SHA256 = {
    NEST: "4525ae5db61e7a385f24ec7ff3bf26e10f61a870c36e3c74b1a3cd436990ea57",
    STROMA: "24d152a0c8cf6860567881855db9dbbbf279f1c749adadbe61f58aacdf112631",
    INSTANCES: "bde26874264819e60300edb0be133f72b8b4ce785fc064c25394d8102c346119",
    TYPES: "c90bcce7fe8be0be7a00fcc5cf7667f7b1f7ba21aa1de8bb37b2b138d862162a",
}
# The order was found by laying the outlines of the wheel's hgsc_nest.parquet over the type mask.
CLASS_NAMES = ("background", "connective", "inflammatory", "neoplastic")
HELD_OUT_FROM = 1000  # column of the labelled micrograph where its right third begins

Part = Literal["train", "held_out", "all"]


@dataclass(frozen=True)
class LabelledImage:
    """A part: `image [H, W, 3]` uint8, `instances` (int32 numbers of nuclei, 0 for background) and
    `types` (uint8 indices into `CLASS_NAMES`), `[H, W]`.
    """

    image: np.ndarray
    instances: np.ndarray
    types: np.ndarray


def find_file(name: str) -> Path:
    """Path of one of the wheel's files, its digest checked."""
    spec = importlib.util.find_spec("histolytics")  # of a top-level name: imports nothing
    folders = list(spec.submodule_search_locations or []) if spec else []
    path = next((p for f in folders if (p := Path(f) / "data" / name).is_file()), None)
    if path is None:
        raise UserError(f"builtin:histology: {name} is not installed; run `{INSTALL}`")
    if hashlib.sha256(path.read_bytes()).hexdigest() != SHA256[name]:
        raise UserError(
            f"builtin:histology: {path} is not the file of histolytics 0.3.0; "
            f"run `{INSTALL} --force-reinstall`"
        )
    return path


def columns(part: Part) -> slice:
    """Columns of the labelled micrograph that belong to a part."""
    return {
        "train": slice(HELD_OUT_FROM), "held_out": slice(HELD_OUT_FROM, None), "all": slice(None)
    }[part]  # fmt: skip


def images(part: Part) -> dict[str, np.ndarray]:
    """Micrographs `[H, W, 3]` uint8 by name: for training both, held out the right third."""
    found = {f"{NEST} ({part})": read_image(find_file(NEST))[:, columns(part)]}
    if part != "held_out":
        found[STROMA] = read_image(find_file(STROMA))
    return found


def labelled(part: Part) -> LabelledImage:
    """The labelled micrograph's part for training, the part for scoring, or all of it."""
    instances, types = (_mask(name)[:, columns(part)] for name in (INSTANCES, TYPES))
    image = read_image(find_file(NEST))[:, columns(part)]
    return LabelledImage(image, instances, types.astype(np.uint8))


def mask_of(image: str, types: bool) -> np.ndarray:
    """Classes `int16 [H, W, 1]` of an image of `images`: `CLASS_NAMES`, or 1 for nuclei."""
    parts: tuple[Part, ...] = ("train", "held_out")
    (part,) = (part for part in parts if image == f"{NEST} ({part})")
    values = _mask(TYPES if types else INSTANCES)[:, columns(part)]
    return (values if types else values != 0).astype(np.int16)[..., None]


def _mask(name: str) -> np.ndarray:
    with np.load(find_file(name), allow_pickle=False) as arrays:
        return arrays["nuc_raster"]
