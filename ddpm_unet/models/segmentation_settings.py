"""The settings of segmentation networks: checked, and written as `config.json`."""

from __future__ import annotations

import difflib
from dataclasses import asdict, fields
from os import PathLike
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from ddpm_unet.config import ClassicConfig, HeadConfig
from ddpm_unet.config.reading import check_limits, from_plain, read_json
from ddpm_unet.errors import UserError
from ddpm_unet.models.pretrained import CONFIG
from ddpm_unet.replace import replace_json

Settings = TypeVar("Settings", ClassicConfig, HeadConfig)


def check_settings(config: ClassicConfig | HeadConfig) -> None:
    """Refuse unknown choices, and names or colours that are not one per class.

    Raises:
        UserError: Naming the setting and the cure.
    """
    check_limits(config)
    for name, kind in get_type_hints(type(config)).items():
        value = getattr(config, name)
        if get_origin(kind) is Literal and value not in get_args(kind):
            choices = ", ".join(map(str, get_args(kind)))
            raise UserError(f"{name}: {value!r} is not supported; take one of {choices}")
    for name in ("class_names", "class_colors"):
        entries = getattr(config, name)
        if entries and len(entries) != config.num_classes:
            raise UserError(
                f"{name} has {len(entries)} entries and num_classes is {config.num_classes};"
                " give one per class, or none"
            )


def class_name(folder: str | PathLike[str]) -> str:
    """The `_class_name` of a model's folder.

    Raises:
        UserError: The folder has no readable config.json.
    """
    return str(_read(folder).get("_class_name", "model of unknown class"))


def read_settings(folder: str | PathLike[str], kind: str, settings: type[Settings]) -> Settings:
    """The settings in `config.json` of a model of class `kind`.

    Raises:
        UserError: config.json is missing, unreadable, of another class, or has an unknown key.
    """
    path = Path(folder) / CONFIG
    given = _read(folder)
    if given.get("_class_name") != kind:
        raise UserError(f"{path} is of a {given.get('_class_name')}; name the folder of a {kind}")
    known = [field.name for field in fields(settings)]
    values = {key: value for key, value in given.items() if not key.startswith("_")}
    for key in values:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            cure = f"did you mean {near[0]}?" if near else "remove it if it means nothing"
            raise UserError(f"{path}: unknown key {key!r} of a {kind}; {cure}")
    config = from_plain(settings, values, path)
    try:
        check_settings(config)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    return config


def write_settings(
    config: ClassicConfig | HeadConfig, kind: str, folder: str | PathLike[str]
) -> None:
    """Write `config.json` into `folder`, which is made if missing."""
    replace_json(Path(folder) / CONFIG, {"_class_name": kind, **asdict(config)})


def _read(folder: str | PathLike[str]) -> dict[str, Any]:
    folder = Path(folder)
    if not (folder / CONFIG).is_file():
        fault = f"has no {CONFIG}" if folder.is_dir() else "does not exist"
        place = folder / "model"
        cure = f"the model in it, {place}" if place.is_dir() else "the model folder of a run"
        raise UserError(f"{folder} {fault}; name {cure}")
    return read_json(folder / CONFIG)
