"""Reader: answers, measurements and model directories."""

import itertools
import json
import logging
import os
import random
import stat
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    AutoModelForQuestionAnswering,
    AutoTokenizer,
    BertConfig,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertModel,
    BertTokenizerFast,
    DebertaConfig,
    DebertaForQuestionAnswering,
    RobertaConfig,
    RobertaForQuestionAnswering,
)

from haystack_distill import DistilError, Reader, WindowSettings
from haystack_distill.data.squad.load import load_examples
from haystack_distill.data.squad.metrics import read_predictions, squad_metrics
from haystack_distill.models.answers import Answer, Prediction
from haystack_distill.models.reader import batch_sizes

MakeReader = Callable[..., Reader]

CONTEXT = (
    "Ada Lovelace wrote the first program in 1843, long before there was a machine to run it on. Zu\u0308rich \u2014 "
    "\U0001f469\u200d\U0001f469\u200d\U0001f467 \u05e9\u05dc\u05d5\u05dd \u6771\u4eac a\u00a0b. The harbour was built in 1702 by Baak, "
    "who came from Delft with forty masons; bees dance to tell their sisters where the flowers are."
)
QUESTION = "Who wrote the first program?"


# --- answers -----------------------------------------------------------------------------------------------------


def test_answers_are_slices_of_the_context(tiny_reader: MakeReader) -> None:
    answers = tiny_reader().answer(QUESTION, CONTEXT, top_k=200)
    assert len(answers) == 200
    assert sum(answer.no_answer for answer in answers) <= 1
    spans = [answer for answer in answers if not answer.no_answer]
    assert all(answer.text == CONTEXT[answer.start : answer.end] != "" for answer in spans)
    assert all(answer.text == answer.text.strip() for answer in spans)
    assert len({(answer.start, answer.end) for answer in spans}) == len(spans)
    assert [answer.logit for answer in spans] == sorted((answer.logit for answer in spans), reverse=True)
    assert all(0 < answer.score < 1 for answer in answers)


def test_answer_batch_is_answer_for_each(tiny_reader: MakeReader) -> None:
    reader = tiny_reader()
    pairs = [(QUESTION, CONTEXT), ("Who came?", "Baak came."), (QUESTION, CONTEXT[90:]), ("Who came?", "Baak came.")]
    together = reader.answer_batch(pairs, 3)
    for pair, answers in zip(pairs, together, strict=True):
        alone = reader.answer(*pair, 3)
        assert [(a.text, a.start, a.end, a.no_answer) for a in answers] == [
            (a.text, a.start, a.end, a.no_answer) for a in alone
        ]
        assert [a.score for a in answers] == pytest.approx([a.score for a in alone], rel=1e-4)
    assert reader.answer_batch([]) == []


@pytest.mark.parametrize("batch_size", [1, 64])
def test_batch_size_changes_nothing(tiny_reader: MakeReader, batch_size: int) -> None:
    wanted = tiny_reader().answer(QUESTION, CONTEXT, 5)
    reader = tiny_reader()
    reader.batch_size = batch_size
    found = reader.answer(QUESTION, CONTEXT, 5)
    assert [a.text for a in found] == [a.text for a in wanted]
    assert [a.logit for a in found] == pytest.approx([a.logit for a in wanted], abs=1e-5)


def test_windows_merge_to_what_one_big_window_says(tokenizer: BertTokenizerFast) -> None:
    """A model without layers and positions says the same of a token in any window."""
    config = BertConfig(vocab_size=len(tokenizer), hidden_size=16, num_attention_heads=2, num_hidden_layers=0)
    torch.manual_seed(0)
    model = BertForQuestionAnswering(config)
    torch.nn.init.normal_(model.qa_outputs.weight)
    torch.nn.init.zeros_(model.bert.embeddings.position_embeddings.weight)
    found = []
    for window_settings in (WindowSettings(512, 128, 32), WindowSettings(48, 8, 32)):
        reader = Reader(
            model, tokenizer, window_settings=window_settings, max_answer_length=10, device="cpu", precision="fp32"
        )
        found.append(reader.predict_pairs([(QUESTION, CONTEXT)], top_k=5000)[0])
    whole, merged = ({(a.start, a.end): a.logit for a in prediction.answers} for prediction in found)
    assert len(whole) > 500
    assert merged.keys() == whole.keys()
    assert list(merged.values()) == pytest.approx(list(whole.values()), abs=1e-5)
    assert found[0].no_answer.logit == pytest.approx(found[1].no_answer.logit, abs=1e-5)


