"""The training loop: the same result however a run is divided or interrupted."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import (
    AutoModelForQuestionAnswering,
    BartConfig,
    TrainerCallback,
)

from haystack_distill import DistilError, Reader, ReaderTrainer, TrainingSettings, students
from haystack_distill.data.squad.load import load_examples
from haystack_distill.objectives import (
    Labels,
    LossTerm,
    PredictionLayer,
)
from haystack_distill.training.checkpoints import seal
from haystack_distill.training.gradual_unfreezing import GradualUnfreezing
from haystack_distill.training.loop import _dropout, _LoopTrainer
from haystack_distill.training.run_directory import RunDirectory, RunResult
from tests.training.helpers import (
    METHODS,
    Killed,
    LastState,
    MakeReader,
    RunMethod,
    config_of,
    distil_intermediate_layers,
    distil_prediction_layer,
    furthest,
    kill_at_loss,
    kill_at_step,
    logged,
    same,
    settings,
    train_on_labels,
    watch_steps,
    weights_of,
    with_gradients,
)

QUICK = TrainingSettings(
    max_steps=6, batch_size=4, learning_rate=1e-3, precision="fp32", progress=False, log_every=1, checkpoint_every=None
)


@pytest.fixture
def teacher(tiny_reader: MakeReader) -> Reader:
    return tiny_reader()


@pytest.mark.parametrize("method", METHODS)
def test_a_seed_decides_the_weights(pair: Callable, data: Path, method: RunMethod) -> None:
    results = []
    for seed in (7, 7, 8):
        student, teacher = pair()
        torch.rand(seed)  # the state of the random numbers before does not matter
        before = weights_of(student)
        result = method(ReaderTrainer(student, settings=settings(seed=seed, n_epochs=1)), teacher, data)
        assert result.steps == 6
        assert result.directory is None
        assert furthest(before, weights_of(student)) > 1e-4
        assert not student.model.training
        results.append(weights_of(student))
    assert same(results[0], results[1])
    assert not same(results[0], results[2])


@pytest.mark.parametrize("method", METHODS)
def test_accumulation_changes_nothing(pair: Callable, data: Path, method: RunMethod) -> None:
    found = []
    for size, parts in ((16, 1), (4, 4)):
        student, teacher = pair()
        chosen = settings(batch_size=size, gradient_accumulation_steps=parts, learning_rate=5e-5, n_epochs=2)
        result = method(ReaderTrainer(student, settings=chosen), teacher, data)
        assert result.steps == 4  # the windows of an epoch fill one step and part of another
        found.append((weights_of(student), [line["loss"] for line in result.history if "loss" in line]))
    assert furthest(with_gradients(found[0][0]), with_gradients(found[1][0])) < 1e-5
    assert found[0][1] == pytest.approx(found[1][1], abs=2e-4)


def test_the_last_partial_step_weighs_each_window_alike(pair: Callable, data: Path) -> None:
    """One plain gradient step on all windows, by hand, is what one step of many uneven parts does."""
    student, _ = pair()
    windows = student.cut(load_examples(data))
    assert len(windows) % 8 != 0
    model = student.copy().model
    batch = windows.collate(windows.__getitems__(range(len(windows))))
    output = model(**{name: batch[name] for name in ("input_ids", "attention_mask", "token_type_ids")})
    total = 0.0
    for logits, name in ((output.start_logits, "start_positions"), (output.end_logits, "end_positions")):
        visible = logits.masked_fill(batch["attention_mask"] == 0, -torch.inf)
        total = total + nn.functional.cross_entropy(visible, batch[name]) / 2
    total.backward()
    norm = torch.linalg.vector_norm(torch.stack([p.grad.norm() for p in model.parameters() if p.grad is not None]))
    chosen = settings(batch_size=8, gradient_accumulation_steps=8, n_epochs=1, learning_rate=1e-30)
    history = ReaderTrainer(student, settings=chosen).train(data).history
    assert history[0]["loss"] == pytest.approx(total.item(), abs=1e-4)
    assert history[0]["grad_norm"] == pytest.approx(norm.item(), rel=1e-4)


# --- terms ------------------------------------------------------------------------------------------------------


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


class Broken(LastState):
    """An objective whose terms are not those that it declares."""

    def __init__(self, how: str) -> None:
        super().__init__(32, 32)
        self.how = how

    def masks(self, batch):
        right = super().masks(batch)["last"]
        return {"no mask": {}, "numbers": {"last": right.float()}}.get(self.how, {"last": right})

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
        ("no mask", r"Broken.masks returns \[\], but its weights name \['last'\]"),
        ("numbers", r"Broken.masks returns a torch.float32 tensor .* return one boolean per window"),
    ],
)
def test_an_objective_that_does_not_keep_the_contract(
    how: str, message: str, teacher: Reader, squad_file: Path
) -> None:
    student = students.from_teacher(teacher, layers=2)
    with pytest.raises(DistilError, match=message):
        ReaderTrainer(student, settings=QUICK).distil(teacher, squad_file, Broken(how))


def test_every_part_of_the_loss_is_in_the_history(pair: Callable, data: Path) -> None:
    student, teacher = pair()
    chosen = settings(gradient_accumulation_steps=2, batch_size=2)
    result = ReaderTrainer(student, settings=chosen).distil_prediction_layer_from(
        teacher, data, temperature=2.0, distillation_loss_weight=0.75
    )
    lines = [line for line in result.history if "loss" in line]
    assert [line["step"] for line in lines] == list(range(1, 13))
    for line in lines:
        total = 0.75 * 4 * line["loss_distillation"] + 0.25 * line["loss_labels"]
        assert line["loss"] == pytest.approx(total, abs=2e-4)
    assert len({line["loss_labels"] for line in lines}) > 6


def test_parts_are_means_over_the_steps_of_a_line(pair: Callable, data: Path) -> None:
    found = []
    for log_every in (1, 4):
        student, teacher = pair()
        trainer = ReaderTrainer(student, settings=settings(log_every=log_every))
        history = trainer.distil_intermediate_layers_from(teacher, data).history
        found.append([line for line in history if "loss" in line])
    for name in ("loss", "loss_embedding", "loss_hidden", "loss_attention"):
        fine = [line[name] for line in found[0]]
        coarse = [sum(fine[i : i + 4]) / 4 for i in range(0, 12, 4)]
        assert [line[name] for line in found[1]] == pytest.approx(coarse, rel=1e-3), name


def test_a_loss_that_is_no_number_stops_the_run(
    pair: Callable, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    student, _ = pair()
    whole = _LoopTrainer.compute_loss

    def poisoned(self: _LoopTrainer, model: nn.Module, inputs: dict[str, Tensor], *rest: Any, **named: Any) -> Tensor:
        if self.state.global_step == 2:
            torch.nn.init.constant_(student.model.qa_outputs.bias, float("nan"))
        return whole(self, model, inputs, *rest, **named)

    monkeypatch.setattr(_LoopTrainer, "compute_loss", poisoned)
    with pytest.raises(
        DistilError, match=r"the loss is nan at step 3 \(labels nan\) on the questions q0-\d-\d.*lower"
    ) as caught:
        ReaderTrainer(student, tmp_path / "run", settings(checkpoint_every=1)).train(data)
    ids = str(caught.value).split("questions ")[1].split(";")[0].split(", ")
    assert 1 <= len(ids) <= 4
    assert set(ids) <= set(load_examples(data)["id"])
    assert (tmp_path / "run" / "checkpoints" / "checkpoint-2" / "complete").exists()


def test_callbacks_are_called(teacher: Reader, squad_file: Path) -> None:
    class Counting(TrainerCallback):
        steps = 0

        def on_step_end(self, *_: Any, **__: Any) -> None:
            self.steps += 1

    counting = Counting()
    ReaderTrainer(teacher, settings=QUICK).distil(None, squad_file, "labels", callbacks=[counting])
    assert counting.steps == 6


# --- interrupted and resumed -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "changed", "expected"),
    [
        (train_on_labels, {"checkpoint_every": "epoch"}, 6),
        (train_on_labels, {"checkpoint_every": 4, "dropout": 0.2}, 8),
        (distil_prediction_layer, {"checkpoint_every": 3, "gradient_accumulation_steps": 2, "batch_size": 2}, 9),
        (distil_intermediate_layers, {"checkpoint_every": 2}, 8),
        (distil_intermediate_layers, {"checkpoint_every": None}, None),
    ],
)
def test_a_killed_run_resumes_to_the_same_weights(
    pair: Callable,
    data: Path,
    tmp_path: Path,
    method: RunMethod,
    changed: dict[str, Any],
    expected: int | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    student, teacher = pair()
    untouched = method(ReaderTrainer(student, tmp_path / "untouched", settings(**changed)), teacher, data)
    wanted = weights_of(student)
    assert untouched.steps == 12

    directory = tmp_path / "killed"
    student, teacher = pair()
    with monkeypatch.context() as patch:
        kill_at_loss(patch, 10 * changed.get("gradient_accumulation_steps", 1))  # in the second of two epochs
        with pytest.raises(Killed):
            method(ReaderTrainer(student, directory, settings(**changed)), teacher, data)
    checkpoints = sorted(path.name for path in (directory / "checkpoints").glob("checkpoint-*"))
    assert (f"checkpoint-{expected}" in checkpoints) == (expected is not None)
    assert not list(directory.rglob("training_args.bin"))
    assert not list(directory.glob("*.safetensors"))  # nothing that looks finished
    if expected is not None:  # one that was cut off while it was written
        half = directory / "checkpoints" / "checkpoint-11"
        shutil.copytree(directory / "checkpoints" / f"checkpoint-{expected}", half)
        (half / "complete").unlink()
        (half / "model.safetensors").write_bytes(b"half")

    student, teacher = pair()
    steps = watch_steps(monkeypatch)
    resumed = method(ReaderTrainer(student, directory, settings(**changed, resume=True)), teacher, data)
    assert steps[0] == (expected or 0)  # what was done is not done again
    assert resumed.steps == 12
    assert same(weights_of(student), wanted)
    assert same(load_file(directory / "model.safetensors"), load_file(tmp_path / "untouched" / "model.safetensors"))
    losses = [[line["loss"] for line in run.history if "loss" in line] for run in (untouched, resumed)]
    assert losses[0] == losses[1]
    assert not (directory / "checkpoints").exists()


@pytest.mark.parametrize("stop", [6, 7, 8])
def test_a_resumed_run_has_the_log_of_a_whole_one(
    pair: Callable, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: int
) -> None:
    """The evaluation of an epoch that ends at a checkpoint, and the losses of lines that a checkpoint divides."""
    chosen = {"n_epochs": 3, "checkpoint_every": 2, "keep_checkpoints": 9, "log_every": 5, "evaluate_every": "epoch"}

    def log_of(result: RunResult) -> list[dict[str, float]]:
        timed = ("seconds", "runtime", "per_second", "flos")
        return [
            {name: value for name, value in line.items() if not any(word in name for word in timed)}
            for line in result.history
        ]

    def run(directory: str, **more: bool) -> RunResult:
        student, teacher = pair()
        trainer = ReaderTrainer(student, tmp_path / directory, settings(**chosen, **more))
        return trainer.distil(teacher, data, "prediction_layer", data)

    whole = run("whole")
    assert [line["step"] for line in whole.history if "eval_f1" in line] == [6, 12, 18]
    with monkeypatch.context() as patch:
        kill_at_step(patch, stop)
        with pytest.raises(Killed):
            run("stopped")
    resumed = run("stopped", resume=True)
    assert log_of(resumed) == log_of(whole)
    assert resumed.metrics == whole.metrics


def test_a_run_killed_while_it_writes_a_checkpoint(
    pair: Callable, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    student, _ = pair()
    ReaderTrainer(student, settings=settings()).train(data)
    wanted = weights_of(student)
    whole, saved = _LoopTrainer._save_optimizer_and_scheduler, []

    def dying(self: _LoopTrainer, directory: str) -> None:
        saved.append(directory)
        if len(saved) == 3:  # the weights are there, the optimiser's state is not
            raise Killed
        whole(self, directory)

    student, _ = pair()
    with monkeypatch.context() as patch:
        patch.setattr(_LoopTrainer, "_save_optimizer_and_scheduler", dying)
        with pytest.raises(Killed):
            ReaderTrainer(student, tmp_path / "run", settings(checkpoint_every=3, keep_checkpoints=1)).train(data)
    there = tmp_path / "run" / "checkpoints"
    assert (there / ".haystack-distill" / "checkpoint-9" / "model.safetensors").exists()
    assert (there / "checkpoint-6" / "complete").exists()  # with one kept, the one before is there until then
    student, _ = pair()
    ReaderTrainer(student, tmp_path / "run", settings(checkpoint_every=3, keep_checkpoints=1, resume=True)).train(data)
    assert same(weights_of(student), wanted)


def test_a_run_killed_after_its_last_step(
    pair: Callable, data: Path, squad_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    student, _ = pair()
    with monkeypatch.context() as patch:
        patch.setattr(Reader, "evaluate_windows", lambda *_, **__: (_ for _ in ()).throw(Killed()))
        with pytest.raises(Killed):
            ReaderTrainer(student, tmp_path / "run", settings(evaluate_every=None, checkpoint_every="epoch")).train(
                data, squad_file
            )
    wanted = weights_of(student)
    student, _ = pair()
    result = ReaderTrainer(
        student, tmp_path / "run", settings(evaluate_every=None, checkpoint_every="epoch", resume=True)
    ).train(data, squad_file)
    assert result.steps == 12
    assert same(weights_of(student), wanted)
    assert result.metrics["total"] == 8


def killed_at_the_end(
    student: Reader, run: Path, chosen: TrainingSettings, data: Path, dev: Path | None, patch: pytest.MonkeyPatch
) -> int:
    """A run that is killed before its result is saved, and its steps."""
    taken = []

    def finish(self: RunDirectory, result: RunResult, save: Any) -> None:
        taken.append(result.steps)
        raise Killed

    with patch.context() as inner:
        inner.setattr(RunDirectory, "finish", finish)
        with pytest.raises(Killed):
            ReaderTrainer(student, run, chosen).train(data, dev)
    return taken[0]


def test_a_run_that_ends_inside_an_epoch_takes_no_step_more(
    pair: Callable, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = settings(max_steps=4, learning_rate_schedule="constant", checkpoint_every=2)
    student, _ = pair()
    assert killed_at_the_end(student, tmp_path / "run", chosen, data, None, monkeypatch) == 4
    wanted = weights_of(student)
    student, _ = pair()
    result = ReaderTrainer(student, tmp_path / "run", replace(chosen, resume=True)).train(data)
    assert result.steps == 4
    assert result.trained == sum(parameter.numel() for parameter in student.model.parameters())
    assert same(weights_of(student), wanted)


def test_a_half_trained_student_does_not_begin_a_run_anew(
    pair: Callable, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a checkpoint there is nothing to resume from, and the student in memory is not the initial one."""
    student, _ = pair()
    with monkeypatch.context() as patch:
        kill_at_loss(patch, 3)
        with pytest.raises(Killed):
            ReaderTrainer(student, tmp_path / "run", settings(checkpoint_every=5)).train(data)
    with pytest.raises(DistilError, match="stopped before its first checkpoint; pass the student as it was"):
        ReaderTrainer(student, tmp_path / "run", settings(checkpoint_every=5, resume=True)).train(data)
    fresh, _ = pair()
    ReaderTrainer(fresh, tmp_path / "run", settings(checkpoint_every=5, resume=True)).train(data)
    again, _ = pair()
    ReaderTrainer(again, tmp_path / "whole", settings()).train(data)
    assert same(weights_of(fresh), weights_of(again))


