"""ReaderTrainer: the same result however a run is divided, interrupted or watched."""

import gc
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import (
    AlbertConfig,
    AutoModelForQuestionAnswering,
    BertConfig,
    BertTokenizerFast,
    DistilBertConfig,
    ElectraConfig,
    PretrainedConfig,
    PreTrainedTokenizerFast,
    RobertaConfig,
)

from haystack_distill import DataError, DistilError, Reader, ReaderTrainer, RunResult, TrainingSettings, WindowSettings
from haystack_distill.data.squad.load import load_examples
from haystack_distill.students.configured import fresh
from haystack_distill.training.checkpoints import seal
from haystack_distill.training.loop import _dropout, _LoopTrainer
from haystack_distill.training.reader_trainer import warn_of_shared_contexts
from haystack_distill.utils.model_fingerprint import model_fingerprint
from haystack_distill.utils.transformers_compat import save_model

MakeReader = Callable[..., Reader]
Method = Callable[[ReaderTrainer, Reader, Path], RunResult]


def settings(**changed: Any) -> TrainingSettings:
    """Quick, exact, quiet."""
    quick = {"batch_size": 4, "learning_rate": 1e-3, "precision": "fp32", "progress": False, "log_every": 1}
    if not changed.get("keep_best"):
        quick["checkpoint_every"] = None
    return TrainingSettings(**(quick | changed))


@pytest.fixture(scope="module", autouse=True)
def quick_garbage_collection() -> Iterator[None]:
    """Trainer collects garbage in every run; all that is imported by now need not be looked through each time."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture
def data(squad_file: Path, tmp_path: Path) -> Path:
    """21 questions in 3 articles: as many windows as no power of two divides."""
    content = json.loads(squad_file.read_text())
    articles = []
    for copy in range(3):
        article = json.loads(json.dumps(content["data"][0]))
        for paragraph in article["paragraphs"]:
            paragraph["qas"] = [qa | {"id": f"{qa['id']}-{copy}"} for qa in paragraph["qas"]]
        articles.append(article)
    articles[-1]["paragraphs"][-1]["qas"] = articles[-1]["paragraphs"][-1]["qas"][:1]
    path = tmp_path / "data.json"
    path.write_text(json.dumps({"version": "v2.0", "data": articles}))
    return path


def test_answers_that_lie_in_no_window_whole_are_counted_in_a_warning(
    tiny_reader: MakeReader, data: Path, caplog: pytest.LogCaptureFixture
) -> None:
    apart, near = (tiny_reader(window_settings=WindowSettings(20, stride, 8)) for stride in (20, 5))
    ReaderTrainer(apart, settings=settings(max_steps=1)).train(data)
    (message,) = [record.getMessage() for record in caplog.records if "in no window whole" in record.getMessage()]
    assert message.startswith("3 of 21 answers")
    assert message.endswith("doc_stride=5 loses none")
    caplog.clear()
    ReaderTrainer(near, settings=settings(max_steps=1)).train(data)
    assert "in no window whole" not in caplog.text


def weights_of(reader: Reader) -> dict[str, Tensor]:
    return {name: weight.clone() for name, weight in reader.model.state_dict().items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(weight, other[name]) for name, weight in one.items())


def furthest(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    return max(float((weight - other[name]).abs().max()) for name, weight in one.items())


def felt(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights without those that softmaxes cancel out: their gradients are rounding noise, which AdamW turns to steps."""
    return {name: weight for name, weight in weights.items() if not name.endswith(("key.bias", "qa_outputs.bias"))}


def train(trainer: ReaderTrainer, teacher: Reader, data: Path) -> RunResult:
    return trainer.train(data)


def distil_prediction_layer(trainer: ReaderTrainer, teacher: Reader, data: Path) -> RunResult:
    return trainer.distil_prediction_layer_from(teacher, data, temperature=2.0, distillation_loss_weight=0.75)


def distil_intermediate_layers(trainer: ReaderTrainer, teacher: Reader, data: Path) -> RunResult:
    return trainer.distil_intermediate_layers_from(teacher, data)


