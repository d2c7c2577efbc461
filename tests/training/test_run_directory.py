"""The directory of a run: nothing of the user's is lost, nothing is repeated, no two runs share one."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from torch import Tensor
from transformers import (
    BertTokenizerFast,
)

from haystack_distill import DistilError, Reader, ReaderTrainer, TrainingSettings, students
from haystack_distill.data.text_windows import TextSettings
from haystack_distill.models.language_model import LanguageModel
from haystack_distill.training.checkpoints import Checkpoints
from haystack_distill.training.language_model_trainer import LanguageModelTrainer
from haystack_distill.training.loop import _LoopTrainer
from haystack_distill.utils.atomic import write_json
from haystack_distill.utils.model_files import RUN_FILE
from haystack_distill.utils.model_fingerprint import model_fingerprint
from tests.training.helpers import (
    Killed,
    MakeReader,
    kill_at_loss,
    kill_at_step,
    same,
    settings,
    watch_steps,
    weights_of,
)

QUICK = TrainingSettings(
    batch_size=4, learning_rate=1e-3, precision="fp32", progress=False, log_every=1, checkpoint_every=1
)


@pytest.fixture
def student(tiny_reader: MakeReader) -> Callable[[], Reader]:
    return lambda: tiny_reader(seed=1, num_hidden_layers=1, hidden_size=16)


def train(reader: Reader, directory: Path, data: Path, settings: TrainingSettings = QUICK, dev: Path | None = None):
    return ReaderTrainer(reader, directory, settings).train(data, dev)


@pytest.fixture
def train_until(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """As `train`, in a process that dies before the step after the given one."""

    def run(step: int, *arguments: Any, **keywords: Any) -> None:
        with monkeypatch.context() as patch:
            kill_at_step(patch, step)
            with pytest.raises(Killed):
                train(*arguments, **keywords)

    return run


@pytest.fixture
def killed(student: Callable[[], Reader], squad_file: Path, tmp_path: Path, train_until: Callable[..., None]) -> Path:
    """The directory of a run that died before its fourth step of four; two checkpoints are kept."""
    train_until(3, student(), tmp_path / "run", squad_file)
    return tmp_path / "run"


def test_folders_of_the_users_stay(
    student: Callable[[], Reader], squad_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`--output-dir .` in a project."""
    theirs = [
        "checkpoints/epoch=3.ckpt",
        "checkpoints/checkpoint-2-backup/weights",
        "onnx/net.onnx",
        "README.md",
        "a.py",
    ]
    for name in theirs:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f"my {name}")
    monkeypatch.chdir(tmp_path)
    train(student(), Path(), squad_file, replace(QUICK, keep_checkpoints=1))
    assert {name: (tmp_path / name).read_text() for name in theirs} == {name: f"my {name}" for name in theirs}
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["checkpoint-2-backup", "epoch=3.ckpt"]
    assert not list(tmp_path.glob(".*"))
    train(student(), Path(), squad_file, replace(QUICK, overwrite=True))
    assert {name: (tmp_path / name).read_text() for name in theirs} == {name: f"my {name}" for name in theirs}


def test_checkpoints_of_another_training_are_refused(
    student: Callable[[], Reader], squad_file: Path, tmp_path: Path
) -> None:
    theirs = tmp_path / "checkpoints" / "checkpoint-4" / "optimizer.pt"
    theirs.parent.mkdir(parents=True)
    theirs.touch()
    for chosen in (QUICK, replace(QUICK, resume=True), replace(QUICK, overwrite=True)):
        with pytest.raises(DistilError, match="checkpoint-4 was not written by a run of this package"):
            train(student(), tmp_path, squad_file, chosen)
    assert sorted(tmp_path.rglob("*")) == sorted([squad_file, theirs, theirs.parent, theirs.parent.parent])


def test_a_reader_is_not_written_over_without_a_word(
    student: Callable[[], Reader], squad_file: Path, tmp_path: Path
) -> None:
    train(student(), tmp_path / "run", squad_file)
    before = (tmp_path / "run" / "model.safetensors").read_bytes()
    other = replace(QUICK, seed=7)
    with pytest.raises(DistilError, match=r"holds the result of a finished run; set overwrite=True"):
        train(student(), tmp_path / "run", squad_file, other)
    with pytest.raises(DistilError, match=r"the finished run in .* is a different one: its settings.seed differs"):
        train(student(), tmp_path / "run", squad_file, replace(other, resume=True))
    student().save(tmp_path / "cut")
    for chosen in (QUICK, replace(QUICK, resume=True)):
        with pytest.raises(
            DistilError, match=r"holds a config\.json, which training would replace; set overwrite=True"
        ):
            train(student(), tmp_path / "cut", squad_file, chosen)
    assert (tmp_path / "run" / "model.safetensors").read_bytes() == before
    assert not (tmp_path / "run" / "checkpoints").exists()
    for directory in ("run", "cut"):
        train(student(), tmp_path / directory, squad_file, replace(other, overwrite=True))
        assert (tmp_path / directory / "model.safetensors").read_bytes() != before


