"""What a teacher says: verbatim to the same windows, through characters to any others, computed once."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    BertConfig,
    BertForQuestionAnswering,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaForQuestionAnswering,
)

from haystack_distill import Reader, WindowSettings
from haystack_distill.data.squad.load import load_examples
from haystack_distill.data.windows import Windows
from haystack_distill.errors import DistilError
from haystack_distill.export.exporting import ExportSettings, export_reader
from haystack_distill.teachers.cached import CachedTeacher
from haystack_distill.teachers.live import LiveTeacher
from haystack_distill.utils.model_fingerprint import model_fingerprint

MakeReader = Callable[..., Reader]

UNICODE = (
    "Cafe\u0301 na\u00efve Zu\u0308rich \U0001f469\u200d\U0001f469\u200d\U0001f467 \u05e9\u05dc\u05d5\u05b9\u05dd "
    "\u6771\u4eac\u30bf\u30ef\u30fc 333\u00a0m \ufb01ne \u2764\ufe0f, and a glacier moves forty metres a day."
)
PLAIN = (
    "The harbour of Lindow was built in 1702 by Cornelis Baak, who came from Delft; forty masons came too (they say)."
)
CONTEXTS = [*(f"{context} {context[::3]} {context}" for context in (PLAIN, UNICODE)), "So."]
MARKS = "\u0301\u0308\u05b9\ufe0f"
QUESTION = "Who built it, and when?"


def byte_level() -> PreTrainedTokenizerFast:
    """As RoBERTa's."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.train_from_iterator(
        CONTEXTS,
        trainers.BpeTrainer(
            vocab_size=290,
            special_tokens=["<s>", "<pad>", "</s>", "<unk>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    made.post_processor = processors.RobertaProcessing(
        ("</s>", 2), ("<s>", 0), trim_offsets=True, add_prefix_space=False
    )
    special = {"cls_token": "<s>", "sep_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=made, **special)


def wordpiece(vocabulary: int) -> PreTrainedTokenizerFast:
    """As BERT's; a small vocabulary has other pieces than a large one."""
    made = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer(lowercase=True)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    trainer = trainers.WordPieceTrainer(vocab_size=vocabulary, special_tokens=names, show_progress=False)
    made.train_from_iterator([*CONTEXTS, QUESTION], trainer)
    made.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    special = {"cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]", "unk_token": "[UNK]"}
    return PreTrainedTokenizerFast(tokenizer_object=made, **special)


TOKENIZERS: dict[str, Callable[[], PreTrainedTokenizerFast]] = {
    "bytes": byte_level,
    "words": lambda: wordpiece(220),
    "pieces": lambda: wordpiece(110),
}


@pytest.fixture(scope="module")
def readers() -> dict[str, MakeReader]:
    """For each tokenizer a maker of random readers with given windows."""
    shape = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}

    def maker(name: str) -> MakeReader:
        tokenizer = TOKENIZERS[name]()
        torch.manual_seed(len(name))
        roberta = RobertaConfig(vocab_size=len(tokenizer), pad_token_id=1, max_position_embeddings=200, **shape)
        bert = BertConfig(vocab_size=len(tokenizer), max_position_embeddings=200, **shape)
        model: Any = RobertaForQuestionAnswering(roberta) if name == "bytes" else BertForQuestionAnswering(bert)
        torch.nn.init.normal_(model.qa_outputs.weight)  # logits that differ visibly
        return lambda *windows: Reader(
            model, tokenizer, window_settings=WindowSettings(*windows), device="cpu", precision="fp32"
        ).copy()

    return {name: maker(name) for name in TOKENIZERS}


@pytest.fixture(scope="module")
def examples() -> datasets.Dataset:
    columns = {
        "id": [str(row) for row in range(len(CONTEXTS))],
        "title": [""] * len(CONTEXTS),
        "question": [QUESTION] * len(CONTEXTS),
        "context": CONTEXTS,
        "answers": [{"text": [context[:2]], "answer_start": [0]} for context in CONTEXTS],
        "is_impossible": [False] * len(CONTEXTS),
    }
    return load_examples(datasets.Dataset.from_dict(columns))


def outputs_of(teacher: Reader, examples: datasets.Dataset, cache: Path) -> CachedTeacher:
    prepared = CachedTeacher(teacher)
    prepared.prepare(examples, teacher.cut(examples, cache_dir=cache), cache_dir=cache, progress=False)
    return prepared


def targets_of(teacher: CachedTeacher, windows: Windows, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    teacher.student_windows = windows
    return teacher.cached(batch)


def batches(windows: Windows, size: int = 4) -> Iterator[dict[str, torch.Tensor]]:
    for first in range(0, len(windows), size):
        yield windows.collate(windows.__getitems__(range(first, min(first + size, len(windows)))))


# --- the same windows --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TOKENIZERS)
def test_the_same_windows_get_the_logits_back_bit_for_bit(
    readers: dict[str, MakeReader], examples: datasets.Dataset, name: str, tmp_path: Path
) -> None:
    teacher = readers[name](48, 16, 24)
    outputs = outputs_of(teacher, examples, tmp_path)
    windows = teacher.cut(examples, cache_dir=tmp_path)
    assert len(windows) > 4
    seen = 0
    for batch, starts, ends in teacher.logits(windows, range(len(windows))):  # the very batches that the teacher ran
        targets = targets_of(outputs, windows, batch)
        for target, logits in (("start", starts), ("end", ends)):
            found = targets[f"teacher_{target}_logits"]
            assert found.dtype == torch.float32
            allowed = batch["context_mask"]
            assert torch.equal(found[allowed], logits[allowed])
            # Question, special tokens and padding: nothing is said; white space may have a score, but is masked.
            said = found > -torch.inf
            assert (said | ~allowed).all()
            for row, window in enumerate(batch["window"].tolist()):
                first = windows.table[window]["context_start"]
                beyond = first + len(windows.table[window]["char_starts"])
                assert said[row].nonzero().flatten().tolist() == [0, *range(first, beyond)]
        seen += len(starts)
    assert seen == len(windows)


def test_the_stored_logits_are_those_of_the_model(
    readers: dict[str, MakeReader], examples: datasets.Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher = readers["words"](48, 16, 24)
    monkeypatch.setattr("haystack_distill.teachers.cached._WINDOWS_PER_BATCH", 3)  # several record batches
    outputs = outputs_of(teacher, examples, tmp_path)
    windows = teacher.cut(examples, cache_dir=tmp_path)
    for batch in batches(windows, 1):
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "token_type_ids")}
        with torch.no_grad():
            output = teacher.model(**inputs)
        targets, allowed = targets_of(outputs, windows, batch), batch["context_mask"]
        assert torch.allclose(targets["teacher_start_logits"][allowed], output.start_logits[allowed], atol=1e-5)
        assert torch.allclose(targets["teacher_end_logits"][allowed], output.end_logits[allowed], atol=1e-5)


# --- other windows -----------------------------------------------------------------------------------------------


def windows_by_hand(reader: Reader, context: str) -> list[dict[str, Any]]:
    """The windows of a context, from the tokenizer's own truncation: context tokens' positions, spans, and inputs."""
    question = len(reader.tokenizer(QUESTION, add_special_tokens=False)["input_ids"])
    special = reader.tokenizer.num_special_tokens_to_add(pair=True)
    room = reader.window_settings.max_seq_len - question - special
    assert question <= reader.window_settings.max_query_length
    encoded = reader.tokenizer(
        QUESTION,
        context,
        truncation="only_second",
        max_length=reader.window_settings.max_seq_len,
        stride=max(0, room - reader.window_settings.doc_stride),
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
        return_token_type_ids=True,
    )
    reader.tokenizer.backend_tokenizer.no_truncation()
    alone = reader.tokenizer(context, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    covered = {character for start, end in alone for character in range(start, end)}
    made = []
    for number, ids in enumerate(encoded["input_ids"]):
        tokens = []
        for position, sequence in enumerate(encoded.sequence_ids(number)):
            if sequence == 1:
                start, end = encoded["offset_mapping"][number][position]
                while start < end and context[start].isspace():
                    start += 1
                while start < end and context[end - 1].isspace():
                    end -= 1
                while start < end < len(context) and context[end] in MARKS and end not in covered:
                    end += 1  # a letter keeps the marks that no token stands for
                tokens.append((position, start, end))
        inputs = {"input_ids": torch.tensor([ids])}
        if reader.model.config.model_type == "bert":
            inputs["token_type_ids"] = torch.tensor([encoded["token_type_ids"][number]])
        made.append({"tokens": tokens, "inputs": inputs, "length": len(ids)})
    return made


def mapped_by_hand(teacher: Reader, student: Reader, context: str) -> list[tuple[np.ndarray, np.ndarray]]:
    """Start and end scores of each student window, character by character as the design says (decision 5)."""
    spoken = windows_by_hand(teacher, context)
    for window in spoken:
        with torch.no_grad():
            output = teacher.model(**window["inputs"])
        for which, logits in (("start", output.start_logits[0]), ("end", output.end_logits[0])):
            scores: dict[int, list[float]] = {}
            for position, start, end in window["tokens"]:
                if end > start:
                    character = start if which == "start" else end - 1
                    scores.setdefault(character, []).append(float(logits[position] - logits[0]))
            window[which] = scores
        window["first"] = window["tokens"][0][1]
        window["past"] = window["tokens"][-1][2]

    def score(which: str, character: int) -> list[float]:
        """From the window in which the character lies farthest from an edge; of equals, the earlier."""
        best, depth = None, -1
        for window in spoken:
            here = min(character - window["first"], window["past"] - 1 - character)
            if here > depth:
                best, depth = window, here
        return best[which].get(character, []) if best else []

    mapped = []
    for window in windows_by_hand(student, context):
        starts, ends = np.full(window["length"], -np.inf), np.full(window["length"], -np.inf)
        starts[0] = ends[0] = 0.0
        owners = {"start": {}, "end": {}}  # of a character that several tokens stand for, the first and the last
        for position, start, end in window["tokens"]:
            for character in range(start, end):
                owners["start"].setdefault(character, position)
                owners["end"][character] = position
        for which, target in (("start", starts), ("end", ends)):
            for character, position in owners[which].items():
                for value in score(which, character):
                    target[position] = np.logaddexp(target[position], value)
        mapped.append((starts, ends))
    return mapped


@pytest.mark.parametrize(
    ("teacher", "teacher_windows", "student", "student_windows"),
    [
        ("words", (48, 16, 24), "bytes", (64, 20, 24)),
        ("bytes", (64, 20, 24), "words", (48, 16, 24)),
        ("words", (48, 16, 24), "pieces", (48, 16, 32)),
        ("pieces", (128, 64, 32), "words", (40, 7, 24)),
        ("words", (48, 16, 24), "words", (70, 40, 24)),
        ("words", (150, 100, 24), "words", (40, 8, 24)),
        ("bytes", (50, 9, 24), "bytes", (60, 30, 24)),
    ],
)
def test_other_windows_get_them_mapped_through_characters(
    readers: dict[str, MakeReader],
    examples: datasets.Dataset,
    teacher: str,
    teacher_windows: tuple[int, int, int],
    student: str,
    student_windows: tuple[int, int, int],
    tmp_path: Path,
) -> None:
    speaker, listener = readers[teacher](*teacher_windows), readers[student](*student_windows)
    outputs = outputs_of(speaker, examples, tmp_path)
    windows = listener.cut(examples, cache_dir=tmp_path)
    wanted = [row for context in CONTEXTS for row in mapped_by_hand(speaker, listener, context)]
    assert len(wanted) == len(windows) > 3
    scored = 0
    for batch in batches(windows):
        targets = targets_of(outputs, windows, batch)
        for row, window in enumerate(batch["window"].tolist()):
            length = len(wanted[window][0])
            for found, right in zip(targets.values(), wanted[window], strict=True):
                np.testing.assert_allclose(found[row, :length].numpy(), right, atol=2e-5)
                assert (found[row, length:] == -torch.inf).all()
                scored += int((right > -np.inf).sum())
    assert scored > 150


def test_no_score_is_lost_between_tokenizers(
    readers: dict[str, MakeReader], examples: datasets.Dataset, tmp_path: Path
) -> None:
    """With one window each, the whole probability of the teacher arrives at the student."""
    speaker, listener = readers["pieces"](180, 100, 32), readers["words"](180, 100, 32)
    outputs = outputs_of(speaker, examples, tmp_path)
    theirs, mine = speaker.cut(examples, cache_dir=tmp_path), listener.cut(examples, cache_dir=tmp_path)
    assert len(theirs) == len(mine) == len(CONTEXTS)
    expected = targets_of(outputs, theirs, next(batches(theirs)))
    got = targets_of(outputs, mine, next(batches(mine)))
    for name, logits in expected.items():
        relative = logits - logits[:, :1]
        assert torch.allclose(got[name].logsumexp(1), relative.logsumexp(1), atol=1e-4), name


# --- the cache ---------------------------------------------------------------------------------------------------


def forbid_running(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Reader, "logits", lambda *_: pytest.fail("the teacher ran"))


def test_a_teacher_runs_once(
    readers: dict[str, MakeReader], examples: datasets.Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher = readers["words"](48, 16, 24)
    first = outputs_of(teacher, examples, tmp_path / "cache")
    assert not first.from_cache
    teacher.save(tmp_path / "teacher")
    loaded = Reader.load(tmp_path / "teacher", window_settings=teacher.window_settings, device="cpu", precision="fp32")
    forbid_running(monkeypatch)
    again = outputs_of(loaded, examples, tmp_path / "cache")  # the same weights under another name
    assert again.from_cache
    assert again.key == first.key
    assert again.table.to_list() == first.table.to_list()


def test_a_teacher_runs_again_when_anything_differs(
    readers: dict[str, MakeReader], examples: datasets.Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher = readers["words"](48, 16, 24)
    outputs_of(teacher, examples, tmp_path)
    other_weights = teacher.copy()
    with torch.no_grad():
        other_weights.model.bert.encoder.layer[1].output.dense.bias[3] += 1e-6
    other_tokenizer = teacher.copy()
    other_tokenizer.tokenizer.backend_tokenizer.normalizer = normalizers.BertNormalizer(lowercase=False)
    other_precision = teacher.copy()
    other_precision.precision = "bf16"
    forbid_running(monkeypatch)
    assert outputs_of(teacher, examples, tmp_path).from_cache
    for changed in (
        other_weights,
        other_tokenizer,
        other_precision,
        readers["words"](48, 15, 24),
        readers["words"](47, 16, 24),
    ):
        with pytest.raises(pytest.fail.Exception, match="the teacher ran"):
            outputs_of(changed, examples, tmp_path)
    with pytest.raises(pytest.fail.Exception, match="the teacher ran"):
        outputs_of(teacher, examples.select([1, 0, 2]), tmp_path)


def test_a_damaged_cache_is_made_again(
    readers: dict[str, MakeReader], examples: datasets.Dataset, tmp_path: Path
) -> None:
    teacher = readers["words"](48, 16, 24)
    first = outputs_of(teacher, examples, tmp_path)
    wanted = first.table.to_list()
    path = tmp_path / "teachers" / f"{first.key}.arrow"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.unlink()  # not in place: `first` has the old bytes mapped
    path.write_bytes(content)
    again = outputs_of(teacher, examples, tmp_path)
    assert not again.from_cache
    assert again.table.to_list() == wanted
    assert outputs_of(teacher, examples, tmp_path).from_cache


def test_an_interrupted_teacher_leaves_no_outputs(
    readers: dict[str, MakeReader], examples: datasets.Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher = readers["words"](48, 16, 24)
    whole = Reader.logits

    def interrupted(self: Reader, *arguments: Any) -> Iterator[Any]:
        yield next(whole(self, *arguments))
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Reader, "logits", interrupted)
        with pytest.raises(KeyboardInterrupt):
            outputs_of(teacher, examples, tmp_path)
    assert list((tmp_path / "teachers").iterdir()) == []
    assert not outputs_of(teacher, examples, tmp_path).from_cache


def test_model_hash(readers: dict[str, MakeReader], tmp_path: Path) -> None:
    reader = readers["words"](48, 16, 24)
    wanted = model_fingerprint(reader.model)
    assert model_fingerprint(reader.copy().model) == wanted
    reader.save(tmp_path / "reader")
    assert model_fingerprint(Reader.load(tmp_path / "reader", window_settings=reader.window_settings).model) == wanted
    changed = reader.copy()
    changed.model.config.hidden_act = "relu"  # the same weights can mean something else
    assert model_fingerprint(changed.model) != wanted


@pytest.mark.parametrize("backend", ["onnx", "openvino"])
def test_what_was_exported_has_the_same_logits(
    tiny_reader: MakeReader, squad_file: Path, tmp_path: Path, backend: str
) -> None:
    reader = tiny_reader(initializer_range=0.3).replace(precision="fp32")
    runtime: Any = backend
    export_reader(reader, tmp_path / "reader", ExportSettings(runtime=runtime, int8="none"))
    settings: dict[str, Any] = {"window_settings": reader.window_settings, "precision": "fp32"}
    if backend == "onnx":
        del settings["precision"]
    exported = Reader.load(tmp_path / "reader", backend=backend, **settings)
    windows = reader.cut(load_examples(squad_file))
    batch = windows.collate(windows.__getitems__(list(range(len(windows)))))
    found = []
    for teacher in (CachedTeacher(reader), CachedTeacher(exported), CachedTeacher(lambda: exported)):
        teacher.prepare(windows.examples, windows, progress=False, cache_dir=tmp_path / "cache")
        found.append((teacher.key, teacher.cached(batch), teacher.fingerprint))
    assert found[1][0] == found[2][0] != found[0][0]
    assert found[1][2] == found[2][2]
    assert (found[0][2].get("backend"), found[1][2]["backend"]) == (None, backend)
    for name, logits in found[0][1].items():
        torch.testing.assert_close(found[1][1][name], logits, atol=1e-4, rtol=1e-4)
        assert torch.equal(found[2][1][name], found[1][1][name])
    with pytest.raises(DistilError, match="load the reader with backend='torch'"):
        LiveTeacher(exported)
