"""How an option of the command line is made: by hand, or from the field or parameter that is its home in the library.

An option of the library has its name, type, default and help in one place there; the command line repeats none of them.
"""

import inspect
import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import typer
from rich.markup import escape

from haystack_distill.errors import DistilError
from haystack_distill.utils.files import expand_user
from haystack_distill.utils.options import DataclassOption
from haystack_distill.utils.yaml_config import Option, load_config

REQUIRED = inspect.Parameter.empty


def flag_of(name: str) -> str:
    """An option as it is typed: `--n-epochs` for `n_epochs`."""
    return "--" + name.replace("_", "-")


def option(
    name: str, kind: Any, default: Any, explanation: str, panel: str | None = None, flags: str = "", **more: Any
) -> inspect.Parameter:
    """An option as a parameter that typer understands: `name` with dashes, and --no-... for a switch."""
    flag = flag_of(name)
    if any(word in more.get("metavar", "") for word in ("FILE", "DIRECTORY")):
        more["parser"] = path_in_home if Path in (kind, *get_args(kind)) else lambda text: os.path.expanduser(str(text))
    if not flags:
        flags = f"{flag}/--no-{flag[2:]}" if kind is bool else flag
    info = typer.Option(flags, help=escape(explanation), rich_help_panel=panel, **more)
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, info])


def option_from(source: DataclassOption, panel: str | None = None, **changes: Any) -> inspect.Parameter:
    """An option of the library as an option of a command.

    Args:
        source: The option; see `utils.options`.
        panel: The panel of the help that it stands in.
        changes: Other values of the source's fields: a `type` that only its docstring states, a `default`, a `help`.
    """
    source = source._replace(**changes)
    kind, more = _kind_of(source.type, optional=source.default is None)
    explanation = source.help
    if "none" in more.get("metavar", ""):  # as it is typed
        explanation = re.sub(r"\bNone\b", "none", explanation)
    return option(source.name, kind, source.default, explanation, panel, **more)


def _kind_of(hint: Any, *, optional: bool) -> tuple[Any, dict[str, Any]]:
    """What typer needs for a type of the library's: a type that it knows, and a parser for others.

    Of a union, only what can be typed counts: a callable, for example, can be given in Python alone.
    """
    kinds = _members(hint)
    none = ["none"] if NoneType in kinds else []
    words = [word for kind in kinds if get_origin(kind) is Literal for word in get_args(kind)]
    sequence = next((kind for kind in kinds if _is_sequence(kind)), None)
    number = next((kind for kind in (int, float) if kind in kinds), None)
    if bool in kinds:
        return bool, {}
    if sequence is not None:
        return Any, list_of(get_args(sequence)[0], *words, *none)
    if number is not None and (words or none):
        return Any, number_or(number, *words, *none)
    if words:
        return Any, one_of(*words, none=bool(none))
    kind = number or str
    return (kind | None if optional else kind), {}


def _members(hint: Any) -> list[Any]:
    """The types of a union, or the one type."""
    return [*get_args(hint)] if get_origin(hint) in (Union, UnionType) else [hint]


def _is_sequence(kind: Any) -> bool:
    origin = get_origin(kind)
    return isinstance(origin, type) and issubclass(origin, Iterable) and bool(get_args(kind))


