"""The record of a run: everything that decides its result, as JSON holds it, and whether two records are the same."""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, fields
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import datasets
import torch
import transformers
from torch import nn

from haystack_distill.errors import DistilError
from haystack_distill.objectives.method import Method, parts_of
from haystack_distill.objectives.objective import Objective
from haystack_distill.objectives.schedule import Linear, Weight
from haystack_distill.training.adaptation import ADAPTATIONS, Adaptation
from haystack_distill.training.methods import METHODS
from haystack_distill.training.settings import TrainingSettings
from haystack_distill.utils.code_fingerprint import NotComparable, code_fingerprint

NOT_COMPARABLE = "not comparable: "  # prefix of a value that cannot be compared between runs; the reason follows
NOT_RECORDED = "not recorded"  # the value of a name that only one of two records has
# Settings that do not change the weights: they may differ when a run is resumed.
FREE_SETTINGS = ("resume", "overwrite", "progress", "tensorboard", "log_every", "keep_checkpoints", "checkpoint_every")
_HASH = re.compile(r"[0-9a-f]{64}")
_MODULE_ATTRIBUTES = frozenset(vars(nn.Module()))  # which every module has, its parameters and buffers among them


def method_name(method: Method | Objective) -> str:
    """The name of a method in records and messages: its registered names, or the class of an objective."""
    if isinstance(method, Objective):
        return type(method).__qualname__
    return " + ".join(METHODS.name_of(part) for _, part in parts_of(method))


def method_record(method: Method | Objective) -> dict[str, Any]:
    """A method's name, its options, and fingerprints of any code that does not belong to this package.

    Returns:
        "method": the name; "arguments": the options, for a sum of methods under "parts" a list with "method", "weight",
        for a weight that changes "final_weight", and "arguments" of each part; "code": fingerprints by option or method
        name.
    """
    if isinstance(method, Objective):
        method.begin_step(0.0)  # an earlier run may have left it at another step
        code = {"objective": _fingerprint(_without_parameters(method))}
        return {"method": method_name(method), "arguments": {"weights": method.weights}, "code": code}
    parts = [(weight, part, _options_of(part)) for weight, part in parts_of(method)]
    code = {}
    for number, (_, part, options) in enumerate(parts, start=1):
        found = _code_fingerprints(options) | own_code(**{METHODS.name_of(part): part})
        code |= found if len(parts) == 1 else {f"{number}. {name}": value for name, value in found.items()}
    if len(parts) == 1 and parts[0][0] == 1:
        return {"method": METHODS.name_of(parts[0][1]), "arguments": _as_json(parts[0][2]), "code": code}
    listed = [
        {"method": METHODS.name_of(part), **_weight_record(weight), "arguments": _as_json(options)}
        for weight, part, options in parts
    ]
    return {"method": method_name(method), "arguments": {"parts": listed}, "code": code}


def _weight_record(weight: Weight) -> dict[str, float]:
    if isinstance(weight, Linear):
        return {"weight": weight.start, "final_weight": weight.end}
    return {"weight": weight}


def _without_parameters(objective: Objective) -> list[Any]:
    """What an objective computes: for each module its class, its attributes and the shapes of its parameters.

    Parameters are initialised anew each time an objective is created, and a resumed run loads them from its checkpoint.
    """
    return [
        (
            name,
            type(module),
            {key: value for key, value in vars(module).items() if key not in _MODULE_ATTRIBUTES},
            [(key, tuple(parameter.shape)) for key, parameter in module.named_parameters(recurse=False)],
            list(module.named_buffers(recurse=False)),
        )
        for name, module in objective.named_modules()
    ]


def adaptation_record(adaptation: Adaptation) -> dict[str, Any]:
    """An adaptation's name and options."""
    return {"name": ADAPTATIONS.name_of(adaptation), **_as_json(_options_of(adaptation))}


def own_code(**parts: object) -> dict[str, str]:
    """Fingerprints of the classes of those parts of a run that are the user's own, by their names."""
    return {name: _fingerprint(type(part)) for name, part in parts.items() if not _is_of_this_package(part)}


def _is_of_this_package(part: object) -> bool:
    return type(part).__module__.startswith("haystack_distill.")


def head_names(record: Mapping[str, Any]) -> list[str]:
    """The names of the heads that sources of a run's data have of their own, in the record of the run."""
    names = record.get("sources", {}).get("heads", [])
    return list(dict.fromkeys(name for name in names if name is not None))


