"""ReaderTrainer: data, teachers and models of all kinds, with any method."""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from torch import Tensor
from transformers import (
    BertTokenizerFast,
    PreTrainedTokenizerFast,
)

from haystack_distill import DataError, DistilError, Reader, ReaderTrainer, TrainingSettings, WindowSettings, students
from haystack_distill.data.squad.load import load_examples
from haystack_distill.data.transfer import TransferSet
from haystack_distill.objectives import (
    IntermediateLayers,
    Labels,
    Method,
    Objective,
    PredictionLayer,
    TaskFilters,
)
from haystack_distill.students.configured import from_config
from haystack_distill.teachers import LiveTeacher, Teacher
from haystack_distill.training.adaptation import Adaptation, Head
from haystack_distill.training.reader_trainer import warn_of_shared_contexts
from haystack_distill.utils.model_fingerprint import model_fingerprint
from haystack_distill.utils.transformers_compat import save_model
from tests.training.helpers import (
    METHODS,
    Killed,
    LastState,
    MakeReader,
    RunMethod,
    kill_at_step,
    logged,
    other_family,
    same,
    settings,
    weights_of,
)

QUICK = TrainingSettings(
    max_steps=6, batch_size=4, learning_rate=1e-3, precision="fp32", progress=False, log_every=1, checkpoint_every=None
)


def test_an_adaptation_where_the_student_does_not_learn(tiny_reader: Callable[..., Reader], squad_file: Path) -> None:
    student = students.from_teacher(tiny_reader(), layers=1)
    with pytest.raises(DistilError, match="task_filters trains no weight that the student's answers depend on"):
        ReaderTrainer(student).distil(tiny_reader(), squad_file, "task_filters", adaptation=Head())


def test_the_weights_that_the_optimiser_changes_are_counted(tiny_reader: MakeReader, data: Path) -> None:
    teacher, student = tiny_reader(seed=1), tiny_reader()
    quick = ReaderTrainer(student, settings=replace(QUICK, max_steps=1))
    config = student.model.config
    filters = TaskFilters().objective(config, teacher.model.config)
    assert quick.distil(teacher, data, TaskFilters()).trained == sum(one.numel() for one in filters.parameters())
    head = 2 * config.hidden_size + 2
    assert quick.distil(None, data, Labels(), adaptation=Head()).trained == head
    layers = quick.distil(teacher, data, IntermediateLayers()).trained
    assert layers == sum(one.numel() for one in student.model.parameters()) - head


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


def test_choosing_needs_dev_data(pair: Callable, data: Path) -> None:
    for chosen in ({"keep_best": True}, {"evaluate_every": 3}, {"evaluate_every": "epoch"}):
        with pytest.raises(DistilError, match=f"{next(iter(chosen))} has no effect without dev_data"):
            ReaderTrainer(pair()[0], settings=settings(**chosen)).train(data)


def test_a_share_of_the_articles_is_held_out(pair: Callable, squad_file: Path, tmp_path: Path) -> None:
    content = json.loads(squad_file.read_text())
    content["data"] = [
        {**content["data"][0], "title": f"{number}", "paragraphs": [paragraph]}
        for number, paragraph in enumerate(content["data"][0]["paragraphs"])
    ]
    squad_file.write_text(json.dumps(content))
    chosen = settings(max_steps=2, keep_best=True, evaluate_every=1)
    trainer = ReaderTrainer(pair()[0], tmp_path / "run", chosen)
    result = trainer.train(squad_file, dev_split=0.25)
    record = json.loads((tmp_path / "run" / "haystack_distill.json").read_text())
    assert (record["dev_split"], record["data"]["examples"]) == (0.25, 6)
    assert record["dev_data"] is not None
    assert result.metrics["total"] == 2
    with pytest.raises(DistilError, match="dev_data and dev_split are two ways to one thing"):
        trainer.train(squad_file, squad_file, dev_split=0.25)
    with pytest.raises(DistilError, match="dev_split must be a number between 0 and 1"):
        trainer.train(squad_file, dev_split=1)


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
    with pytest.raises(DistilError, match=r"none of the examples is labelled.*take a method that learns"):
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


@pytest.mark.parametrize("method", METHODS[1:])
def test_a_teacher_is_not_changed(pair: Callable, data: Path, method: RunMethod) -> None:
    student, teacher = pair()
    before = model_fingerprint(teacher.model)
    method(ReaderTrainer(student, settings=settings(n_epochs=1)), teacher, data)
    assert model_fingerprint(teacher.model) == before
    assert not teacher.model.training
    assert all(parameter.grad is None for parameter in teacher.model.parameters())


@pytest.mark.parametrize("method", METHODS[1:])
def test_a_reader_cannot_teach_itself(pair: Callable, data: Path, method: RunMethod) -> None:
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


