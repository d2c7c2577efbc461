"""Options from dataclasses: names, types, defaults and the help in the docstring."""

import inspect
from dataclasses import dataclass, field

import pytest

from haystack_distill.utils.options import argument_help, options_of


@dataclass(frozen=True)
class Size:
    """How large.

    Args:
        width: Number of columns: at least 1,
            on one line or two.
        height: Number of rows.

    Raises:
        ValueError: never.
    """

    width: int
    height: "int | None" = None


@dataclass(frozen=True)
class Box(Size):
    """A size with names.

    Args:
        names: Its names.
        height: Of the box.
    """

    names: list[str] = field(default_factory=list)
    unexplained: bool = False


def test_fields_are_options_in_order() -> None:
    assert options_of(Size) == [
        ("width", int, inspect.Parameter.empty, "Number of columns: at least 1, on one line or two."),
        ("height", int | None, None, "Number of rows."),
    ]


def test_inherited_fields_keep_their_help_unless_it_is_given_anew() -> None:
    assert [(option.name, option.default, option.help) for option in options_of(Box)] == [
        ("width", inspect.Parameter.empty, "Number of columns: at least 1, on one line or two."),
        ("height", None, "Of the box."),
        ("names", [], "Its names."),
        ("unexplained", False, ""),
    ]


@pytest.mark.parametrize("docstring", [None, "", "No arguments."])
def test_without_arguments_there_is_no_help(docstring: str | None) -> None:
    assert argument_help(docstring) == {}
