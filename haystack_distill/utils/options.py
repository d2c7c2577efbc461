"""Options from dataclasses: a field is the one place where an option's name, type, default and help stand."""

import ast
import builtins
import collections.abc
import functools
import importlib.util
import inspect
import re
import textwrap
import typing
from collections.abc import Callable, Sequence
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, get_type_hints

_Result = TypeVar("_Result")


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


def takes_options(
    options: Sequence[DataclassOption], positional: Sequence[str] = ()
) -> Callable[[Callable[..., _Result]], Callable[..., _Result]]:
    """Give a function options as parameters; those that a call names reach it in its `**options`.

    The options stand in the function's signature and, under "Args:", in its docstring.

    Args:
        options: What it takes besides its own parameters; by keyword, in this order.
        positional: Names of options that may also be given by position, in this order, after its own parameters.
    """
    by_name = {option.name: option for option in options}
    ordered = [by_name[name] for name in positional]
    ordered += [option for option in options if option.name not in positional]

    def decorate(function: Callable[..., _Result]) -> Callable[..., _Result]:
        signature = inspect.signature(function)
        own = [parameter for parameter in signature.parameters.values() if parameter.kind is not parameter.VAR_KEYWORD]
        made = [_parameter(option, by_position=option.name in positional) for option in ordered]
        # Sorting is stable: positional parameters first, and the function's own keywords last.
        first = [parameter for parameter in own if parameter.kind is not parameter.KEYWORD_ONLY]
        last = [parameter for parameter in own if parameter.kind is parameter.KEYWORD_ONLY]
        complete = signature.replace(parameters=sorted([*first, *made, *last], key=lambda parameter: parameter.kind))

        @functools.wraps(function)
        def call(*arguments: Any, **named: Any) -> _Result:
            return function(**complete.bind(*arguments, **named).arguments)

        call.__signature__ = complete  # type: ignore[attr-defined]
        call.__doc__ = _explained(function.__doc__, ordered)
        return call

    return decorate


def _parameter(option: DataclassOption, *, by_position: bool) -> inspect.Parameter:
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD if by_position else inspect.Parameter.KEYWORD_ONLY
    return inspect.Parameter(option.name, kind, default=option.default, annotation=option.type)


def _explained(docstring: str | None, options: Sequence[DataclassOption]) -> str | None:
    """A docstring with the help of options under its "Args:"."""
    if docstring is None:  # as under python -OO
        return None
    before, heading, after = inspect.cleandoc(docstring).partition("Args:\n")
    own, blank, rest = after.partition("\n\n")
    entries = [
        textwrap.fill(f"{option.name}: {option.help}", 116, initial_indent=" " * 4, subsequent_indent=" " * 8)
        for option in options
    ]
    return f"{before}{heading}" + "\n".join([own, *entries]) + f"{blank}{rest}"


class _Names(dict[str, Any]):
    """Names in annotations; one that is not of Python's own typing stands for any value."""

    def __missing__(self, name: str) -> Any:
        return getattr(builtins, name, Any)


def read_dataclass(module: str, name: str) -> tuple[str, list[DataclassOption]]:
    """A dataclass's docstring and options, read from the source of its module without importing it.

    Help on the command line must not wait for torch, which the modules of methods import. Defaults must be literals,
    and fields are those of the class itself; a type of the module's own counts as any value.

    Args:
        module: The module's name; the packages around it are imported.
        name: The class's name.

    Raises:
        ValueError: There is no such class, or a default is not a literal.
    """
    found = _find(module, name)
    docstring = ast.get_docstring(found) or ""
    fields_of = [
        node
        for node in found.body
        if isinstance(node, ast.AnnAssign)
        and isinstance(node.target, ast.Name)
        and not ast.unparse(node.annotation).startswith("ClassVar")
    ]
    named = [(node.target.id, node.annotation, node.value) for node in fields_of if isinstance(node.target, ast.Name)]
    return docstring, _read(docstring, named)


def read_constant(module: str, name: str, constant: str) -> Any:
    """A literal that a class sets as a `ClassVar`, read as by `read_dataclass`; None where it does not set it.

    Args:
        module: The module's name; the packages around it are imported.
        name: The class's name.
        constant: The name of the class attribute.

    Raises:
        ValueError: There is no such class, or the value is not a literal.
    """
    for node in _find(module, name).body:
        if isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == constant and node.value is not None:
            return ast.literal_eval(node.value)
    return None


def read_keywords(module: str, name: str) -> list[DataclassOption]:
    """The keyword-only parameters of a function as options, read as by `read_dataclass`.

    Args:
        module: The module's name; the packages around it are imported.
        name: A function's name, a class's name for its constructor, or "Class.method".

    Raises:
        ValueError: There is no such function, or a default is not a literal.
    """
    found = _find(module, name)
    docstring = ast.get_docstring(found) or ""
    if isinstance(found, ast.ClassDef):
        found = _find(module, f"{name}.__init__")
    arguments = found.args
    named = [
        (argument.arg, argument.annotation, default)
        for argument, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
    ]
    return _read(docstring, named)


def _find(module: str, name: str) -> Any:
    """The node of a class or function in the source of a module."""
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        raise ValueError(f"there is no module {module}")
    first, *rest = name.split(".")
    node: Any = _parsed(spec.origin, first)
    for part in rest:
        kinds = (ast.ClassDef, ast.FunctionDef)
        node = node and next((one for one in node.body if isinstance(one, kinds) and one.name == part), None)
    if node is None:
        raise ValueError(f"there is no {name} in {spec.origin}")
    return node


@functools.lru_cache(maxsize=64)
def _parsed(path: str, name: str) -> ast.ClassDef | ast.FunctionDef | None:
    """A class or function at the top of a file, None where there is none. Only its own lines are parsed: `--help` reads
    some forty of them.
    """
    text = Path(path).read_text(encoding="utf-8")
    # To the next line that is not indented; one that begins with a bracket ends the head of the class.
    found = re.search(rf"^(?:class|def) {re.escape(name)}\b.*?(?=^[^\s)]|\Z)", text, re.MULTILINE | re.DOTALL)
    if found is None:
        return None
    node = ast.parse(found.group()).body[0]
    assert isinstance(node, (ast.ClassDef, ast.FunctionDef))
    return node


def _read(docstring: str, named: Sequence[tuple[str, ast.expr | None, ast.expr | None]]) -> list[DataclassOption]:
    """Options from names, annotations and defaults."""
    helps = argument_help(docstring)
    options = []
    for name, annotation, value in named:
        default = inspect.Parameter.empty if value is None else ast.literal_eval(value)
        options.append(DataclassOption(name, _type(annotation), default, helps.get(name, "")))
    return options


def _type(annotation: ast.expr | None) -> Any:
    if annotation is None:
        return Any
    try:
        return eval(ast.unparse(annotation), {}, _Names(vars(typing) | vars(collections.abc)))
    except (AttributeError, TypeError):  # torch.device: of a module that is not imported
        return Any
