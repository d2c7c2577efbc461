"""A YAML file for a whole run: the options of a command, with what is wrong about them said by name."""

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
    """What a configuration file may say for one option.

    Attributes:
        check: Given the value as one would type it on the command line; raises ValueError where it is not right.
        repeatable: Whether the option can be given more than once; a list in the file then gives each of its entries.
        comma_separated: Whether a list in the file stands for its entries with commas between them.
        optional: Whether the option can be left unset, so that null in the file is the same as not naming it.
        takes_none: Whether the option knows the word "none"; null in the file then stands for it.
    """

    check: Callable[[str], Any]
    repeatable: bool = False
    comma_separated: bool = False
    optional: bool = False
    takes_none: bool = False


def load_config(path: str | Path, options: Mapping[str, Option]) -> dict[str, str | list[str]]:
    """Read a run's configuration.

    A value means what the same text means on the command line, so `5e-5` is a number (plain YAML takes it for a
    text), `3.5` is no number of epochs and a version number `1.10` stays what it is.

    Args:
        path: A YAML file that maps option names, with underscores, to values.
        options: What can be said, by name.

    Returns:
        The values by name, as one would type them; a list for an option that is repeatable.

    Raises:
        DistilError: No such file, no YAML mapping, a key that is unknown, misspelt or there twice, or a value that is
            not right for its option. The message begins with the file's name.
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
    """A value of the file as it would be typed, after its check."""
    if value is None:
        raise ValueError("a value is missing; give one, or leave the key out for the default")
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


def suggestion(key: str, options: Collection[str]) -> str:
    """The nearest option to a key, or all of them where none is near."""
    near = difflib.get_close_matches(key.replace("-", "_").lower(), options, n=1)
    return f"did you mean {near[0]!r}?" if near else f"the keys are {', '.join(sorted(options))}"


class _Loader(yaml.BaseLoader):
    """Scalars as the text they are written as, but for null; no tag makes any other object; no key twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        keys = [key.value for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"the key {key!r} is there twice", node.start_mark)
        return super().construct_mapping(node, deep=deep)


_NULL = "tag:yaml.org,2002:null"
_Loader.add_implicit_resolver(_NULL, re.compile("^(?:~|null|Null|NULL|)$"), ["~", "n", "N", ""])
_Loader.add_constructor(_NULL, lambda loader, node: None)


def read_mapping(path: Path) -> dict[Any, Any]:
    """A YAML file as nested mappings and lists of texts, each as it is written; null alone becomes None.

    Raises:
        DistilError: No such file, or not a YAML mapping without doubled keys.
    """
    try:
        text = expand_user(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DistilError(f"{path}: cannot be read: {error}") from error
    try:
        content = yaml.load(text, Loader=_Loader)
    except (yaml.YAMLError, TypeError) as error:  # TypeError: a list as a key
        raise DistilError(f"{path}: not valid YAML: {error}") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise DistilError(f"{path}: must map option names to values, like 'n_epochs: 3'")
    return content