@pytest.mark.parametrize("kind", ["bert", "roberta", "distilbert", "electra", "albert"])
def test_each_family_can_be_taught(tokenizer: BertTokenizerFast, data: Path, kind: str) -> None:
    teacher = other_family(kind, tokenizer)
    for (
        parameter
    ) in teacher.model.parameters():  # else its layers are next to the identity, and nothing is to be learnt
        torch.nn.init.normal_(parameter, std=0.2)
    chosen = settings(n_epochs=4, batch_size=8, learning_rate=1e-2)
    student = from_config(teacher, hidden_size=8, num_hidden_layers=1)
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


# --- methods ----------------------------------------------------------------------------------------------------


@pytest.fixture
def teacher(tiny_reader: MakeReader) -> Reader:
    return tiny_reader()


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


@dataclass(frozen=True)
class LastStateMethod(Method):
    """Last state: a method of the test's own."""

    power: float = 2.0

    def objective(self, student, teacher) -> Objective:
        return LastState(student.hidden_size, teacher.hidden_size, self.power)


@pytest.mark.parametrize("kind", ["objective", "sum"])
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
    name = {"objective": "LastState", "sum": "LastStateMethod + labels"}[kind]
    assert record["method"] == name
    assert record["code"]
    with monkeypatch.context() as patch:
        kill_at_step(patch, 3)
        with pytest.raises(Killed):
            run(tmp_path / "run")
    with pytest.raises(DistilError, match="cannot resume the run"):
        run(tmp_path / "run", power=1.5, resume=True)
    resumed, again = run(tmp_path / "run", resume=True)
    assert same(weights_of(student), weights_of(again))
    assert logged(resumed, "loss_last") == logged(whole, "loss_last")


def test_nothing_to_learn(teacher: Reader, squad_file: Path) -> None:
    student = students.from_teacher(teacher, layers=2)
    with pytest.raises(DistilError, match="all weights of prediction_layer are 0"):
        ReaderTrainer(student, settings=QUICK).distil(teacher, squad_file, 0 * PredictionLayer())


class PlainAdaptation(Adaptation):
    def prepare(self, model) -> None:
        """Nothing."""


def test_an_adaptation_must_be_a_dataclass(teacher: Reader, squad_file: Path) -> None:
    with pytest.raises(DistilError, match=r"PlainAdaptation must be a dataclass; add @dataclass\(frozen=True\)"):
        ReaderTrainer(teacher, settings=QUICK).distil(None, squad_file, "labels", adaptation=PlainAdaptation())


class Own(Teacher):
    """A teacher of the user's own: a live one behind a class that this package does not know."""

    def __init__(self, reader: Reader, config: Any = None) -> None:
        self.live = LiveTeacher(reader)
        self.config = config

    @property
    def fingerprint(self) -> dict[str, Any]:
        return self.live.fingerprint

    def outputs(self, batch, request):
        return self.live.outputs(batch, request)


def test_a_teacher_of_ones_own(teacher: Reader, squad_file: Path, tmp_path: Path) -> None:
    def run(source: Any, directory: Path | None = None) -> Any:
        student = students.from_teacher(teacher, layers=2)
        return ReaderTrainer(student, directory, QUICK).distil(source, squad_file, IntermediateLayers())

    with pytest.raises(DistilError, match="set `config` of your own Teacher"):
        run(Own(teacher))
    own, ours = run(Own(teacher, teacher.model.config), tmp_path / "run"), run(teacher)
    assert logged(own, "loss") == logged(ours, "loss")
    record = json.loads((tmp_path / "run" / "haystack_distill.json").read_text())
    assert record["code"].keys() == {"teacher 1"}
    with pytest.raises(DistilError, match="must be a Reader, a list of readers or a Teacher, not str"):
        run("embedded")


def test_the_named_ways_pass_on_what_distil_takes(pair: Callable, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[dict[str, Any]] = []
    monkeypatch.setattr(ReaderTrainer, "distil", lambda self, *_, **keywords: given.append(keywords))
    student, teacher = pair()
    trainer, transfer = ReaderTrainer(student), TransferSet(str(data))
    options = {"dev_split": 0.1, "adaptation": Head()}
    trainer.train(data, **options)
    trainer.distil_prediction_layer_from(teacher, data, **options, transfer=transfer)
    trainer.distil_intermediate_layers_from(teacher, data, **options, transfer=transfer)
    assert given == [options, options | {"transfer": transfer}, options | {"transfer": transfer}]


def test_labels_train_the_head_alone_where_it_is_adapted(tiny_reader: MakeReader, data: Path) -> None:
    student = tiny_reader()
    before = weights_of(student)
    ReaderTrainer(student, None, settings(max_steps=2)).train(data, adaptation=Head())
    changed = {name for name, tensor in weights_of(student).items() if not torch.equal(tensor, before[name])}
    assert changed == {"qa_outputs.weight", "qa_outputs.bias"}
