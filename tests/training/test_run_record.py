"""The record of a run: it decides whether a run may be resumed."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from haystack_distill import DistilError, Reader, ReaderTrainer, RunResult, TrainingSettings, WindowSettings
from haystack_distill.objectives import Labels, PredictionLayer
from haystack_distill.objectives.labels import LabelsObjective
from haystack_distill.training.loop import _LoopTrainer
from haystack_distill.training.run_record import (
    NOT_COMPARABLE,
    NOT_RECORDED,
    differences,
    method_record,
    not_comparable,
    own_code,
    require_same_run,
    settings_record,
)
from tests.training.helpers import Killed, kill_at_loss, settings


def my_loss(student: Tensor, teacher: Tensor, mask: Tensor, temperature: float) -> Tensor:
    return SCALE * (student - teacher).square().masked_fill(~mask, 0.0).mean(dim=1)


SCALE = 2.0


def test_resume_refuses_what_is_not_the_same_run(
    pair: Callable, data: Path, squad_file: Path, killed_distillation: Path
) -> None:
    student, teacher = pair()

    def trainer(**changed: Any) -> ReaderTrainer:
        return ReaderTrainer(student, killed_distillation, settings(resume=True, **changed))

    with pytest.raises(DistilError, match=r"its settings.learning_rate differs from now \(then 0\.001, now 0\.002\)"):
        trainer(learning_rate=0.002).distil_intermediate_layers_from(teacher, data)
    with pytest.raises(DistilError, match=r"its settings.seed, settings.n_epochs differ|its settings.n_epochs, sett"):
        trainer(n_epochs=3, seed=5).distil_intermediate_layers_from(teacher, data)
    with pytest.raises(DistilError, match=r"its data.examples, data.windows, data.sha256 differ"):
        trainer().distil_intermediate_layers_from(teacher, squad_file)
    with pytest.raises(DistilError, match=r"its arguments.hidden_loss_weight differs from now \(then 1.0, now 0.5\)"):
        trainer().distil_intermediate_layers_from(teacher, data, hidden_loss_weight=0.5)
    with pytest.raises(DistilError, match="its method, arguments"):
        trainer().distil_prediction_layer_from(teacher, data)
    with pytest.raises(DistilError, match="its dev_data, measuring differ"):
        trainer().distil_intermediate_layers_from(teacher, data, squad_file)
    with torch.no_grad():
        teacher.model.qa_outputs.bias += 1
    with pytest.raises(DistilError, match=r"its teacher.weights differs from now; resume it with what"):
        trainer().distil_intermediate_layers_from(teacher, data)


def test_resume_refuses_another_student_or_a_teacher_in_another_precision(
    pair: Callable, data: Path, killed_distillation: Path, tmp_path: Path
) -> None:
    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    def resume(student: Reader, teacher: Reader) -> None:
        ReaderTrainer(student, killed_distillation, settings(resume=True)).distil_intermediate_layers_from(
            teacher, data
        )

    # Stopped before its first step: what it left has the weights that the other run began with.
    student, teacher = pair()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_LoopTrainer, "compute_loss", interrupt)
        with pytest.raises(KeyboardInterrupt):
            ReaderTrainer(student, tmp_path / "other", settings()).distil_intermediate_layers_from(teacher, data)
    student, teacher = pair()
    student.model.config.hidden_dropout_prob = 0.3
    with pytest.raises(
        DistilError, match=r"its student.config.hidden_dropout_prob differs from now \(then .*, now 0.3"
    ):
        resume(student, teacher)
    student, _ = pair()
    with torch.no_grad():
        student.model.qa_outputs.bias += 1
    with pytest.raises(DistilError, match=r"its student.weights differs from now; resume"):
        resume(student, teacher)
    teacher.precision = "bf16"
    with pytest.raises(DistilError, match=r"its teacher.precision differs from now \(then 'fp32', now 'bf16'\)"):
        resume(pair()[0], teacher)
    teacher.precision, teacher.window_settings = "fp32", WindowSettings(64, 16, 16)  # it reads the student's windows
    resume(pair()[0], teacher)


def test_resume_refuses_other_windows_of_the_teacher_another_loss_and_other_scores(
    pair: Callable, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = {"checkpoint_every": "epoch", "evaluate_every": "epoch"}

    def run(student: Reader, teacher: Reader, loss: Any = my_loss, **changed: Any) -> RunResult:
        trainer = ReaderTrainer(student, tmp_path / "run", settings(**chosen | changed))
        return trainer.distil_prediction_layer_from(teacher, data, data, distillation_loss=loss)

    with monkeypatch.context() as patch:
        kill_at_loss(patch, 9)
        with pytest.raises(Killed):
            run(*pair())
    student, teacher = pair()
    teacher.window_settings = WindowSettings(64, 32, 16)
    with pytest.raises(DistilError, match=r"its teacher.windows.max_seq_len, teacher.windows.doc_str"):
        run(student, teacher, resume=True)
    teacher.window_settings = student.window_settings
    for name, value in (("no_answer_threshold", 1.0), ("max_answer_length", 3), ("precision", "bf16")):
        student, _ = pair()
        setattr(student, name, value)
        with pytest.raises(DistilError, match=f"its measuring.{name} differs from now"):
            run(student, teacher, resume=True)
    student, _ = pair()
    with pytest.raises(
        DistilError, match=r"its arguments.distillation_loss, code.distillation_loss differ .*my_loss.*now 'kl_div'"
    ):
        run(student, teacher, "kl_div", resume=True)
    with monkeypatch.context() as patch:
        patch.setitem(my_loss.__globals__, "SCALE", 3.0)
        with pytest.raises(DistilError, match=r"its code\.distillation_loss differs from now; resume it with what"):
            run(student, teacher, resume=True)
    assert run(student, teacher, resume=True).steps == 12


def test_a_run_whose_loss_cannot_be_compared_cannot_be_resumed(
    pair: Callable, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import threading

    lock = threading.Lock()

    def locked(*given: Any) -> Tensor:
        with lock:
            return my_loss(*given)

    def run(**changed: Any) -> None:
        trainer = ReaderTrainer(pair()[0], tmp_path / "run", settings(checkpoint_every="epoch", **changed))
        trainer.distil_prediction_layer_from(pair()[1], data, distillation_loss=locked)

    with monkeypatch.context() as patch:
        kill_at_loss(patch, 9)
        with pytest.raises(Killed):
            run()
    assert "cannot be resumed if it stops: its code.distillation_loss is not comparable" in caplog.text
    with pytest.raises(DistilError, match=r"its code.distillation_loss is not comparable: it uses a lock"):
        run(resume=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda record: json.dumps({k: v for k, v in record.items() if k != "student"}), "did not record its student"),
        (lambda record: json.dumps(record)[:50], "run.json is damaged or was not written by a run"),
        (lambda record: "[]", "run.json is damaged or was not written by a run"),
    ],
)
def test_a_record_that_says_too_little(
    pair: Callable, data: Path, killed_distillation: Path, change: Callable[[dict], str], message: str
) -> None:
    path = killed_distillation / "checkpoints" / "run.json"
    path.write_text(change(json.loads(path.read_text())))
    student, teacher = pair()
    with pytest.raises(DistilError, match=message):
        ReaderTrainer(student, killed_distillation, settings(resume=True)).distil_intermediate_layers_from(
            teacher, data
        )


def test_resume_may_be_watched_differently(pair: Callable, data: Path, killed_distillation: Path) -> None:
    student, teacher = pair()
    chosen = settings(resume=True, log_every=3, checkpoint_every=None, keep_checkpoints=1)
    assert (
        ReaderTrainer(student, killed_distillation, chosen).distil_intermediate_layers_from(teacher, data).steps == 12
    )


@pytest.mark.parametrize("asked", ["auto", "fp32", "bf16"])
def test_the_record_has_the_precision_that_was_used(
    pair: Callable, data: Path, tmp_path: Path, asked: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the reader answers in: "auto" of the settings is about the device."""
    monkeypatch.setenv("HAYSTACK_DISTILL_AUTO_PRECISION", "bf16")
    monkeypatch.setattr("haystack_distill.utils.devices._cpu_multiplies_bf16", lambda: True)
    used, whole = set(), _LoopTrainer.compute_loss
    monkeypatch.setattr(
        _LoopTrainer, "compute_loss", lambda self, *a, **k: (used.add(self.precision), whole(self, *a, **k))[1]
    )
    student, _ = pair()
    assert student.precision == "fp32"
    ReaderTrainer(student, tmp_path / "run", settings(max_steps=1, precision=asked)).train(data)
    record = json.loads((tmp_path / "run" / "haystack_distill.json").read_text())
    assert {record["precision"]} == used == {"bf16" if asked == "auto" else asked}
    assert student.precision == "fp32"


