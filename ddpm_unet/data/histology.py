"""`builtin:histology`: two H&E micrographs, nuclei of the first labelled.

They ship inside the wheel of histolytics 0.3.0 (BSD-3-Clause), 1500 x 1500 pixels each: a nest
of ovarian carcinoma cells (labelled) and its stroma. The package itself is not imported. The
right third of the labelled micrograph is held out for scoring.

Limits: two fields of view, and reference masks that were probably made by a model.
"""

from __future__ import annotations

import hashlib
import importlib.util
from pathlib import Path
from typing import Literal

import numpy as np

from ddpm_unet.data.reading import read_image
from ddpm_unet.errors import UserError

SOURCES = SOURCE, HELD_OUT = "builtin:histology", "builtin:histology/held-out"
TYPE_MASKS = "builtin:nucleus-type"
MASKS = ("builtin:nucleus", TYPE_MASKS)
INSTALL = "pip install --no-deps histolytics==0.3.0"
NEST, STROMA = "hgsc_nest.jpg", "hgsc_stromal_he.jpg"
MASK_FILES = {"instances": "hgsc_nest_inst_mask.npz", "types": "hgsc_nest_type_mask.npz"}
SHA256 = {
    NEST: "4525ae5db61e7a385f24ec7ff3bf26e10f61a870c36e3c74b1a3cd436990ea57",
    STROMA: "24d152a0c8cf6860567881855db9dbbbf279f1c749adadbe61f58aacdf112631",
    MASK_FILES["instances"]: "bde26874264819e60300edb0be133f72b8b4ce785fc064c25394d8102c346119",
    MASK_FILES["types"]: "c90bcce7fe8be0be7a00fcc5cf7667f7b1f7ba21aa1de8bb37b2b138d862162a",
}
# The order was found by laying the outlines of the wheel's hgsc_nest.parquet over the type mask.
CLASS_NAMES = ("background", "connective", "inflammatory", "neoplastic")
HELD_OUT_FROM = 1000  # column of the labelled micrograph where its right third begins

Part = Literal["train", "held_out", "all"]
What = Literal["image", "instances", "types"]


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


def micrograph(part: Part, what: What = "image") -> np.ndarray:
    """Of the labelled micrograph the part for training, the one for scoring, or all of it.

    Returns:
        "image" RGB, `uint8 [H, W, 3]`; "instances" numbers of nuclei, 0 for background, or "types"
        indices into `CLASS_NAMES`, `uint16 [H, W, 1]`.
    """
    if what == "image":
        whole = read_image(find_file(NEST))
    else:
        with np.load(find_file(MASK_FILES[what]), allow_pickle=False) as arrays:
            whole = arrays["nuc_raster"].astype(np.uint16)[..., None]
    start, end = HELD_OUT_FROM * (part == "held_out"), HELD_OUT_FROM if part == "train" else None
    return whole[:, start:end]


def images(part: Part) -> dict[str, np.ndarray]:
    """Micrographs `[H, W, 3]` uint8 by name: for training both, held out the right third."""
    found = {f"{NEST} ({part})": micrograph(part)}
    if part != "held_out":
        found[STROMA] = read_image(find_file(STROMA))
    return found


def mask_of(image: str, types: bool) -> np.ndarray:
    """Classes `int16 [H, W, 1]` of an image of `images`: `CLASS_NAMES`, or 1 for nuclei."""
    part: Part = "train" if image == f"{NEST} (train)" else "held_out"
    values = micrograph(part, "types") if types else micrograph(part, "instances") != 0
    return values.astype(np.int16)