def test_overwriting_keeps_the_old_reader_until_the_new_one_is_there(
    student: Callable[[], Reader],
    squad_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    train_until: Callable[..., None],
) -> None:
    train(student(), tmp_path / "run", squad_file)
    before = (tmp_path / "run" / "model.safetensors").read_bytes()
    other = replace(QUICK, seed=7, overwrite=True)
    train_until(3, student(), tmp_path / "run", squad_file, other)
    assert (tmp_path / "run" / "model.safetensors").read_bytes() == before
    with pytest.raises(DistilError, match="checkpoints of a run that did not finish"):
        train(student(), tmp_path / "run", squad_file)
    steps = watch_steps(monkeypatch)
    train(student(), tmp_path / "run", squad_file, replace(other, resume=True))  # both: what is unfinished is resumed
    assert steps == [3]
    assert (tmp_path / "run" / "model.safetensors").read_bytes() != before


@pytest.mark.parametrize("there", ["a finished run", "a reader"])
def test_leave_to_overwrite_is_that_of_one_run(
    there: str, student: Callable[[], Reader], squad_file: Path, tmp_path: Path, train_until: Callable[..., None]
) -> None:
    if there == "a reader":
        student().save(tmp_path / "run")
    else:
        train(student(), tmp_path / "run", squad_file)
    before = (tmp_path / "run" / "model.safetensors").read_bytes()
    other = replace(QUICK, seed=7, overwrite=True)
    train_until(0, student(), tmp_path / "run", squad_file, other)
    refusal = "the finished run in .* is a different one" if there == "a finished run" else "set overwrite=True"
    with pytest.raises(DistilError, match=refusal):
        train(student(), tmp_path / "run", squad_file, replace(QUICK, seed=8, resume=True))
    assert (tmp_path / "run" / "model.safetensors").read_bytes() == before
    train_until(0, student(), tmp_path / "run", squad_file, other)
    train(student(), tmp_path / "run", squad_file, replace(other, overwrite=False, resume=True))  # the same run has it
    assert (tmp_path / "run" / "model.safetensors").read_bytes() != before


def test_an_unfinished_run_is_begun_again_where_that_is_wanted(
    student: Callable[[], Reader], squad_file: Path, killed: Path
) -> None:
    result = train(student(), killed, squad_file, replace(QUICK, seed=7, overwrite=True))
    assert [line["step"] for line in result.history if "loss" in line] == [1, 2, 3, 4]


def test_a_finished_run_is_not_done_again(
    student: Callable[[], Reader], squad_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = student()
    result = train(reader, tmp_path / "run", squad_file, dev=squad_file)
    written = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").iterdir()}
    kill_at_step(monkeypatch, 0)
    again = student()
    assert not same(weights_of(again), weights_of(reader))
    settings = replace(QUICK, resume=True, log_every=3)
    assert train(again, tmp_path / "run", squad_file, settings, dev=squad_file) == result
    assert same(weights_of(again), weights_of(reader))
    assert not again.model.training
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "run").iterdir()} == written


def test_a_finished_run_whose_weights_were_changed(
    student: Callable[[], Reader], squad_file: Path, tmp_path: Path
) -> None:
    train(student(), tmp_path / "run", squad_file)
    path = tmp_path / "run" / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    for damaged in (bytes(content), bytes(content[:-9])):
        path.write_bytes(damaged)
        with pytest.raises(DistilError, match=r"the weights in .* are not those that the finished run saved there"):
            train(student(), tmp_path / "run", squad_file, replace(QUICK, resume=True))
    path.unlink()
    with pytest.raises(DistilError, match="are not those that the finished run saved there"):
        train(student(), tmp_path / "run", squad_file, replace(QUICK, resume=True))


