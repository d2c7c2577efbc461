"""Every registered method: resumed runs, shared steps, the number of the teacher's passes, records."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from haystack_distill import Reader, ReaderTrainer, RunResult, students
from haystack_distill.objectives import Method
from haystack_distill.training.methods import METHODS
from tests.training.helpers import (
    Killed,
    MakeReader,
    furthest,
    kill_at_step,
    same,
    settings,
    weights_of,
    with_gradients,
)

Pair = Callable[[], tuple[Reader, Reader]]


@pytest.fixture
def pair(request: pytest.FixtureRequest, pair: Pair, tiny_reader: MakeReader) -> Pair:
    """As for the other tests; of one width for methods without projections."""

    def of_one_width() -> tuple[Reader, Reader]:
        return tiny_reader(seed=1, num_hidden_layers=2), tiny_reader(seed=0, num_hidden_layers=4)

    def with_early_exits() -> tuple[Reader, Reader]:
        student, teacher = pair()
        return students.early_exit(student), teacher

    made = {"patient": of_one_width, "triple_loss": of_one_width, "self_distillation": with_early_exits}
    return made.get(request.node.callspec.params["name"], pair)


def default(name: str, pair: Pair, data: Path, directory: Path) -> Method:
    """A method with its default options, after the runs that it takes something of."""
    method = METHODS[name]
    options = {"use_labels": False} if name == "hard_targets" else {}  # all windows of the data are labelled
    for option, needed in method.needs_run_of.items():
        student, teacher = pair()
        ReaderTrainer(student, directory / needed, settings(max_steps=1)).distil(teacher, data, needed)
        options[option] = str(directory / needed)
    return method(**options)


def run(
    method: Method, pair: Pair, data: Path, output: Path | None, cache: Path, **changed: object
) -> tuple[Reader, RunResult]:
    student, teacher = pair()
    reads = method.objective(student.model.config, teacher.model.config).teacher_request
    trainer = ReaderTrainer(student, output, settings(**changed), cache_dir=cache)
    return student, trainer.distil(teacher if reads else None, data, method)


def _terms(result: RunResult) -> list[tuple[float, ...]]:
    """The terms of the loss in each line of the log, which transformers does not round."""
    lines = [[line[name] for name in sorted(line) if name.startswith("loss_")] for line in result.history]
    return [tuple(line) for line in lines if line]


QUESTION_METHODS = [name for name in METHODS if name != "masked_language_model"]  # which needs a corpus


@pytest.mark.parametrize("name", QUESTION_METHODS)
def test_an_interrupted_run_ends_with_the_same_bits(
    name: str, pair: Pair, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    method = default(name, pair, data, tmp_path)
    changed = {"max_steps": 7, "checkpoint_every": 2, "dropout": 0.1}
    whole, expected = run(method, pair, data, tmp_path / "whole", tmp_path / "cache", **changed)
    with monkeypatch.context() as patch:
        kill_at_step(patch, 5)
        with pytest.raises(Killed):
            run(method, pair, data, tmp_path / "run", tmp_path / "cache", **changed)
    resumed, result = run(method, pair, data, tmp_path / "run", tmp_path / "cache", resume=True, **changed)
    assert same(weights_of(resumed), weights_of(whole))
    assert _terms(result) == _terms(expected)
    assert len(set(_terms(result))) > 1
    record = json.loads((tmp_path / "run" / "haystack_distill.json").read_text())
    assert record["method"] == name
    assert record["arguments"].keys() == {option.name for option in METHODS.options(name)}


@pytest.mark.parametrize("name", QUESTION_METHODS)
def test_a_step_in_parts_is_the_same_step(name: str, pair: Pair, data: Path, tmp_path: Path) -> None:
    """Micro-batches are shared out as among processes: each part's losses are divided by the windows of the step."""
    method = default(name, pair, data, tmp_path)
    at_once, expected = run(method, pair, data, None, tmp_path / "cache", max_steps=3, batch_size=8)
    in_parts = {"max_steps": 3, "batch_size": 2, "gradient_accumulation_steps": 4}
    parted, result = run(method, pair, data, None, tmp_path / "cache", **in_parts)
    for terms, wanted in zip(_terms(result), _terms(expected), strict=True):
        assert terms == pytest.approx(wanted, rel=1e-4, abs=1e-7)
    assert furthest(with_gradients(weights_of(parted)), with_gradients(weights_of(at_once))) < 1e-4


@pytest.mark.parametrize("name", QUESTION_METHODS)
def test_the_teacher_runs_at_most_once_per_batch_and_is_not_changed(
    name: str, pair: Pair, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    method = default(name, pair, data, tmp_path)
    student, teacher = pair()
    before = weights_of(teacher)
    passes = []
    teacher.model.base_model.register_forward_hook(lambda *_: passes.append(1))
    request = method.objective(student.model.config, teacher.model.config).teacher_request
    counts = []
    for _ in range(2):
        trainer = ReaderTrainer(student, settings=settings(max_steps=20), cache_dir=tmp_path / "cache")
        trainer.distil(teacher if request else None, data, method)
        counts.append(len(passes))
    if not request:
        assert counts == [0, 0]
    elif request.beyond_logits:
        assert counts == [20, 40]
    else:  # once over the data, whatever the number of steps and runs
        assert 0 < counts[0] == counts[1] < 20
    assert same(weights_of(teacher), before)
    assert all(parameter.grad is None for parameter in teacher.model.parameters())
