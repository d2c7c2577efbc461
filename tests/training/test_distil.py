"""ReaderTrainer.distil: any method, sums of methods, objectives of one's own, windows that lack a term."""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import TrainerCallback

from haystack_distill import DistilError, Reader, ReaderTrainer, TrainingSettings, students
from haystack_distill.data.squad.load import load_examples
from haystack_distill.objectives import (
    IntermediateLayers,
    Labels,
    LossTerm,
    Method,
    Objective,
    OutputRequest,
    PredictionLayer,
)
from haystack_distill.objectives.losses import hidden_state_loss
from haystack_distill.teachers import LiveTeacher
from haystack_distill.training.loop import _LoopTrainer

MakeReader = Callable[..., Reader]
QUICK = TrainingSettings(
    max_steps=6, batch_size=4, learning_rate=1e-3, precision="fp32", progress=False, log_every=1, checkpoint_every=None
)


@pytest.fixture
def teacher(tiny_reader: MakeReader) -> Reader:
    return tiny_reader()


def weights_of(reader: Reader) -> dict[str, Tensor]:
    return {name: weight.clone() for name, weight in reader.model.state_dict().items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(weight, other[name]) for name, weight in one.items())


def logged(result: Any, name: str) -> list[float]:
    return [line[name] for line in result.history if name in line]


