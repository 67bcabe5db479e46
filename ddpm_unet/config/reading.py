"""From YAML, JSON and flags to dataclasses of settings; whatever does not fit is one line."""

from __future__ import annotations

import difflib
import inspect
import json
import re
import sys
import types
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import field, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, NoReturn, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml

from ddpm_unet.errors import UserError, cause_of

Settings = TypeVar("Settings")
Limits = tuple[float, float]

WHOLE = 2**53  # up to which floats hold every whole number
FINITE: Limits = (-1e300, 1e300)
SEED: Limits = (0, 2**32 - 1)
SHARE: Limits = (0, 1)
BELOW_1: Limits = (0, 1 - 1e-9)
RENAMED = {
    "data.turns": "data.rot90",
    "data.augment.turns": "data.augment.rot90",
    "unlabelled.turns": "unlabelled.rot90",
    "predict.turns": "predict.tta",
    "train.patience": "train.early_stopping_patience",
    "train.ema_lengths": "train.ema_sigma_rel",
}
"""Settings of earlier versions, and what they are called now."""
GONE = {
    "data.boundary_width": "data.mask_kind instances and objects true tell objects apart",
    "data.mask_kind boundaries": "instances and objects true tell objects apart",
}
"""Likewise settings, and values, that are no more, and what does their work."""
_BOOL = "tag:yaml.org,2002:bool"
_EXPONENT = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+")
_WORDS: dict[Any, str] = {
    int: "a whole number", float: "a number", bool: "true or false", str: "text", type(None): "null"
}  # fmt: skip


def limited(default: Any, least: float, most: float = WHOLE, **options: Any) -> Any:
    """A field of a dataclass whose numbers must lie between `least` and `most`."""
    return field(default=default, metadata={"limits": (least, most)}, **options)


def check_limits(settings: Any, prefix: str = "") -> None:
    """Refuse numbers that no job could use, and NaN; those without limits must be at least 0."""
    for each in fields(settings):
        name, value = f"{prefix}{each.name}", getattr(settings, each.name)
        if is_dataclass(value):
            check_limits(value, f"{name}.")
            continue
        least, most = each.metadata.get("limits", (0, WHOLE))
        for number in _numbers(value):
            if not least <= number <= most:  # NaN is neither
                shown = f"{number:g}" if isinstance(number, float) else number
                raise UserError(f"{name} {shown}: must be {_within(least, most)}")


def check_settings(settings: Any) -> None:
    """Refuse values of a wrong type, unknown choices and numbers outside their limits."""
    for name, hint in get_type_hints(type(settings)).items():
        converted(getattr(settings, name), hint, "", name)
    check_limits(settings)


def read_json(path: Path) -> dict[str, Any]:
    """The settings in a JSON file."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: is not readable ({error}); copy the model again") from error
    if not isinstance(values, dict):
        raise UserError(f"{path}: holds no settings; copy the model again")
    return values


def from_plain(kind: type[Settings], values: Mapping[str, Any], source: object) -> Settings:
    """A dataclass of type `kind`, whose annotations say what each value must be.

    Fields that are left out keep their default, lists become tuples, dicts dataclasses. An unknown
    field or a value of another type is a UserError that begins with `source`, such as the file.
    """
    hints = get_type_hints(kind)
    if unknown := [name for name in values if name not in hints]:
        raise UserError(f"{source}: unknown key {unknown[0]!r}; remove it if it means nothing")
    found: dict[str, Any] = {}
    for name, value in values.items():
        inner: Any = next(filter(is_dataclass, get_args(hints[name])), None)
        if inner and isinstance(value, dict):
            found[name] = from_plain(inner, value, f"{source}: {name}")
        else:
            found[name] = converted(value, hints[name], f"{source}: ", name)
    try:
        return kind(**found)
    except TypeError as error:  # a field without default is missing
        raise UserError(f"{source}: {error}; copy the model again") from error


def read_yaml(path: Path) -> dict[Any, Any]:
    """The settings in a YAML file; no key may be repeated."""
    try:
        values = _Loader(path.read_bytes()).get_single_data()
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read ({error.strerror}); give a YAML file of settings"
        ) from error
    except yaml.MarkedYAMLError as error:
        place = f"line {error.problem_mark.line + 1}" if error.problem_mark else "somewhere"
        raise UserError(f"{path}: {place}: {error.problem}; mend the YAML") from error
    except (yaml.YAMLError, UnicodeDecodeError, ValueError, RecursionError) as error:
        raise UserError(
            f"{path}: is not YAML ({cause_of(error)}); give a YAML file of settings"
        ) from error
    if not isinstance(values, dict):
        raise UserError(f"{path}: holds no settings; write lines such as `seed: 0`")
    return values


def current_names(values: dict[Any, Any], prefix: str = "") -> dict[Any, Any]:
    """The settings that an earlier version wrote, in the words of this one."""
    found = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict):
            value = current_names(value, f"{name}.")
        if name == "data.mask_kind" and value == "pictures":
            value = "images"
        found[RENAMED.get(name, name).rsplit(".", 1)[-1]] = value
    return found


def setting_names(kind: type, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted name and type of every setting and group of settings of a dataclass."""
    for name, hint in get_type_hints(kind).items():
        yield f"{prefix}{name}", hint
        if is_dataclass(hint):
            yield from setting_names(hint, f"{prefix}{name}.")  # type: ignore[arg-type]


