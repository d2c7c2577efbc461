"""Fingerprints of code: to detect that a user's function has changed since a run was started."""

import contextlib
import copyreg
import enum
import functools
import hashlib
import inspect
import site
import sys
import sysconfig
from pathlib import Path
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch

_LIBRARIES = [Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "purelib", "platlib")]
_LIBRARIES += [Path(folder).resolve() for folder in (*site.getsitepackages(), site.getusersitepackages())]
_LIBRARIES.append(Path(__file__).resolve().parents[1])
_ARGUMENTS = ("co_argcount", "co_posonlyargcount", "co_kwonlyargcount", "co_flags")
_NAMES = ("co_names", "co_varnames", "co_freevars", "co_cellvars")
_PLAIN = (type(None), type(Ellipsis), type(NotImplemented), bool, int, float, complex, str, bytes, Path)


class NotComparable(Exception):
    """Something has no fingerprint that is stable across processes; the message names it."""


def code_fingerprint(code: Any) -> str:
    """SHA-256 (hex) of the behaviour of a function, or of any value: the code, values and functions that it uses.

    It is the same in every process of one Python version, and depends neither on the location of the file nor on its
    comments. Functions and classes of installed packages are identified by name.

    Raises:
        NotComparable: It uses something whose state cannot be inspected, such as an open file.
    """
    try:
        return _Traversal().of(code).hex()
    except RecursionError as error:
        raise NotComparable("it uses objects that are nested too deeply") from error