@dataclass(frozen=True)
class MyMethod(Labels):
    """My labels: a method that is not registered."""

    strength: float = 0.5
    loss: Any = my_loss


def test_the_record_of_a_method_has_its_name_its_options_and_fingerprints_of_foreign_code() -> None:
    assert method_record(Labels()) == {"method": "labels", "arguments": {}, "code": {}}
    mine = method_record(MyMethod())
    assert (mine["method"], mine["arguments"]) == ("MyMethod", {"strength": 0.5, "loss": "my_loss"})
    assert mine["code"].keys() == {"loss", "MyMethod"}
    added = method_record(0.5 * Labels() + MyMethod())
    assert added["method"] == "labels + MyMethod"
    assert added["arguments"]["parts"] == [
        {"method": "labels", "weight": 0.5, "arguments": {}},
        {"method": "MyMethod", "weight": 1.0, "arguments": mine["arguments"]},
    ]
    assert added["code"] == {f"2. {name}": value for name, value in mine["code"].items()}
    assert method_record(Labels().objective(None))["method"] == "LabelsObjective"  # type: ignore[arg-type]


def test_settings_that_do_not_change_the_weights_are_not_recorded() -> None:
    one = settings_record(TrainingSettings())
    assert one == settings_record(TrainingSettings(log_every=7, progress=False, keep_checkpoints=1, overwrite=True))
    assert one != settings_record(TrainingSettings(seed=7))


