"""LanguageModelTrainer: learns, leaves the teacher alone, resumes to the same weights, says what does not fit."""

import json
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from transformers import BertConfig, BertForMaskedLM, BertTokenizerFast

from haystack_distill import DistilError, RunResult, TrainingSettings, students
from haystack_distill.data.corpus import Corpus
from haystack_distill.data.text_windows import TextSettings
from haystack_distill.models.language_model import LanguageModel
from haystack_distill.objectives import IntermediateLayers, MaskedLanguageModel, Method, PredictionLayer
from haystack_distill.training.adapters import Adapters
from haystack_distill.training.language_model_trainer import LanguageModelTrainer
from haystack_distill.training.loop import _LoopTrainer
from haystack_distill.training.lora import Lora
from haystack_distill.utils.model_fingerprint import model_fingerprint
from tests.training.helpers import Killed, kill_at_loss, logged, watch_steps

METHODS = [IntermediateLayers(), MaskedLanguageModel()]


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    lines = [
        "Ada Lovelace wrote the first program in 1843, long before there was a machine to run it on.",
        "The harbour of Lindow was built in 1702 by Cornelis Baak, who came from Delft with forty masons.",
        "",
        "Bees dance to tell their sisters where the flowers are; Karl von Frisch described it in 1927.",
    ]
    path = tmp_path / "corpus.txt"
    path.write_text("\n".join(lines * 30))
    return path


@pytest.fixture
def teacher(tokenizer: BertTokenizerFast) -> LanguageModel:
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 48}
    model = BertForMaskedLM(BertConfig(**shape, vocab_size=len(tokenizer), max_position_embeddings=64))
    return LanguageModel(model, tokenizer, device="cpu")


def settings(**changed: Any) -> TrainingSettings:
    quick = {"max_steps": 12, "batch_size": 4, "learning_rate": 1e-3, "precision": "fp32", "progress": False}
    return TrainingSettings(**quick | {"log_every": 1, "checkpoint_every": None} | changed)


TEXT = TextSettings(max_seq_len=24, buffer_windows=16)


def run(
    method: Method, student: LanguageModel, teacher: LanguageModel, corpus: Any, output: Any = None, **changed: Any
):
    return LanguageModelTrainer(student, output, settings(**changed), TEXT).distil(teacher, corpus, method)


@pytest.mark.parametrize("method", METHODS)
def test_the_student_learns_and_the_teacher_does_not(method: Method, teacher: LanguageModel, corpus: Path) -> None:
    student = students.from_teacher(teacher, layers=2)
    before = model_fingerprint(teacher.model)
    result = run(method, student, teacher, Corpus(corpus), max_steps=40, learning_rate=3e-3)
    parts = {
        IntermediateLayers: ["attention", "embedding", "hidden"],
        MaskedLanguageModel: ["cosine", "masked_words", "soft_targets"],
    }[type(method)]
    lines = [line for line in result.history if "loss" in line]
    assert sorted(name[5:] for name in lines[0] if name.startswith("loss_")) == parts
    assert sum(line["loss"] for line in lines[-5:]) < sum(line["loss"] for line in lines[:5])
    assert result.steps == 40
    assert model_fingerprint(teacher.model) == before
    head = student.model.get_output_embeddings().weight
    assert head is student.model.get_input_embeddings().weight  # still tied


def test_narrower_students_have_projections_in_the_checkpoint(
    teacher: LanguageModel, corpus: Path, tmp_path: Path
) -> None:
    student = students.from_config(teacher, hidden_size=16, num_hidden_layers=2)
    result = run(IntermediateLayers(), student, teacher, corpus, tmp_path / "out", max_steps=40)
    losses = logged(result, "loss_hidden")
    assert losses[-1] < losses[0]
    saved = LanguageModel.load(tmp_path / "out", device="cpu")
    assert saved.model.state_dict().keys() == student.model.state_dict().keys()
    assert all(
        torch.equal(weight, student.model.state_dict()[name]) for name, weight in saved.model.state_dict().items()
    )
    record = json.loads((tmp_path / "out" / "haystack_distill.json").read_text())
    assert record["method"] == "intermediate_layers"
    assert record["corpus"].startswith("corpus.txt (")
    assert record["text"] == {"max_seq_len": 24, "mask_probability": 0.15, "buffer_windows": 16}