def read_settings(
    kind: type[Settings], default_config: Path | None, arguments: Sequence[str] | None = None
) -> tuple[Settings, str]:
    """Settings of `--config FILE` or a default one, overridden by dotted flags.

    Also the name (without suffix) of the file, "" for none.
    """
    flags, file = read_flags(kind, arguments, default_config.name if default_config else "none")
    file = file or default_config
    values = read_file(kind, file) if file else {}
    return build(kind, {**values, **flags}), file.stem if file else ""


def read_flags(
    kind: type, arguments: Sequence[str] | None = None, default: str = "none"
) -> tuple[dict[str, Any], Path | None]:
    """Settings that flags give, by dotted name, and the file that `--config` names.

    `--resume RUN` is a run folder, and its config.yaml. `--help` prints the settings and exits;
    it names `default` as the file.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if {"--help", "-h", "--help-all"} & set(arguments):
        print(_help(kind, default, everything="--help-all" in arguments))
        raise SystemExit(0)
    given = sum(argument.split("=")[0] == "--config" for argument in arguments)
    if given > 1:
        raise UserError(f"--config: is given {given} times; give one")
    names = dict(setting_names(kind))
    flags = _flags(arguments, names, kind)
    if "resume" in names and flags.get("resume", "auto") not in ("auto", "never"):
        run = Path(flags.pop("resume"))
        if not (run / "config.yaml").is_file():
            raise UserError(f"--resume {run}: is no run folder; give one, or auto or never")
        for name in {"config", "run"} & flags.keys():
            raise UserError(f"--{name}: --resume {run} has one already; leave one of the two out")
        flags |= {"config": str(run / "config.yaml"), "run": str(run), "resume": "auto"}
    file = Path(flags.pop("config")) if "config" in flags else None
    values = {
        name: converted(from_text(text, names[name]), names[name], "--", name, text)
        for name, text in flags.items()
    }
    return values, file


def read_file(kind: type, file: Path) -> dict[str, Any]:
    """Settings of a YAML file, by dotted name; a run's config.yaml may be of an earlier version."""
    names, written = dict(setting_names(kind)), read_yaml(file)
    if file.name == "config.yaml":
        written = current_names(written)
    return {
        name: converted(value, names[name], f"{file}: ", name)
        for name, value in _flat(written, names, kind, f"{file}: ")
    }


def build(kind: type[Settings], values: Mapping[str, Any]) -> Settings:
    """Settings of given values, by dotted name, and defaults."""
    settings = _build(kind, values)
    check_limits(settings)
    return settings


def _build(kind: Any, values: Mapping[str, Any], prefix: str = "") -> Any:
    found = {}
    for name, hint in get_type_hints(kind).items():
        full = f"{prefix}{name}"
        if is_dataclass(hint):
            found[name] = _build(hint, values, f"{full}.")
        elif full in values:
            found[name] = values[full]
    return kind(**found)


def _flags(arguments: list[str], names: dict[str, Any], kind: type) -> dict[str, str]:
    """The text given to every flag, the last one where there are several."""
    found: dict[str, str] = {}
    rest = list(arguments)
    while rest:
        flag, equals, text = rest.pop(0).partition("=")
        name = flag.removeprefix("--")
        if flag == name:
            raise UserError(f"unrecognized arguments: {flag}; --help lists all settings")
        if name != "config" and name not in names:
            refuse_unknown(name, names, "--", kind)
        if is_dataclass(names.get(name)):
            raise UserError(f"--{name}: is a group of settings; give one as --{name}.NAME")
        if not equals and rest and not rest[0].startswith("--"):
            text, equals = rest.pop(0), "="
        if name == "config" and not text:
            raise UserError("--config: needs a value, a YAML file of settings")
        if not equals:
            raise UserError(f"argument --{name}: expected one argument; --help lists all settings")
        found[name] = text
    return found


def _flat(
    values: dict[Any, Any], names: dict[str, Any], kind: type, where: str, prefix: str = ""
) -> Iterator[tuple[str, Any]]:
    """Nested settings by dotted name."""
    for key, value in values.items():
        name = f"{prefix}{key}"
        if name not in names:
            refuse_unknown(name, names, where, kind)
        if not is_dataclass(names[name]):
            yield name, value
        elif isinstance(value, dict):
            yield from _flat(value, names, kind, where, f"{name}.")
        else:
            raise UserError(_wrong_type(where, name, value, names[name]))


