"""YAML files with the options of a command, and errors that name the file and the option."""

import difflib
import re
from collections.abc import Callable, Collection, Hashable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from haystack_distill.errors import DistilError
from haystack_distill.utils.files import expand_user


@dataclass(frozen=True)
class Option:
    """What a configuration file may give for one option.

    Attributes:
        check: Called with the value as it would be typed on the command line; raises ValueError if it is invalid.
        repeatable: Whether the option can be given more than once; a list in the file stands for all its entries.
        comma_separated: Whether a list in the file stands for its entries separated by commas.
        optional: Whether the option can be left unset; null in the file is then the same as leaving it out.
        takes_none: Whether the option accepts the word "none"; null in the file then stands for it.
    """

    check: Callable[[str], Any]
    repeatable: bool = False
    comma_separated: bool = False
    optional: bool = False
    takes_none: bool = False


def load_config(path: str | Path, options: Mapping[str, Option]) -> dict[str, str | list[str]]:
    """Read the options of a command from a file.

    A value means what the same text means on the command line: `5e-5` is a number (in plain YAML it is a string),
    `3.5` is not a number of epochs, and a version number `1.10` keeps its zero.

    Args:
        path: A YAML file that maps option names, with underscores, to values.
        options: The options that the command has, by name.

    Returns:
        The values by name, as they would be typed; a list for a repeatable option.

    Raises:
        DistilError: The file does not exist or is not a YAML mapping, a key is unknown, misspelt or repeated, or a
            value is invalid for its option. The message begins with the file's name.
    """
    values: dict[str, str | list[str]] = {}
    for key, value in read_mapping(Path(path)).items():
        if key not in options:
            raise DistilError(f"{path}: unknown key {key!r}; {suggestion(str(key), options)}")
        option = options[key]
        if value is None and option.takes_none:
            value = "none"
        if value is None and option.optional:
            continue
        try:
            values[key] = _as_typed(value, option)
        except ValueError as error:
            raise DistilError(f"{path}: {key}: {error}") from error
    return values


def _as_typed(value: Any, option: Option) -> str | list[str]:
    """A value of the file as it would be typed, after validation."""
    if value is None:
        raise ValueError("the value is missing: give one, or leave the key out for the default")
    if isinstance(value, dict):
        raise ValueError("must be a single value, not a mapping")
    if isinstance(value, list) and option.comma_separated:
        if not value or any(isinstance(entry, (list, dict)) for entry in value):
            raise ValueError("must be a list of single values")
        value = ",".join("none" if entry is None else entry for entry in value)
    if isinstance(value, list) and not option.repeatable:
        raise ValueError("must be a single value, not a list")
    entries = value if isinstance(value, list) else [value]
    for entry in entries:
        if not isinstance(entry, str):
            raise ValueError("must be a list of single values")
        option.check(entry)
    return entries if option.repeatable else entries[0]


def suggestion(key: str, options: Collection[str], kind: str = "key") -> str:
    """A hint with the option that is most similar to a key, or with all options if none is."""
    near = difflib.get_close_matches(key.replace("-", "_").lower(), options, n=1)
    return f"did you mean {near[0]!r}?" if near else f"the {kind}s are {', '.join(sorted(options))}"


class _Loader(yaml.BaseLoader):
    """Loads every scalar but null as text, creates no objects from tags, and refuses repeated keys."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        keys = [key.value for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"the key {key!r} appears twice", node.start_mark)
        return super().construct_mapping(node, deep=deep)


_NULL = "tag:yaml.org,2002:null"
_Loader.add_implicit_resolver(_NULL, re.compile("^(?:~|null|Null|NULL|)$"), ["~", "n", "N", ""])
_Loader.add_constructor(_NULL, lambda loader, node: None)


def read_mapping(path: Path) -> dict[Any, Any]:
    """A YAML file as nested mappings and lists, with every scalar as text except null, which is None.

    Raises:
        DistilError: The file cannot be read, or is not a YAML mapping with distinct keys.
    """
    try:
        text = expand_user(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DistilError(f"{path}: cannot be read ({error}): check the path") from error
    try:
        content = yaml.load(text, Loader=_Loader)
    except (yaml.YAMLError, TypeError) as error:  # TypeError: a list as a key
        raise DistilError(f"{path}: not valid YAML ({error}): correct it") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise DistilError(f"{path}: must map option names to values, like 'n_epochs: 3'")
    return content