def test_no_answer_comes_from_the_window_that_least_believes_in_it(tiny_reader: MakeReader) -> None:
    reader = tiny_reader()
    prediction = reader.predict_pairs([(QUESTION, CONTEXT)])[0]
    question = len(reader.tokenizer(QUESTION, add_special_tokens=False)["input_ids"])
    overlap = 48 - 3 - question - 16
    encoded = reader.tokenizer(
        QUESTION, CONTEXT, truncation="only_second", max_length=48, stride=overlap, return_overflowing_tokens=True
    )
    logits = []
    for ids, types in zip(encoded["input_ids"], encoded["token_type_ids"], strict=True):
        with torch.inference_mode():
            output = reader.model(input_ids=torch.tensor([ids]), token_type_ids=torch.tensor([types]))
        logits.append(float(output.start_logits[0, 0] + output.end_logits[0, 0]))
    assert len(logits) > 2
    assert prediction.no_answer.logit == pytest.approx(min(logits), abs=1e-5)


def test_an_answer_never_touches_question_or_special_tokens(
    tiny_reader: MakeReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = tiny_reader()
    whole = Reader.logits
    generator = torch.Generator().manual_seed(0)
    best = float("-inf")

    def loud(self: Reader, *arguments: Any) -> Iterator[tuple[dict[str, torch.Tensor], torch.Tensor, torch.Tensor]]:
        """Random logits, and enormous ones wherever no answer may be."""
        nonlocal best
        for batch, starts, _ in whole(self, *arguments):
            start, end = torch.randn(starts.shape, generator=generator), torch.randn(starts.shape, generator=generator)
            outside = ~((batch["token_type_ids"] == 1) & (batch["input_ids"] != self.tokenizer.sep_token_id))
            assert (~outside).sum() > len(outside)
            inside = (start[:, :, None] + end[:, None, :]).masked_fill(
                (outside[:, :, None] | outside[:, None, :]), -1e9
            )
            band = torch.ones(inside.shape[1:]).triu().tril(self.max_answer_length - 1).bool()
            best = max(best, float(inside.masked_fill(~band, -1e9).max()))
            yield batch, start.masked_fill(outside, 1000.0), end.masked_fill(outside, 1000.0)

    monkeypatch.setattr(Reader, "logits", loud)
    for _ in range(20):
        best = float("-inf")
        prediction = reader.predict_pairs([(QUESTION, CONTEXT)])[0]
        assert prediction.answers[0].logit == pytest.approx(best)
        assert prediction.answers[0].text == CONTEXT[prediction.answers[0].start : prediction.answers[0].end]


def test_scores_are_probabilities_of_a_window(tiny_reader: MakeReader) -> None:
    reader = tiny_reader()
    reader.max_answer_length = 100
    context = "Ada Lovelace wrote it."
    prediction = reader.predict_pairs([("Who?", context)], top_k=1000)[0]
    encoded = reader.tokenizer("Who?", context, return_tensors="pt", return_offsets_mapping=True)
    offsets = encoded.pop("offset_mapping")[0].tolist()
    with torch.inference_mode():
        output = reader.model(**encoded)
    allowed = torch.tensor([i == 0 or sequence == 1 for i, sequence in enumerate(encoded.sequence_ids(0))])
    start = output.start_logits[0].masked_fill(~allowed, -torch.inf).softmax(0)
    end = output.end_logits[0].masked_fill(~allowed, -torch.inf).softmax(0)
    wanted = {
        (offsets[i][0], offsets[j][1]): float(start[i] * end[j])
        for i, j in itertools.combinations_with_replacement(allowed.nonzero().flatten().tolist()[1:], 2)
    }
    found = {(a.start, a.end): a.score for a in prediction.answers}
    assert found == pytest.approx(wanted, rel=1e-4)
    assert prediction.no_answer.score == pytest.approx(float(start[0] * end[0]), rel=1e-4)


def test_a_passage_without_a_token_says_nothing(tiny_reader: MakeReader) -> None:
    reader = tiny_reader()
    passages = [CONTEXT, "Bees dance."]
    expected = reader.answer_passages(QUESTION, passages, top_k=5)
    found = reader.answer_passages(QUESTION, [*passages, "\u200b"], top_k=5)
    assert found == expected
    assert [answer.no_answer for answer in reader.answer_passages(QUESTION, ["\u200b", "\x07"], top_k=5)] == [True]


def test_max_answer_length_is_kept(tiny_reader: MakeReader) -> None:
    reader = tiny_reader()
    reader.max_answer_length = 2
    answers = reader.predict_pairs([(QUESTION, CONTEXT)], top_k=1000)[0].answers
    lengths = [len(reader.tokenizer(answer.text, add_special_tokens=False)["input_ids"]) for answer in answers]
    assert max(lengths) == 2
    assert len(answers) > 100


def test_no_answer_threshold(tiny_reader: MakeReader) -> None:
    reader = tiny_reader()
    gap = reader.predict_pairs([(QUESTION, CONTEXT)])[0].no_answer_gap
    reader.no_answer_threshold = gap + 0.01
    assert not reader.answer(QUESTION, CONTEXT)[0].no_answer
    reader.no_answer_threshold = gap - 0.01
    nothing = reader.answer(QUESTION, CONTEXT)[0]
    assert nothing.no_answer
    assert (nothing.text, nothing.start, nothing.end) == ("", 0, 0)
    answers = reader.answer(QUESTION, CONTEXT, 5, allow_no_answer=False)
    assert len(answers) == 5
    assert not any(answer.no_answer for answer in answers)


def test_no_answer_is_ranked_by_its_logit() -> None:
    spans = [Answer("a", 0, 1, 0.5, 3.0), Answer("b", 2, 3, 0.2, 1.0)]
    prediction = Prediction(spans, Answer("", 0, 0, 0.1, 2.0, no_answer=True))
    texts = {threshold: [a.text for a in prediction.ranked(3, threshold)] for threshold in (-2.0, -1.0, 0.0, 1.0, 5.0)}
    assert texts == {-2: ["", "a", "b"], -1: ["a", "", "b"], 0: ["a", "", "b"], 1: ["a", "b", ""], 5: ["a", "b", ""]}
    assert [a.text for a in prediction.ranked(1, 0.0)] == ["a"]
    assert [a.text for a in Prediction([], prediction.no_answer).ranked(2, 9.0)] == [""]


def test_a_context_without_a_token(tiny_reader: MakeReader) -> None:
    reader = tiny_reader()
    assert [answer.no_answer for answer in reader.answer(QUESTION, "\u200e", 3)] == [True]  # BERT drops direction marks
    assert reader.answer(QUESTION, "\u200e", 3, allow_no_answer=False) == []


@pytest.mark.parametrize(
    ("question", "context", "top_k", "message"),
    [
        ("", "b", 1, "must not be empty"),
        ("a", " \n", 1, "must not be empty"),
        (None, "b", 1, "question and context must be texts, not NoneType"),
        ("a", 5, 1, "question and context must be texts, not int"),
        *(("a", "b", top_k, "top_k must be at least 1") for top_k in (0, "3", 1.5, True, None)),
    ],
)
def test_bad_questions_are_refused(
    tiny_reader: MakeReader, question: str, context: str, top_k: int, message: str
) -> None:
    with pytest.raises(DistilError, match=message):
        tiny_reader().answer(question, context, top_k)


# --- measuring ---------------------------------------------------------------------------------------------------


@pytest.fixture
def varied_file(tmp_path: Path) -> Path:
    """SQuAD 2.0 questions with no, one and three answers."""
    context = "Cornelis Baak built the harbour of Lindow in 1702."
    wanted = {"none": [], "one": ["1702"], "three": ["Baak", "Cornelis Baak", "Baak"]}
    qas = [
        {
            "id": name,
            "question": f"Who built it, {name}?",
            "is_impossible": not texts,
            "answers": [{"text": text, "answer_start": context.index(text)} for text in texts],
        }
        for name, texts in wanted.items()
    ]
    path = tmp_path / "varied.json"
    path.write_text(json.dumps({"version": "v2.0", "data": [{"paragraphs": [{"context": context, "qas": qas}]}]}))
    return path


def test_evaluate_is_squad_metrics_of_the_predictions(
    tiny_reader: MakeReader, squad_file: Path, tmp_path: Path
) -> None:
    reader = tiny_reader()
    examples = load_examples(squad_file)
    predictions = dict(zip(examples["id"], reader.predict(squad_file), strict=True))
    gaps = {key: prediction.no_answer_gap for key, prediction in predictions.items()}
    reader.no_answer_threshold = sorted(gaps.values())[4]  # so that some are answered and some are not
    texts = {key: prediction.answers[0].text for key, prediction in predictions.items()}
    silent = {key for key in texts if gaps[key] > reader.no_answer_threshold}
    assert 0 < len(silent) < len(texts)
    found = reader.evaluate(squad_file, predictions_path=tmp_path / "deep" / "predictions.json")
    assert found == squad_metrics(examples, texts, gaps, no_answer_threshold=reader.no_answer_threshold)
    assert {"exact", "f1", "total", "HasAns_f1", "NoAns_f1", "best_f1"} <= found.keys()
    assert read_predictions(tmp_path / "deep" / "predictions.json") == {
        key: "" if key in silent else text for key, text in texts.items()
    }


def test_evaluate_squad_1_always_answers(tiny_reader: MakeReader, squad_file: Path) -> None:
    examples = load_examples(squad_file).filter(lambda row: not row["is_impossible"])
    reader = tiny_reader()
    reader.no_answer_threshold = -1e9  # silence wherever that is allowed
    found = reader.evaluate(examples)
    assert found.keys() == {"exact", "f1", "total"}
    texts = {key: p.answers[0].text for key, p in zip(examples["id"], reader.predict(examples), strict=True)}
    assert found == squad_metrics(examples, texts)


def test_evaluate_with_varying_numbers_of_answers(tiny_reader: MakeReader, varied_file: Path) -> None:
    found = tiny_reader().evaluate(varied_file)
    assert (found["total"], found["HasAns_total"], found["NoAns_total"]) == (3, 2, 1)


def test_predict_keeps_the_order_of_the_examples(
    tiny_reader: MakeReader, squad_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = tiny_reader()
    examples = load_examples(squad_file)
    wanted = [reader.answer(row["question"], row["context"], allow_no_answer=False)[0].text for row in examples]
    assert [prediction.answers[0].text for prediction in reader.predict(squad_file)] == wanted
    monkeypatch.setattr("haystack_distill.models.reader._CHUNK", 3)
    assert [prediction.answers[0].text for prediction in reader.predict(squad_file)] == wanted


# --- directories -------------------------------------------------------------------------------------------------


def test_save_and_load(tiny_reader: MakeReader, tmp_path: Path) -> None:
    reader = tiny_reader()
    settings = {"window_settings": reader.window_settings, "device": "cpu", "precision": "fp32"}
    directory = reader.save(tmp_path / "new" / "reader")
    assert directory == tmp_path / "new" / "reader"
    assert {path.suffix for path in directory.iterdir()} <= {".safetensors", ".json", ".txt"}
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {path.name for path in directory.iterdir()}
    assert [path.name for path in directory.parent.iterdir()] == ["reader"]
    loaded = Reader.load(directory, **settings)
    assert loaded.answer(QUESTION, CONTEXT, 50) == reader.answer(QUESTION, CONTEXT, 50)
    assert loaded.n_parameters == reader.n_parameters


def test_a_saved_reader_is_a_plain_transformers_model(tiny_reader: MakeReader, tmp_path: Path) -> None:
    reader = tiny_reader()
    reader.save(tmp_path / "reader")
    model = AutoModelForQuestionAnswering.from_pretrained(tmp_path / "reader")
    assert isinstance(model, BertForQuestionAnswering)
    assert all(torch.equal(weight, reader.model.state_dict()[name]) for name, weight in model.state_dict().items())
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "reader")
    assert tokenizer(QUESTION, CONTEXT)["input_ids"] == reader.tokenizer(QUESTION, CONTEXT)["input_ids"]


def test_a_tilde_is_the_home_directory(
    tiny_reader: MakeReader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert tiny_reader().save("~/reader") == tmp_path / "reader"
    assert Reader.load("~/reader", device="cpu", window_settings=WindowSettings(48, 16, 16)).n_parameters


def test_save_replaces_and_leaves_other_files(tiny_reader: MakeReader, tmp_path: Path) -> None:
    tiny_reader(seed=0).save(tmp_path / "reader")
    (tmp_path / "reader" / "README.md").write_text("mine")
    second = tiny_reader(seed=1)
    second.save(tmp_path / "reader")
    assert (tmp_path / "reader" / "README.md").read_text() == "mine"
    saved = load_file(tmp_path / "reader" / "model.safetensors")
    assert torch.equal(saved["qa_outputs.weight"], second.model.qa_outputs.weight)


def test_saving_leaves_no_special_tokens_of_another_tokenizer(tiny_reader: MakeReader, tmp_path: Path) -> None:
    """transformers 5 does not write these files, and both versions read them."""
    tiny_reader().save(tmp_path / "reader")
    (tmp_path / "reader" / "special_tokens_map.json").write_text('{"cls_token": "<s>", "sep_token": "</s>"}')
    (tmp_path / "reader" / "added_tokens.json").write_text('{"<new>": 9999}')
    reader = tiny_reader()
    reader.save(tmp_path / "reader")
    loaded = Reader.load(tmp_path / "reader", device="cpu", window_settings=WindowSettings(48, 16, 16))
    assert loaded.tokenizer.cls_token == "[CLS]"
    assert len(loaded.tokenizer) == len(reader.tokenizer)


def test_a_save_that_is_refused_leaves_what_was_exported(tiny_reader: MakeReader, tmp_path: Path) -> None:
    tiny_reader().save(tmp_path / "reader")
    (tmp_path / "reader" / "onnx").mkdir()
    for name in ("model.onnx", "export.json"):
        (tmp_path / "reader" / "onnx" / name).write_text("{}")
    reader = Reader.load(tmp_path / "reader", device="cpu", window_settings=WindowSettings(48, 16, 16))
    torch.nn.init.ones_(reader.model.qa_outputs.bias)
    with pytest.raises(DistilError, match="holds the base of the reader"):
        reader.save(tmp_path / "reader", only_trained=True)
    assert (tmp_path / "reader" / "onnx" / "model.onnx").exists()
    reader.save(tmp_path / "reader")
    assert not (tmp_path / "reader" / "onnx").exists()


def test_a_failed_save_leaves_what_was_there(
    tiny_reader: MakeReader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = tiny_reader()
    reader.save(tmp_path / "reader")
    before = {path.name: path.read_bytes() for path in (tmp_path / "reader").iterdir()}

    def fail(*_: Any, **__: Any) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(type(reader.tokenizer), "save_pretrained", fail)
    torch.nn.init.ones_(reader.model.qa_outputs.bias)
    with pytest.raises(OSError, match="disk full"):
        reader.save(tmp_path / "reader")
    assert {path.name: path.read_bytes() for path in (tmp_path / "reader").iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["reader"]


def test_half_precision_files_are_loaded_in_fp32(tiny_reader: MakeReader, tmp_path: Path) -> None:
    reader = tiny_reader()
    reader.model.to(torch.bfloat16)
    reader.save(tmp_path / "reader")
    loaded = Reader.load(tmp_path / "reader", window_settings=reader.window_settings)
    assert {parameter.dtype for parameter in loaded.model.parameters()} == {torch.float32}
    assert not loaded.model.training


def test_a_tokenizer_saved_with_presets_cuts_nothing(tiny_reader: MakeReader, tokenizer: BertTokenizerFast) -> None:
    plain = tiny_reader()
    tokenizer.backend_tokenizer.enable_truncation(12)
    tokenizer.backend_tokenizer.enable_padding(length=400)
    try:
        preset = tiny_reader()
    finally:
        tokenizer.backend_tokenizer.no_truncation()
        tokenizer.backend_tokenizer.no_padding()
    assert preset.answer(QUESTION, CONTEXT, 9) == plain.answer(QUESTION, CONTEXT, 9)


def test_a_model_without_a_head_is_loaded_with_a_warning(
    tokenizer: BertTokenizerFast, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    BertModel(BertConfig(vocab_size=len(tokenizer), **shape)).save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    with caplog.at_level(logging.WARNING, "haystack_distill"):
        Reader.load(tmp_path / "base")
    assert "qa_outputs.weight: they start random and must be trained" in caplog.text


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_the_umask_decides_who_reads_what_is_saved(tiny_reader: MakeReader, tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        directory = tiny_reader().save(tmp_path / "reader")
    finally:
        os.umask(before)
    assert {stat.S_IMODE(file.stat().st_mode) for file in directory.iterdir()} == {0o666 & ~umask}


@pytest.mark.parametrize("labels", [3, 1])
def test_a_model_with_another_head_gets_a_fresh_one(
    tokenizer: BertTokenizerFast, tmp_path: Path, labels: int, caplog: pytest.LogCaptureFixture
) -> None:
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    classifier = BertForSequenceClassification(BertConfig(vocab_size=len(tokenizer), num_labels=labels, **shape))
    classifier.save_pretrained(tmp_path / "mnli")
    tokenizer.save_pretrained(tmp_path / "mnli")
    settings: dict[str, Any] = {"window_settings": WindowSettings(48, 16, 16), "device": "cpu"}
    with caplog.at_level(logging.WARNING, "haystack_distill"):
        reader = Reader.load(tmp_path / "mnli", **settings)
    assert "qa_outputs.weight" in caplog.text
    assert reader.answer(QUESTION, CONTEXT)
    encoder = classifier.bert.encoder.state_dict()
    assert all(torch.equal(weight, encoder[name]) for name, weight in reader.model.bert.encoder.state_dict().items())
    again = Reader.load(reader.save(tmp_path / "saved"), **settings)
    assert torch.equal(again.model.qa_outputs.weight, reader.model.qa_outputs.weight)
    assert json.loads((tmp_path / "saved" / "config.json").read_text()).get("id2label", {}).keys() <= {"0", "1"}
    config = BertConfig(vocab_size=len(tokenizer), num_labels=labels, **shape)
    with pytest.raises(DistilError, match=f"has {labels} outputs per token, a reader has two"):
        Reader(BertForQuestionAnswering(config), tokenizer, **settings)


def test_a_span_head_of_another_size_is_drawn_anew(
    tokenizer: BertTokenizerFast, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = BertConfig(
        vocab_size=len(tokenizer), num_labels=3, hidden_size=16, num_hidden_layers=1, num_attention_heads=2
    )
    BertForQuestionAnswering(config).save_pretrained(tmp_path / "odd")
    tokenizer.save_pretrained(tmp_path / "odd")
    with caplog.at_level(logging.WARNING, "haystack_distill"):
        reader = Reader.load(tmp_path / "odd", device="cpu")
    assert reader.model.qa_outputs.out_features == 2
    assert "qa_outputs.bias, qa_outputs.weight: they start random" in caplog.text


def test_copy_is_independent(tiny_reader: MakeReader) -> None:
    reader = tiny_reader()
    copied = reader.copy()
    assert copied.answer(QUESTION, CONTEXT, 5) == reader.answer(QUESTION, CONTEXT, 5)
    before = reader.model.qa_outputs.weight.clone()
    torch.nn.init.zeros_(copied.model.qa_outputs.weight)
    assert torch.equal(reader.model.qa_outputs.weight, before)


# --- errors ------------------------------------------------------------------------------------------------------


def test_only_question_answering_models(tokenizer: BertTokenizerFast, tiny_reader: MakeReader) -> None:
    with pytest.raises(DistilError, match="BertForSequenceClassification is not a question answering model"):
        Reader(BertForSequenceClassification(tiny_reader().model.config), tokenizer)


def test_tokenizer_and_model_must_fit(tokenizer: BertTokenizerFast, tiny_reader: MakeReader) -> None:
    with pytest.raises(DistilError, match="they do not belong together"):
        tiny_reader(vocab_size=50)
    assert tiny_reader(vocab_size=len(tokenizer) + 7)  # embeddings padded to a round number are fine


def test_windows_must_fit_the_positions(tokenizer: BertTokenizerFast, tiny_reader: MakeReader) -> None:
    with pytest.raises(
        DistilError, match="max_seq_len 129 is more than the 128 positions that BertForQuestionAnswering"
    ):
        tiny_reader(window_settings=WindowSettings(129, 64, 32))
    config = RobertaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=66,
        pad_token_id=1,
    )
    model = RobertaForQuestionAnswering(config)
    with pytest.raises(DistilError, match="max_seq_len 65 is more than the 64 positions"):
        Reader(model, tokenizer, window_settings=WindowSettings(65, 16, 16))
    assert Reader(model, tokenizer, window_settings=WindowSettings(64, 16, 16), device="cpu").answer(QUESTION, CONTEXT)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"precision": "int8"}, "precision must be one of"),
        ({"precision": "fp16", "device": "cpu"}, "fp16 is for GPUs"),
        ({"device": "gpu"}, "device must be"),
        *(({"device": device}, "device must be") for device in (None, 1.5, ["cpu"])),
        *(
            ({name: value}, f"^{name} must be a whole number of at least 1, not ")
            for name in ("max_answer_length", "batch_size")
            for value in (0, "30", 1.5, True, None)
        ),
        *(
            ({"no_answer_threshold": value}, "no_answer_threshold must be a")
            for value in ("0", None, True, float("nan"))
        ),
        ({"window_settings": {"max_seq_len": 64}}, "window_settings must be a WindowSettings"),
    ],
)
def test_settings_are_checked(
    tiny_reader: MakeReader, tokenizer: BertTokenizerFast, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(DistilError, match=message):
        Reader(tiny_reader().model, tokenizer, **{"window_settings": WindowSettings(64, 16, 16)} | settings)


@pytest.mark.parametrize("threads", [0, "4", 1.5, True])
def test_threads_are_checked(tmp_path: Path, threads: Any) -> None:
    with pytest.raises(DistilError, match="num_threads must be at least 1, or None, not"):
        Reader.load(tmp_path, num_threads=threads)


def test_a_threshold_may_be_infinite(tiny_reader: MakeReader) -> None:
    reader = tiny_reader()
    made = Reader(
        reader.model, reader.tokenizer, window_settings=reader.window_settings, no_answer_threshold=float("-inf")
    )
    assert made.answer(QUESTION, CONTEXT)[0].no_answer


def test_load_errors_name_the_place(tmp_path: Path) -> None:
    with pytest.raises(DistilError, match=r"cannot load a reader from .*nowhere.* give a directory"):
        Reader.load(tmp_path / "nowhere")


def test_a_deberta_answers_whatever_is_fast_here(tokenizer: BertTokenizerFast, monkeypatch: pytest.MonkeyPatch) -> None:
    shape = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    model = DebertaForQuestionAnswering(DebertaConfig(vocab_size=len(tokenizer), **shape))
    answers = []
    for fast in ("fp32", "bf16"):
        monkeypatch.setenv("HAYSTACK_DISTILL_AUTO_PRECISION", fast)
        reader = Reader(model, tokenizer, window_settings=WindowSettings(48, 16, 16), device="cpu")
        answers.append(reader.answer("Who built the harbour?", "It was built by Cornelis Baak."))
    assert answers[0] == answers[1]


def test_bf16_answers_are_about_those_of_fp32(tiny_reader: MakeReader, tokenizer: BertTokenizerFast) -> None:
    reader = tiny_reader()
    half = Reader(reader.model, tokenizer, window_settings=reader.window_settings, device="cpu", precision="bf16")
    exact, rough = (r.predict_pairs([(QUESTION, CONTEXT)])[0].no_answer.logit for r in (reader, half))
    assert exact != rough
    assert rough == pytest.approx(exact, abs=0.05)


def test_loading_and_saving_show_no_bars(
    tiny_reader: Callable[..., Reader], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    from transformers.utils import logging as transformers_logging

    before = transformers_logging.is_progress_bar_enabled()
    transformers_logging.enable_progress_bar()
    try:
        reader = tiny_reader()
        reader.save(tmp_path / "reader")
        Reader.load(tmp_path / "reader", device="cpu", window_settings=reader.window_settings)
        assert transformers_logging.is_progress_bar_enabled()
    finally:
        if not before:
            transformers_logging.disable_progress_bar()
    assert capfd.readouterr() == ("", "")


def test_replace_changes_the_settings_that_are_given_and_shares_the_weights(tiny_reader: MakeReader) -> None:
    reader = tiny_reader()
    reader.untrained = ("qa_outputs.weight",)
    replaced = reader.replace(window_settings=WindowSettings(64, 16, 16), no_answer_threshold=1, batch_size=3)
    assert replaced.model is reader.model
    assert replaced.tokenizer is reader.tokenizer
    assert replaced.window_settings == WindowSettings(64, 16, 16)
    assert (replaced.no_answer_threshold, replaced.batch_size) == (1.0, 3)
    assert (replaced.max_answer_length, replaced.precision) == (reader.max_answer_length, reader.precision)
    assert replaced.untrained == reader.untrained
    assert (reader.window_settings, reader.batch_size) == (WindowSettings(48, 16, 16), 16)


def test_what_is_read_must_be_texts(tiny_reader: MakeReader) -> None:
    with pytest.raises(DistilError, match="question and passages must be texts, not NoneType"):
        tiny_reader().answer_passages("Who?", [CONTEXT, None])  # type: ignore[list-item]
    with pytest.raises(DistilError, match="there are no passages"):
        tiny_reader().answer_passages("Who?", [])


def test_auto_is_what_suits_the_other_model(tiny_reader: MakeReader, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HAYSTACK_DISTILL_AUTO_PRECISION", "bf16")
    reader = tiny_reader()
    automatic, asked = (reader.replace(precision=precision) for precision in ("auto", "bf16"))
    monkeypatch.setenv("HAYSTACK_DISTILL_AUTO_PRECISION", "fp32")
    assert (automatic.precision, asked.precision) == ("bf16", "bf16")
    again = [each.replace(model=tiny_reader(seed=1).model) for each in (automatic, asked)]
    assert [each.precision for each in again] == ["fp32", "bf16"]
    assert [each.copy().precision for each in again] == ["fp32", "bf16"]


def test_another_device_moves_both_readers(tiny_reader: MakeReader) -> None:
    reader = tiny_reader()
    moved = reader.replace(device="meta")
    assert {each.type for each in (reader.device, moved.device, reader.model.device)} == {"meta"}
    with pytest.raises(DistilError, match="fp16 is for GPUs"):
        tiny_reader().replace(device="cpu", precision="fp16")
    kept = tiny_reader()
    with pytest.raises(DistilError, match="precision"):
        kept.replace(device="meta", precision="int3")
    assert kept.answer(QUESTION, CONTEXT)


def test_replace_takes_another_model_and_tokenizer(tiny_reader: MakeReader, tokenizer: BertTokenizerFast) -> None:
    reader, other = tiny_reader(), tiny_reader(seed=1)
    reader.untrained = ("qa_outputs.weight",)
    replaced = reader.replace(model=other.model, tokenizer=tokenizer, max_answer_length=7)
    assert replaced.answer(QUESTION, CONTEXT) == other.replace(max_answer_length=7).answer(QUESTION, CONTEXT)
    assert replaced.tokenizer is not tokenizer  # its own, without padding and truncation
    assert replaced.untrained == ()
    assert reader.replace(tokenizer=tokenizer).untrained == reader.untrained


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"window_settings": WindowSettings(129, 64, 32)}, "max_seq_len 129 is more than the 128 positions"),
        ({"batch_size": 0}, "batch_size must be a whole number of at least 1"),
        ({"precision": "int3"}, "precision"),
        ({"windows": WindowSettings(64, 16, 16)}, "a reader has no setting windows; it has model, tokenizer"),
        ({"model": torch.nn.Linear(1, 1)}, "Linear is not a question answering model"),
    ],
)
def test_replace_checks_as_the_constructor_does(tiny_reader: MakeReader, changes: dict[str, Any], message: str) -> None:
    reader = tiny_reader()
    with pytest.raises(DistilError, match=message):
        reader.replace(**changes)
    assert (reader.window_settings, reader.batch_size, reader.precision) == (WindowSettings(48, 16, 16), 16, "fp32")


def test_iterators_are_read_once_and_a_text_is_no_list(tiny_reader: MakeReader) -> None:
    reader = tiny_reader()
    questions, contexts = [QUESTION, "Who came?"], [CONTEXT, "Baak came."]
    expected = reader.answer_batch(list(zip(questions, contexts, strict=True)))
    assert reader.answer_batch(zip(questions, contexts, strict=True)) == expected
    assert len(reader.predict_pairs(zip(questions, contexts, strict=True))) == 2
    assert reader.answer_passages("Who?", iter(contexts)) == reader.answer_passages("Who?", contexts)
    with pytest.raises(DistilError, match=r"passages must be a list of texts; give a single one as \[passage\]"):
        reader.answer_passages("Who?", contexts[0])


def test_batches_cost_least() -> None:
    """By comparison with all ways to divide windows; those of many are as good as may be, 64 at a time."""
    numbers = random.Random(0)

    def cost(sizes: Sequence[int], lengths: Sequence[int]) -> int:
        firsts = [0, *itertools.accumulate(sizes)]
        return sum(40 + size * lengths[first] for size, first in zip(sizes, firsts, strict=False))

    for _ in range(60):
        lengths = sorted((numbers.choice(range(16, 257, 16)) for _ in range(numbers.randint(1, 9))), reverse=True)
        cuts = range(1, len(lengths))
        ways = []
        for chosen in itertools.chain.from_iterable(itertools.combinations(cuts, n) for n in range(len(lengths))):
            ends = [0, *chosen, len(lengths)]
            sizes = [end - begin for begin, end in itertools.pairwise(ends)]
            if all(size == 1 or size * lengths[begin] <= 512 for size, begin in zip(sizes, ends, strict=False)):
                ways.append(cost(sizes, lengths))
        found = list(batch_sizes(lengths, 512, 40))
        assert sum(found) == len(lengths)
        assert cost(found, lengths) == min(ways)
    assert list(batch_sizes([300, 200], 100, 40)) == [1, 1]  # longer than a batch may be
    many = list(batch_sizes([100] * 1000, 512, 40))
    assert sum(many) == 1000
    assert set(many) <= {4, 5}
    greedy = batch_sizes([100, 90, 50, 50, 50, 50], 200, None)
    assert list(itertools.islice(greedy, 2)) == [2, 4]
    assert not list(batch_sizes([], 100, 40))


def test_a_part_in_training_mode_answers_without_dropout(tiny_reader: Callable[..., Reader]) -> None:
    reader = tiny_reader()
    expected = reader.answer("Who wrote it?", "Ada wrote it in 1843.")
    for part in (reader.model, reader.model.base_model):
        part.train()
        assert reader.answer("Who wrote it?", "Ada wrote it in 1843.") == expected
        assert not any(module.training for module in reader.model.modules())
