"""Readers with early exits: the full reader to the bit, batches that shrink, threads, families, save and load."""

import math
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import CONFIG_MAPPING, AutoModelForQuestionAnswering

from haystack_distill import Reader, students
from haystack_distill.errors import DistilError
from haystack_distill.models import reader as reader_module
from haystack_distill.models.early_exit import (
    EarlyExitModel,
    _layers,
    early_exit_class,
    early_exit_config,
    families,
    uncertainty,
)
from haystack_distill.models.outputs import OutputRequest, run_model

MakeReader = Callable[..., Reader]
SHAPES = {
    "hidden_size": 16,
    "dim": 16,
    "num_hidden_layers": 4,
    "n_layers": 4,
    "num_attention_heads": 2,
    "n_heads": 2,
    "intermediate_size": 24,
    "hidden_dim": 24,
    "embedding_size": 8,
    "max_position_embeddings": 40,
    "vocab_size": 60,
    "pad_token_id": 0,
}
PAIRS = [
    ("When was the first program written?", "Ada Lovelace wrote the first program in 1843."),
    ("Who built the harbour?", "The harbour of Lindow was built in 1702 by Cornelis Baak, who came from Delft. " * 4),
    ("Why do bees dance?", "Bees dance to tell their sisters where the flowers are."),
    ("How far does a glacier move?", "A glacier moves a few metres a year. The fastest one moved forty metres a day."),
]


def model_of(family: str) -> EarlyExitModel:
    config = early_exit_config(family)(branch_size=8, match_size=4)
    for name, value in SHAPES.items():
        if hasattr(config, name):
            setattr(config, name, value)
    torch.manual_seed(1)
    return early_exit_class(family)(config).eval()


def batch(windows: int = 7) -> dict[str, Tensor]:
    torch.manual_seed(2)
    mask = torch.ones(windows, 20, dtype=torch.long)
    mask[3:, 15:] = 0
    return {"input_ids": torch.randint(5, 60, (windows, 20)) * mask, "attention_mask": mask}


@torch.inference_mode()
def every_layer(model: EarlyExitModel, inputs: dict[str, Tensor]) -> list[tuple[Tensor, Tensor]]:
    """Start and end logits of each layer, of the whole batch."""
    outputs = run_model(model, inputs, OutputRequest(logits=True, exits=True))
    return [*outputs.exits, (outputs.start_logits, outputs.end_logits)]


@pytest.mark.parametrize("family", families())
@torch.inference_mode()
def test_smaller_batches_have_the_logits_of_whole_ones(family: str) -> None:
    model, inputs = model_of(family), batch()
    layers = every_layer(model, inputs)
    mask = inputs["attention_mask"]
    lowest = torch.stack([uncertainty(*one, mask) for one in layers[:-1]]).amin(dim=0)
    (found,) = model.exit_early(
        [inputs], float(lowest.sort().values[3]) + 1e-6
    )  # four of seven leave before the last layer
    assert sorted((found.layers < 4).tolist()).count(True) == 4
    for row, layer in enumerate(found.layers.tolist()):
        length = int(mask[row].sum())
        for own, whole in zip((found.start_logits, found.end_logits), layers[layer - 1], strict=True):
            torch.testing.assert_close(own[row, :length], whole[row, :length], atol=1e-5, rtol=1e-4)
    assert model.exit_early([inputs], 1)[0].layers.tolist() == [1] * 7
    plain = model(**inputs)
    (none,) = model.exit_early([inputs], 0)
    assert torch.equal(none.start_logits, plain.start_logits)
    assert torch.equal(none.end_logits, plain.end_logits)
    assert none.layers.tolist() == [4] * 7


@pytest.mark.parametrize("family", families())
def test_auto_classes_load_what_was_saved(family: str, tmp_path: Path) -> None:
    model = model_of(family)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForQuestionAnswering.from_pretrained(tmp_path)
    assert type(loaded) is type(model)
    assert loaded.config.branch_size == 8
    assert all(torch.equal(weight, loaded.state_dict()[name]) for name, weight in model.state_dict().items())


