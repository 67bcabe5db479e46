"""Settings from what JSON and YAML hold, with one line for a value of a wrong type."""

from __future__ import annotations

import json
import types
from collections.abc import Iterator, Mapping
from dataclasses import field, fields
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from ddpm_unet.errors import UserError

Settings = TypeVar("Settings")
Value = TypeVar("Value")
UNLISTED = (0, 2**53)  # up to which floats hold every whole number
_WORDS: dict[Any, str] = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "text",
    type(None): "null",
}


def bounded(default: Value, least: float, most: float = UNLISTED[1]) -> Value:
    """A dataclass field whose numbers, or those in its tuples, lie between two bounds."""
    return field(default=default, metadata={"bounds": (least, most)})


def check_settings(settings: Any) -> None:
    """Refuse values of a wrong type, unknown choices, numbers out of bounds and NaN.

    Args:
        settings: A dataclass; fields that are not `bounded` are finite and at least 0.

    Raises:
        UserError: Names the setting and what it may be.
    """
    hints = get_type_hints(type(settings))
    for each in fields(settings):
        value = getattr(settings, each.name)
        try:
            _converted(value, hints[each.name])
        except ValueError:
            raise UserError(wrong_type(each.name, value, hints[each.name])) from None
        check_bounds(each.name, value, each.metadata.get("bounds", UNLISTED))


def check_bounds(name: str, value: Any, bounds: tuple[float, float]) -> None:
    """Refuse numbers out of bounds, and NaN; in tuples too.

    Raises:
        UserError: Names the setting and its bounds.
    """
    least, most = bounds
    for number in _numbers(value):
        if not least <= number <= most:  # NaN is neither
            shown = number if isinstance(number, int) else f"{number:g}"
            wanted = f"between {least:.12g} and {most:.12g}"
            if most == UNLISTED[1]:
                wanted = f"at least {least:g}"
            raise UserError(f"{name} {shown}: must be {wanted}")


def _numbers(value: Any) -> Iterator[float]:
    if isinstance(value, tuple | list):
        for entry in value:
            yield from _numbers(entry)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield value


def read_json(path: Path) -> dict[str, Any]:
    """The settings in a JSON file.

    Raises:
        UserError: It is missing, unreadable, or holds something else than settings.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: is not readable ({error}); copy the model again") from error
    if not isinstance(values, dict):
        raise UserError(f"{path}: holds no settings; copy the model again")
    return values


def from_plain(kind: type[Settings], values: Mapping[str, Any], source: object) -> Settings:
    """A dataclass of type `kind`.

    Args:
        kind: Its annotations say what each value must be.
        values: Value of each field; fields that are left out keep their default. Lists become
            tuples.
        source: What the message begins with, such as the file that holds the values.

    Raises:
        UserError: An unknown field, or a value of another type; names source and field.
    """
    hints = get_type_hints(kind)
    settings = {}
    for name, value in values.items():
        if name not in hints:
            raise UserError(f"{source}: unknown key {name!r}; remove it if it means nothing")
        try:
            settings[name] = _converted(value, hints[name])
        except ValueError:
            raise UserError(wrong_type(f"{source}: {name}", value, hints[name])) from None
    try:
        return kind(**settings)
    except TypeError as error:  # a field without default is missing
        raise UserError(f"{source}: {error}; copy the model again") from error


def wrong_type(name: str, value: Any, hint: Any) -> str:
    """The line that refuses a value."""
    text = repr(value) if isinstance(value, str) else json.dumps(value, default=str)
    shown = text if len(text) <= 60 else f"{text[:57]}..."
    return f"{name} is {shown}; it must be {in_words(hint)}"


def in_words(hint: Any) -> str:
    """What values a type annotation allows, for people."""
    origin, args = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return " or ".join(map(in_words, args))
    if origin is Literal:
        return f"one of {', '.join(map(str, args))}" if len(args) > 1 else str(args[0])
    if origin is tuple and args[-1] is not Ellipsis:
        return f"[{', '.join(map(in_words, args))}]"
    if origin is tuple:
        return f"a list, each {in_words(args[0])}"
    return _WORDS.get(hint, "a group of settings")


def _converted(value: Any, hint: Any) -> Any:
    """`value`, with tuples for lists.

    Raises:
        ValueError: It is not of the type `hint`.
    """
    origin, args = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        for choice in args:
            try:
                return _converted(value, choice)
            except ValueError:
                continue
    elif origin is Literal:
        if any(value == choice and type(value) is type(choice) for choice in args):
            return value
    elif origin is tuple:
        if isinstance(value, list | tuple):
            kinds = args[:1] * len(value) if args[-1] is Ellipsis else args
            if len(kinds) != len(value):
                raise ValueError
            return tuple(_converted(v, k) for v, k in zip(value, kinds, strict=True))
    elif type(value) is hint or (hint is float and type(value) is int):
        return value
    raise ValueError
