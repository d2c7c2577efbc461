"""The fingerprint of a function: the same in every process, another for any change of what it does."""

import functools
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from haystack_distill.utils.code_fingerprint import NotComparable, code_fingerprint

MODULE = """
import functools
import re
import torch
import torch.nn.functional as F
import helpers

SCALE = 0.5
NAMES = {"start", "end", "both"}

def weigh(value):
    return value * SCALE

def loss(student, teacher, mask, temperature=1.0, *, power=2):
    if "start" in {"start", "end", "both"} and NAMES:
        return weigh(F.mse_loss(student, teacher, reduction="none").mean(1)) ** power
    return helpers.other(student)

class Loss(torch.nn.Module):
    factor = 1.0

    def __init__(self, weight=1.0):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.full((3,), weight))
        self.pattern = re.compile("a+")

    def forward(self, student, teacher, mask, temperature):
        return super().forward(student) if self.pattern else self.weight * self.factor * weigh(student)

def countdown(n):
    return countdown(n - 1) if n else helpers

def closure(value):
    return lambda *given: given[0] * value

made = [loss, Loss(), Loss().forward, functools.partial(loss, power=3), countdown, closure(4), torch.nn.KLDivLoss(),
        functools.lru_cache(weigh)]
"""
HELPERS = "def other(value):\n    return value + 1\n"
SCRIPT = """
import sys
sys.path.insert(0, sys.argv[1])
import module
from haystack_distill.utils.code_fingerprint import code_fingerprint
print(*(code_fingerprint(function) for function in module.made))
"""


def fingerprints(folder: Path, module: str = MODULE, helpers: str = HELPERS, *, seed: str = "0") -> list[str]:
    """Of the functions that the module makes, each time in a process of its own."""
    folder.mkdir(exist_ok=True)
    (folder / "module.py").write_text(module)
    (folder / "helpers.py").write_text(helpers)
    environment = os.environ | {"PYTHONHASHSEED": seed, "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-c", SCRIPT, str(folder)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.split()


@pytest.mark.only_in("haystack")
@pytest.mark.slow
def test_it_is_the_same_in_every_process_and_changes_with_what_the_function_uses(tmp_path: Path) -> None:
    first = fingerprints(tmp_path / "a")
    assert len(set(first)) == 8
    # Another order of sets, another folder, other comments, and code that Python has compiled before.
    moved = fingerprints(tmp_path / "b", "# a comment\n" + MODULE, seed="1")
    assert moved == first == fingerprints(tmp_path / "b", "# a comment\n" + MODULE, seed="2")
    helped = fingerprints(tmp_path / "a", helpers=HELPERS.replace("+ 1", "+ 2"))
    assert [one != other for one, other in zip(first, helped, strict=True)] == [
        *(True, False, False, True, False, False, False, False)
    ]


def make(scale: float = 0.5, power: int = 2, extra: object = None) -> Callable[..., object]:
    def loss(value: float, power: int = power) -> object:
        return (value * scale) ** power, extra

    return loss


def test_closures_and_defaults_count() -> None:
    assert code_fingerprint(make()) == code_fingerprint(make())
    others = [make(0.6), make(power=3), make(extra={1, 2}), make(extra=[1, 2]), make(extra=make), make(extra=True)]
    others += [make(extra=1), make(extra="1"), make(extra={"a": 1}), make(extra={"a": 2}), make(scale=-0.5)]
    assert len({code_fingerprint(one) for one in [make(), *others]}) == len(others) + 1
    assert code_fingerprint(functools.partial(make(), 1)) != code_fingerprint(functools.partial(make(), 2))


def test_a_function_that_a_library_made_counts_by_what_it_holds() -> None:
    made = [make(), make(scale=3.0)]
    for one in made:
        one.__module__ = "haystack_distill.training.reader_trainer"
    assert code_fingerprint(made[0]) != code_fingerprint(made[1])


def test_a_compiled_function_counts_by_what_it_was() -> None:
    one, same, other = (code_fingerprint(torch.compile(make(scale))) for scale in (0.5, 0.5, 0.6))
    assert one == same != other


def test_what_holds_itself_ends() -> None:
    ring: list[object] = [1]
    ring.append(ring)
    assert code_fingerprint(make(extra=ring)) == code_fingerprint(make(extra=ring))


@pytest.mark.parametrize("make_extra", [threading.Lock, lambda: (number for number in range(3)), threading.local])
def test_what_cannot_be_looked_at_is_named(make_extra: Callable[[], object]) -> None:
    extra = make_extra()
    with pytest.raises(NotComparable, match=type(extra).__name__):
        code_fingerprint(make(extra=extra))