@pytest.mark.slow
def test_transformers_knows_them_once_the_package_is_imported(tiny_reader: MakeReader, tmp_path: Path) -> None:
    """In a process of its own, where nothing else was imported."""
    students.early_exit(tiny_reader()).save(tmp_path)
    # Some configurations of transformers 5 import the auto classes while they are imported.
    code = (
        "import haystack_distill; from transformers import BertConfig, AutoModelForQuestionAnswering; "
        f"print(type(AutoModelForQuestionAnswering.from_pretrained({str(tmp_path)!r})).__name__)"
    )
    printed = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert printed.strip() == "EarlyExitBertForQuestionAnswering"


def test_uncertainty_by_hand() -> None:
    uniform = torch.zeros(1, 4)
    mask = torch.tensor([[1, 1, 0, 1]])
    certain = torch.tensor([[50.0, 0.0, 99.0, 0.0]])
    assert uncertainty(uniform, uniform, mask).tolist() == pytest.approx([1.0])
    assert uncertainty(certain, certain, mask).tolist() == pytest.approx([0.0])
    assert uncertainty(certain, uniform, mask).tolist() == pytest.approx([0.5])
    # Three quarters on one of two tokens: 0.5623 nats of 0.6931.
    two = torch.tensor([[3.0, 1.0]]).log()
    assert uncertainty(two, two, torch.ones(1, 2)).tolist() == pytest.approx([0.8113], abs=1e-4)
    assert uncertainty(two, two, torch.tensor([[1, 0]])).tolist() == pytest.approx([0.0])  # of a single token


# --- the reader -------------------------------------------------------------------------------------------------------


@pytest.fixture
def reader(tiny_reader: MakeReader) -> Reader:
    made = students.early_exit(tiny_reader(), branch_size=8)
    for number, branch in enumerate(made.model.branches):  # far from uniform, and not all alike
        torch.nn.init.normal_(branch[2].weight, std=2.0 + number)
    return made


def test_speed_0_is_the_full_reader(tiny_reader: MakeReader, reader: Reader) -> None:
    plain = tiny_reader()
    assert reader.answer_batch(PAIRS, 3) == plain.answer_batch(PAIRS, 3)
    assert reader.answer_batch(PAIRS, 3, speed=0.0) == plain.answer_batch(PAIRS, 3)


def test_fewer_layers_run_the_higher_the_speed(reader: Reader) -> None:
    windows = reader.cut_pairs(PAIRS)
    means = []
    for speed in (0.01, 0.2, 0.4, 0.6, 0.8, 0.9, 1.0):
        batches = [batch for batch, _, _ in reader.replace(speed=speed).logits(windows, range(len(windows)))]
        layers = torch.cat([batch["layers"] for batch in batches]).float()
        assert len(layers) == len(windows)
        means.append(float(layers.mean()))
    assert means == sorted(means, reverse=True)
    assert means[0] > 3
    assert means[-1] < 1  # of the windows of one passage but one leaves before the first layer
    assert len(set(means)) > 2


def test_each_call_has_its_own_speed_in_any_thread(reader: Reader) -> None:
    speeds = [0.0, 0.5, 1.0, 0.8] * 10
    expected = {speed: reader.answer_batch(PAIRS, 2, speed=speed) for speed in set(speeds)}
    assert len({str(answers) for answers in expected.values()}) > 2
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(lambda speed: reader.answer_batch(PAIRS, 2, speed=speed), speeds))
    assert found == [expected[speed] for speed in speeds]
    assert reader.speed == 0


def test_save_and_load(reader: Reader, tmp_path: Path) -> None:
    reader.save(tmp_path)
    loaded = Reader.load(tmp_path, window_settings=reader.window_settings, device="cpu", precision="fp32", speed=0.8)
    assert not loaded.untrained
    assert loaded.answer_batch(PAIRS) == reader.answer_batch(PAIRS, speed=0.8)
    assert loaded.copy().answer_batch(PAIRS) == reader.answer_batch(PAIRS, speed=0.8)


def test_a_speed_that_cannot_be(tiny_reader: MakeReader, reader: Reader) -> None:
    with pytest.raises(DistilError, match=r"BertForQuestionAnswering has no early exits, so speed=0.5 would have no"):
        tiny_reader().answer("Who?", "Ada.", speed=0.5)
    for speed in (-0.1, 1.1, True, "fast"):
        with pytest.raises(DistilError, match=r"speed must be a number from 0 to 1"):
            reader.replace(speed=speed)


def test_every_family_is_one_of_transformers() -> None:
    assert set(families()) <= set(CONFIG_MAPPING)


# --- windows that compete for one question ----------------------------------------------------------------------------


