"""Options from dataclasses: names, types, defaults and the help in the docstring."""

import inspect
from dataclasses import dataclass, field

import pytest

from haystack_distill.utils.options import argument_help, options_of, takes_options


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


@takes_options(options_of(Box), positional=["height"])
def draw(path: str, *, colour: str = "red", **options: object) -> tuple[str, str, dict[str, object]]:
    """Draw a box.

    Args:
        path: Where to.
        colour: Of its lines.

    Returns:
        What was given.
    """
    return path, colour, options


def test_a_function_takes_options_by_name_and_by_position() -> None:
    assert draw("x", 3, width=2) == ("x", "red", {"height": 3, "width": 2})
    assert draw(path="x", width=2, colour="blue", names=["a"]) == ("x", "blue", {"width": 2, "names": ["a"]})
    parameters = inspect.signature(draw).parameters
    assert list(parameters) == ["path", "height", "width", "names", "unexplained", "colour"]
    assert parameters["height"].default is None
    assert parameters["height"].annotation == int | None
    assert argument_help(draw.__doc__) == {
        "path": "Where to.",
        "colour": "Of its lines.",
        **{option.name: option.help for option in options_of(Box) if option.help},
    }
    assert (draw.__doc__ or "").endswith("\n\nReturns:\n    What was given.")


@pytest.mark.parametrize(
    ("arguments", "named", "message"),
    [((), {"width": 1}, "path"), (("x",), {}, "width"), (("x",), {"width": 1, "depth": 1}, "depth")],
)
def test_a_call_with_other_parameters_is_a_type_error(arguments: tuple, named: dict, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        draw(*arguments, **named)
