"""The order of training: complete, a function of (seed, epoch), grouped by length, divisible."""

import numpy as np
import pytest

from haystack_distill.data.mixture import tempered_mixture
from haystack_distill.data.samplers import LengthGroupedBatches, MixedBatches, StepBatches
from haystack_distill.errors import DistilError

LENGTHS = np.random.default_rng(0).integers(10, 400, size=997)


def epoch(batches: StepBatches, number: int = 0) -> list[list[int]]:
    batches.start_epoch(number)
    return list(batches)


def real(batches: list[list[int]]) -> list[int]:
    return [index for batch in batches for index in batch if index >= 0]


@pytest.mark.parametrize("accumulation", [1, 3])
@pytest.mark.parametrize("windows", [1, 7, 96, 997])
def test_each_window_once_an_epoch(windows: int, accumulation: int) -> None:
    batches = LengthGroupedBatches(LENGTHS[:windows], 8, accumulation=accumulation)
    for number in range(3):
        made = epoch(batches, number)
        assert sorted(real(made)) == list(range(windows))
        assert len(made) == len(batches) == batches.steps * accumulation
        assert all(1 <= len(batch) <= 8 for batch in made)


def test_order_is_a_function_of_seed_and_epoch() -> None:
    made = epoch(LengthGroupedBatches(LENGTHS, 8, seed=3), 2)
    one = LengthGroupedBatches(LENGTHS, 8, seed=3)
    epoch(one, 0)  # what was iterated before does not matter
    np.random.seed(1)
    assert epoch(one, 2) == made
    assert epoch(one, 1) != made
    assert epoch(LengthGroupedBatches(LENGTHS, 8, seed=4), 2) != made


def test_batches_hold_windows_of_about_equal_length() -> None:
    made = epoch(LengthGroupedBatches(LENGTHS, 8))
    padding = sum(int((LENGTHS[batch].max() - LENGTHS[batch]).sum()) for batch in made)
    assert padding < 0.05 * LENGTHS.sum()
    longest = [int(LENGTHS[batch].max()) for batch in made]
    assert longest != sorted(longest)  # but the batches themselves come in no order of length


def test_groups_mix_from_epoch_to_epoch() -> None:
    batches = LengthGroupedBatches(LENGTHS, 8)
    first = {frozenset(batch) for batch in epoch(batches, 0)}
    second = {frozenset(batch) for batch in epoch(batches, 1)}
    assert len(first & second) < len(first) / 4


@pytest.mark.parametrize("windows", [3, 50, 61, 997])
def test_steps_are_the_same_windows_however_they_are_divided(windows: int) -> None:
    lengths = LENGTHS[:windows]
    whole = LengthGroupedBatches(lengths, 24, seed=5)
    wanted = [sorted(step) for step in epoch(whole, 1)]
    for batch_size, accumulation, processes in ((6, 4, 1), (6, 1, 4), (2, 4, 3), (3, 2, 4)):
        shares = [
            LengthGroupedBatches(
                lengths, batch_size, accumulation=accumulation, processes=processes, process=process, seed=5
            )
            for process in range(processes)
        ]
        made = [epoch(share, 1) for share in shares]
        assert {len(batches) for batches in made} == {len(wanted) * accumulation}  # no process waits for another
        for number, step in enumerate(wanted):
            mine = slice(number * accumulation, (number + 1) * accumulation)
            assert sorted(real([batch for batches in made for batch in batches[mine]])) == step


def test_a_filler_where_there_are_too_few_windows() -> None:
    made = epoch(LengthGroupedBatches(LENGTHS[:2], 1, accumulation=4))
    assert len(made) == 4
    assert sorted(real(made)) == [0, 1]
    fillers = [batch for batch in made if batch[0] < 0]
    assert len(fillers) == 2
    assert all(len(batch) == 1 and 0 <= ~batch[0] < 2 for batch in fillers)


PARTS = (np.arange(997) >= 300).astype(int)


def mixed(batch_size: int = 8, counts: tuple[int, ...] = (300, 300), **sharing: int) -> MixedBatches:
    return MixedBatches(LENGTHS, PARTS, counts, batch_size, seed=3, **sharing)


@pytest.mark.parametrize(("counts", "wanted"), [((300, 300), 4), ((300, 900), 6), ((300, 100), 2)])
def test_every_step_mixes_the_parts_in_proportion(counts: tuple[int, int], wanted: int) -> None:
    made = epoch(mixed(counts=counts), 1)
    assert np.bincount(PARTS[real(made)]).tolist() == list(counts)
    for batch in made:
        assert abs(PARTS[batch].sum() - wanted * len(batch) / 8) <= 1


def test_a_part_is_used_up_before_any_of_it_is_repeated() -> None:
    batches = mixed()
    epochs = [real(epoch(batches, number)) for number in range(5)]
    for windows in epochs:
        assert sorted(window for window in windows if PARTS[window] == 0) == list(range(300))
    others = [[window for window in windows if PARTS[window]] for windows in epochs]
    assert not set(others[0]) & set(others[1])
    assert set(others[0]) | set(others[1]) | set(others[2]) == set(range(300, 997))
    drawn = np.bincount(np.concatenate(others), minlength=997)[300:]
    assert set(drawn.tolist()) == {2, 3}  # 1500 draws of 697 windows


def test_mixed_steps_are_a_function_of_seed_and_epoch_however_they_are_divided() -> None:
    whole = epoch(mixed(24), 2)
    for batch_size, accumulation, processes in ((6, 4, 1), (2, 4, 3)):
        shares = [
            epoch(mixed(batch_size, accumulation=accumulation, processes=processes, process=process), 2)
            for process in range(processes)
        ]
        for number, step in enumerate(whole):
            mine = slice(number * accumulation, (number + 1) * accumulation)
            assert sorted(real([batch for batches in shares for batch in batches[mine]])) == sorted(step)
    assert epoch(mixed(24), 1) != whole
    padding = sum(int((LENGTHS[batch].max() - LENGTHS[batch]).sum()) for batch in whole)
    assert padding < 0.1 * LENGTHS.sum()


def test_tempered_sources() -> None:
    example_of = np.repeat([0, 1, 2], [90, 5, 5])
    assert tempered_mixture(example_of, [1, 2]).counts == (90, 10)
    assert tempered_mixture(example_of, [1, 2], 0.5).counts == (75, 25)
    assert tempered_mixture(example_of, [1, 2], 0).counts == (50, 50)
    with pytest.raises(DistilError, match="from 0"):
        tempered_mixture(example_of, [1, 2], 2.0)