@pytest.mark.parametrize("method", METHODS)
def test_a_teacher_in_training_mode_teaches_without_dropout(
    method: Method, teacher: LanguageModel, corpus: Path
) -> None:
    histories = []
    for training in (False, True):
        teacher.model.train(training)
        student = students.from_teacher(teacher, layers=2)
        histories.append(run(method, student, teacher, corpus, max_steps=2).history[0]["loss"])
        assert teacher.model.training == training
    assert histories[0] == histories[1]


@pytest.mark.parametrize("method", METHODS)
def test_a_killed_run_resumes_to_the_same_weights(
    method: Method, teacher: LanguageModel, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = {"checkpoint_every": 3, "dropout": 0.1}
    whole = students.from_teacher(teacher, layers=2)
    untouched = run(method, whole, teacher, corpus, tmp_path / "whole", **chosen)
    with monkeypatch.context() as patch:
        kill_at_loss(patch, 11)
        with pytest.raises(Killed):
            run(method, students.from_teacher(teacher, layers=2), teacher, corpus, tmp_path / "cut", **chosen)
    steps = watch_steps(monkeypatch)
    reads = []
    read = Corpus.read
    monkeypatch.setattr(
        Corpus, "read", lambda self, state=None, **turns: reads.append(state) or read(self, state, **turns)
    )
    student = students.from_teacher(teacher, layers=2)
    resumed = run(method, student, teacher, corpus, tmp_path / "cut", resume=True, **chosen)
    assert steps[0] == 9
    assert reads[0] is not None  # the corpus was taken up where it was, not read again
    assert model_fingerprint(student.model) == model_fingerprint(whole.model)
    assert resumed.steps == untouched.steps == 12
    assert logged(resumed, "loss") == logged(untouched, "loss")


@pytest.fixture
def killed(monkeypatch: pytest.MonkeyPatch, teacher: LanguageModel, tmp_path: Path) -> Callable[[Any], Path]:
    """Starts a run on a corpus that is interrupted after its first checkpoint; returns its directory."""

    def start(source: Any) -> Path:
        with monkeypatch.context() as patch:
            kill_at_loss(patch, 8)
            with pytest.raises(Killed):
                resume_run(students.from_teacher(teacher, layers=2), teacher, source, tmp_path / "run", resume=False)
        return tmp_path / "run"

    return start


def resume_run(
    student: LanguageModel, teacher: LanguageModel, source: Any, directory: Path, **changed: Any
) -> RunResult:
    layers = IntermediateLayers()
    return run(layers, student, teacher, source, directory, **{"resume": True, "checkpoint_every": 3} | changed)


def test_resume_refuses_other_text_another_student_and_another_precision(
    teacher: LanguageModel, corpus: Path, killed: Callable[[Any], Path]
) -> None:
    directory = killed(corpus)
    student = students.from_teacher(teacher, layers=2)
    text = corpus.read_text()
    corpus.write_text(text.replace("1843", "1943", 1))  # as long as before
    with pytest.raises(DistilError, match=r"its corpus_content differs from now; resume it with what"):
        resume_run(student, teacher, corpus, directory)
    corpus.write_text(text)
    with torch.no_grad():
        student.model.get_input_embeddings().weight[0] += 1
    with pytest.raises(DistilError, match=r"its student\.weights differs from now"):
        resume_run(student, teacher, corpus, directory)
    teacher.precision = "bf16" if teacher.precision == "fp32" else "fp32"
    with pytest.raises(DistilError, match=r"its teacher\.precision differs from now \(then '"):
        resume_run(students.from_teacher(teacher, layers=2), teacher, corpus, directory)


def test_a_stream_is_resumed_only_by_the_name_of_its_content(
    teacher: LanguageModel, corpus: Path, killed: Callable[[Any], Path], caplog: pytest.LogCaptureFixture
) -> None:
    def stream() -> datasets.IterableDataset:
        return datasets.load_dataset("text", data_files=str(corpus), split="train", streaming=True)

    directory = killed(Corpus(stream(), name="facts, 1st edition"))
    assert "cannot be resumed" not in caplog.text
    student = students.from_teacher(teacher, layers=2)
    for source in (Corpus(stream(), name="facts, 2nd edition"), Corpus(corpus)):
        with pytest.raises(DistilError, match="its corpus, corpus_content differ from now"):
            resume_run(student, teacher, source, directory)
    assert resume_run(student, teacher, Corpus(stream(), name="facts, 1st edition"), directory).steps == 12
    shutil.rmtree(directory)
    killed(stream())
    assert "cannot be resumed if it stops: its corpus_content is not comparable: an IterableDataset" in caplog.text
    with pytest.raises(DistilError, match=r"its corpus_content is not comparable.*Corpus\(dataset, name="):
        resume_run(students.from_teacher(teacher, layers=2), teacher, stream(), directory)


@pytest.mark.parametrize("method", METHODS)
def test_accumulated_batches_are_one_batch(method: Method, teacher: LanguageModel, corpus: Path) -> None:
    histories = []
    for batch_size, parts in ((8, 1), (2, 4)):
        student = students.from_teacher(teacher, layers=2)
        chosen = {"max_steps": 4, "batch_size": batch_size, "gradient_accumulation_steps": parts}
        histories.append(run(method, student, teacher, corpus, learning_rate=1e-5, **chosen).history)
    one, other = ([line["loss"] for line in history if "loss" in line] for history in histories)
    assert one == pytest.approx(other, rel=1e-4)


def test_what_does_not_fit(teacher: LanguageModel, corpus: Path, tiny_reader: Callable) -> None:
    student = students.from_teacher(teacher, layers=2)
    layers, predictions = METHODS
    encoder = LanguageModel.of(tiny_reader())
    for changed, says in (
        ({"max_steps": None}, "set max_steps"),
        ({"keep_best": True, "checkpoint_every": "epoch"}, "keep_best has no effect on a corpus"),
    ):
        with pytest.raises(DistilError, match=says):
            run(layers, student, teacher, corpus, **changed)
    with pytest.raises(DistilError, match="same model"):
        run(layers, teacher, teacher, corpus)
    with pytest.raises(DistilError, match=r"the teacher is an encoder without a head.*intermediate_layers"):
        run(predictions, student, encoder, corpus)
    with pytest.raises(DistilError, match="the student is an encoder without a head"):
        run(predictions, encoder, teacher, corpus)
    with pytest.raises(DistilError, match="64 positions; lower max_seq_len"):
        LanguageModelTrainer(student, None, settings(), TextSettings(max_seq_len=65)).distil(teacher, corpus, layers)
    without = TextSettings(max_seq_len=24, mask_probability=0)
    with pytest.raises(DistilError, match="no masked words"):
        LanguageModelTrainer(student, None, settings(), without).distil(teacher, corpus, predictions)
    masked = MaskedLanguageModel(masked_word_weight=0, cosine_weight=0, soft_target_tokens="masked")
    for method in (masked, 0.5 * masked + layers):
        with pytest.raises(DistilError, match="leaves no masked words to compare; set soft_target_tokens='all'"):
            LanguageModelTrainer(student, None, settings(), without).distil(teacher, corpus, method)

    with pytest.raises(DistilError, match="prediction_layer needs questions to train on, not a corpus"):
        run(PredictionLayer(), student, teacher, corpus)


def test_layers_and_predictions_in_one_step(teacher: LanguageModel, corpus: Path) -> None:
    """The teacher runs once for each batch, and each part learns as it does alone."""
    student = students.from_teacher(teacher, layers=2)
    calls = []
    hook = teacher.model.register_forward_pre_hook(lambda *_: calls.append(1))
    both = run(IntermediateLayers() + 0.5 * MaskedLanguageModel(), student, teacher, corpus, max_steps=3)
    hook.remove()
    assert len(calls) == 3
    first = both.history[0]
    alone = [
        run(method, students.from_teacher(teacher, layers=2), teacher, corpus, max_steps=1).history[0]
        for method in METHODS
    ]
    for line in alone:
        for name, value in line.items():
            if name.startswith("loss_"):
                assert first[name] == pytest.approx(value, rel=1e-5)
    assert first["loss"] == pytest.approx(alone[0]["loss"] + 0.5 * alone[1]["loss"], rel=1e-3)


def corpus_threads() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name == "corpus"}


