"""Processes of one run: what the main process decides reaches all, and shares are complete."""

from types import SimpleNamespace
from typing import Any

import pytest

from haystack_distill import DistilError
from haystack_distill.utils.processes import process_share, run_on_main_process


def process(index: int, n: int) -> Any:
    return SimpleNamespace(process_index=index, num_processes=n, is_main_process=index == 0)


@pytest.mark.parametrize("n", [0, 1, 5, 8, 100])
@pytest.mark.parametrize("processes", [1, 2, 3, 8])
def test_shares_are_the_whole_in_order(n: int, processes: int) -> None:
    shares = [process_share(n, process(index, processes)) for index in range(processes)]
    assert [thing for share in shares for thing in share] == list(range(n))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_the_main_process_decides_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    assert run_on_main_process(lambda: 7, process(0, 1)) == 7
    sent: list[Any] = []

    def broadcast(outcome: list[Any]) -> None:
        if sent:
            outcome[:] = sent
        else:
            sent.extend(outcome)

    monkeypatch.setattr("haystack_distill.utils.processes.broadcast_object_list", broadcast)
    assert run_on_main_process(lambda: 7, process(0, 2)) == 7
    assert run_on_main_process(lambda: pytest.fail("not the main process"), process(1, 2)) == 7


def test_an_error_of_the_main_process_is_raised_in_all(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[Any] = []

    def fail() -> None:
        raise DistilError("no room")

    monkeypatch.setattr("haystack_distill.utils.processes.broadcast_object_list", sent.extend)
    with pytest.raises(DistilError, match="no room"):
        run_on_main_process(fail, process(0, 2))
    monkeypatch.setattr(
        "haystack_distill.utils.processes.broadcast_object_list", lambda outcome: outcome.__setitem__(slice(None), sent)
    )
    with pytest.raises(DistilError, match="no room"):
        run_on_main_process(fail, process(1, 2))