METHODS = [train, distil_prediction_layer, distil_intermediate_layers]


@pytest.fixture
def pair(tiny_reader: MakeReader) -> Callable[[], tuple[Reader, Reader]]:
    """A student and a wider, deeper teacher: intermediate layers need projections."""

    def make() -> tuple[Reader, Reader]:
        student = tiny_reader(seed=1, num_hidden_layers=2, hidden_size=16)
        return student, tiny_reader(seed=0, num_hidden_layers=4, hidden_size=32)

    return make


# --- the same result ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_a_seed_decides_the_weights(pair: Callable, data: Path, method: Method) -> None:
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
def test_accumulation_changes_nothing(pair: Callable, data: Path, method: Method) -> None:
    found = []
    for size, parts in ((16, 1), (4, 4)):
        student, teacher = pair()
        chosen = settings(batch_size=size, gradient_accumulation_steps=parts, learning_rate=5e-5, n_epochs=2)
        result = method(ReaderTrainer(student, settings=chosen), teacher, data)
        assert result.steps == 4  # the windows of an epoch fill one step and part of another
        found.append((weights_of(student), [line["loss"] for line in result.history if "loss" in line]))
    assert furthest(felt(found[0][0]), felt(found[1][0])) < 1e-5
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


PROCESS = """
import sys
from haystack_distill import Reader, ReaderTrainer, TrainingSettings, WindowSettings
student, teacher = (
    Reader.load(sys.argv[1] + name, window_settings=WindowSettings(48, 16, 16), device="cpu", precision="fp32")
    for name in ("/student", "/teacher")
)
settings = TrainingSettings(
    batch_size=4, learning_rate=5e-5, precision="fp32", progress=False, log_every=1, checkpoint_every=2, n_epochs=1
)
ReaderTrainer(student, sys.argv[1] + "/two", settings).distil_prediction_layer_from(teacher, sys.argv[1] + "/data.json")
"""