def test_two_records_side_by_side() -> None:
    before, now = {"a": 1, "b": {"c": 2, "d": 3}}, {"a": 1, "b": {"c": 4, "e": 5}}
    assert [*differences(before, now)] == [
        ("a", 1, 1),
        ("b.c", 2, 4),
        ("b.d", 3, NOT_RECORDED),
        ("b.e", NOT_RECORDED, 5),
    ]
    assert not_comparable({"a": {"b": f"{NOT_COMPARABLE}why"}, "c": "not"}) == [("a.b", f"{NOT_COMPARABLE}why")]


@pytest.mark.parametrize(
    ("before", "now", "message"),
    [
        ({"a": 1}, {"a": 1}, None),
        ({"a": 1, "metrics": {}}, {"a": 1}, None),
        ({"a": 1}, {"a": 2}, "^refused: its a differs from now .then 1, now 2.; resume it with what it was started"),
        ({"a": 1, "b": 2}, {"a": 2, "b": 3}, "^refused: its a, b differ from now .a: then 1, now 2; b: then 2, now 3."),
        ({"a": "0" * 64}, {"a": "1" * 64}, "^refused: its a differs from now; resume"),
        ({}, {"a": 1}, "^refused: it was started by an earlier version .* did not record its a; finish it with that"),
        ({"a": f"{NOT_COMPARABLE}a lock"}, {"a": 1}, "^refused: its a is not comparable: a lock; resume it with what"),
    ],
)
def test_what_makes_another_run(before: dict[str, Any], now: dict[str, Any], message: str | None) -> None:
    if message is None:
        require_same_run("refused", before, now)
        return
    with pytest.raises(DistilError, match=message):
        require_same_run("refused", before, now)


def test_functions_of_two_parts_are_distinguished() -> None:
    def records(power: float) -> dict[str, str]:
        first = PredictionLayer(distillation_loss=lambda s, t, m, T: ((s - t) ** power).sum(1))
        return method_record(first + PredictionLayer(distillation_loss=max))["code"]

    assert records(2.0) == records(2.0)
    assert records(2.0) != records(4.0)


class Shifted(LabelsObjective):
    """An objective of the test's own, with a private attribute."""

    def __init__(self, margin: float) -> None:
        super().__init__()
        self._margin = margin


@dataclass(frozen=True)
class Helped(Labels):
    """Helped: a method whose objective depends on another method of its class."""

    def helper(self) -> float:
        return 1.0


def test_whatever_an_own_objective_or_method_consists_of_is_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    assert method_record(Shifted(1.0))["code"] == method_record(Shifted(1.0))["code"]
    assert method_record(Shifted(1.0))["code"] != method_record(Shifted(2.0))["code"]
    before = method_record(Helped())["code"]
    monkeypatch.setattr(Helped, "helper", lambda self: 2.0)
    assert method_record(Helped())["code"] != before
    assert own_code(ours=Labels(), theirs=Helped()).keys() == {"theirs"}