def kill_at_step(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    compute = _LoopTrainer.compute_loss

    def stopping(self: _LoopTrainer, *arguments: Any, **keywords: Any) -> Tensor:
        if self.state.global_step == step:
            raise KeyboardInterrupt
        return compute(self, *arguments, **keywords)

    monkeypatch.setattr(_LoopTrainer, "compute_loss", stopping)


# --- several methods in one step ---------------------------------------------------------------------------------


def test_layers_and_answers_in_one_step_run_the_teacher_once(teacher: Reader, squad_file: Path) -> None:
    student = students.from_teacher(teacher, layers=2)
    calls = []
    hook = teacher.model.register_forward_pre_hook(lambda *_: calls.append(1))
    result = ReaderTrainer(student, settings=QUICK).distil(
        teacher, squad_file, IntermediateLayers() + 0.5 * PredictionLayer(temperature=2.0)
    )
    hook.remove()
    assert len(calls) == result.steps == 6
    terms = {name for line in result.history for name in line if name.startswith("loss_")}
    assert terms == {"loss_embedding", "loss_hidden", "loss_attention", "loss_distillation", "loss_labels"}


def test_each_part_of_a_sum_has_the_loss_that_it_has_alone(
    tiny_reader: MakeReader, teacher: Reader, squad_file: Path
) -> None:
    """The prediction layer by a live teacher is the one by a cached teacher, but for rounding."""

    def first(method: Method) -> dict[str, float]:
        student = students.from_teacher(teacher, layers=2)
        return (
            ReaderTrainer(student, settings=replace(QUICK, max_steps=1)).distil(teacher, squad_file, method).history[0]
        )

    layers, answers = IntermediateLayers(), PredictionLayer(temperature=2.0, distillation_loss_weight=0.8)
    both, parts = first(layers + 0.5 * answers), [first(layers), first(answers)]
    for line in parts:
        for name in line:
            if name.startswith("loss_"):
                assert both[name] == pytest.approx(line[name], rel=1e-4), name
    assert both["loss"] == pytest.approx(parts[0]["loss"] + 0.5 * parts[1]["loss"], rel=1e-3)


def test_a_reader_may_be_made_to_run_in_every_step(teacher: Reader, squad_file: Path, tmp_path: Path) -> None:
    """A live teacher gives the answers' objective what the cached one gives."""
    losses = []
    for source in (teacher, LiveTeacher(teacher)):
        student = students.from_teacher(teacher, layers=2)
        trainer = ReaderTrainer(student, settings=QUICK, cache_dir=tmp_path)
        losses.append(logged(trainer.distil(source, squad_file, PredictionLayer()), "loss"))
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_methods_by_name_and_wrappers_are_the_same_run(teacher: Reader, squad_file: Path) -> None:
    runs: list[Callable[[ReaderTrainer], Any]] = [
        lambda trainer: trainer.distil(teacher, squad_file, "intermediate_layers"),
        lambda trainer: trainer.distil(teacher, squad_file, IntermediateLayers()),
        lambda trainer: trainer.distil_intermediate_layers_from(teacher, squad_file),
    ]
    weights = []
    for run in runs:
        student = students.from_teacher(teacher, layers=2)
        run(ReaderTrainer(student, settings=QUICK))
        weights.append(weights_of(student))
    assert same(weights[0], weights[1])
    assert same(weights[0], weights[2])


def test_what_does_not_fit(teacher: Reader, squad_file: Path) -> None:
    def run(source: Any, method: Any) -> None:
        ReaderTrainer(students.from_teacher(teacher, layers=2), settings=QUICK).distil(source, squad_file, method)

    with pytest.raises(DistilError, match="this method needs a teacher; give one"):
        run(None, PredictionLayer())
    with pytest.raises(DistilError, match="needs a teacher; give one"):
        run(None, IntermediateLayers())
    with pytest.raises(DistilError, match="a teacher would have no effect; set teacher to None"):
        run(teacher, Labels())
    with pytest.raises(DistilError, match="unknown method 'layers'"):
        run(teacher, "layers")
    with pytest.raises(DistilError, match="must be a Method, an Objective or one of the names labels, "):
        run(teacher, 3)
    with pytest.raises(DistilError, match="masked_language_model needs a corpus to train on, not questions"):
        run(teacher, "masked_language_model")


# --- windows that lack a term ------------------------------------------------------------------------------------


def partly_labelled(squad_file: Path, keep: int) -> Any:
    """The examples of a file, of which the first `keep` are labelled and the others are not."""
    examples = load_examples(squad_file)
    return examples.map(
        lambda row, index: row | {"labelled": index < keep}, with_indices=True, load_from_cache_file=False
    )


def test_unlabelled_windows_do_not_dilute_the_labels(teacher: Reader, squad_file: Path) -> None:
    """The labels' mean is over labelled windows, however many unlabelled ones share the step."""
    settings = replace(QUICK, max_steps=1, batch_size=8)

    def loss(examples: Any) -> float:
        student = students.from_teacher(teacher, layers=2)
        return logged(ReaderTrainer(student, settings=settings).distil(None, examples, Labels()), "loss")[0]

    examples = partly_labelled(squad_file, keep=2)
    assert sum(examples["labelled"]) == 2
    assert loss(examples) == pytest.approx(loss(examples.select([0, 1])), rel=1e-5)


@pytest.mark.parametrize("parts", [1, 2, 4])
def test_a_terms_mean_is_over_the_whole_step(parts: int, teacher: Reader, squad_file: Path) -> None:
    """Micro-batches with different numbers of labelled windows weigh each labelled window alike."""
    examples = partly_labelled(squad_file, keep=3)
    settings = replace(QUICK, max_steps=2, batch_size=8 // parts, gradient_accumulation_steps=parts)
    whole = replace(QUICK, max_steps=2, batch_size=8)
    losses = []
    for chosen in (whole, settings):
        student = students.from_teacher(teacher, layers=2)
        result = ReaderTrainer(student, settings=chosen).distil(teacher, examples, PredictionLayer())
        losses.append([*logged(result, "loss_labels"), *logged(result, "loss_distillation")])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_steps_without_a_labelled_window(teacher: Reader, squad_file: Path) -> None:
    """They learn from the teacher alone, and the log's mean is over the steps that have the term."""
    examples = partly_labelled(squad_file, keep=1)
    settings = replace(QUICK, max_steps=8, batch_size=1, log_every=8)
    student = students.from_teacher(teacher, layers=2)
    result = ReaderTrainer(student, settings=settings).distil(teacher, examples, PredictionLayer())
    assert logged(result, "loss_labels")[0] > 0.5  # an eighth of it, were all steps counted
    assert logged(result, "loss_distillation")[0] > 0


# --- an objective of one's own -----------------------------------------------------------------------------------


class LastState(Objective):
    """The student's last hidden state through a projection against the teacher's last one, for short windows."""

    student_request = OutputRequest(hidden_states=True)
    teacher_request = OutputRequest(hidden_states=True)

    def __init__(self, width: int, teacher_width: int, power: float = 2.0) -> None:
        super().__init__()
        self.weights = {"last": 0.7}
        self.projection = torch.nn.Linear(width, teacher_width)
        self.power = power

    def masks(self, batch):
        return {"last": batch["attention_mask"].sum(dim=1) < 40}

    def forward(self, student, teacher, batch):
        projected = self.projection(student.hidden_states[-1])
        values = hidden_state_loss(projected, teacher.hidden_states[-1], batch["attention_mask"])
        return {"last": LossTerm(values ** (self.power / 2), self.masks(batch)["last"])}


@dataclass(frozen=True)
class LastStateMethod(Method):
    """Last state: a method of the test's own."""

    power: float = 2.0

    def objective(self, student, teacher) -> Objective:
        return LastState(student.hidden_size, teacher.hidden_size, self.power)


@pytest.mark.parametrize("kind", ["objective", "method", "sum"])
def test_an_objective_of_ones_own_trains_and_resumes(
    kind: str, tiny_reader: MakeReader, squad_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher = tiny_reader(seed=0)

    def run(directory: Path, power: float = 2.0, **changed: Any) -> tuple[Any, Reader]:
        student = tiny_reader(seed=1, num_hidden_layers=2, hidden_size=16)
        torch.manual_seed(6 if changed else 5)  # a resumed run loads the parameters: other initial ones do not matter
        made: Any = LastStateMethod(power) if kind != "objective" else LastState(16, 32, power)
        method = made + Labels() if kind == "sum" else made
        trainer = ReaderTrainer(student, directory, replace(QUICK, checkpoint_every=2, **changed))
        return trainer.distil(teacher, squad_file, method), student

    whole, student = run(tmp_path / "whole")
    assert len(logged(whole, "loss_last")) == 6
    record = json.loads((tmp_path / "whole" / "haystack_distill.json").read_text())
    name = {"objective": "LastState", "method": "LastStateMethod", "sum": "LastStateMethod + labels"}[kind]
    assert record["method"] == name
    assert record["code"]
    with monkeypatch.context() as patch:
        kill_at_step(patch, 3)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "run")
    with pytest.raises(DistilError, match="cannot resume the run"):
        run(tmp_path / "run", power=1.5, resume=True)
    resumed, again = run(tmp_path / "run", resume=True)
    assert same(weights_of(student), weights_of(again))
    assert logged(resumed, "loss_last") == logged(whole, "loss_last")


class Broken(LastState):
    """An objective whose terms are not those that it declares."""

    def __init__(self, how: str) -> None:
        super().__init__(32, 32)
        self.how = how

    def forward(self, student, teacher, batch):
        term = super().forward(student, teacher, batch)["last"]
        return {
            "name": {"other": term},
            "kind": {"last": term.values},
            "shape": {"last": LossTerm(term.values.mean(), term.mask)},
            "mask": {"last": LossTerm(term.values, ~term.mask)},
        }[self.how]


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("name", r"Broken.forward returns \['other'\], but its weights name \['last'\]"),
        ("kind", "returns a Tensor for 'last'; return a LossTerm"),
        ("shape", "return one value per window"),
        ("mask", "differ in which windows have the term 'last'"),
    ],
)
def test_an_objective_that_does_not_keep_the_contract(
    how: str, message: str, teacher: Reader, squad_file: Path
) -> None:
    student = students.from_teacher(teacher, layers=2)
    with pytest.raises(DistilError, match=message):
        ReaderTrainer(student, settings=QUICK).distil(teacher, squad_file, Broken(how))


def test_callbacks_are_called(teacher: Reader, squad_file: Path) -> None:
    class Counting(TrainerCallback):
        steps = 0

        def on_step_end(self, *_: Any, **__: Any) -> None:
            self.steps += 1

    counting = Counting()
    ReaderTrainer(teacher, settings=QUICK).distil(None, squad_file, "labels", callbacks=[counting])
    assert counting.steps == 6