@pytest.mark.parametrize("how", ["done", "stopped"])
def test_nobody_reads_the_corpus_when_the_run_has_ended(
    how: str, teacher: LanguageModel, corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thread that still reads when Python ends can end it with an abort."""
    reading = []
    whole = _LoopTrainer.compute_loss
    before = corpus_threads()  # of other tests in this process, which close nothing

    def looking(self: _LoopTrainer, *arguments: Any, **keywords: Any) -> torch.Tensor:
        reading.append(corpus_threads() - before)
        if how == "stopped" and self.state.global_step == 3:
            raise KeyboardInterrupt
        return whole(self, *arguments, **keywords)

    monkeypatch.setattr(_LoopTrainer, "compute_loss", looking)
    student = students.from_teacher(teacher, layers=2)
    if how == "stopped":
        with pytest.raises(KeyboardInterrupt):
            run(METHODS[0], student, teacher, corpus)
    else:
        run(METHODS[0], student, teacher, corpus)
    assert any(reading)
    assert not corpus_threads() - before
    assert not student.model.training


def test_masked_words_are_learnt_without_a_teacher(teacher: LanguageModel, corpus: Path, tmp_path: Path) -> None:
    """BERT's training: the masked words alone; an encoder without a head gets one."""
    alone = MaskedLanguageModel(soft_target_weight=0, masked_word_weight=1, cosine_weight=0)
    student = teacher.copy()
    before = model_fingerprint(student.model)
    trainer = LanguageModelTrainer(student, tmp_path / "adapted", settings(), TEXT)
    result = trainer.distil(None, corpus, alone)
    losses = logged(result, "loss_masked_words")
    assert len(losses) == 12
    assert sum(losses[-3:]) < sum(losses[:3])
    assert model_fingerprint(student.model) != before
    record = json.loads((tmp_path / "adapted" / "haystack_distill.json").read_text())
    assert record["teacher"] is None
    with pytest.raises(DistilError, match="learns from the text alone, so a teacher has no effect"):
        run(alone, student, teacher, corpus)
    for method in (MaskedLanguageModel(), IntermediateLayers()):
        with pytest.raises(DistilError, match="needs a teacher"):
            LanguageModelTrainer(student, None, settings(), TEXT).distil(None, corpus, method)


def test_which_weights_learn(teacher: LanguageModel, corpus: Path) -> None:
    """Low-rank updates are merged; what would not leave a whole, plain language model is refused."""
    student = students.from_teacher(teacher, layers=2)
    trainer = LanguageModelTrainer(student, None, settings(max_steps=2), TEXT)
    before = {name: weight.clone() for name, weight in student.model.state_dict().items()}
    trainer.distil(teacher, corpus, IntermediateLayers(), adaptation=Lora(rank=2, target="query_value"))
    after = student.model.state_dict()
    changed = {name for name, weight in before.items() if not weight.equal(after[name])}
    updated = {name for name in before if name.endswith(("query.weight", "value.weight"))}
    assert changed & updated
    assert not any(".layer." in name for name in changed - updated)
    for adaptation, remedy in (
        (Lora(save_only_trained=True), "set save_only_trained=False"),
        (Adapters(), "choose another adaptation, such as lora"),
    ):
        with pytest.raises(DistilError, match=f"a language model is saved whole and without adapters; {remedy}"):
            trainer.distil(teacher, corpus, IntermediateLayers(), adaptation=adaptation)
