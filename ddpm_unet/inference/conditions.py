"""What a denoiser must be told, and telling it: conditions.json, files and flags."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ddpm_unet.data.planes import Planes
from ddpm_unet.errors import UserError
from ddpm_unet.replace import replace_json

FILE = "conditions.json"


@dataclass(frozen=True)
class Conditioning:
    """What a denoiser was told in training, besides what its `UNetConfig` says.

    Args:
        image_channels: Channels of its images; None for as many as the network takes or gives,
            whichever is less.
        class_names: Name of each class; empty if it knows none, or their names are unknown.
        withheld: Some images were told nothing, so that it can be guided; its last class is none.
        planes: What it goes by beside the noisy image.
        text_encoder: Folder of the text encoder that made its context.
        self_conditioning: It is told its own estimate of the clean image.
    """

    image_channels: int | None = None
    class_names: tuple[str, ...] = ()
    withheld: bool = False
    planes: Planes | None = None
    text_encoder: str | None = None
    self_conditioning: bool = False

    def write(self, folder: Path) -> None:
        """Write conditions.json into the folder of a pipeline."""
        replace_json(folder / FILE, asdict(self))

    @classmethod
    def read(cls, folder: Path) -> Conditioning:
        """Of the folder of a pipeline, or of the `unet` in one; without a file, nothing is known.

        Raises:
            UserError: The file is unreadable.
        """
        root = folder if (folder / "unet").is_dir() else folder.resolve().parent
        path = root / FILE
        if not path.is_file():
            return cls()
        try:
            values: dict[str, Any] = json.loads(path.read_text())
            if values["planes"] is not None:
                values["planes"] = Planes(**values["planes"])
            values["class_names"] = tuple(values["class_names"])
            return cls(**values)
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise UserError(f"{path}: is not readable ({error}); copy the model again") from error
