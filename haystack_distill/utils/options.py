"""Options from dataclasses: a field is the one place where an option's name, type, default and help stand."""

import inspect
import re
from dataclasses import MISSING, fields
from typing import Any, NamedTuple, get_type_hints


class DataclassOption(NamedTuple):
    """A field of a dataclass as an option of a function or of a command line.

    Attributes:
        name: The field's name.
        type: Its type hint, resolved.
        default: Its default; `inspect.Parameter.empty` where a value is required.
        help: Its entry under "Args:" in the class's docstring, on one line; "" where there is none.
    """

    name: str
    type: Any
    default: Any
    help: str


def options_of(dataclass: type) -> list[DataclassOption]:
    """The fields of a dataclass as options, in order; inherited fields keep the help of the class they come from."""
    hints = get_type_hints(dataclass)
    helps: dict[str, str] = {}
    for parent in reversed(dataclass.__mro__):
        helps |= argument_help(parent.__dict__.get("__doc__"))
    options = []
    for field in fields(dataclass):
        default = field.default
        if field.default_factory is not MISSING:
            default = field.default_factory()
        if default is MISSING:
            default = inspect.Parameter.empty
        options.append(DataclassOption(field.name, hints[field.name], default, helps.get(field.name, "")))
    return options


def argument_help(docstring: str | None) -> dict[str, str]:
    """The entries under "Args:" of a Google-style docstring, each on one line, by name."""
    arguments = inspect.cleandoc(docstring or "").partition("Args:\n")[2].partition("\n\n")[0]
    found = re.findall(r"^    (\w+): (.*(?:\n {8}.*)*)", arguments, re.MULTILINE)
    return {name: " ".join(text.split()) for name, text in found}