def with_options(*groups: Iterable[inspect.Parameter]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command the options of `groups` besides its own; it takes them by name or in its `**given`."""
    shared: dict[str, inspect.Parameter] = {}
    for parameter in (parameter for group in groups for parameter in group):
        if parameter.name in shared:
            raise ValueError(f"two options of a command are called {parameter.name}")
        shared[parameter.name] = parameter

    def extend(command: Callable[..., None]) -> Callable[..., None]:
        signature = inspect.signature(command)
        own = [
            parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)
            for parameter in signature.parameters.values()
            if parameter.name not in shared and parameter.kind is not parameter.VAR_KEYWORD
        ]
        command.__signature__ = signature.replace(parameters=[*own, *shared.values()])  # type: ignore[attr-defined]
        return command

    return extend


# --- parsers: each with a metavar that shows what the option takes ----------------------------------------------------


def path_in_home(text: str) -> Path:
    """A path as it is typed; the shell leaves the `~` of --output-dir=~/reader as it is."""
    try:
        return expand_user(str(text))
    except DistilError as error:
        raise typer.BadParameter(str(error)) from error


def one_of(*words: str, none: bool = False) -> dict[str, Any]:
    """For an option that takes these words only, and with `none` the word "none" for None."""
    words = (*words, "none") if none else words

    def parse(text: str) -> str | None:
        if text not in words:
            raise typer.BadParameter(f"{text!r} is not one of {', '.join(words)}")
        return None if none and text == "none" else text

    return {"parser": parse, "metavar": "|".join(words)}


def number_or(number: type, *words: str) -> dict[str, Any]:
    """For an option that is a number or one of some words, of which "none" stands for None."""
    metavar = "|".join(["INTEGER" if number is int else "FLOAT", *words])

    def parse(text: str) -> Any:
        text = str(text)  # defaults pass through here too
        if text in words:
            return None if text == "none" else text
        try:
            return number(text)
        except ValueError:
            raise typer.BadParameter(f"{text!r} is not {metavar.replace('|', ' or ')}") from None

    return {"parser": parse, "metavar": metavar}


def list_of(entry: Any, *words: str) -> dict[str, Any]:
    """For an option that is a word or a list with commas between its entries: whole numbers, numbers, none, or text.

    Args:
        entry: The type of an entry; a union with None takes "none" too.
        words: The words that stand for themselves; "none" stands for None.
    """
    kinds = _members(entry)
    number = next((kind for kind in (int, float) if kind in kinds), str)
    none = NoneType in kinds
    example = "NAME,NAME" if number is str else "2,4,none" if none else "1,3,6"
    meant = f"{', '.join(words)} or a list like {example}" if words else f"a list like {example}"

    def parse(text: Any) -> Any:
        if text in words:
            return None if text == "none" else text
        if not isinstance(text, str):  # a default
            return text
        parts = [part.strip() for part in text.split(",")]
        try:
            return [None if none and part == "none" else number(part) for part in parts]
        except ValueError:
            raise typer.BadParameter(f"{text!r} is not {meant}") from None

    return {"parser": parse, "metavar": "|".join([*words, example])}


# --- options that were given ------------------------------------------------------------------------------------------


def is_given(ctx: typer.Context, name: str) -> bool:
    """Whether the user set an option, on the command line or in the file of --config."""
    source = ctx.get_parameter_source(name)
    return source is not None and source.name != "DEFAULT"


def refuse_without_effect(ctx: typer.Context, names: Iterable[str], why: str, remedy: str | None = None) -> None:
    """Refuse options that were given and can have no effect.

    Args:
        ctx: The command's context.
        names: The options.
        why: Follows "has no effect".
        remedy: What to do in place of leaving the option out, if anything.

    Raises:
        DistilError: One was given, and not as None or, where that is the default, False.
    """
    for name in names:
        value = ctx.params[name]
        default = next(one.default for one in ctx.command.params if one.name == name)
        switched_off = value is False and default is not True
        if is_given(ctx, name) and value is not None and not switched_off:
            more = f"{remedy}, or " if remedy else ""
            raise DistilError(f"{flag_of(name)} has no effect {why}; {more}leave it out")


# --- --config ---------------------------------------------------------------------------------------------------------


def _read_config(ctx: typer.Context, path: Path | None) -> Path | None:
    """Make the file's values the command's defaults, so that what is typed wins."""
    if path is None or ctx.resilient_parsing:
        return path

    def check_of(parameter: Any) -> Callable[[str], Any]:
        def check(text: str) -> Any:
            try:
                return parameter.process_value(ctx, [text] if parameter.multiple else text)
            except typer.BadParameter as error:
                raise ValueError(error.message) from error

        return check

    options = {
        str(parameter.name): Option(
            check_of(parameter),
            repeatable=parameter.multiple,
            # Of an option that can be given again, a list has its entries.
            comma_separated=re.search(r"\w,\w", str(parameter.metavar)) is not None and not parameter.multiple,
            optional=parameter.default is None and not parameter.required,
            takes_none="none" in str(parameter.metavar).split("|"),
        )
        for parameter in ctx.command.params
        if parameter.name not in ("config", "help")
    }
    ctx.default_map = dict(load_config(path, options))
    return path


CONFIG = option(
    "config",
    Path | None,
    None,
    "A YAML file with options of this command, named with underscores (n_epochs: 3). What is typed wins over it.",
    "Run",
    callback=_read_config,
    is_eager=True,
    metavar="FILE",
)