def refuse_unknown(
    name: str, known: Iterable[str], where: str, kind: type | None = None
) -> NoReturn:
    """Refuse a name that is not known, with the nearest one, the new one or the right script."""
    known = set(known)
    leaves = {n.rsplit(".", 1)[-1]: n for n in sorted(known)}
    close = difflib.get_close_matches(name.rsplit(".", 1)[-1], leaves, 1)
    near = difflib.get_close_matches(name, known, 1) or [leaves[leaf] for leaf in close]
    cure = f"did you mean {near[0]}?" if near else "--help lists all settings"
    if kind is not None:
        from ddpm_unet.config.jobs import SCRIPTS

        others = [f"scripts/{s}.py" for s, of in SCRIPTS.items() if name in dict(setting_names(of))]
        cure = f"it is one of {' and '.join(others)}" if others else cure
    shown = name if name.isprintable() else repr(name)
    raise UserError(f"{where}{shown}: no such setting; {_became(name, known) or cure}")


def _became(name: str, known: Container[str] = ()) -> str:
    """What does the work of a setting, or of "NAME VALUE", of an earlier version; else nothing."""
    return f"it is now {RENAMED[name]}" if RENAMED.get(name) in known else GONE.get(name, "")


def inline_yaml(value: Any) -> str:
    """A setting as it stands in one line of YAML."""
    text = yaml.safe_dump(value, default_flow_style=True, width=sys.maxsize)
    return text.removesuffix("\n").removesuffix("\n...")


def _help(kind: Any, default: str, everything: bool) -> str:
    """What `--help` prints: the settings that people use, or all."""
    from ddpm_unet.config.jobs import COMMON

    common = set(COMMON.get(kind, ()))
    everything = everything or not common
    lines = [
        f"usage: {Path(sys.argv[0]).name} [--config FILE] [--NAME VALUE ...]", "",
        inspect.getdoc(kind).splitlines()[0], "",  # type: ignore[union-attr]
        f"  --config FILE\n      YAML file of the settings below (default {default}).",
    ]  # fmt: skip
    for name, hint, value, text in described(kind()):
        if everything or name in common:
            shown = inline_yaml(value)
            said = re.sub(r"\n *", "\n      ", text)
            lines.append(f"  --{name} ({in_words(hint)}; default {shown})\n      {said}")
    return "\n".join(lines + ([] if everything else ["", "--help-all lists all settings."]))


def described(settings: Any, prefix: str = "") -> Iterator[tuple[str, Any, Any, str]]:
    """Dotted name, type, value and help of every setting of a dataclass."""
    texts: dict[str, str] = {}
    for kind in reversed(type(settings).__mro__):
        texts |= re.findall(r"^    (\w+): (.+(?:\n {8}.+)*)", inspect.getdoc(kind) or "", re.M)
    for name, hint in get_type_hints(type(settings)).items():
        value = getattr(settings, name)
        if is_dataclass(value):
            yield from described(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", hint, value, texts.get(name, "")


def from_text(text: str, hint: Any) -> Any:
    """What a flag's text means: text where the setting is text, else YAML."""
    if hint is str or (hint == str | None and text != "null"):
        return text
    try:
        return _Loader(text).get_single_data()
    except (yaml.YAMLError, ValueError, RecursionError):
        return text


def _wrong_type(where: str, name: str, value: Any, hint: Any) -> str:
    text = repr(value) if isinstance(value, str) else json.dumps(value, default=str)
    shown = text if len(text) <= 60 else f"{text[:57]}..."
    cure = _became(f"{name} {value}")
    return f"{where}{name} is {shown}; it must be {in_words(hint)}" + (cure and f"; {cure}")


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


def converted(value: Any, hint: Any, where: str, name: str, shown: Any = None) -> Any:
    """`value` of type `hint`, with tuples for lists; else a UserError that shows `shown`.

    `where` comes before the name: "--", or a file and ": ".
    """
    try:
        return _converted(value, hint)
    except (ValueError, OverflowError):
        shown = value if shown is None else shown
        raise UserError(_wrong_type(where, name, shown, hint)) from None


def _converted(value: Any, hint: Any) -> Any:
    """`value` of type `hint`, with tuples for lists; else a ValueError."""
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
            return tuple(_converted(v, k) for v, k in zip(value, kinds, strict=True))
    elif hint is float:
        if type(value) in (int, float) or (type(value) is str and _EXPONENT.fullmatch(value)):
            return float(value)
    elif type(value) is hint:
        return value
    raise ValueError


def _numbers(value: Any) -> Iterator[float]:
    if isinstance(value, tuple | list):
        for entry in value:
            yield from _numbers(entry)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield value


def _within(least: float, most: float) -> str:
    if (least, most) == FINITE:
        return "a finite number"
    if most == WHOLE:
        return f"at least {least:g}"
    return f"between {least:.12g} and {most:.12g}"


class _Loader(yaml.SafeLoader):
    """Safe loading without what surprises: repeated keys, aliases, and `no` for false."""

    yaml_implicit_resolvers = {  # noqa: RUF012 (as in PyYAML)
        letter: [(tag, form) for tag, form in resolvers if tag != _BOOL or letter in "tTfF"]
        for letter, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()
            raise yaml.MarkedYAMLError(None, None, "has an alias (*)", event.start_mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if (name := str(key.value)) in seen:
                raise yaml.MarkedYAMLError(None, None, f"repeats {name}", key.start_mark)
            seen.add(name)
        return super().construct_mapping(node, deep)
