"""--method and --adaptation, with the options of every method and adaptation that is registered.

The registries are read without importing torch.
"""

import inspect
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import typer

from haystack_distill.cli.options import flag_of, is_given, one_of, option, option_from
from haystack_distill.errors import DistilError
from haystack_distill.objectives.schedule import Linear, Weight
from haystack_distill.training.adaptation import ADAPTATIONS
from haystack_distill.training.methods import METHODS
from haystack_distill.utils.options import DataclassOption
from haystack_distill.utils.registry import Registry

if TYPE_CHECKING:
    from haystack_distill.objectives.method import Method
    from haystack_distill.training.adaptation import Adaptation

DEFAULT_METHOD = "prediction_layer"
DEFAULT_ADAPTATION = "all"

METHOD = option(
    "method",
    list[str],
    [DEFAULT_METHOD],
    f"How the student learns: {', '.join(METHODS)}. Give the option again for a weighted sum: --method "
    "0.8*prediction_layer --method 0.2*intermediate_layers. A weight with a colon, 1:0*intermediate_layers, runs "
    "linearly from the first value to the second.",
    metavar="[WEIGHT[:WEIGHT]*]NAME",
)
ADAPTATION = option(
    "adaptation",
    str,
    DEFAULT_ADAPTATION,
    "Which weights learn. "
    + " ".join(f"{name}: {ADAPTATIONS.title(name)[0].lower()}{ADAPTATIONS.title(name)[1:]}" for name in ADAPTATIONS),
    **one_of(*ADAPTATIONS),
)


def options_of_registry(registry: Registry[Any]) -> list[inspect.Parameter]:
    """The options of all entries of a registry: in a panel for each entry, and one for what several entries have.

    An option of one entry has that entry's default. An option of several entries has no default of its own: left out,
    it is what each entry has, and its help names them.

    Raises:
        ValueError: Entries have an option of the same name and different types.
    """
    owners: dict[str, dict[str, DataclassOption]] = {}
    for entry in registry:
        for source in registry.options(entry):
            owners.setdefault(source.name, {})[entry] = source
    single = [
        option_from(source, f"--{registry.kind} {entry}")
        for sources in owners.values()
        if len(sources) == 1
        for entry, source in sources.items()
    ]
    shared = [
        option_from(_shared(name, sources), f"Several {registry.kind}s")
        for name, sources in owners.items()
        if len(sources) > 1
    ]
    return [*shared, *single]


def _shared(name: str, sources: Mapping[str, DataclassOption]) -> DataclassOption:
    """One option for those that several entries have under one name."""
    kinds = {str(source.type) for source in sources.values()}
    if len(kinds) > 1:
        raise ValueError(f"the option {name} has several types ({', '.join(sorted(kinds))}): give it one, or two names")
    helps = [f"{entry}: {source.help} Default: {source.default}." for entry, source in sources.items()]
    return DataclassOption(name, next(iter(sources.values())).type, None, " ".join(helps))


METHOD_OPTIONS = options_of_registry(METHODS)
ADAPTATION_OPTIONS = options_of_registry(ADAPTATIONS)


class ChosenMethod(NamedTuple):
    """A method of a weighted sum.

    Attributes:
        weight: Its weight, a number or a `Linear`.
        name: Its name in `METHODS`.
        options: Its options that were given.
    """

    weight: Weight
    name: str
    options: dict[str, Any]


def chosen_methods(ctx: typer.Context) -> list[ChosenMethod]:
    """The methods that were given, each with those of its options that were given.

    Raises:
        DistilError: An unknown method, one that is given twice, or an option of none of them.
    """
    parts = [_weight_and_name(text) for text in ctx.params["method"]]
    names = [name for _, name in parts]
    for name in names:
        if names.count(name) > 1:
            raise DistilError(f"--method {name} is given twice: give it once, with the sum of the weights")
    given = _given_options(ctx, METHODS, names)
    return [ChosenMethod(weight, name, options) for (weight, name), options in zip(parts, given, strict=True)]


def needs_teacher(name: str) -> bool:
    """Whether the method of a name learns nothing without a teacher."""
    return METHODS.constant(name, "needs_teacher") is not False


def method_from(ctx: typer.Context) -> "Method":
    """The method, or weighted sum of methods, that was given.

    Raises:
        DistilError: See `chosen_methods`; or the value of an option is wrong.
    """
    parts = [(weight, METHODS[name](**options)) for weight, name, options in chosen_methods(ctx)]
    if len(parts) == 1 and parts[0][0] == 1:
        return parts[0][1]
    from haystack_distill.objectives.method import MethodSum

    return MethodSum(tuple(parts))


def adaptation_from(ctx: typer.Context) -> "Adaptation":
    """The adaptation that was given.

    Raises:
        DistilError: An option of another adaptation, or the value of an option is wrong.
    """
    name = ctx.params["adaptation"]
    return ADAPTATIONS[name](**_given_options(ctx, ADAPTATIONS, [name])[0])


def _weight_and_name(text: str) -> tuple[Weight, str]:
    """`0.8*prediction_layer` as a weight and a name, `1:0*prediction_layer` as a `Linear`; without a weight, 1."""
    weight, star, name = text.rpartition("*")
    METHODS.options(name.strip())  # an unknown name is refused
    if not star:
        return 1.0, name.strip()
    try:
        first, *last = (float(value) for value in weight.split(":", 1))
    except ValueError:
        raise DistilError(
            f"--method {text}: write it as NAME, WEIGHT*NAME or WEIGHT:WEIGHT*NAME, like 0.8*prediction_layer"
        ) from None
    try:
        return (Linear(first, *last) if last else first), name.strip()
    except DistilError as error:
        raise DistilError(f"--method {text}: {error}") from error


def _given_options(ctx: typer.Context, registry: Registry[Any], names: Sequence[str]) -> list[dict[str, Any]]:
    """For each of some entries of a registry, those of its options that were given."""
    given = {
        source.name
        for entry in registry
        for source in registry.options(entry)
        if source.name in ctx.params and is_given(ctx, source.name)
    }
    chosen = [{source.name for source in registry.options(name)} & given for name in names]
    for name in sorted(given - {name for options in chosen for name in options}):
        owners = [entry for entry in registry if name in {source.name for source in registry.options(entry)}]
        kind = registry.kind if len(names) == 1 else f"{registry.kind}s"
        verb = "is" if len(names) == 1 else "are"
        raise DistilError(
            f"{flag_of(name)} is an option of {_listed(owners, 'and')}, and the {kind} {verb} {_listed(names, 'and')}: "
            f"add --{registry.kind} {_listed(owners, 'or')}, or leave it out"
        )
    return [{name: ctx.params[name] for name in sorted(options)} for options in chosen]


def _listed(names: Sequence[str], word: str) -> str:
    """Names as in a sentence: "a", "a and b", "a, b and c"."""
    return f" {word} ".join([part for part in (", ".join(names[:-1]), names[-1]) if part])