def test_a_run_that_had_stopped_early_stays_stopped(
    pair: Callable, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = settings(n_epochs=6, keep_best=True, early_stopping_patience=2)
    seen = scripted(monkeypatch, [30.0, 20.0, 10.0])
    student, _ = pair()
    assert killed_at_the_end(student, tmp_path / "run", chosen, data, data, monkeypatch) == 3 * 6
    best = seen[0]
    scripted(monkeypatch, [99.0])
    student, _ = pair()
    result = ReaderTrainer(student, tmp_path / "run", replace(chosen, resume=True)).train(data, data)
    assert result.steps == 3 * 6
    assert [line["eval_f1"] for line in result.history if "eval_f1" in line] == [30.0, 20.0, 10.0]
    assert same(weights_of(student), best)


def test_a_checkpoint_that_lacks_weights_is_refused(pair: Callable, data: Path, killed_distillation: Path) -> None:
    (path,) = killed_distillation.rglob("model.safetensors")
    weights = load_file(path)
    projections = [name for name in weights if "projection" in name]
    assert projections  # what the objective has to learn itself is kept too
    save_file({name: weight for name, weight in weights.items() if name != projections[0]}, path)
    (path.parent / "complete").unlink()
    seal(path.parent, json.loads((killed_distillation / "checkpoints" / "run.json").read_text())["run_id"], None)
    student, teacher = pair()
    with pytest.raises(DistilError, match=f"does not fit this run.*(?s:.*){projections[0]}"):
        ReaderTrainer(student, killed_distillation, settings(resume=True)).distil_intermediate_layers_from(
            teacher, data
        )


# --- the best weights -------------------------------------------------------------------------------------------


def scripted(monkeypatch: pytest.MonkeyPatch, scores: list[float]) -> list[dict[str, Tensor]]:
    """Evaluations that return these F1 scores in turn, and the weights at each of them."""
    seen: list[dict[str, Tensor]] = []

    def evaluate(self: Reader, *_: Any, **__: Any) -> dict[str, float]:
        seen.append(weights_of(self))
        return {"f1": scores[min(len(seen), len(scores)) - 1], "exact": 0.0}

    monkeypatch.setattr(Reader, "evaluate_windows", evaluate)
    return seen


@pytest.mark.parametrize("every", ["epoch", 6])
def test_keep_best_ends_with_the_best_weights(
    pair: Callable, data: Path, tmp_path: Path, every: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = scripted(monkeypatch, [10.0, 30.0, 20.0, 25.0])
    student, _ = pair()
    chosen = settings(n_epochs=4, keep_best=True, evaluate_every=every, keep_checkpoints=1)
    result = ReaderTrainer(student, tmp_path / "run", chosen).train(data, data)
    assert [line["eval_f1"] for line in result.history if "eval_f1" in line] == [10.0, 30.0, 20.0, 25.0]
    assert same(weights_of(student), seen[1])
    assert same(load_file(tmp_path / "run" / "model.safetensors"), seen[1])
    assert not same(seen[1], seen[3])


def test_the_best_by_the_loss_on_dev_data(pair: Callable, data: Path, tmp_path: Path) -> None:
    """The loss is that of all labelled dev windows, by hand; the lowest one counts."""
    student, _ = pair()
    seen: list[float] = []

    class Measured(TrainerCallback):
        def on_evaluate(self, *_: Any, **__: Any) -> None:
            windows = student.cut(load_examples(data))
            batch = windows.collate(windows.__getitems__(range(len(windows))))
            with torch.no_grad():
                output = student.model.eval()(
                    **{name: batch[name] for name in ("input_ids", "attention_mask", "token_type_ids")}
                )
            losses = [
                nn.functional.cross_entropy(logits.masked_fill(batch["attention_mask"] == 0, -torch.inf), batch[name])
                for logits, name in ((output.start_logits, "start_positions"), (output.end_logits, "end_positions"))
            ]
            seen.append(float(sum(losses)) / 2)
            student.model.train()

    chosen = settings(
        n_epochs=5, keep_best=True, best_by="loss", learning_rate=0.03, learning_rate_schedule="constant", seed=3
    )
    trainer = ReaderTrainer(student, tmp_path / "run", chosen)
    result = trainer.distil(None, data, "labels", data, callbacks=[Measured()])
    found = logged(result, "eval_loss")
    assert found == pytest.approx(seen, rel=1e-4)
    assert result.metrics["loss"] == pytest.approx(min(found), rel=1e-6)
    assert min(found) < found[-1]  # otherwise this would not differ from the last
    assert {"f1", "exact"} <= result.metrics.keys()


def test_keep_best_wants_an_evaluation_before_the_end(pair: Callable, data: Path) -> None:
    with pytest.raises(DistilError, match="comes after the last of the"):
        ReaderTrainer(pair()[0], settings=settings(keep_best=True, evaluate_every=1000)).train(data, data)
    adaptation = GradualUnfreezing(phase_patience=1)
    with pytest.raises(DistilError, match=r"comes after the last of the .* phase_patience would have no evaluation"):
        ReaderTrainer(pair()[0], settings=settings(evaluate_every=1000)).distil(
            None, data, "labels", data, adaptation=adaptation
        )


def test_without_keep_best_the_last_weights_stay(pair: Callable, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = scripted(monkeypatch, [30.0, 10.0])
    student, _ = pair()
    ReaderTrainer(student, settings=settings()).train(data, data)
    assert len(seen) == 3  # two epochs, and the finished student
    assert same(weights_of(student), seen[1])


def test_early_stopping_stops(pair: Callable, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = scripted(monkeypatch, [10.0, 30.0, 20.0, 25.0, 99.0])
    student, _ = pair()
    chosen = settings(n_epochs=6, keep_best=True, early_stopping_patience=2)
    result = ReaderTrainer(student, tmp_path / "run", chosen).train(data, data)
    assert result.steps == 4 * 6
    assert same(weights_of(student), seen[1])


def test_early_stopping_remembers_its_patience_when_resumed(
    pair: Callable, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = {"n_epochs": 6, "keep_best": True, "early_stopping_patience": 2}
    seen = scripted(monkeypatch, [10.0, 30.0, 20.0])
    with monkeypatch.context() as patch:
        kill_at_loss(patch, 3 * 6 + 2)
        with pytest.raises(Killed):
            ReaderTrainer(pair()[0], tmp_path / "run", settings(**chosen)).train(data, data)
    best = seen[1]
    scripted(monkeypatch, [25.0, 99.0])
    student, _ = pair()
    result = ReaderTrainer(student, tmp_path / "run", settings(**chosen, resume=True)).train(data, data)
    assert result.steps == 4 * 6
    assert same(weights_of(student), best)


# --- dropout ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("kind", ["bert", "roberta", "distilbert", "electra", "albert"])
def test_dropout_is_what_the_settings_say(kind: str, attention: str) -> None:
    torch.manual_seed(0)
    config = config_of(kind, 60, dropout=0.5)
    try:
        model = AutoModelForQuestionAnswering.from_config(config, attn_implementation=attention)
    except ValueError as error:
        pytest.skip(f"this transformers has no such kernel: {str(error)[:90]}")
    inputs = {"input_ids": torch.randint(4, 60, (3, 20)), "attention_mask": torch.ones(3, 20, dtype=torch.long)}

    def forward() -> Tensor:
        with torch.no_grad():
            return model(**inputs).start_logits

    still = model.eval() and forward()
    model.train()
    assert not torch.allclose(forward(), still, atol=1e-3)
    with _dropout(model, 0.0):
        assert torch.allclose(forward(), still, atol=1e-6)
    assert not torch.allclose(forward(), still, atol=1e-3)  # put back
    probabilities = {module.p for module in model.modules() if isinstance(module, nn.Dropout)}
    with _dropout(model, None):
        assert not torch.allclose(forward(), still, atol=1e-3)
    assert probabilities == {module.p for module in model.modules() if isinstance(module, nn.Dropout)} == {0.5}


def test_a_bart_drops_nothing_without_dropout() -> None:
    """It drops in activations by itself, and skips layers."""
    shape = {"d_model": 16, "encoder_layers": 2, "decoder_layers": 2, "encoder_ffn_dim": 24, "decoder_ffn_dim": 24}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "max_position_embeddings": 66}
    drop = {"activation_dropout": 0.5, "encoder_layerdrop": 0.5, "decoder_layerdrop": 0.5}
    torch.manual_seed(0)
    model = AutoModelForQuestionAnswering.from_config(BartConfig(vocab_size=60, **shape, **heads, **drop)).train()
    inputs = {"input_ids": torch.randint(4, 60, (3, 20)), "attention_mask": torch.ones(3, 20, dtype=torch.long)}
    with torch.no_grad(), _dropout(model, 0.0):
        assert len({model(**inputs).start_logits.sum().item() for _ in range(5)}) == 1
    layer_drops = [module.layerdrop for module in model.modules() if hasattr(module, "layerdrop")]
    with _dropout(model, 0.1):  # that of values, not of layers
        assert [module.layerdrop for module in model.modules() if hasattr(module, "layerdrop")] == layer_drops
        assert {m.activation_dropout for m in model.modules() if hasattr(m, "activation_dropout")} == {0.1}
    assert layer_drops == [0.5, 0.5]


def test_dropout_may_be_raised_where_a_configuration_says_none() -> None:
    model = AutoModelForQuestionAnswering.from_config(
        config_of("albert", 60, dropout=0)
    )  # as ALBERT's own files, a whole 0
    ids = torch.randint(4, 60, (2, 20))
    still = model.eval()(input_ids=ids).start_logits
    model.train()
    with _dropout(model, 0.5):
        assert not torch.allclose(model(input_ids=ids).start_logits, still, atol=1e-4)
    assert torch.allclose(model(input_ids=ids).start_logits, still, atol=1e-6)


def test_training_puts_the_students_dropout_back(pair: Callable, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    student, _ = pair()
    before = [module.p for module in student.model.modules() if isinstance(module, nn.Dropout)]
    during: set[float] = set()
    student.model.register_forward_hook(
        lambda model, *_: during.update(module.p for module in model.modules() if isinstance(module, nn.Dropout))
    )
    ReaderTrainer(student, settings=settings(n_epochs=1, dropout=0.25)).train(data)
    assert during == {0.25}
    with monkeypatch.context() as patch:
        kill_at_loss(patch, 2)
        with pytest.raises(Killed):
            ReaderTrainer(student, settings=settings(n_epochs=1, dropout=0.25)).train(data)
    assert [module.p for module in student.model.modules() if isinstance(module, nn.Dropout)] == before
    assert set(before) == {0.1}


@pytest.mark.parametrize("error", [Killed, KeyboardInterrupt])
def test_a_student_whose_run_stopped_answers_without_dropout(
    pair: Callable, data: Path, error: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    student, _ = pair()

    def stop(*_: Any, **__: Any) -> Tensor:
        assert student.model.training
        raise error

    monkeypatch.setattr(_LoopTrainer, "compute_loss", stop)
    with pytest.raises(error):
        ReaderTrainer(student, settings=settings(dropout=0.5)).train(data)
    assert not any(module.training for module in student.model.modules())


@pytest.mark.parametrize("method", METHODS[1:])
@pytest.mark.parametrize("stopped", [False, True])
def test_a_teacher_in_training_mode_teaches_without_dropout(
    pair: Callable, data: Path, method: RunMethod, stopped: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    histories = []
    for training in (False, True):
        student, teacher = pair()
        teacher.model.train(training)
        teacher.model.get_submodule("bert.embeddings").eval()  # each module gets back the mode that it had
        modes = [module.training for module in teacher.model.modules()]
        trainer = ReaderTrainer(student, settings=settings(n_epochs=1), cache_dir=tmp_path / str(training))
        with monkeypatch.context() as patch:
            if stopped:
                kill_at_loss(patch, 3)
                with pytest.raises(Killed):
                    method(trainer, teacher, data)
            else:
                histories.append([line["loss"] for line in method(trainer, teacher, data).history if "loss" in line])
        assert [module.training for module in teacher.model.modules()] == modes
        assert any(modes) == training
    assert stopped or histories[0] == histories[1]
