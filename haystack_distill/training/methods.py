"""The registry of methods: one name for a method everywhere (Python, command line, recipes, records, model cards)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import TYPE_CHECKING

from haystack_distill.errors import DistilError
from haystack_distill.utils.options import DataclassOption, read_dataclass
from haystack_distill.utils.yaml_config import suggestion

if TYPE_CHECKING:
    from haystack_distill.objectives.method import Method


class Registry(Mapping[str, "type[Method]"]):
    """Methods by name. A method's module is imported when it is asked for, because it imports torch.

    Args:
        entries: Where each method is: "module:class".
    """

    def __init__(self, entries: Mapping[str, str]) -> None:
        self.entries = dict(entries)

    def __getitem__(self, name: str) -> type[Method]:
        if name not in self.entries:
            raise DistilError(f"unknown method {name!r}; {suggestion(name, self.entries)}")
        module, _, kind = self.entries[name].partition(":")
        found: type[Method] = getattr(import_module(module), kind)
        return found

    def __contains__(self, name: object) -> bool:
        return name in self.entries

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)

    def options(self, name: str) -> list[DataclassOption]:
        """A method's options, without importing its module."""
        return self._read(name)[1]

    def title(self, name: str) -> str:
        """A method's title, the first line of its docstring, without importing its module."""
        return self._read(name)[0].partition("\n")[0]

    def _read(self, name: str) -> tuple[str, list[DataclassOption]]:
        if name not in self.entries:
            raise DistilError(f"unknown method {name!r}; {suggestion(name, self.entries)}")
        module, _, kind = self.entries[name].partition(":")
        return read_dataclass(module, kind)

    def name_of(self, method: Method) -> str:
        """A method's name here; for a method that is not registered, that of its class."""
        place = f"{type(method).__module__}:{type(method).__qualname__}"
        for name, entry in self.entries.items():
            if entry == place:
                return name
        return type(method).__qualname__


METHODS = Registry(
    {
        "labels": "haystack_distill.objectives.labels:Labels",
        "prediction_layer": "haystack_distill.objectives.prediction_layer:PredictionLayer",
        "intermediate_layers": "haystack_distill.objectives.intermediate_layers:IntermediateLayers",
        "masked_language_model": "haystack_distill.objectives.masked_language_model:MaskedLanguageModel",
    }
)