def settings_record(settings: TrainingSettings) -> dict[str, Any]:
    """The settings that decide the weights; logging, checkpoints and progress may change when a run is resumed."""
    decisive = asdict(settings) | {"evaluate_every": settings.evaluation_interval}
    return {name: value for name, value in decisive.items() if name not in FREE_SETTINGS}


def versions(*packages: str) -> dict[str, str]:
    """Versions of this package, of torch, transformers and datasets, and of further packages by name."""
    try:
        own = version("haystack-distill")
    except PackageNotFoundError:
        own = "not installed"
    return {
        "haystack-distill": own,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "datasets": datasets.__version__,
        **{name: version(name) for name in packages},
    }


def require_same_run(refusal: str, before: dict[str, Any], now: dict[str, Any]) -> None:
    """Check that a run that is to be resumed was started with what would start it now.

    Args:
        refusal: The beginning of the error message: what cannot be done.
        before: The record that was written when the run started.
        now: The record of the run that is requested.

    Raises:
        DistilError: The records differ, or a value in them cannot be compared; the message names the values.
    """
    here = json.loads(json.dumps(now))
    before = {name: value for name, value in before.items() if name in here}  # without the results of the run
    start_again = "start again with overwrite and without resume"
    remedy = f"resume it with what it was started with, or {start_again}"
    unknown = [*not_comparable(before), *not_comparable(here)]
    if unknown:
        place, why = unknown[0]
        raise DistilError(f"{refusal}: its {place} is {why}; {remedy}")
    leaves = [*differences(before, here)]
    changed = [leaf for leaf in leaves if leaf[1] not in (leaf[2], NOT_RECORDED)]
    new = [place for place, then, _ in leaves if then == NOT_RECORDED]
    if new and not changed:
        raise DistilError(
            f"{refusal}: it was started by an earlier version of haystack-distill, which did not record its "
            f"{', '.join(new)}; finish it with that version, or {start_again}"
        )
    if changed:
        names = ", ".join(place for place, _, _ in changed)
        alone = len(changed) == 1
        values = "; ".join(
            f"{'' if alone else f'{place}: '}then {then!r}, now {is_now!r}"
            for place, then, is_now in changed
            if not _are_hashes(then, is_now)
        )
        detail = f" ({values})" if values else ""
        raise DistilError(f"{refusal}: its {names} {'differs' if alone else 'differ'} from now{detail}; {remedy}")


def differences(before: Any, now: Any, place: str = "") -> Iterator[tuple[str, Any, Any]]:
    """The leaves of two nested dictionaries side by side, equal ones included.

    Yields:
        The dotted path to a leaf, and its value in each dictionary; `NOT_RECORDED` where one of them has no such name.
    """
    if isinstance(before, dict) and isinstance(now, dict):
        for name in dict.fromkeys([*before, *now]):
            sides = before.get(name, NOT_RECORDED), now.get(name, NOT_RECORDED)
            yield from differences(*sides, f"{place}.{name}" if place else name)
    else:
        yield place, before, now


def not_comparable(record: dict[str, Any]) -> list[tuple[str, str]]:
    """The values of a record that cannot be compared between runs: the dotted path of each, and the reason."""
    leaves = differences(record, record)
    return [(place, value) for place, value, _ in leaves if isinstance(value, str) and value.startswith(NOT_COMPARABLE)]


def _options_of(options: Any) -> dict[str, Any]:
    """The fields of a dataclass by name, values as they are."""
    return {field.name: getattr(options, field.name) for field in fields(options)}


def _as_json(options: dict[str, Any]) -> dict[str, Any]:
    """Options with the name of a function in its place."""
    return {name: _function_name(value) if callable(value) else value for name, value in options.items()}


def _code_fingerprints(options: dict[str, Any]) -> dict[str, str]:
    """Fingerprints of the functions among a method's options."""
    return {name: _fingerprint(value) for name, value in options.items() if callable(value)}


def _function_name(function: Callable[..., Any]) -> str:
    return str(getattr(function, "__qualname__", type(function).__qualname__))


def _fingerprint(code: Any) -> str:
    try:
        return code_fingerprint(code)
    except NotComparable as error:
        return f"{NOT_COMPARABLE}{error}"


def _are_hashes(*values: Any) -> bool:
    """Whether all values are SHA-256 hashes, which are of no use in a message."""
    return all(isinstance(value, str) and _HASH.fullmatch(value) for value in values)
