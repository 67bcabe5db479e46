"""Whatever a configuration or command line holds: valid settings, or a line that refuses them."""

import math
import types
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import pytest
import yaml
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from ddpm_unet.config import CheckConfig, DenoiseConfig, SegmentConfig
from ddpm_unet.config.reading import WHOLE, read_settings, setting_names
from ddpm_unet.errors import UserError
from ddpm_unet.training.run_folder import plain

NAMES = sorted({name for kind in (DenoiseConfig, SegmentConfig) for name, _ in setting_names(kind)})
LEAVES = sorted({name.rsplit(".", 1)[-1] for name in NAMES})
quickly = settings(
    max_examples=25, derandomize=True, deadline=None, database=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)  # fmt: skip

words = st.sampled_from(
    ["auto", "none", "null", "no", "true", "1e-3", ".nan", "[1", "a b", "--seed"]
)
scalars = st.one_of(
    st.none(), st.booleans(), st.integers(), st.integers(-2, 300), st.floats(), words, st.dates(),
    st.text(max_size=8), st.binary(max_size=3),
)  # fmt: skip
values = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.sampled_from(LEAVES), inner, max_size=3)
    ),
    max_leaves=6,
)


@st.composite
def nested(draw: st.DrawFn) -> dict:
    """Settings at their places, with values of all types, and now and then a key of no setting."""
    chosen = draw(st.lists(st.tuples(st.sampled_from(NAMES), values), max_size=4))
    chosen += draw(st.lists(st.tuples(st.text(max_size=6), values), max_size=1))
    found: dict = {}
    for name, value in chosen:
        *groups, leaf = name.split(".")
        place = found
        for group in groups:
            place = place.setdefault(group, {})
            if not isinstance(place, dict):
                break
        else:
            place[leaf] = value
    return found


def read(kind: type, path: Path, *arguments: str) -> object:
    """Settings, or None after a refusal in one line."""
    fault, found = "", None
    try:
        found = read_settings(kind, path, arguments)[0]
    except UserError as error:
        fault = str(error)
    assert "\n" not in fault
    assert len(fault) < 1000
    return found


def assert_comes_back(found: object, path: Path) -> None:
    path.write_text(yaml.safe_dump(plain(found)), encoding="utf-8")
    assert read_settings(type(found), path, [])[0] == found


@pytest.mark.parametrize("kind", [DenoiseConfig, SegmentConfig, CheckConfig])
@quickly
@given(nested())
def test_any_configuration(kind: type, tmp_path: Path, content: dict) -> None:
    path = tmp_path / "any.yaml"
    path.write_text(yaml.safe_dump(content or {"seed": 1}), encoding="utf-8")
    found = read(kind, path)
    if found is not None:
        assert_comes_back(found, path)


@quickly
@given(st.one_of(st.binary(max_size=40), st.text(max_size=40).map(str.encode)))
def test_any_file(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "any.yaml"
    path.write_bytes(content)
    read(DenoiseConfig, path)


@quickly
@given(
    st.lists(
        st.one_of(
            st.sampled_from(NAMES).map("--{}".format),
            st.tuples(st.sampled_from(NAMES), scalars).map(lambda both: "--{}={}".format(*both)),
            st.text(max_size=6),
            words,
        ),
        max_size=4,
    )
)
def test_any_command_line(tmp_path: Path, arguments: list[str]) -> None:
    path = tmp_path / "any.yaml"
    path.write_text("seed: 1\n")
    found = read(SegmentConfig, path, *arguments)
    if found is not None:
        assert_comes_back(found, path)


def allowed(hint: Any, least: float, most: float) -> st.SearchStrategy:
    """Values of a type, within limits and of moderate size."""
    origin, args = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return st.one_of(*(allowed(choice, least, most) for choice in args))
    if origin is Literal:
        return st.sampled_from(args)
    if origin is tuple and args[-1] is Ellipsis:
        return st.lists(allowed(args[0], least, most), max_size=3).map(tuple)
    if origin is tuple:
        return st.tuples(*(allowed(kind, least, most) for kind in args))
    least, most = max(least, -1e6), min(most, 1e6)
    kinds = {
        int: st.integers(math.ceil(least), math.floor(most)), float: st.floats(least, most),
        bool: st.booleans(), str: st.text(max_size=8), type(None): st.none(),
    }  # fmt: skip
    return kinds[hint]


@st.composite
def valid(draw: st.DrawFn, kind: type) -> Any:
    """Settings of which a few are drawn from all that are allowed."""
    chosen = kind()
    for _ in range(4):
        group = draw(st.sampled_from([chosen, *filter(is_dataclass, vars(chosen).values())]))
        hints = {n: h for n, h in get_type_hints(type(group)).items() if not is_dataclass(h)}
        name = draw(st.sampled_from(sorted(hints)))
        limits = type(group).__dataclass_fields__[name].metadata.get("limits", (0, WHOLE))
        setattr(group, name, draw(allowed(hints[name], *limits)))
    return chosen


@pytest.mark.parametrize("kind", [DenoiseConfig, SegmentConfig])
@quickly
@given(st.data())
def test_all_that_is_allowed_is_read_as_it_was_written(
    kind: type, tmp_path: Path, data: st.DataObject
) -> None:
    assert_comes_back(data.draw(valid(kind)), tmp_path / "any.yaml")
