"""DistilFARMReader against Haystack 1 itself, with Haystack 1's own distillation tests written anew for tiny models."""

import importlib.util
import inspect
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

if importlib.util.find_spec("haystack") is None or importlib.util.find_spec("haystack.nodes") is None:
    pytest.skip("farm-haystack is not in this environment", allow_module_level=True)

from haystack import Document, Pipeline
from haystack.document_stores import InMemoryDocumentStore
from haystack.modeling.data_handler.inputs import QAInput, Question
from haystack.modeling.data_handler.processor import InferenceProcessor, SquadProcessor, UnlabeledTextProcessor
from haystack.modeling.model.prediction_head import QuestionAnsweringHead
from haystack.nodes import BM25Retriever, FARMReader
from haystack.utils import EarlyStopping
from transformers import (
    AutoModelForQuestionAnswering,
    BertConfig,
    BertForQuestionAnswering,
    BertModel,
    BertTokenizerFast,
)

from haystack_distill import DataError, DistilError, Reader, RunResult, WindowSettings, students
from haystack_distill.data.squad.load import load_examples
from haystack_distill.data.windows import Windows
from haystack_distill.integrations import farm
from haystack_distill.integrations.farm import DistilFARMReader, farm_reader_from, reader_from_farm
from tests.conftest import squad_content

CUT = {"max_seq_len": 48, "doc_stride": 16, "max_query_length": 16, "use_gpu": False, "progress_bar": False}
QUESTION = "Who built the harbour?"
HARBOUR = "The harbour of Lindow was built in 1702 by Cornelis Baak, who came from Delft with forty masons."
BEES = "Bees dance to tell their sisters where the flowers are; Karl von Frisch described it in 1927."
METHODS = ("train", "distil_prediction_layer_from", "distil_intermediate_layers_from")
TEACHER = {"num_hidden_layers": 4, "hidden_size": 32}
STUDENT = {"num_hidden_layers": 2, "hidden_size": 16, "intermediate_size": 32}

Make = Callable[..., Any]


@pytest.fixture(autouse=True)
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Defaults of Haystack 1 (`./saved_models`, `model_checkpoints`) are relative: each test has its own place."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def saved(tokenizer: BertTokenizerFast, tmp_path_factory: pytest.TempPathFactory) -> Make:
    """A Hugging Face directory of a tiny random BERT, written once for each seed and shape."""
    directory = tmp_path_factory.mktemp("models")

    def saved(*, seed: int = 0, **shape: float) -> str:
        target = directory / "-".join(map(str, [seed, *shape.values()]))
        if not target.exists():
            torch.manual_seed(seed)
            common = {"vocab_size": len(tokenizer), "num_attention_heads": 2, "max_position_embeddings": 128}
            model = BertForQuestionAnswering(BertConfig(**(common | STUDENT | shape)))
            Reader(model, tokenizer, window_settings=WindowSettings(48, 16, 16), device="cpu").save(target)
        return str(target)

    return saved


@pytest.fixture(scope="module")
def make(saved: Make) -> Make:
    """A DistilFARMReader (or `kind`) of such a directory."""

    def make(*, kind: type = DistilFARMReader, seed: int = 0, **shape: float) -> Any:
        return kind(saved(seed=seed, **shape), **CUT)

    return make


@pytest.fixture(scope="module")
def idle(make: Make) -> tuple[DistilFARMReader, FARMReader]:
    """A student and a teacher for tests that leave their weights alone."""
    return make(), make(kind=FARMReader, seed=1, **TEACHER)