def with_odds(model: EarlyExitModel, log_odds: list[list[float]]) -> None:
    """Matchers that give the windows of a batch log-odds: a row for the embeddings and each layer but the last."""

    class Fixed(torch.nn.Module):
        def __init__(self, row: list[float]) -> None:
            super().__init__()
            self.row = torch.tensor(row)

        def forward(self, hidden: Tensor, _question: Tensor, _context: Tensor) -> Tensor:
            return self.row[: len(hidden)]

    model.matchers = torch.nn.ModuleList(map(Fixed, log_odds))


def never_certain(model: EarlyExitModel) -> None:
    for branch in model.branches:
        torch.nn.init.zeros_(branch[2].weight)
        torch.nn.init.zeros_(branch[2].bias)


@torch.inference_mode()
def test_a_window_leaves_where_another_one_of_its_question_is_much_likelier() -> None:
    model, inputs = model_of("bert"), batch(4)
    never_certain(model)
    # Of windows 0, 1 and 2; the odds in later rows are those of the windows that are left.
    with_odds(model, [[0.0, -1.0, -3.0, -9.0], [0.0, -1.0, -9.0], [0.0, -3.0, -9.0], [-9.0, -9.0]])
    (found,) = model.exit_early([inputs], math.exp(-2), questions=[[7, 7, 7, 8]])
    assert found.layers.tolist() == [4, 2, 0, 4]  # the last one is alone with its question
    whole = model(**inputs)
    for row in (0, 3):
        torch.testing.assert_close(found.start_logits[row], whole.start_logits[row], atol=1e-5, rtol=1e-4)
    for row in (1, 2):  # no span, and a no-answer above any other
        assert found.end_logits[row].tolist() == [1e4] + [-math.inf] * 19
    # Across batches, and against what was answered before.
    halves = [{name: tensor[rows] for name, tensor in inputs.items()} for rows in (slice(0, 2), slice(2, 4))]
    with_odds(model, [[0.0, -3.0]] * 4)
    odds = {8: 2.5}
    first, second = model.exit_early(halves, math.exp(-2), questions=[[7, 8], [7, 8]], odds=odds)
    assert first.layers.tolist() == [4, 0]
    assert second.layers.tolist() == [4, 0]
    assert odds == {7: 0.0, 8: 2.5}


@pytest.mark.parametrize("family", families())
@torch.inference_mode()
def test_batches_of_few_windows_are_put_together(family: str) -> None:
    model = model_of(family)
    never_certain(model)
    whole = batch(5)
    whole["attention_mask"][1] = 1
    whole["attention_mask"][1, 12:] = 0
    whole["input_ids"] = whole["input_ids"].clamp(min=5) * whole["attention_mask"]
    parts = [
        {name: tensor[[row], :length] for name, tensor in whole.items()}
        for row, length in enumerate((20, 16, 20, 15, 18))
    ]
    ran: list[tuple[int, ...]] = []
    for layer in {id(one): one for one in _layers(model)}.values():
        layer.register_forward_hook(lambda _layer, arguments, _output: ran.append(tuple(arguments[0].shape[:2])))
    apart = model.exit_early(parts, 0.01)
    assert len(ran) == 5 * 4
    ran.clear()
    # Three windows of 20 tokens fit, of 15 four would.
    together = model.exit_early(parts, 0.01, batch_tokens=60)
    assert ran == [(3, 20), (2, 15)] * 4
    for one, other in zip(apart, together, strict=True):
        assert one.start_logits.shape == other.start_logits.shape
    for row, length in enumerate((20, 12, 20, 15, 15)):
        torch.testing.assert_close(
            apart[row].end_logits[:, :length], together[row].end_logits[:, :length], atol=1e-5, rtol=1e-4
        )
    ran.clear()
    model.exit_early(parts, 0.01, batch_tokens=40)  # three batches are more than the half of five
    assert len(ran) == 5 * 4


@torch.inference_mode()
def test_windows_that_answered_still_compete() -> None:
    class FirstIsCertain(torch.nn.Module):
        def forward(self, hidden: Tensor) -> Tensor:
            logits = torch.zeros(*hidden.shape[:2], 2)
            logits[0, 3] = 50.0
            return logits

    model, inputs = model_of("bert"), batch(2)
    never_certain(model)
    model.branches[0] = FirstIsCertain()
    # The first window answers after one layer, when the odds of the second one are 0.37 times its own; then 0.22 times.
    with_odds(model, [[0.0, -1.0], [-1.5], [-9.0], [-9.0]])
    (found,) = model.exit_early([inputs], 0.3, questions=[[1, 1]])
    assert found.layers.tolist() == [1, 1]
    assert found.start_logits[0, 3] == 50
    assert found.start_logits[1, 3] == -math.inf