@pytest.mark.parametrize("kind", ["encoder", "with its head"])
def test_a_finished_general_step_is_not_done_again(
    kind: str, tiny_reader: MakeReader, tokenizer: BertTokenizerFast, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import BertForMaskedLM

    if kind == "encoder":
        teacher = LanguageModel.of(tiny_reader())
    else:
        teacher = LanguageModel(BertForMaskedLM(tiny_reader().model.config), tokenizer, device="cpu", precision="fp32")
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("Ada Lovelace wrote the first program in 1843, long before there was a machine.\n" * 60)
    text = TextSettings(max_seq_len=24, buffer_windows=8)
    settings = replace(QUICK, max_steps=3, checkpoint_every=None)
    first, second = students.from_teacher(teacher, layers=2), students.from_teacher(teacher, layers=2)
    result = LanguageModelTrainer(first, tmp_path / "run", settings, text).distil(
        teacher, corpus, "intermediate_layers"
    )
    kill_at_step(monkeypatch, 0)
    trainer = LanguageModelTrainer(second, tmp_path / "run", replace(settings, resume=True), text)
    assert trainer.distil(teacher, corpus, "intermediate_layers") == result
    assert same(weights_of(first), weights_of(second))


@pytest.mark.parametrize("moment", ["before the record", "after the record"])
def test_a_run_killed_at_its_very_end(
    moment: str, student: Callable[[], Reader], squad_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = student()
    train(reader, tmp_path / "whole", squad_file)

    def dying(*_: Any) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        if moment == "before the record":
            patch.setattr("haystack_distill.training.run_directory._weight_hashes", dying)
        else:
            patch.setattr(Checkpoints, "clear", dying)
        with pytest.raises(Killed):
            train(student(), tmp_path / "run", squad_file)
    assert (tmp_path / "run" / RUN_FILE).exists() == (moment == "after the record")
    assert (tmp_path / "run" / "checkpoints").exists()
    again = student()
    assert train(again, tmp_path / "run", squad_file, replace(QUICK, resume=True)).steps == 4
    assert same(weights_of(again), weights_of(reader))
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_a_second_run_in_the_directory_is_refused(
    student: Callable[[], Reader], squad_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = student()
    train(alone, tmp_path / "alone", squad_file)
    whole, refusals = _LoopTrainer.compute_loss, []

    def meanwhile(self: _LoopTrainer, *arguments: Any, **keywords: Any) -> Tensor:
        for chosen in (QUICK, replace(QUICK, resume=True), replace(QUICK, overwrite=True)):
            with pytest.raises(DistilError, match="another run is using") as caught:
                train(student(), tmp_path / "run", squad_file, chosen)
            refusals.append(caught.value)
        return whole(self, *arguments, **keywords)

    reader = student()
    monkeypatch.setattr(_LoopTrainer, "compute_loss", meanwhile)
    train(reader, tmp_path / "run", squad_file)
    assert len(refusals) == 3 * 4
    assert same(weights_of(reader), weights_of(alone))


def test_a_run_that_stopped_lets_go_of_its_directory_and_of_its_student(
    student: Callable[[], Reader], squad_file: Path, tmp_path: Path, train_until: Callable[..., None]
) -> None:
    reader = student()
    train_until(2, reader, tmp_path / "run", squad_file)
    assert not reader.model.training
    assert not list((tmp_path / "run").glob(".*"))
    assert train(student(), tmp_path / "run", squad_file, replace(QUICK, resume=True)).steps == 4


def test_a_damaged_checkpoint_is_made_again(
    student: Callable[[], Reader], squad_file: Path, tmp_path: Path, killed: Path
) -> None:
    reader = student()
    train(reader, tmp_path / "whole", squad_file)
    assert sorted(path.name for path in killed.glob("checkpoints/checkpoint-*")) == ["checkpoint-2", "checkpoint-3"]
    parts = {path.name for path in (killed / "checkpoints" / "checkpoint-3").iterdir()}
    assert {"model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"} < parts
    path = killed / "checkpoints" / "checkpoint-3" / "optimizer.pt"  # test_checkpoints.py damages every file
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)
    again = student()
    result = train(again, killed, squad_file, replace(QUICK, resume=True))
    assert [line["step"] for line in result.history if "loss" in line] == [1, 2, 3, 4]
    assert same(weights_of(again), weights_of(reader))


def test_one_damaged_checkpoint_alone_is_named(student: Callable[[], Reader], squad_file: Path, killed: Path) -> None:
    shutil.rmtree(killed / "checkpoints" / "checkpoint-2")
    (killed / "checkpoints" / "checkpoint-3" / "optimizer.pt").unlink()
    with pytest.raises(DistilError, match=r"can be used .checkpoint-3 lacks optimizer\.pt.; restore"):
        train(student(), killed, squad_file, replace(QUICK, resume=True))
    assert (killed / "checkpoints" / "checkpoint-3" / "model.safetensors").exists()


@pytest.mark.parametrize("spelling", ["moved", "link"])
def test_the_best_checkpoint_is_found_again(
    spelling: str,
    student: Callable[[], Reader],
    squad_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    train_until: Callable[..., None],
) -> None:
    """Though the directory was moved meanwhile, or its path is spelt otherwise."""
    scores = iter([10.0, 30.0, 20.0, 25.0])
    seen: list[dict[str, Tensor]] = []

    def evaluate(self: Reader, *_: Any, **__: Any) -> dict[str, float]:
        seen.append(weights_of(self))
        return {"f1": next(scores, 0.0), "exact": 0.0}

    monkeypatch.setattr(Reader, "evaluate_windows", evaluate)
    monkeypatch.chdir(tmp_path)
    settings = replace(QUICK, keep_best=True, evaluate_every=1, checkpoint_every="auto", keep_checkpoints=1)
    train_until(3, student(), Path("run"), squad_file, settings, dev=squad_file)
    assert sorted(path.name for path in Path("run/checkpoints").glob("c*")) == ["checkpoint-2", "checkpoint-3"]
    if spelling == "moved":
        shutil.move("run", "elsewhere")
    if spelling == "link":
        Path("link").symlink_to("run")
    directory = {"moved": "elsewhere", "link": "link"}
    reader = student()
    train(reader, Path(directory[spelling]), squad_file, replace(settings, resume=True), dev=squad_file)
    assert same(weights_of(reader), seen[1])
    assert same(load_file(Path(directory[spelling]) / "model.safetensors"), seen[1])
    assert not (Path(directory[spelling]) / "checkpoints").exists()


def test_a_damaged_record_of_a_run_is_named(student: Callable[[], Reader], squad_file: Path, killed: Path) -> None:
    path = killed / "checkpoints" / "run.json"
    path.write_text(path.read_text()[:40])
    for chosen in (QUICK, replace(QUICK, resume=True)):
        with pytest.raises(DistilError, match=r"run\.json is damaged or was not written by a run"):
            train(student(), killed, squad_file, chosen)


def test_a_record_that_is_not_of_a_run(student: Callable[[], Reader], squad_file: Path, tmp_path: Path) -> None:
    """As `student` and `prune` write them."""
    write_json(tmp_path / "cut" / RUN_FILE, {"method": "student", "metrics": {}, "status": "finished"})
    with pytest.raises(DistilError, match=f"holds a {RUN_FILE}, which training would replace"):
        train(student(), tmp_path / "cut", squad_file, replace(QUICK, resume=True))


@pytest.mark.slow
def test_kills_and_damages_at_random() -> None:
    """A small share of what the benchmark does."""
    script = Path(__file__).parents[2] / "benchmarks" / "checkpoint_faults.py"
    command = [sys.executable, str(script), "--kills", "1", "--damages", "2"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    assert "1 kills: " in done.stdout
    assert "2 damaged checkpoints: " in done.stdout
    assert "WRONG" not in done.stdout


def test_a_run_that_did_not_finish_is_not_overwritten(pair: Callable, data: Path, killed_distillation: Path) -> None:
    student, teacher = pair()
    with pytest.raises(DistilError, match="set resume=True to resume it"):
        ReaderTrainer(student, killed_distillation, settings()).distil_intermediate_layers_from(teacher, data)


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


def test_the_umask_decides_who_reads_a_checkpoint(killed_distillation: Path) -> None:
    files = [file for file in killed_distillation.glob("checkpoints/checkpoint-*/*") if file.is_file()]
    assert any(file.name == "model.safetensors" for file in files)
    assert {file.stat().st_mode & 0o777 for file in files} == {killed_distillation.stat().st_mode & 0o666}


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


def test_resume_needs_a_directory(pair: Callable, data: Path) -> None:
    with pytest.raises(DistilError, match="resume=True needs an output_dir"):
        ReaderTrainer(pair()[0], settings=settings(resume=True)).train(data)


def test_tensorboard_needs_a_directory(pair: Callable, data: Path) -> None:
    with pytest.raises(DistilError, match="tensorboard=True needs an output_dir"):
        ReaderTrainer(pair()[0], settings=settings(tensorboard=True)).train(data)


def test_checkpoints_need_a_directory(pair: Callable, data: Path) -> None:
    for every in ("epoch", 3):
        with pytest.raises(DistilError, match="checkpoint_every needs an output_dir"):
            ReaderTrainer(pair()[0], settings=settings(checkpoint_every=every)).train(data)


def test_resume_with_nothing_to_resume_begins(pair: Callable, data: Path, tmp_path: Path) -> None:
    student, _ = pair()
    assert ReaderTrainer(student, tmp_path / "new", settings(n_epochs=1, resume=True)).train(data).steps == 6


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