class _Traversal:
    """The traversal behind one fingerprint; objects visited before are identified by number, so that cycles end."""

    def __init__(self) -> None:
        self.visited: dict[int, int] = {}
        self.alive: list[Any] = []  # keeps ids from being reused

    def of(self, value: Any) -> bytes:
        """The fingerprint of any value."""
        if isinstance(value, _PLAIN):
            return _digest(type(value).__name__, repr(value))
        if isinstance(value, (torch.dtype, torch.device)):
            return _digest("torch", repr(value))
        # Whether equal constants are one object depends on how the code was loaded, so they do not count as visited.
        if type(value) is tuple:
            return _digest("tuple", *map(self.of, value))
        if type(value) in (set, frozenset):
            return _digest("set", *sorted(_Traversal().of(part) for part in value))  # in no fixed order
        if isinstance(value, CodeType):
            return self._code(value)
        if isinstance(value, MethodType):
            return _digest("method", self.of(value.__func__), self.of(value.__self__))
        if isinstance(value, FunctionType) and hasattr(value, "_torchdynamo_orig_callable"):  # by torch.compile
            return _digest("compiled", self.of(value._torchdynamo_orig_callable))
        if id(value) in self.visited:
            return _digest("met", str(self.visited[id(value)]))
        self.visited[id(value)] = len(self.visited)
        self.alive.append(value)
        return self._first_visit(value)

    def _first_visit(self, value: Any) -> bytes:
        if type(value) is list:
            return _digest("list", *map(self.of, value))
        if type(value) is dict:
            return _digest("dict", *(self.of(part) for item in value.items() for part in item))
        if isinstance(value, torch.Tensor):
            array = value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
            return _digest("tensor", str(value.dtype), str(tuple(value.shape)), array.tobytes())
        if isinstance(value, np.ndarray) and not value.dtype.hasobject:
            return _digest("array", value.dtype.str, str(value.shape), np.ascontiguousarray(value).tobytes())
        if isinstance(value, ModuleType):
            return _digest("module", value.__name__)
        if isinstance(value, enum.Enum):
            return _digest("enum", type(value).__qualname__, value.name)
        if isinstance(value, (FunctionType, type)) and _is_library(value) and _is_known_by_name(value):
            return _digest("name", str(value.__module__), value.__qualname__)
        if isinstance(value, FunctionType):
            return self._function(value)
        if isinstance(value, type):
            return self._class(value)
        if isinstance(value, BuiltinFunctionType):
            return _digest("builtin", value.__qualname__, str(value.__module__), self.of(value.__self__))
        if isinstance(value, functools.partial):
            return _digest("partial", self.of(value.func), self.of(value.args), self.of(value.keywords))
        if isinstance(value, property):
            return _digest("property", *(self.of(part) for part in (value.fget, value.fset, value.fdel)))
        if isinstance(value, (staticmethod, classmethod)):
            return _digest(type(value).__name__, self.of(value.__func__))
        if isinstance(value, functools.cached_property):
            return _digest("cached_property", self.of(value.func))
        return self._object(value)

    def _function(self, function: FunctionType) -> bytes:
        copied = getattr(vars(function).get("__wrapped__"), "__dict__", {})  # copied by functools.wraps
        attributes = {name: value for name, value in vars(function).items() if name not in copied}
        own = function.__code__, function.__defaults__, function.__kwdefaults__, attributes
        found = [self.of(part) for part in own]
        for cell in function.__closure__ or ():
            with contextlib.suppress(ValueError):  # an empty cell
                found.append(self.of(cell.cell_contents))
        names = _names_in(function.__code__)
        for name in sorted(names & function.__globals__.keys()):
            found.append(self._global(name, function.__globals__[name], names))
        return _digest("function", *found)

    def _global(self, name: str, value: Any, names: set[str]) -> bytes:
        """The value of a global name; for a module of the user's, the attributes in use."""
        used = []
        if isinstance(value, ModuleType) and not _is_library(value):
            used = [self.of(getattr(value, one)) for one in sorted(names) if one in vars(value)]
        return _digest("global", name, self.of(value), *used)

    def _code(self, code: CodeType) -> bytes:
        numbers = [str(getattr(code, name)) for name in _ARGUMENTS]
        names = [str(getattr(code, name)) for name in _NAMES]
        table = getattr(code, "co_exceptiontable", b"")
        return _digest("code", code.co_code, table, *numbers, *names, self.of(code.co_consts))

    def _class(self, kind: type) -> bytes:
        parts = []
        for name, value in sorted(vars(kind).items()):
            hidden = name.startswith("__") and not isinstance(value, (FunctionType, staticmethod, classmethod))
            if not (hidden or name == "_abc_impl" or inspect.ismemberdescriptor(value)):
                parts.append(_digest(name, self.of(value)))
        return _digest("class", kind.__qualname__, *map(self.of, kind.__bases__), *parts)

    def _object(self, value: Any) -> bytes:
        """Any other object: its class and the state that would be copied with it."""
        reduce = copyreg.dispatch_table.get(type(value), lambda one: one.__reduce_ex__(2))
        try:
            state = reduce(value)
        except Exception as error:  # each type has its own error
            raise NotComparable(f"it uses a {type(value).__name__}, whose state cannot be inspected") from error
        if isinstance(state, str):  # a name; functools.lru_cache adds a wrapped function
            return _digest("global", state, self.of(getattr(value, "__wrapped__", None)))
        parts = [list(part) if hasattr(part, "__next__") else part for part in state]
        return _digest("object", *map(self.of, parts))


def _names_in(code: CodeType) -> set[str]:
    """The names of globals and attributes in a function, including those of nested functions."""
    inside = [constant for constant in code.co_consts if isinstance(constant, CodeType)]
    return set(code.co_names).union(*map(_names_in, inside))


def _is_library(value: Any) -> bool:
    """Whether a module, or the module of a function or class, is part of Python or of an installed package."""
    module = value if isinstance(value, ModuleType) else sys.modules.get(str(value.__module__))
    if module is None or module.__name__ == "__main__":
        return False
    file = getattr(module, "__file__", None)
    if file is None:
        return module.__name__ in sys.builtin_module_names
    return any(map(Path(file).resolve().is_relative_to, _LIBRARIES))


def _is_known_by_name(value: Any) -> bool:
    """Whether a library's function or class is the one that its name stands for, and not a closure made by it."""
    found = sys.modules.get(str(value.__module__))
    for name in value.__qualname__.split("."):
        found = getattr(found, name, None)
    return isinstance(value, type) or found is value


def _digest(*parts: str | bytes) -> bytes:
    whole = hashlib.sha256()
    for part in parts:
        content = part.encode("utf-8", "surrogatepass") if isinstance(part, str) else part
        whole.update(len(content).to_bytes(8, "little") + content)
    return whole.digest()
