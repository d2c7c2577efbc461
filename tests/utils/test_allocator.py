"""Memory is kept between training steps: what glibc is asked for, what turns it off, and what it does."""

import sys
from types import SimpleNamespace

import pytest
import torch

from haystack_distill.utils import allocator
from haystack_distill.utils.allocator import VARIABLE, kept_memory


def c_library(made: list[tuple[int, int]], largest: int = 2**63) -> SimpleNamespace:
    """A C library that notes its calls, and refuses a threshold above `largest`."""

    def mallopt(name: int, value: int) -> int:
        made.append((name, value))
        return int(value <= largest)

    return SimpleNamespace(mallopt=mallopt, malloc_trim=lambda left: made.append((0, left)))


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """The calls of a C library, in order; `malloc_trim` as (0, 0). The environment sets nothing."""
    made: list[tuple[int, int]] = []
    monkeypatch.setattr(allocator, "_glibc", lambda: c_library(made))
    for name in (VARIABLE, "GLIBC_TUNABLES", *allocator._OWN_VARIABLES):
        monkeypatch.delenv(name, raising=False)
    return made


def test_the_thresholds_are_raised_and_lowered_once(calls: list[tuple[int, int]]) -> None:
    with kept_memory(), kept_memory():
        assert calls == [(-3, 2**31 - 1), (-1, -1)]
    assert calls[2:] == [(-3, 32 * 2**20), (-1, 64 * 2**20), (0, 0)]


def test_an_older_library_gets_its_largest_threshold(
    calls: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(allocator, "_glibc", lambda: c_library(calls, 32 * 2**20))
    with kept_memory():
        assert calls == [(-3, 2**31 - 1), (-3, 32 * 2**20), (-1, -1)]


def test_they_are_lowered_after_an_error(calls: list[tuple[int, int]]) -> None:
    with pytest.raises(ValueError, match="in a step"), kept_memory():
        raise ValueError("in a step")
    assert calls[-1] == (0, 0)


@pytest.mark.parametrize(
    ("name", "value"),
    [(VARIABLE, "0"), ("MALLOC_TRIM_THRESHOLD_", "131072"), ("GLIBC_TUNABLES", "glibc.malloc.mmap_threshold=4096")],
)
def test_the_environment_decides(
    calls: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    with kept_memory():
        pass
    assert not calls


def test_other_tunables_do_not_matter(calls: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.arena_max=2")
    with kept_memory():
        assert calls


def test_nothing_happens_without_glibc(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    assert allocator._glibc() is None
    with kept_memory():
        pass


@pytest.mark.skipif(allocator._glibc() is None, reason="not glibc")
def test_large_tensors_find_the_memory_of_earlier_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    import resource

    for name in (VARIABLE, "GLIBC_TUNABLES", *allocator._OWN_VARIABLES):
        monkeypatch.delenv(name, raising=False)

    def faults() -> int:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for _ in range(3):
            torch.ones(12 * 2**20)  # 48 MiB, above the highest threshold of glibc's own
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    with kept_memory():
        torch.ones(12 * 2**20)
        assert faults() < 2000  # of the 36,864 pages of three tensors