def test_a_reader_drops_passages_of_one_question_alone(reader: Reader) -> None:
    question, passages = PAIRS[0][0], [context for _, context in PAIRS]
    pairs = [(question, passage) for passage in passages]
    apart, together = reader.replace(speed=0.5).cut_pairs(pairs), reader.cut_pairs(pairs, [0] * len(pairs))
    assert len(set(apart.question_of.tolist())) == len(pairs)
    assert set(together.question_of.tolist()) == {0}
    layers = [
        torch.cat([batch["layers"] for batch, _, _ in reader.replace(speed=0.97).logits(windows, range(len(windows)))])
        for windows in (apart, together)
    ]
    assert layers[1].sum() < layers[0].sum()
    for speed in (0.0, 0.5, 0.97, 1.0):
        best = reader.answer_passages(question, passages, 3, allow_no_answer=False, speed=speed)
        assert best
        assert all(passages[one.passage][one.start : one.end] == one.text for one in best)
        assert [one.logit for one in best] == sorted((one.logit for one in best), reverse=True)
    single = reader.answer_batch(pairs, 3, allow_no_answer=False)
    ranked = sorted((one for answers in single for one in answers), key=lambda one: -one.logit)[:3]
    assert [one.text for one in reader.answer_passages(question, passages, 3, allow_no_answer=False)] == [
        one.text for one in ranked
    ]
    with pytest.raises(DistilError, match="give at least one passage with text"):
        reader.answer_passages(question, [])


def test_many_passages_of_one_question_stay_together(reader: Reader, monkeypatch: pytest.MonkeyPatch) -> None:
    """More than are read into memory at once otherwise."""
    question, passages = PAIRS[0][0], [context for _, context in PAIRS] * 3
    expected = reader.answer_passages(question, passages, 50, speed=0.97)
    pairs = [(question, passage) for passage in passages] + [("Why?", passages[0])]
    windows = reader.cut_pairs(pairs, [0] * len(passages) + [1])
    alone = [len(one.answers) for one in reader.replace(speed=0.97).predict_windows(windows, 50)]
    monkeypatch.setattr(reader_module, "_CHUNK", 2)
    assert reader.answer_passages(question, passages, 50, speed=0.97) == expected
    assert [len(one.answers) for one in reader.replace(speed=0.97).predict_windows(windows, 50)] == alone
    assert list(reader.replace(speed=0.97)._chunks(windows, range(1, len(pairs)))) == [
        range(1, len(passages)),
        range(len(passages), len(pairs)),
    ]
    assert list(reader._chunks(windows, range(3))) == [range(2), range(2, 3)]


def test_questions_of_any_number_of_windows_are_read_together(reader: Reader, monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = [(question, context) for question, _ in PAIRS for _, context in PAIRS]
    numbers = [number // len(PAIRS) for number in range(len(pairs))]
    fast = reader.replace(speed=0.9)
    windows = fast.cut_pairs(pairs, numbers)

    def layers_by_window() -> dict[int, int]:
        found = {}
        for batch, starts, _ in fast.logits(windows, range(len(windows))):
            assert starts[:, 0].isfinite().all()
            found |= dict(zip(batch["window"].tolist(), batch["layers"].tolist(), strict=True))
        return found

    expected = layers_by_window()
    assert sorted(expected) == list(range(len(windows)))
    for tokens in (300, 600):  # about one question and two
        monkeypatch.setattr("haystack_distill.models.reader._TOGETHER", tokens)
        assert layers_by_window() == expected
    monkeypatch.setattr("haystack_distill.models.reader._TOGETHER", 1)  # a question in several parts
    assert sorted(layers_by_window()) == list(range(len(windows)))


def test_an_exported_backend_is_refused_with_the_remedy(reader: Reader, tmp_path: Path) -> None:
    directory = reader.save(tmp_path / "exits")
    with pytest.raises(DistilError, match="has early exits, which run in PyTorch alone; leave backend='onnx' out"):
        Reader.load(directory, backend="onnx")