@pytest.mark.slow
@pytest.mark.skipif(not torch.distributed.is_available(), reason="this PyTorch is built without torch.distributed")
def test_two_processes_do_what_one_does(pair: Callable, data: Path, tmp_path: Path) -> None:
    student, teacher = pair()
    student.save(tmp_path / "student")
    teacher.save(tmp_path / "teacher")
    (tmp_path / "process.py").write_text(PROCESS)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run(
        [*launch, str(tmp_path / "process.py"), str(tmp_path)],
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    record = json.loads((tmp_path / "two" / "haystack_distill.json").read_text())
    assert not (tmp_path / "two" / "checkpoints").exists()
    alone = ReaderTrainer(student, settings=settings(batch_size=8, learning_rate=5e-5, n_epochs=1))
    result = alone.distil_prediction_layer_from(teacher, data)
    assert record["steps"] == result.steps == 3
    for name in ("loss", "loss_distillation", "loss_labels"):
        theirs, ours = ([line[name] for line in lines if name in line] for lines in (record["history"], result.history))
        assert theirs == pytest.approx(ours, abs=2e-4), name
    assert furthest(felt(load_file(tmp_path / "two" / "model.safetensors")), felt(weights_of(student))) < 1e-5


# --- interrupted and resumed -------------------------------------------------------------------------------------


class Killed(Exception):
    pass


def kill_at_loss(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """The run dies in its `number`-th forward pass."""
    whole, passes = _LoopTrainer.compute_loss, []

    def dying(self: _LoopTrainer, *arguments: Any, **keywords: Any) -> Tensor:
        passes.append(1)
        if len(passes) == number:
            raise Killed
        return whole(self, *arguments, **keywords)

    monkeypatch.setattr(_LoopTrainer, "compute_loss", dying)


@pytest.mark.parametrize(
    ("method", "changed", "expected"),
    [
        (train, {"checkpoint_every": "epoch"}, 6),
        (train, {"checkpoint_every": 4, "dropout": 0.2}, 8),
        (distil_prediction_layer, {"checkpoint_every": 3, "gradient_accumulation_steps": 2, "batch_size": 2}, 9),
        (distil_intermediate_layers, {"checkpoint_every": 2}, 8),
        (distil_intermediate_layers, {"checkpoint_every": None}, None),
    ],
)
def test_a_killed_run_resumes_to_the_same_weights(
    pair: Callable,
    data: Path,
    tmp_path: Path,
    method: Method,
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
    steps: list[int] = []
    whole = _LoopTrainer.compute_loss
    monkeypatch.setattr(
        _LoopTrainer,
        "compute_loss",
        lambda self, *a, **k: (steps.append(self.state.global_step), whole(self, *a, **k))[1],
    )
    resumed = method(ReaderTrainer(student, directory, settings(**changed, resume=True)), teacher, data)
    assert steps[0] == (expected or 0)  # what was done is not done again
    assert resumed.steps == 12
    assert same(weights_of(student), wanted)
    assert same(load_file(directory / "model.safetensors"), load_file(tmp_path / "untouched" / "model.safetensors"))
    losses = [[line["loss"] for line in run.history if "loss" in line] for run in (untouched, resumed)]
    assert losses[0] == losses[1]
    assert not (directory / "checkpoints").exists()


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


@pytest.fixture
def killed(pair: Callable, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The directory of a distillation run that died in its second epoch."""
    student, teacher = pair()
    with monkeypatch.context() as patch:
        kill_at_loss(patch, 9)
        with pytest.raises(Killed):
            ReaderTrainer(
                student, tmp_path / "run", settings(checkpoint_every="epoch")
            ).distil_intermediate_layers_from(teacher, data)
    return tmp_path / "run"


def test_a_run_that_did_not_finish_is_not_overwritten(pair: Callable, data: Path, killed: Path) -> None:
    student, teacher = pair()
    with pytest.raises(DistilError, match="set resume=True to resume it"):
        ReaderTrainer(student, killed, settings()).distil_intermediate_layers_from(teacher, data)


def test_resume_refuses_what_is_not_the_same_run(pair: Callable, data: Path, squad_file: Path, killed: Path) -> None:
    student, teacher = pair()

    def trainer(**changed: Any) -> ReaderTrainer:
        return ReaderTrainer(student, killed, settings(resume=True, **changed))

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
    pair: Callable, data: Path, killed: Path, tmp_path: Path
) -> None:
    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    def resume(student: Reader, teacher: Reader) -> None:
        ReaderTrainer(student, killed, settings(resume=True)).distil_intermediate_layers_from(teacher, data)

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


def my_loss(student: Tensor, teacher: Tensor, mask: Tensor, temperature: float) -> Tensor:
    return SCALE * (student - teacher).square().masked_fill(~mask, 0.0).mean(dim=1)


SCALE = 2.0


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


def test_a_student_left_half_trained_may_be_handed_in_again(
    pair: Callable, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    student, _ = pair()
    ReaderTrainer(student, tmp_path / "whole", settings()).train(data)
    wanted = weights_of(student)
    student, _ = pair()
    with monkeypatch.context() as patch:
        kill_at_loss(patch, 9)
        with pytest.raises(Killed):
            ReaderTrainer(student, tmp_path / "run", settings(checkpoint_every="epoch")).train(data)
    ReaderTrainer(student, tmp_path / "run", settings(checkpoint_every="epoch", resume=True)).train(data)
    assert same(weights_of(student), wanted)
    records = [json.loads((tmp_path / name / "haystack_distill.json").read_text()) for name in ("whole", "run")]
    assert records[0]["student"] == records[1]["student"]  # as it was before the first step, not when it was resumed


def test_the_umask_decides_who_reads_a_checkpoint(killed: Path) -> None:
    files = [file for file in killed.glob("checkpoints/checkpoint-*/*") if file.is_file()]
    assert any(file.name == "model.safetensors" for file in files)
    assert {file.stat().st_mode & 0o777 for file in files} == {killed.stat().st_mode & 0o666}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda record: json.dumps({k: v for k, v in record.items() if k != "student"}), "did not record its student"),
        (lambda record: json.dumps(record)[:50], "run.json is damaged or was not written by a run"),
        (lambda record: "[]", "run.json is damaged or was not written by a run"),
    ],
)
def test_a_record_that_says_too_little(
    pair: Callable, data: Path, killed: Path, change: Callable[[dict], str], message: str
) -> None:
    path = killed / "checkpoints" / "run.json"
    path.write_text(change(json.loads(path.read_text())))
    student, teacher = pair()
    with pytest.raises(DistilError, match=message):
        ReaderTrainer(student, killed, settings(resume=True)).distil_intermediate_layers_from(teacher, data)


def test_a_run_that_died_before_its_first_checkpoint_has_nothing_to_lose(
    pair: Callable, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    student, teacher = pair()
    with monkeypatch.context() as patch:
        kill_at_loss(patch, 2)
        with pytest.raises(Killed):
            ReaderTrainer(student, tmp_path / "run", settings()).distil_intermediate_layers_from(teacher, data)
    assert (tmp_path / "run" / "checkpoints" / "run.json").exists()
    changed = ReaderTrainer(pair()[0], tmp_path / "run", settings(learning_rate=0.002))
    assert changed.distil_intermediate_layers_from(teacher, data).steps > 0


def test_resume_may_be_watched_differently(pair: Callable, data: Path, killed: Path) -> None:
    student, teacher = pair()
    chosen = settings(resume=True, log_every=3, checkpoint_every=None, keep_checkpoints=1)
    assert ReaderTrainer(student, killed, chosen).distil_intermediate_layers_from(teacher, data).steps == 12


def test_a_checkpoint_that_lacks_weights_is_refused(pair: Callable, data: Path, killed: Path) -> None:
    (path,) = killed.rglob("model.safetensors")
    weights = load_file(path)
    projections = [name for name in weights if "projection" in name]
    assert projections  # what the objective has to learn itself is kept too
    save_file({name: weight for name, weight in weights.items() if name != projections[0]}, path)
    (path.parent / "complete").unlink()
    seal(path.parent, json.loads((killed / "checkpoints" / "run.json").read_text())["run_id"], None)
    student, teacher = pair()
    with pytest.raises(DistilError, match=f"does not fit this run.*(?s:.*){projections[0]}"):
        ReaderTrainer(student, killed, settings(resume=True)).distil_intermediate_layers_from(teacher, data)


def test_resume_needs_a_directory(pair: Callable, data: Path) -> None:
    with pytest.raises(DistilError, match="resume=True needs an output_dir"):
        ReaderTrainer(pair()[0], settings=settings(resume=True)).train(data)


def test_resume_with_nothing_to_resume_begins(pair: Callable, data: Path, tmp_path: Path) -> None:
    student, _ = pair()
    assert ReaderTrainer(student, tmp_path / "new", settings(n_epochs=1, resume=True)).train(data).steps == 6


# --- choosing by dev data ----------------------------------------------------------------------------------------


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


@pytest.mark.parametrize(("directory", "keep_best", "written"), [(None, False, 0), (None, True, 4), ("run", False, 4)])
def test_a_run_without_a_directory_writes_checkpoints_only_to_take_the_best_from(
    pair: Callable,
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    directory: str | None,
    keep_best: bool,
    written: int,
) -> None:
    steps = set()
    save = _LoopTrainer._save_checkpoint

    def counted(self: _LoopTrainer, *arguments: Any, **keywords: Any) -> None:
        steps.add(self.state.global_step)
        save(self, *arguments, **keywords)

    monkeypatch.setattr(_LoopTrainer, "_save_checkpoint", counted)
    chosen = settings(n_epochs=4, keep_best=keep_best, checkpoint_every="auto")
    ReaderTrainer(pair()[0], directory and tmp_path / directory, chosen).train(data, data)
    assert len(steps) == written


def test_keep_best_wants_an_evaluation_before_the_end(pair: Callable, data: Path) -> None:
    with pytest.raises(DistilError, match="comes after the last of the"):
        ReaderTrainer(pair()[0], settings=settings(keep_best=True, evaluate_every=1000)).train(data, data)


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


def test_choosing_needs_dev_data(pair: Callable, data: Path) -> None:
    for chosen in ({"keep_best": True}, {"evaluate_every": 3}, {"evaluate_every": "epoch"}):
        with pytest.raises(DistilError, match=f"{next(iter(chosen))} has no effect without dev_data"):
            ReaderTrainer(pair()[0], settings=settings(**chosen)).train(data)


def test_checkpoints_need_a_directory(pair: Callable, data: Path) -> None:
    for every in ("epoch", 3):
        with pytest.raises(DistilError, match="checkpoint_every needs an output_dir"):
            ReaderTrainer(pair()[0], settings=settings(checkpoint_every=every)).train(data)


def test_metrics_are_those_of_the_finished_student(
    pair: Callable, data: Path, squad_file: Path, tmp_path: Path
) -> None:
    student, _ = pair()
    result = ReaderTrainer(student, tmp_path / "run", settings(n_epochs=3)).train(data, squad_file)
    assert result.metrics == student.evaluate(squad_file)
    evaluations = [line for line in result.history if "eval_f1" in line]
    assert [line["step"] for line in evaluations] == [6, 12, 18]
    assert evaluations[-1]["eval_f1"] == result.metrics["f1"]
    assert json.loads((tmp_path / "run" / "haystack_distill.json").read_text())["metrics"] == result.metrics


# --- what is logged and written ----------------------------------------------------------------------------------


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


def test_the_directory_is_a_reader_and_a_record(pair: Callable, data: Path, tmp_path: Path) -> None:
    student, teacher = pair()
    directory = tmp_path / "run"
    result = ReaderTrainer(student, directory, settings(tensorboard=True)).distil_prediction_layer_from(teacher, data)
    assert result.directory == directory
    assert any(path.name.startswith("events.out.tfevents") for path in (directory / "tensorboard").iterdir())
    assert not [path for path in directory.rglob("*") if path.suffix in (".bin", ".pt", ".pth", ".pkl")]
    assert not (directory / "checkpoints").exists()
    record = json.loads((directory / "haystack_distill.json").read_text())
    assert record["status"] == "finished"
    assert record["method"] == "prediction_layer"
    assert record["teacher"]["weights"] == model_fingerprint(teacher.model)
    assert record["data"]["examples"] == 23
    assert record["steps"] == result.steps
    assert record["history"] == result.history
    loaded = Reader.load(directory, window_settings=student.window_settings, device="cpu", precision="fp32")
    question = ("Who built the harbour?", "It was built by Cornelis Baak.")
    assert loaded.answer(*question) == student.answer(*question)
    assert ReaderTrainer(student, directory, settings(n_epochs=1, overwrite=True)).train(data).steps == 6


def test_tensorboard_needs_a_directory(pair: Callable, data: Path) -> None:
    with pytest.raises(DistilError, match="tensorboard=True needs an output_dir"):
        ReaderTrainer(pair()[0], settings=settings(tensorboard=True)).train(data)


def test_the_student_is_trained_in_place(pair: Callable, data: Path) -> None:
    student, _ = pair()
    model, before = student.model, weights_of(student)
    ReaderTrainer(student, settings=settings(n_epochs=1)).train(data)
    assert student.model is model
    assert not same(before, weights_of(student))


def test_training_fits_the_data(tiny_reader: MakeReader, squad_file: Path) -> None:
    student = tiny_reader(num_hidden_layers=2)
    result = ReaderTrainer(student, settings=settings(n_epochs=40, learning_rate=3e-3, evaluate_every=None)).train(
        squad_file, squad_file
    )
    losses = [line["loss_labels"] for line in result.history if "loss_labels" in line]
    assert losses[-1] < losses[0] / 5
    assert result.metrics["f1"] > 60


# --- teachers ----------------------------------------------------------------------------------------------------


def test_a_file_of_haystack_1s_augment_squad_is_distilled_from_but_no_labels(pair: Callable, data: Path) -> None:
    student, teacher = pair()
    content = json.loads(data.read_text())
    for article in content["data"]:
        for paragraph in article["paragraphs"]:
            for qa in paragraph["qas"]:
                qa["answers"] = []
        article["paragraphs"] *= 2  # the ids, too
    augmented = data.with_name("augmented.json")
    augmented.write_text(json.dumps(content))
    trainer = ReaderTrainer(student, settings=settings(max_steps=2))
    result = trainer.distil_prediction_layer_from(teacher, augmented)
    assert {line["loss_labels"] for line in result.history if "loss" in line} == {0.0}
    assert trainer.distil_intermediate_layers_from(teacher, augmented).steps == 2
    with pytest.raises(DistilError, match=r"none of the examples is labelled \(.*Haystack 1's augment_squad.*distil"):
        trainer.train(augmented)
    with pytest.raises(DataError, match=r'"q0-0-0" is unlabelled \(.*Haystack 1\'s augment_squad'):
        trainer.distil_prediction_layer_from(teacher, data, augmented)


def unlabelled(path: Path) -> datasets.Dataset:
    nothing = {"labelled": False, "is_impossible": False, "answers": {"text": [], "answer_start": []}}
    return load_examples(path).map(lambda _: nothing)


def test_unlabelled_rows_teach_by_the_teachers_word_alone(pair: Callable, data: Path) -> None:
    student, teacher = pair()
    rows = unlabelled(data)
    result = ReaderTrainer(student, settings=settings(n_epochs=10, learning_rate=3e-3)).distil_prediction_layer_from(
        teacher, rows, distillation_loss_weight=1.0
    )
    lines = [line for line in result.history if "loss" in line]
    assert {line["loss_labels"] for line in lines} == {0.0}
    assert lines[-1]["loss_distillation"] < lines[0]["loss_distillation"] / 2
    with pytest.raises(DistilError, match=r"none of the examples is labelled.*distil from a teacher"):
        ReaderTrainer(student, settings=settings()).train(rows)
    with pytest.raises(DistilError, match=r"none of the examples is labelled.*raise distillation_loss_weight"):
        ReaderTrainer(student, settings=settings()).distil_prediction_layer_from(
            teacher, rows, distillation_loss_weight=0.0
        )
    ReaderTrainer(student, settings=settings(max_steps=1)).distil_intermediate_layers_from(teacher, rows)
    chosen = ReaderTrainer(student, settings=settings(max_steps=1))
    assert chosen.distil_prediction_layer_from(teacher, data, distillation_loss_weight=0.0).steps == 1


def test_contexts_that_train_and_dev_share_are_counted(
    pair: Callable, data: Path, squad_file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    train, dev = load_examples(data), load_examples(squad_file)
    first = train.select([0])["context"][0]
    train = train.filter(lambda row: row["context"] == first)
    ReaderTrainer(pair()[0], settings=settings(max_steps=1)).train(train, dev)
    assert "1 of the 4 contexts of the dev data are in the training data too" in caplog.text
    caplog.clear()
    ReaderTrainer(pair()[0], settings=settings(max_steps=1)).train(
        train, dev.filter(lambda row: row["context"] != first)
    )
    assert "training data too" not in caplog.text
    many = [{"context": str(number)} for number in range(2500)]
    warn_of_shared_contexts(datasets.Dataset.from_list(many[::2]), datasets.Dataset.from_list(many[::3] * 2))
    assert "417 of the 834 contexts" in caplog.text
    caplog.clear()
    warn_of_shared_contexts(datasets.Dataset.from_list(many[:3]), datasets.Dataset.from_list(many[4:6]))
    assert caplog.text == ""


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


@pytest.mark.parametrize("method", METHODS[1:])
def test_a_teacher_is_not_changed(pair: Callable, data: Path, method: Method) -> None:
    student, teacher = pair()
    before = model_fingerprint(teacher.model)
    method(ReaderTrainer(student, settings=settings(n_epochs=1)), teacher, data)
    assert model_fingerprint(teacher.model) == before
    assert not teacher.model.training
    assert all(parameter.grad is None for parameter in teacher.model.parameters())


@pytest.mark.parametrize("method", METHODS[1:])
@pytest.mark.parametrize("stopped", [False, True])
def test_a_teacher_in_training_mode_teaches_without_dropout(
    pair: Callable, data: Path, method: Method, stopped: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
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
def test_a_reader_cannot_teach_itself(pair: Callable, data: Path, method: Method) -> None:
    student, _ = pair()
    with pytest.raises(DistilError, match="teacher and student are the same model"):
        method(ReaderTrainer(student, settings=settings()), student, data)


@pytest.fixture
def cased(tokenizer: BertTokenizerFast) -> PreTrainedTokenizerFast:
    """A tokenizer that splits text differently: into single characters."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    characters = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *(chr(code) for code in range(33, 127))]
    made = Tokenizer(models.WordLevel({word: number for number, word in enumerate(characters)}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Split("", "isolated")]
    )
    made.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    special = {"cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]", "unk_token": "[UNK]"}
    return PreTrainedTokenizerFast(tokenizer_object=made, **special)


def test_a_teacher_with_another_tokenizer(pair: Callable, data: Path, cased: PreTrainedTokenizerFast) -> None:
    student, teacher = pair()
    other = Reader(teacher.model, cased, window_settings=WindowSettings(120, 40, 48), device="cpu", precision="fp32")
    result = ReaderTrainer(student, settings=settings(n_epochs=8)).distil_prediction_layer_from(
        other, data, distillation_loss_weight=1.0
    )
    losses = [line["loss_distillation"] for line in result.history if "loss_distillation" in line]
    assert losses[-1] < losses[0]
    with pytest.raises(DistilError, match=r"different tokenizers.*distil the prediction layer"):
        ReaderTrainer(student, settings=settings()).distil_intermediate_layers_from(other, data)


def test_heads_that_do_not_match(tiny_reader: MakeReader, data: Path, tmp_path: Path) -> None:
    student, teacher = tiny_reader(num_hidden_layers=2, num_attention_heads=4), tiny_reader()
    trainer = ReaderTrainer(student, tmp_path / "run", settings(n_epochs=1))
    with pytest.raises(DistilError, match=r"4 attention heads and the teacher 2.*attention_loss_weight=0"):
        trainer.distil_intermediate_layers_from(teacher, data)
    assert trainer.distil_intermediate_layers_from(teacher, data, attention_loss_weight=0).steps == 6


def other_family(kind: str, tokenizer: BertTokenizerFast, **changed: Any) -> Reader:
    torch.manual_seed(3)
    model = AutoModelForQuestionAnswering.from_config(config_of(kind, len(tokenizer), **changed))
    return Reader(model, tokenizer, window_settings=WindowSettings(48, 16, 16), device="cpu", precision="fp32")


@pytest.mark.parametrize(("student_kind", "teacher_kind"), [("distilbert", "bert"), ("bert", "distilbert")])
def test_each_model_gets_the_token_types_it_takes(
    tokenizer: BertTokenizerFast, data: Path, student_kind: str, teacher_kind: str
) -> None:
    """A student without token types beside a teacher that needs them, and the other way round."""
    student, teacher = other_family(student_kind, tokenizer), other_family(teacher_kind, tokenizer)
    seen: dict[str, list[Tensor | None]] = {"student": [], "teacher": []}
    for name, reader in (("student", student), ("teacher", teacher)):
        reader.model.register_forward_pre_hook(
            lambda _, __, given, name=name: seen[name].append(given.get("token_type_ids")), with_kwargs=True
        )
    ReaderTrainer(student, settings=settings(n_epochs=1)).distil_intermediate_layers_from(teacher, data)
    for name, kind in (("student", student_kind), ("teacher", teacher_kind)):
        assert len(seen[name]) == 6
        for types in seen[name]:
            assert (types is not None and set(types.unique().tolist()) == {0, 1}) == (kind == "bert"), name


# --- dropout and accidents ---------------------------------------------------------------------------------------


def config_of(kind: str, vocabulary: int, dropout: float = 0.1) -> PretrainedConfig:
    shape = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    common = {"vocab_size": vocabulary, "max_position_embeddings": 66, "pad_token_id": 0}
    drop = {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
    if kind == "distilbert":
        drop = {"dropout": dropout, "attention_dropout": dropout, "qa_dropout": dropout}
        return DistilBertConfig(**common, dim=16, n_layers=2, n_heads=2, hidden_dim=24, **drop)
    if kind == "albert":
        return AlbertConfig(**common, **shape, embedding_size=8, classifier_dropout_prob=dropout, **drop)
    if kind == "electra":
        return ElectraConfig(**common, **shape, embedding_size=8, **drop)
    return {"bert": BertConfig, "roberta": RobertaConfig}[kind](**common, **shape, **drop)


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


# --- families ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["bert", "roberta", "distilbert", "electra", "albert"])
def test_each_family_can_be_taught(tokenizer: BertTokenizerFast, data: Path, kind: str) -> None:
    teacher = other_family(kind, tokenizer)
    for (
        parameter
    ) in teacher.model.parameters():  # else its layers are next to the identity, and nothing is to be learnt
        torch.nn.init.normal_(parameter, std=0.2)
    chosen = settings(n_epochs=4, batch_size=8, learning_rate=1e-2)
    student = fresh(teacher, hidden_size=8, num_hidden_layers=1)
    result = ReaderTrainer(student, settings=chosen).distil_intermediate_layers_from(
        teacher, data, embedding_loss_weight=0.5, hidden_loss_weight=2.0, attention_loss_weight=4.0
    )
    lines = [line for line in result.history if "loss" in line]
    assert lines[-1]["loss"] < lines[0]["loss"]
    for line in lines:
        total = 0.5 * line["loss_embedding"] + 2 * line["loss_hidden"] + 4 * line["loss_attention"]
        assert line["loss"] == pytest.approx(total, abs=2e-4)


def test_layers_need_one_device_and_positions_for_the_students_windows(pair: Callable, data: Path) -> None:
    student, teacher = pair()
    student.window_settings = WindowSettings(max_seq_len=10_000, doc_stride=16)
    with pytest.raises(DistilError, match=r"windows have 10000 tokens, but the teacher has \d+ positions"):
        ReaderTrainer(student, settings=settings()).distil_intermediate_layers_from(teacher, data)
    student, teacher = pair()
    teacher.device = torch.device("cuda", 1)
    with pytest.raises(DistilError, match=r"teacher \(cuda:1\) and student \(cpu\) must be on one device"):
        ReaderTrainer(student, settings=settings()).distil_intermediate_layers_from(teacher, data)


def test_a_teacher_without_a_head_teaches_layers_only(tiny_reader: MakeReader, data: Path, tmp_path: Path) -> None:
    made = tiny_reader(seed=1)
    save_model(tmp_path / "headless", made.model.base_model, made.tokenizer)
    teacher = Reader.load(tmp_path / "headless", window_settings=made.window_settings, device="cpu", precision="fp32")
    one = settings(max_steps=1)
    for untrained in (teacher, teacher.copy()):
        with pytest.raises(DistilError, match=r"answers are random.*qa_outputs\.bias, qa_outputs\.weight.*train"):
            ReaderTrainer(tiny_reader(), None, one).distil_prediction_layer_from(untrained, data)
    assert ReaderTrainer(tiny_reader(), None, one).distil_intermediate_layers_from(teacher, data).steps == 1
    ReaderTrainer(teacher, None, one).distil_intermediate_layers_from(tiny_reader(), data)
    assert teacher.untrained  # the layers learnt, the head did not
    ReaderTrainer(teacher, None, one).train(data)
    assert ReaderTrainer(tiny_reader(), None, one).distil_prediction_layer_from(teacher, data).steps == 1