@pytest.fixture(scope="module")
def trained(make: Make, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A reader that has learnt a file by heart in which questions have none, one and three answers."""
    directory = tmp_path_factory.mktemp("trained")
    learnt = [
        (HARBOUR, QUESTION, ["Cornelis Baak", "Baak", "Baak"]),
        (BEES, "Who described it?", ["Karl von Frisch"]),
        ("A glacier moves a few metres a year.", "Who owns the glacier?", []),
    ]
    paragraphs = []
    for context, question, texts in learnt:
        answers = [{"text": text, "answer_start": context.index(text)} for text in texts]
        qas = [{"id": question, "question": question, "answers": answers, "is_impossible": not texts}]
        paragraphs.append({"context": context, "qas": qas})
    file = directory / "train.json"
    file.write_text(json.dumps({"version": "v2.0", "data": [{"title": "One", "paragraphs": paragraphs}]}))
    reader = make(hidden_size=32, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    before, logits = weights(reader), farm_logits(reader, HARBOUR)[1]
    settings = {"n_epochs": 40, "learning_rate": 5e-3, "test_filename": file.name, "save_dir": str(directory / "out")}
    result = run(reader, "train", file, **settings)
    return {"reader": reader, "result": result, "before": before, "logits": logits}


@pytest.fixture
def student(make: Make) -> DistilFARMReader:
    return make()


@pytest.fixture
def teacher(make: Make) -> FARMReader:
    return make(kind=FARMReader, seed=1, **TEACHER)


def run(reader: DistilFARMReader, method: str, squad: Path, teacher: Any = None, **arguments: Any) -> RunResult:
    """One short run of a method, at a learning rate that moves every weight."""
    given = {"data_dir": str(squad.parent), "train_filename": squad.name, "n_epochs": 1, "batch_size": 4}
    given |= {"learning_rate": 1e-2} | arguments
    return getattr(reader, method)(**given, **({} if method == "train" else {"teacher_model": teacher}))


def weights(reader: FARMReader) -> dict[str, torch.Tensor]:
    return {name: weight.detach().clone() for name, weight in reader.inferencer.model.named_parameters()}


def changed(before: dict[str, torch.Tensor], reader: FARMReader) -> set[str]:
    return {name for name, weight in weights(reader).items() if not torch.equal(weight, before[name])}


def head(names: Any) -> set[str]:
    return {name for name in names if name.startswith("prediction_heads.0.feed_forward")}


def unused(names: Any) -> set[str]:
    """What question answering does not use: the pooler, and the temperature of confidence scores."""
    return {name for name in names if "pooler" in name or "temperature" in name}


def farm_logits(reader: FARMReader, context: str) -> tuple[list[list[int]], torch.Tensor]:
    """Token ids and logits (windows, tokens, 2) of FARM's own processor and model."""
    processor, model = reader.inferencer.processor, reader.inferencer.model
    objects = QAInput(doc_text=context, questions=Question(text=QUESTION, uid="1"))
    dataset, names, _, _ = processor.dataset_from_dicts([objects.to_dict()], indices=[0], return_baskets=True)
    batch = dict(zip(names, dataset.tensors, strict=True))
    ids = [row[mask.bool()].tolist() for row, mask in zip(batch["input_ids"], batch["padding_mask"], strict=True)]
    with torch.inference_mode():
        return ids, model(batch["input_ids"], batch["segment_ids"], batch["padding_mask"])[0]


def our_logits(reader: Reader, context: str) -> tuple[list[list[int]], list[torch.Tensor]]:
    row = {"id": "1", "title": "", "context": context, "question": QUESTION, "is_impossible": False, "labelled": False}
    windows = windows_of(reader, [row | {"answers": {"text": [], "answer_start": []}}])
    ids: list[list[int]] = [[]] * len(windows)
    logits: list[torch.Tensor] = [torch.empty(0)] * len(windows)
    for batch, starts, ends in reader.logits(windows, range(len(windows))):
        for i, window in enumerate(batch["window"].tolist()):
            length = int(batch["attention_mask"][i].sum())
            ids[window] = batch["input_ids"][i, :length].tolist()
            logits[window] = torch.stack([starts[i, :length], ends[i, :length]], dim=-1)
    return ids, logits


def windows_of(reader: Reader, rows: list[dict[str, Any]]) -> Windows:
    import datasets

    return reader.cut(load_examples(datasets.Dataset.from_list(rows)))


def assert_same_logits(farm_reader: FARMReader, reader: Reader, context: str = HARBOUR * 4) -> None:
    farm_ids, expected = farm_logits(farm_reader, context)
    ids, logits = our_logits(reader, context)
    assert ids == farm_ids
    assert len(ids) > 1  # else windows are not tested
    for ours, theirs in zip(logits, expected, strict=True):
        torch.testing.assert_close(ours, theirs[: len(ours)], rtol=1e-4, atol=1e-5)


# --- Signatures ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["__init__", *METHODS, "predict"])
def test_the_signature_is_farm_readers(name: str) -> None:
    def shape(function: Callable) -> list[tuple]:
        return [(p.name, p.kind, p.default) for p in inspect.signature(function).parameters.values()]

    ours = shape(getattr(DistilFARMReader, name))
    if name in METHODS:
        assert ours.pop() == ("on_bad_example", inspect.Parameter.KEYWORD_ONLY, "error")
    assert ours == shape(getattr(FARMReader, name))
    assert len(shape(getattr(DistilFARMReader, name))) > 3


def test_positional_arguments_have_farm_readers_order(student: DistilFARMReader, squad_file: Path) -> None:
    # data_dir, train_filename, dev_filename, test_filename, use_gpu, devices, batch_size, n_epochs
    result = student.train(str(squad_file.parent), squad_file.name, squad_file.name, None, False, None, 3, 2)
    assert result.steps == 2 * -(-result_windows(result) // 3)
    assert result.metrics["total"] == 8
    with pytest.raises(TypeError, match="unexpected keyword"):
        student.train(str(squad_file.parent), squad_file.name, epochs=1)


def result_windows(result: RunResult) -> int:
    assert result.directory is not None
    return json.loads((result.directory / "haystack_distill.json").read_text())["data"]["windows"]


# --- The two kinds of reader ----------------------------------------------------------------------------------------


def test_both_readers_see_the_same_windows_and_give_the_same_logits(teacher: FARMReader) -> None:
    assert_same_logits(teacher, reader_from_farm(teacher))


def test_weights_are_shared_not_copied(teacher: FARMReader) -> None:
    before = weights(teacher)
    reader = reader_from_farm(teacher)
    ours = {parameter.data_ptr() for parameter in reader.model.parameters()}
    theirs = {name: p.data_ptr() for name, p in teacher.inferencer.model.named_parameters()}
    assert ours == {pointer for name, pointer in theirs.items() if name not in unused(theirs)}
    assert not changed(before, teacher)
    assert teacher.inferencer.model.language_model.model.pooler is not None  # FARM keeps what we leave out


def test_settings_are_carried_over(saved: Make) -> None:
    farm_reader = FARMReader(saved(), **CUT, no_ans_boost=1.5, batch_size=7)
    farm_reader.update_parameters(doc_stride=8)
    reader = reader_from_farm(farm_reader)
    assert reader.window_settings == WindowSettings(48, 8, 16)
    assert reader.no_answer_threshold == -1.5
    assert (reader.batch_size, reader.precision, reader.device.type) == (7, "fp32", "cpu")
    assert (
        reader_from_farm(
            farm_reader, batch_size=2, window_settings=WindowSettings(32, 8, 8)
        ).window_settings.max_seq_len
        == 32
    )


def test_the_threshold_of_a_calibration_counts_once(tiny_reader: Make, squad_file: Path, tmp_path: Path) -> None:
    """A Reader takes a stored threshold off by itself, a FARMReader has `no_ans_boost` instead."""
    calibrated = tiny_reader()
    calibrated.model.config.calibration = {"temperature": 1.0, "no_answer_threshold": 3.0}
    pair = [(QUESTION, HARBOUR)]
    wanted = calibrated.predict_pairs(pair)[0].no_answer_gap - calibrated.no_answer_threshold
    student = farm_reader_from(calibrated, use_gpu=False, progress_bar=False)
    assert student.inferencer.model.prediction_heads[0].no_ans_boost == -3.0
    back = reader_from_farm(student)
    assert back.predict_pairs(pair)[0].no_answer_gap - back.no_answer_threshold == pytest.approx(wanted, abs=1e-4)
    plain = reader_from_farm(FARMReader(str(calibrated.save(tmp_path / "saved")), **CUT))
    gap = plain.predict_pairs(pair)[0].no_answer_gap - plain.no_answer_threshold
    assert gap == pytest.approx(wanted + 3.0, abs=1e-4)  # as the FARMReader itself: without a threshold
    run(student, "train", squad_file, save_dir=str(tmp_path / "out"))
    assert "calibration" not in json.loads((tmp_path / "out" / "config.json").read_text())


def test_readers_that_farm_does_not_have_are_refused(tiny_reader: Make, tmp_path: Path) -> None:
    fast = students.early_exit(tiny_reader())
    with pytest.raises(DistilError, match=r"has early exits; FARM cannot load it; .*farm_reader\.DistilledReader"):
        farm_reader_from(fast, use_gpu=False)
    with pytest.raises(DistilError, match=r"a reader with early exits, which .*farm_reader\.DistilledReader"):
        DistilFARMReader(str(fast.save(tmp_path / "fast")), **CUT)
    reader = Reader.load(tiny_reader().save(tmp_path / "base"), window_settings=WindowSettings(48, 16, 16))
    torch.nn.init.ones_(reader.model.qa_outputs.bias)
    with pytest.raises(DistilError, match=r"the trained weights of a reader alone.*save\(NEW_DIRECTORY\)"):
        DistilFARMReader(str(reader.save(tmp_path / "trained", only_trained=True)), **CUT)


def test_a_calibration_is_folded_into_the_head(teacher: FARMReader) -> None:
    teacher.inferencer.model.prediction_heads[0].temperature_for_confidence.data.fill_(2.5)
    _, before = farm_logits(teacher, HARBOUR)
    assert_same_logits(teacher, reader_from_farm(teacher))
    torch.testing.assert_close(farm_logits(teacher, HARBOUR)[1], before)
    assert teacher.inferencer.model.prediction_heads[0].temperature_for_confidence.item() == 1


def test_other_heads_are_refused(teacher: FARMReader) -> None:
    model = teacher.inferencer.model
    model.prediction_heads.append(QuestionAnsweringHead([32, 2]))
    with pytest.raises(DistilError, match="must have one question answering head"):
        reader_from_farm(teacher)
    model.prediction_heads = torch.nn.ModuleList([QuestionAnsweringHead([32, 8, 2])])
    with pytest.raises(DistilError, match=r"of one layer.*\[32, 8, 2\]"):
        reader_from_farm(teacher)


def test_a_reader_and_a_directory_become_a_farm_reader(tiny_reader: Make, tmp_path: Path) -> None:
    reader = tiny_reader()
    reader.no_answer_threshold = 0.5
    farm_reader = farm_reader_from(reader, use_gpu=False)
    assert_same_logits(farm_reader, reader)
    assert farm_reader.inferencer.model.prediction_heads[0].no_ans_boost == -0.5
    reader.save(tmp_path / "saved")
    assert_same_logits(farm_reader_from(tmp_path / "saved", **CUT), reader)


# --- Distillation and training, as Haystack 1 tests them -------------------------------------------------------------


def test_prediction_layer_distillation_changes_all_weights(
    student: DistilFARMReader, teacher: FARMReader, squad_file: Path
) -> None:
    before, teacher_before = weights(student), weights(teacher)
    result = run(student, "distil_prediction_layer_from", squad_file, teacher, n_epochs=2)
    assert changed(before, student) == set(before) - unused(before)
    assert not changed(teacher_before, teacher)
    assert result.steps > 1
    assert not student.inferencer.model.training


@pytest.mark.parametrize("width", [16, 32])
def test_intermediate_layer_distillation_changes_all_but_the_head(
    make: Make, teacher: FARMReader, squad_file: Path, width: int
) -> None:
    student = make(hidden_size=width)
    before, teacher_before = weights(student), weights(teacher)
    run(student, "distil_intermediate_layers_from", squad_file, teacher, n_epochs=2, distillation_loss_weight=1.0)
    assert changed(before, student) == set(before) - unused(before) - head(before)
    assert not changed(teacher_before, teacher)
    assert Path("saved_models/Bert_tinybert_stage_1/model.safetensors").exists()


def test_intermediate_layer_distillation_from_plain_text(
    student: DistilFARMReader, teacher: FARMReader, squad_file: Path, tmp_path: Path
) -> None:
    (tmp_path / "text.txt").write_text(f"{HARBOUR * 3}\n\nA glacier moves.\n   \nBees dance: é.\n", encoding="utf-8")
    tokenizer = teacher.inferencer.processor.tokenizer
    processor = UnlabeledTextProcessor(tokenizer, max_seq_len=40, train_filename="text.txt", data_dir=tmp_path)
    before = weights(student)
    result = run(student, "distil_intermediate_layers_from", squad_file, teacher, processor=processor, n_epochs=3)
    assert changed(before, student) == set(before) - unused(before) - head(before)
    long = len(tokenizer(HARBOUR * 3, add_special_tokens=False)["input_ids"])
    assert result_windows(result) == -(-long // 38) + 2


def test_windows_of_plain_text_are_single_sequences(student: DistilFARMReader, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text(f"{HARBOUR}\n\n A glacier moves.\n", encoding="utf-8")
    rows = farm._plain_text(tmp_path / "text.txt", tmp_path / "cache")
    assert rows["id"] == ["line 1", "line 3"]
    assert rows["context"] == [HARBOUR, "A glacier moves."]
    reader = reader_from_farm(student, window_settings=WindowSettings(12, doc_stride=12, max_query_length=1))
    windows = reader.cut(load_examples(rows, cache_dir=tmp_path / "cache"))
    batch = windows.collate(windows.__getitems__(range(len(windows))))
    ids = [row[mask.bool()].tolist() for row, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)]
    long, short = (reader.tokenizer(text)["input_ids"] for text in rows["context"])
    first, last = long[0], long[-1]
    assert ids[-1] == short
    assert all(window[0] == first and window[-1] == last for window in ids)
    assert [token for window in ids[:-1] for token in window[1:-1]] == long[1:-1]  # nothing lost, nothing twice
    assert not batch["token_type_ids"].any()
    assert not batch["labelled"].any()


def test_training_on_varying_numbers_of_answers(trained: dict[str, Any]) -> None:
    """Haystack 1 stops with a ValueError where questions have different numbers of answers (SQuAD 2.0's dev file)."""
    before = trained["before"]
    assert changed(before, trained["reader"]) == set(before) - unused(before)
    assert trained["result"].metrics["test_f1"] == 100


def test_farm_predicts_what_was_learnt(trained: dict[str, Any]) -> None:
    reader = trained["reader"]
    assert not torch.allclose(farm_logits(reader, HARBOUR)[1], trained["logits"], atol=0.1)
    assert_same_logits(reader, reader_from_farm(reader))
    assert reader.predict(QUESTION, [Document(HARBOUR)])["answers"][0].answer == "Cornelis Baak"
    assert reader_from_farm(reader).answer(QUESTION, HARBOUR)[0].text == "Cornelis Baak"


def test_the_teacher_may_be_a_reader_with_other_windows(
    student: DistilFARMReader, tiny_reader: Make, squad_file: Path
) -> None:
    teacher = tiny_reader(seed=1, window_settings=WindowSettings(32, 8, 8))
    before = weights(student)
    run(student, "distil_prediction_layer_from", squad_file, teacher, teacher_batch_size=2, distillation_loss="mse")
    assert changed(before, student) == set(before) - unused(before)
    assert teacher.batch_size == 16


def test_a_farm_teacher_sees_the_students_windows(
    saved: Make, idle: tuple, squad_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    student, teacher = (
        idle[0],
        FARMReader(saved(seed=1), max_seq_len=100, doc_stride=50, max_query_length=20, use_gpu=False),
    )
    seen = {}

    def spy(trainer: Any, teacher: Reader, *_: Any, **__: Any) -> RunResult:
        seen.update(teacher=teacher, student=trainer.student)
        raise KeyboardInterrupt

    monkeypatch.setattr(farm.ReaderTrainer, "distil_prediction_layer_from", spy)
    with pytest.raises(KeyboardInterrupt):
        run(student, "distil_prediction_layer_from", squad_file, teacher, max_seq_len=40, batch_size=3)
    assert seen["teacher"].window_settings == seen["student"].window_settings == WindowSettings(40, 16, 16)
    assert seen["teacher"].batch_size == 3


def test_student_and_teacher_must_not_be_the_same_model(idle: tuple, squad_file: Path) -> None:
    student = idle[0]
    for teacher in (student, reader_from_farm(student)):
        with pytest.raises(DistilError, match="the same model"):
            run(student, "distil_prediction_layer_from", squad_file, teacher)
    with pytest.raises(DistilError, match=r"must be a FARMReader or a haystack_distill\.Reader, not str"):
        run(student, "distil_prediction_layer_from", squad_file, "teacher")


# --- Losses of one's own ----------------------------------------------------------------------------------------------


def test_a_loss_of_haystack_1_is_scaled_as_there(make: Make, teacher: FARMReader, squad_file: Path) -> None:
    """f(student_logits, teacher_logits) on logits over T, times T squared: for squares, T cancels out."""

    def squares(student_logits: torch.Tensor, teacher_logits: torch.Tensor) -> torch.Tensor:
        assert student_logits.shape == teacher_logits.shape
        assert student_logits.shape[::2] == (1, 1)
        return ((student_logits - teacher_logits) ** 2).mean()

    def ours(student: torch.Tensor, teacher: torch.Tensor, mask: torch.Tensor, temperature: float) -> torch.Tensor:
        return ((student - teacher) ** 2).masked_fill(~mask, 0).sum(1) / mask.sum(1)

    found = []
    for loss in (squares, ours):
        student = make()
        settings = {"distillation_loss": loss, "temperature": 3.0, "learning_rate": 1e-3}
        torch.manual_seed(0)
        run(student, "distil_prediction_layer_from", squad_file, teacher, **settings)
        found.append(weights(student))
    for name in set(found[0]) - unused(found[0]):
        torch.testing.assert_close(found[0][name], found[1][name], rtol=1e-3, atol=1e-4)


def test_a_loss_that_takes_neither_is_refused(idle: tuple, squad_file: Path) -> None:
    student, teacher = idle
    with pytest.raises(DistilError, match="student_logits and teacher_logits by name"):
        run(student, "distil_prediction_layer_from", squad_file, teacher, distillation_loss=lambda a, b: a)


# --- Every argument is used or refused -------------------------------------------------------------------------------

REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("train", {"use_amp": "O1"}, "use_amp must be True or False"),
    ("train", {"devices": ["cpu", "cpu"]}, "one process trains on one device"),
    ("train", {"devices": ["cuda:0"], "use_gpu": False}, "contradict"),
    ("train", {"devices": ["cuda:1"]}, "CUDA_VISIBLE_DEVICES"),
    ("train", {"evaluate_every": -1, "dev_split": 0.2}, "evaluate_every must be at least 1"),
    ("train", {"dev_split": 0.2, "dev_filename": "dev.json"}, "give one of them"),
    ("train", {"dev_split": 1.5}, "dev_split must be"),
    ("train", {"dev_split": 0.99}, "leaves none to train on"),
    ("train", {"checkpoint_every": 0}, "checkpoint_every must be at least 1"),
    ("train", {"grad_acc_steps": 0}, "grad_acc_steps must be"),
    ("train", {"warmup_proportion": 1.0}, "warmup_proportion must be"),
    ("train", {"n_epochs": 0}, "n_epochs must be"),
    ("train", {"max_seq_len": 0}, "max_seq_len must be"),
    ("train", {"max_seq_len": 4096}, "more than the 128 positions"),
    ("train", {"max_query_length": 60}, "leaves no room"),
    ("train", {"train_filename": "absent.json"}, "no such file"),
    ("train", {"early_stopping": EarlyStopping(metric="f1", mode="max")}, "needs dev_filename"),
    ("train", {"early_stopping": EarlyStopping(), "dev_split": 0.2}, 'metric="f1"'),
    ("train", {"early_stopping": object(), "dev_split": 0.2}, "must be a haystack.utils.EarlyStopping"),
    (
        "train",
        {"early_stopping": EarlyStopping(metric="f1", mode="max", min_delta=0.1), "dev_split": 0.2},
        "min_evals and min_delta",
    ),
    (
        "train",
        {"early_stopping": EarlyStopping(metric="f1", mode="max"), "dev_split": 0.2, "checkpoint_every": 7},
        "leave checkpoint_every out",
    ),
    ("distil_prediction_layer_from", {"temperature": 0.0}, "temperature must be a number above 0"),
    ("distil_prediction_layer_from", {"temperature": 2.0, "distillation_loss": "mse"}, "no effect"),
    ("distil_prediction_layer_from", {"distillation_loss": "kl"}, "distillation_loss must be"),
    (
        "distil_prediction_layer_from",
        {"distillation_loss_weight": 2.0},
        "distillation_loss_weight must be a number from 0",
    ),
    ("distil_intermediate_layers_from", {"temperature": 5.0}, "temperature=5.0"),
    ("distil_intermediate_layers_from", {"distillation_loss_weight": 0.9}, "teacher alone"),
    ("distil_intermediate_layers_from", {"distillation_loss": "kl_div"}, "mean squared difference"),
    ("distil_intermediate_layers_from", {"teacher_batch_size": 99}, "student's batches"),
]


@pytest.mark.parametrize(
    ("method", "arguments", "message"), REFUSED, ids=[f"{method}: {message}" for method, _, message in REFUSED]
)
def test_refused(idle: tuple, squad_file: Path, method: str, arguments: dict[str, Any], message: str) -> None:
    student, teacher = idle
    before = weights(student)
    with pytest.raises(DistilError, match=message):
        run(student, method, squad_file, teacher, **arguments)
    assert not changed(before, student)
    assert not Path("saved_models").exists() or not list(Path("saved_models").iterdir())


def test_what_changes_no_result_is_named_in_one_warning(
    student: DistilFARMReader, squad_file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    idle = {"num_processes": 4, "evaluate_every": 5, "checkpoints_to_keep": 1, "cache_path": Path("elsewhere")}
    run(student, "train", squad_file, **idle)
    (warning,) = [record.getMessage() for record in caplog.records if "without effect" in record.getMessage()]
    assert warning.partition(": ")[2].split(", ") == [
        "num_processes",
        "evaluate_every without dev_filename or dev_split",
        "checkpoints_to_keep without checkpoint_every",
        "cache_path without caching=True",
    ]
    assert not Path("elsewhere").exists()
    assert not Path("model_checkpoints").exists()
    caplog.clear()
    run(student, "train", squad_file, num_processes=0, evaluate_every=0)
    assert not [record for record in caplog.records if "without effect" in record.getMessage()]


def test_refused_processors(idle: tuple, squad_file: Path, tmp_path: Path) -> None:
    student, teacher = idle
    (tmp_path / "text.txt").write_text(HARBOUR, encoding="utf-8")
    (tmp_path / "latin.txt").write_bytes("é".encode("latin-1"))
    (tmp_path / "blank.txt").write_text("\n \n", encoding="utf-8")
    tokenizer = student.inferencer.processor.tokenizer

    def plain(name: str = "text.txt", **arguments: Any) -> UnlabeledTextProcessor:
        return UnlabeledTextProcessor(tokenizer, 40, train_filename=name, data_dir=tmp_path, **arguments)

    cases: list[tuple[str, Any, dict[str, Any], str]] = [
        ("distil_prediction_layer_from", plain(), {}, "reads no questions"),
        ("distil_intermediate_layers_from", InferenceProcessor(tokenizer, 40), {}, "not InferenceProcessor"),
        ("distil_intermediate_layers_from", plain(), {"max_seq_len": 20}, "the processor has 40"),
        ("distil_intermediate_layers_from", plain(), {"dev_split": 0.5}, "the processor has 0"),
        ("distil_intermediate_layers_from", plain(dev_filename="text.txt"), {}, "no answers to measure on"),
        ("distil_intermediate_layers_from", plain("latin.txt"), {}, "not UTF-8"),
        ("distil_intermediate_layers_from", plain("blank.txt"), {}, "holds no text"),
        ("distil_intermediate_layers_from", plain("absent.txt"), {}, "no such file"),
    ]
    for method, processor, arguments, message in cases:
        with pytest.raises(DistilError, match=message):
            run(student, method, squad_file, teacher, processor=processor, **arguments)


def test_a_processor_with_another_tokenizer_is_refused(idle: tuple, saved: Make, squad_file: Path) -> None:
    student, teacher = idle
    tokenizer = BertTokenizerFast.from_pretrained(saved())
    tokenizer.add_tokens(["harbour"])
    processor = UnlabeledTextProcessor(tokenizer, 40, train_filename=squad_file.name, data_dir=squad_file.parent)
    with pytest.raises(DistilError, match="tokenizer is not the student's"):
        run(student, "distil_intermediate_layers_from", squad_file, teacher, processor=processor)


def test_a_squad_processor_decides_files_and_windows(
    student: DistilFARMReader, teacher: FARMReader, squad_file: Path
) -> None:
    processor = SquadProcessor(
        student.inferencer.processor.tokenizer,
        max_seq_len=32,
        data_dir=squad_file.parent,
        train_filename=squad_file.name,
        dev_filename=squad_file.name,
        doc_stride=8,
        max_query_length=12,
    )
    arguments = {"processor": processor, "train_filename": "unused.json", "save_dir": "out"}
    result = run(student, "distil_prediction_layer_from", squad_file, teacher, **arguments)
    assert result.metrics["total"] == 8
    record = json.loads(Path("out/haystack_distill.json").read_text())
    assert record["windows"] == {"max_seq_len": 32, "doc_stride": 8, "max_query_length": 12}


def test_arguments_reach_the_trainer(student: DistilFARMReader, teacher: FARMReader, squad_file: Path) -> None:
    run(
        student,
        "distil_prediction_layer_from",
        squad_file,
        teacher,
        save_dir="out",
        batch_size=3,
        n_epochs=2,
        learning_rate=1e-4,
        max_seq_len=40,
        warmup_proportion=0.3,
        grad_acc_steps=2,
        dev_filename=squad_file.name,
        evaluate_every=3,
        use_amp=True,
        use_gpu=True,  # where there is one
        num_processes=1,
        temperature=2.0,
        distillation_loss_weight=0.75,
    )
    record = json.loads(Path("out/haystack_distill.json").read_text())
    assert record["arguments"] == {
        "temperature": 2.0,
        "distillation_loss_weight": 0.75,
        "distillation_loss": "kl_div",
        "final_temperature": None,
        "flsw_beta": 0.0,
        "flsw_gamma": 1.0,
    }
    assert record["windows"] == {"max_seq_len": 40, "doc_stride": 16, "max_query_length": 16}
    expected = {
        "batch_size": 3,
        "n_epochs": 2,
        "learning_rate": 1e-4,
        "warmup_proportion": 0.3,
        "gradient_accumulation_steps": 2,
        "evaluate_every": 2,  # batches in Haystack 1, optimiser steps here
        "precision": "auto",
        "dropout": None,
        "seed": 42,
    }
    assert expected.items() <= record["settings"].items()


def test_dev_split_holds_out_whole_contexts_the_same_each_time(squad_file: Path) -> None:
    examples = load_examples(squad_file)
    data, dev = farm._hold_out(examples, 0.3)
    assert 2 <= len(dev) <= 4
    assert sorted([*data["id"], *dev["id"]]) == sorted(examples["id"])
    assert not set(data["context"]) & set(dev["context"])
    assert farm._hold_out(examples, 0.3)[1]["id"] == dev["id"]


def test_early_stopping_restores_the_best_weights(student: DistilFARMReader, squad_file: Path) -> None:
    stopping = EarlyStopping(metric="f1", mode="max", patience=0, save_dir="best")
    arguments = {"n_epochs": 40, "evaluate_every": 1, "early_stopping": stopping, "learning_rate": 1e-9}
    result = run(student, "train", squad_file, dev_filename=squad_file.name, save_dir="out", **arguments)
    assert result.steps == 2  # the first evaluation is the best, the second no better
    best, saved = (AutoModelForQuestionAnswering.from_pretrained(name).state_dict() for name in ("best", "out"))
    assert all(torch.equal(best[name], saved[name]) for name in saved)


@pytest.mark.parametrize("caching", [True, False])
def test_caching(student: DistilFARMReader, teacher: FARMReader, squad_file: Path, caching: bool, cache: Path) -> None:
    before = set(cache.rglob("*"))
    where = {"cache_path": Path("kept")} if caching else {}
    run(student, "distil_prediction_layer_from", squad_file, teacher, caching=caching, dev_split=0.3, **where)
    kinds = {file.name for file in Path("kept").iterdir() if file.is_dir()} if caching else set()
    assert caching == ({"windows", "teachers"} <= kinds)
    assert set(cache.rglob("*")) == before  # nothing in the cache of others


class Interrupting:
    """A loss that is interrupted at its n-th call, as by a user's Ctrl-C."""

    __qualname__ = "squares"

    def __init__(self, calls: int) -> None:
        self.left = calls

    def __reduce__(self) -> tuple[type, tuple]:
        return type(self), ()  # how often it was called decides no value: not what a resumed run has to have alike

    def __call__(self, student_logits: torch.Tensor, teacher_logits: torch.Tensor) -> torch.Tensor:
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt
        return ((student_logits - teacher_logits) ** 2).mean()


def test_an_interrupted_run_goes_on_from_its_checkpoint(make: Make, teacher: FARMReader, squad_file: Path) -> None:
    arguments = {"n_epochs": 2, "checkpoint_every": 1, "checkpoints_to_keep": 1, "learning_rate": 1e-3}
    method = "distil_prediction_layer_from"
    straight = make()
    steps = run(
        straight, method, squad_file, teacher, distillation_loss=Interrupting(-1), **arguments, save_dir="straight"
    ).steps
    broken = make()
    arguments["checkpoint_root_dir"] = "checks"
    with pytest.raises(KeyboardInterrupt):
        run(broken, method, squad_file, teacher, distillation_loss=Interrupting(20), **arguments)
    assert len(list(Path("checks").rglob("checkpoint-*"))) == 1
    calls = Interrupting(10**6)
    again = make()
    result = run(again, method, squad_file, teacher, distillation_loss=calls, **arguments)
    assert result.steps == steps
    assert 0 < 10**6 - calls.left < 2 * result_windows(result) * 2  # not from the beginning
    assert changed(weights(straight), again) <= unused(weights(again))  # FARM makes a random pooler each time
    assert not list(Path("checks").rglob("checkpoint-*"))


def test_a_checkpoint_directory_of_the_users_stays(student: DistilFARMReader, squad_file: Path) -> None:
    theirs = Path("project/train/articles.txt")
    theirs.parent.mkdir(parents=True)
    theirs.write_text("mine")
    with pytest.raises(DistilError, match=r"project/train, where checkpoints would be kept, holds other files"):
        run(student, "train", squad_file, checkpoint_root_dir="project", checkpoint_every=2)
    run(student, "train", squad_file, checkpoint_root_dir="project")
    run(student, "train", squad_file, checkpoint_root_dir="other", checkpoint_every=2)
    assert theirs.read_text() == "mine"
    assert not Path("other/train").exists()


def test_weights_too_coarse_to_train_are_refused(make: Make, squad_file: Path) -> None:
    student = make()
    student.inferencer.model.half()
    with pytest.raises(DistilError, match=r"torch\.float16, too coarse to train"):
        run(student, "train", squad_file)


def test_bad_data_is_an_error_that_names_the_place(student: DistilFARMReader, squad_file: Path) -> None:
    content = json.loads(squad_file.read_text())
    content["data"][0]["paragraphs"][0]["qas"][0]["answers"][0]["text"] = "nowhere to be found"
    squad_file.write_text(json.dumps(content))
    with pytest.raises(DataError, match="paragraph 0, question 0"):
        run(student, "train", squad_file)


@pytest.mark.parametrize("method", METHODS)
def test_bad_questions_may_be_skipped(
    student: DistilFARMReader, teacher: FARMReader, squad_file: Path, method: str
) -> None:
    content = json.loads(squad_file.read_text())
    content["data"].insert(0, {"title": ["no title"], "paragraphs": content["data"][0]["paragraphs"]})
    for number, qa in enumerate(content["data"][1]["paragraphs"][1]["qas"]):
        qa["id"] = number  # as in Haystack's own tiny.json
    squad_file.write_text(json.dumps(content))
    arguments = {} if method == "train" else {"teacher": teacher}
    with pytest.raises(DataError, match="the title must be a string"):
        run(student, method, squad_file, **arguments)
    result = run(student, method, squad_file, **arguments, on_bad_example="skip")
    assert json.loads((result.directory / "haystack_distill.json").read_text())["data"]["examples"] == 8
    with pytest.raises(DistilError, match="unknown on_bad_example 'ignore'"):
        run(student, method, squad_file, **arguments, on_bad_example="ignore")


def test_half_a_surrogate_pair_can_be_asked(idle: tuple) -> None:
    reader, documents = idle[0], [Document(HARBOUR)]
    expected = reader.predict("Who \ufffd?", documents)["answers"]
    assert reader.predict("Who \udfff?", documents)["answers"] == expected
    assert reader.predict_batch(["Who \udfff?"], documents)["answers"] == [expected]


# --- Saving, pipelines -----------------------------------------------------------------------------------------------


def test_save_writes_a_directory_that_all_load(student: DistilFARMReader, tmp_path: Path) -> None:
    FARMReader.save(student, tmp_path / "saved")  # pickles of an older model, which FARMReader would prefer
    with torch.no_grad():
        for parameter in student.inferencer.model.parameters():
            parameter.mul_(1.5)
    student.inferencer.model.prediction_heads[0].temperature_for_confidence.data.fill_(1.0)
    student.save(directory=tmp_path / "saved")
    assert not [file.name for file in (tmp_path / "saved").iterdir() if file.suffix in (".bin", ".pt", ".pkl")]
    for loaded in (FARMReader("saved", **CUT), DistilFARMReader("saved", **CUT)):
        torch.testing.assert_close(farm_logits(loaded, HARBOUR)[1], farm_logits(student, HARBOUR)[1])
    loaded = Reader.load("saved", window_settings=WindowSettings(48, 16, 16), device="cpu", precision="fp32")
    assert_same_logits(student, loaded)
    _, loading = AutoModelForQuestionAnswering.from_pretrained("saved", output_loading_info=True)
    assert not loading["missing_keys"]
    assert not loading["unexpected_keys"]


def test_it_answers_in_a_pipeline_that_goes_to_yaml_and_back(trained: dict[str, Any], tmp_path: Path) -> None:
    reader = DistilFARMReader(model_name_or_path=str(trained["result"].directory), **CUT, return_no_answer=True)
    store = InMemoryDocumentStore(use_bm25=True)
    store.write_documents([Document(HARBOUR), Document(BEES)])
    pipeline = Pipeline()
    pipeline.add_node(BM25Retriever(store), "Retriever", ["Query"])
    pipeline.add_node(reader, "Reader", ["Retriever"])
    answers = pipeline.run(query=QUESTION)["answers"]
    assert {"Cornelis Baak", ""} <= {answer.answer for answer in answers}

    pipeline.save_to_yaml(tmp_path / "pipeline.yaml")
    written = (tmp_path / "pipeline.yaml").read_text()
    assert "type: DistilFARMReader" in written
    loaded = Pipeline.load_from_yaml(tmp_path / "pipeline.yaml")
    again = loaded.get_node("Reader")
    assert type(again) is DistilFARMReader
    assert again.get_params() == reader.get_params()
    assert again.get_params()["max_seq_len"] == 48
    assert (
        again.predict(QUESTION, [Document(HARBOUR)])["answers"]
        == reader.predict(QUESTION, [Document(HARBOUR)])["answers"]
    )


def test_nothing_is_left_behind(student: DistilFARMReader, squad_file: Path) -> None:
    run(student, "train", squad_file, save_dir="deep/out")
    assert os.listdir("deep") == ["out"]
    names = {"config.json", "haystack_distill.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    assert names <= set(os.listdir("deep/out"))
    assert not Path("deep/out/checkpoints").exists()
    assert not Path("model_checkpoints").exists()


# --- directories that others wrote -----------------------------------------------------------------------------------


def test_a_directory_that_farm_reader_saved_is_converted(make: Make, tmp_path: Path) -> None:
    make(kind=FARMReader, seed=1, **TEACHER).save(tmp_path / "old")
    with pytest.raises(DistilError, match=r"Haystack 1's own format.*DistilFARMReader\('.*old'\)\.save"):
        Reader.load(tmp_path / "old")
    old = DistilFARMReader(str(tmp_path / "old"), **CUT)
    old.save(tmp_path / "new")
    new = Reader.load(tmp_path / "new", window_settings=WindowSettings(48, 16, 16), device="cpu", precision="fp32")
    found, wanted = (reader.answer(QUESTION, HARBOUR, 5) for reader in (new, reader_from_farm(old)))
    assert [answer.text for answer in found] == [answer.text for answer in wanted]
    assert [answer.logit for answer in found] == pytest.approx([answer.logit for answer in wanted], abs=1e-5)


def change(file: Path, **entries: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | entries))


@pytest.mark.parametrize(
    ("file", "entries", "message"),
    [
        ("tokenizer_config.json", {"tokenizer_class": "TokenizersBackend"}, r"transformers 5 wrote.*Reader\.load\("),
        ("tokenizer_config.json", {"extra_special_tokens": ["<q>"]}, "transformers 5 wrote"),
        ("config.json", {"id2label": {"0": "a", "1": "b", "2": "c"}}, "a head of 3 labels"),
        ("config.json", {"model_type": "own", "auto_map": {"AutoConfig": "own.Own"}}, "code of its own"),
        ("config.json", {"model_type": ""}, "knows no '' models"),
        ("config.json", {"model_type": "bilstm"}, r"a BiLSTM reader, which .*farm_reader\.DistilledReader"),
    ],
)
def test_directories_that_farm_reader_cannot_read(
    saved: Make, tmp_path: Path, file: str, entries: dict[str, Any], message: str
) -> None:
    shutil.copytree(saved(), tmp_path / "odd")
    change(tmp_path / "odd" / file, **entries)
    with pytest.raises(DistilError, match=message):
        DistilFARMReader(str(tmp_path / "odd"), **CUT)


def test_a_reader_of_a_model_with_another_head_can_be_read_by_all(saved: Make, tmp_path: Path) -> None:
    shutil.copytree(saved(), tmp_path / "mnli")
    change(
        tmp_path / "mnli" / "config.json", id2label={"0": "a", "1": "b", "2": "c"}, label2id={"a": 0, "b": 1, "c": 2}
    )
    Reader.load(tmp_path / "mnli", window_settings=WindowSettings(48, 16, 16)).save(tmp_path / "fresh")
    DistilFARMReader(str(tmp_path / "fresh"), **CUT).save(tmp_path / "again")
    assert Reader.load(tmp_path / "again", window_settings=WindowSettings(48, 16, 16)).answer(QUESTION, HARBOUR)


def test_a_teacher_without_a_head_is_named_and_teaches(
    student: DistilFARMReader, saved: Make, directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Haystack 1's own tests distil from such models."""
    BertModel(BertConfig.from_pretrained(saved(seed=1, **TEACHER))).save_pretrained("headless")
    for file in Path(saved(seed=1, **TEACHER)).iterdir():
        if file.name not in ("config.json", "model.safetensors"):
            shutil.copy(file, "headless")
    teacher = DistilFARMReader("headless", **CUT)
    (directory / "train.json").write_text(json.dumps(squad_content()))
    arguments: dict[str, Any] = {"data_dir": ".", "train_filename": "train.json", "n_epochs": 1}
    with caplog.at_level("WARNING", "haystack_distill"):
        student.distil_prediction_layer_from(teacher, **arguments)
    assert "headless holds no weights for a question answering head" in caplog.text
    caplog.clear()
    teacher.train(**arguments)
    with caplog.at_level("WARNING", "haystack_distill"):
        student.distil_prediction_layer_from(teacher, **arguments)
    assert "holds no weights" not in caplog.text
