"""A registry: classes by name, and their options, without importing the modules that they are in."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import Any, TypeVar

from haystack_distill.errors import DistilError
from haystack_distill.utils.options import DataclassOption, read_constant, read_dataclass
from haystack_distill.utils.yaml_config import suggestion

_Kind = TypeVar("_Kind")


class Registry(Mapping[str, type[_Kind]]):
    """Dataclasses by name. A class's module is imported when the class is asked for, because it imports torch.

    Args:
        kind: What the classes are, for messages: "method".
        entries: Where each class is: "module:class".
    """

    def __init__(self, kind: str, entries: Mapping[str, str]) -> None:
        self.kind = kind
        self.entries = dict(entries)

    def __getitem__(self, name: str) -> type[_Kind]:
        module, class_name = self._place(name)
        found: type[_Kind] = getattr(import_module(module), class_name)
        return found

    def __contains__(self, name: object) -> bool:
        return name in self.entries

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)

    def options(self, name: str) -> list[DataclassOption]:
        """The options of a class, without importing its module."""
        return read_dataclass(*self._place(name))[1]

    def title(self, name: str) -> str:
        """The first line of a class's docstring, without importing its module."""
        return read_dataclass(*self._place(name))[0].partition("\n")[0]

    def constant(self, name: str, constant: str) -> Any:
        """A literal that a class sets as a `ClassVar`, without importing its module; None where it does not set it."""
        return read_constant(*self._place(name), constant)

    def name_of(self, member: Any) -> str:
        """The name here of an object's class; where that is not registered, the name of the class itself."""
        place = f"{type(member).__module__}:{type(member).__qualname__}"
        names = (name for name, entry in self.entries.items() if entry == place)
        return next(names, type(member).__qualname__)

    def _place(self, name: str) -> tuple[str, str]:
        """The module and the class of a name."""
        if name not in self.entries:
            raise DistilError(f"unknown {self.kind} {name!r}; {suggestion(name, self.entries, self.kind)}")
        module, _, class_name = self.entries[name].partition(":")
        return module, class_name
