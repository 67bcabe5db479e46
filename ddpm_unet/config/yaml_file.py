"""Configuration files: YAML of which every reader must think the same."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import yaml

from ddpm_unet.errors import UserError

BOOL = "tag:yaml.org,2002:bool"


class _Loader(yaml.SafeLoader):
    """Safe loading without what surprises: repeated keys, aliases, and `no` for false."""

    yaml_implicit_resolvers = {  # noqa: RUF012 (as in PyYAML)
        letter: [(tag, form) for tag, form in resolvers if tag != BOOL or letter in "tTfF"]
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


def in_one_line(value: Any) -> str:
    """A value as YAML."""
    text = yaml.safe_dump(value, default_flow_style=True, width=sys.maxsize)
    return text.removesuffix("\n").removesuffix("\n...")


def read_yaml(path: Path) -> dict[Any, Any]:
    """The settings in a file.

    Raises:
        UserError: It cannot be read, is not YAML, repeats a key, or holds no settings.
    """
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
        cause = " ".join(str(error).split())[:200]
        raise UserError(f"{path}: is not YAML ({cause}); give a YAML file of settings") from error
    if not isinstance(values, dict):
        raise UserError(f"{path}: holds no settings; write lines such as `seed: 0`")
    return values
