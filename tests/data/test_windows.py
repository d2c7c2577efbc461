"""Windows against the tokenizers themselves, for each family of tokenizers, and characters against the text."""

import random
import re
import sys
import time
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from tokenizers import processors
from transformers import (
    AlbertConfig,
    AutoTokenizer,
    BertConfig,
    BertTokenizerFast,
    DistilBertConfig,
    ElectraConfig,
    LongformerConfig,
    PreTrainedTokenizerFast,
    RobertaConfig,
)
from transformers import AutoModelForQuestionAnswering as Auto

from haystack_distill import DistilError, Reader, WindowSettings
from haystack_distill.data import windows as features
from haystack_distill.data.squad.load import read_squad
from haystack_distill.data.text_tokenizer import PairTemplate, text_tokenizer
from haystack_distill.data.windows import PairWindows, Windows
from haystack_distill.utils.model_inputs import takes_token_types
from tests.conftest import SHARED
from tests.data.conftest import (
    FAMILIES,
    PLAIN,
    QUESTION,
    UNICODE,
    byte_level,
    fast,
    wordpiece,
)

Span = tuple[int, int]


def rows(*pairs: tuple[str, str], answers: list[Span] | None = None, labelled: bool = True) -> datasets.Dataset:
    """Examples of (question, context) and the characters of the answer; without answers they are unanswerable."""
    found: list[dict[str, list]] = [{"text": [], "answer_start": []} for _ in pairs]
    for row, (start, end) in enumerate(answers or []):
        found[row] = {"text": [pairs[row][1][start:end]], "answer_start": [start]}
    features = datasets.Features(
        {
            "id": datasets.Value("string"),
            "title": datasets.Value("string"),
            "context": datasets.Value("string"),
            "question": datasets.Value("string"),
            "answers": {
                "text": datasets.List(datasets.Value("string")),
                "answer_start": datasets.List(datasets.Value("int32")),
            },
            "is_impossible": datasets.Value("bool"),
            "labelled": datasets.Value("bool"),
        }
    )
    columns = {
        "id": [str(row) for row in range(len(pairs))],
        "title": [""] * len(pairs),
        "context": [context for _, context in pairs],
        "question": [question for question, _ in pairs],
        "answers": found,
        "is_impossible": [not answer["text"] for answer in found],
        "labelled": [labelled] * len(pairs),
    }
    return datasets.Dataset.from_dict(columns, features=features)


def cut(
    examples: datasets.Dataset,
    tokenizer: Any,
    max_seq_len: int = 4000,
    doc_stride: int = 128,
    max_query_length: int = 64,
) -> Windows:
    settings = WindowSettings(max_seq_len, doc_stride, max_query_length)
    return Windows.cut(examples, tokenizer, settings, token_types=True)


def tokens_of(windows: Windows, window: int) -> tuple[list[int], list[tuple[int, int]]]:
    """The context token ids of a window, and their character spans."""
    row = windows.table[window]
    spans = list(zip(row["char_starts"], row["char_ends"], strict=True))
    return row["input_ids"][row["context_start"] : row["context_start"] + len(spans)], spans


def texts_of(windows: Windows, window: int, context: str) -> list[str]:
    return [context[start:end] for start, end in tokens_of(windows, window)[1]]


def place_of(text: str, context: str) -> Span:
    return context.index(text), context.index(text) + len(text)


# --- ids ---------------------------------------------------------------------------------------------------------


def test_a_window_is_what_the_tokenizer_makes_of_the_pair(family: PreTrainedTokenizerFast) -> None:
    pairs = [(QUESTION, PLAIN), (QUESTION, UNICODE), (UNICODE[:40].strip(), PLAIN), ("why", "so")]
    windows = cut(rows(*pairs), family)
    assert len(windows) == len(pairs)
    for index, pair in enumerate(pairs):
        wanted = family(*pair, return_token_type_ids=True)
        batch = windows.collate(windows[index])
        assert batch["input_ids"][0].tolist() == wanted["input_ids"]
        assert batch["token_type_ids"][0].tolist() == wanted["token_type_ids"]
        assert batch["attention_mask"][0].tolist() == wanted["attention_mask"]


@pytest.mark.parametrize("doc_stride", [1, 7, 16])
def test_windows_are_those_of_the_tokenizer_with_truncation(family: PreTrainedTokenizerFast, doc_stride: int) -> None:
    room = 24
    question = len(family(QUESTION, add_special_tokens=False)["input_ids"])
    length = question + PairTemplate.of(family).n_special + room
    windows = cut(rows((QUESTION, UNICODE)), family, length, doc_stride, question)
    wanted = family(
        QUESTION,
        UNICODE,
        truncation="only_second",
        max_length=length,
        stride=room - doc_stride,  # theirs is the overlap
        return_overflowing_tokens=True,
    )
    family.backend_tokenizer.no_truncation()
    assert windows.table["input_ids"][:] == wanted["input_ids"]
    assert len(windows) > 1


@pytest.mark.parametrize("written", ["{0}", "say {0} twice", "say{0}twice", "{0}{0} say", "say {0}, {1} and {2}!"])
def test_special_tokens_written_in_a_text_are_text(family: PreTrainedTokenizerFast, written: str) -> None:
    names = {"[CLS]", "[SEP]", "[UNK]", "[PAD]", "<s>", "</s>", "<unk>", "<pad>"}
    own = [name for name in family.all_special_tokens if name in names]
    assert len(own) == 4
    for turn in range(4):
        text = written.format(*own[turn:], *own)
        windows = cut(rows((QUESTION, text), (text, PLAIN)), family, max_query_length=300)
        ids, spans = tokens_of(windows, 0)
        unknown = family.unk_token_id  # for characters that the vocabulary lacks, such as the brackets
        assert not set(ids) & set(family.all_special_ids) - {unknown}
        assert {place for start, end in spans for place in range(start, end)} >= {
            place for place, character in enumerate(text) if not character.isspace()
        }
        template = windows.template
        asked = windows.table[1]["input_ids"][len(template.prefix) : windows.table[1]["context_start"]]
        question = asked[: len(asked) - len(template.middle)]
        assert not set(question) & set(family.all_special_ids) - {unknown}


@pytest.mark.parametrize("name", FAMILIES)
def test_the_mask_token_in_a_text_is_the_mask_token(name: str) -> None:
    tokenizer = fast(FAMILIES[name]())
    mask = "<mask>" if tokenizer.cls_token == "<s>" else "[MASK]"
    tokenizer.add_special_tokens({"mask_token": mask})
    text = f"The harbour of {mask} was {tokenizer.sep_token} built{mask} in 1702"
    ids, spans = tokens_of(cut(rows((QUESTION, text)), tokenizer), 0)
    assert [text[slice(*span)] for id, span in zip(ids, spans, strict=True) if id == tokenizer.mask_token_id] == [
        mask,
        mask,
    ]
    assert tokenizer.sep_token_id not in ids
    plain = f"The harbour of {mask} was built in 1702"
    assert tokens_of(cut(rows((QUESTION, plain)), tokenizer), 0)[0] == tokenizer.encode(plain, add_special_tokens=False)


def test_a_longformer_answers_where_question_and_context_name_its_separator() -> None:
    tokenizer = fast(byte_level())
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    config = LongformerConfig(
        vocab_size=len(tokenizer), attention_window=[64], pad_token_id=1, sep_token_id=2, type_vocab_size=1, **sizes
    )
    reader = Reader(Auto.from_config(config), tokenizer, device="cpu", precision="fp32")
    assert reader.answer("Who wrote </s> first?", "Ada wrote </s></s> and <s> first.", allow_no_answer=False)


@pytest.mark.real_data
@pytest.mark.parametrize("model", ["minilm-l6-squad2"])
def test_real_texts_become_the_tokens_that_they_always_became(model: str) -> None:
    directory = SHARED / "models" / model
    if not directory.exists():
        pytest.skip("../shared is not here")
    tokenizer = AutoTokenizer.from_pretrained(directory)
    data = read_squad(SHARED / "data" / "squad" / "dev-v2.0.json.gz")
    texts = [*dict.fromkeys(data["context"]), *data["question"][:1000]]
    wanted = tokenizer(texts, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    found = text_tokenizer(tokenizer).encode_batch(texts, add_special_tokens=False)
    assert [encoding.ids for encoding in found] == wanted["input_ids"]
    assert [encoding.offsets for encoding in found] == [
        [tuple(span) for span in one] for one in wanted["offset_mapping"]
    ]


def test_windows_of_pairs_take_special_tokens_for_text_too(family: PreTrainedTokenizerFast) -> None:
    pair = (f"Who wrote {family.cls_token}?", f"Nobody {family.sep_token} wrote {family.pad_token} it.")
    windows = PairWindows.cut([pair], family, token_types=True)
    assert windows[0].lists("input_ids")[0].tolist() == cut(rows(pair), family).table[0]["input_ids"]


# --- characters --------------------------------------------------------------------------------------------------


def spoken(text: str) -> str:
    """A text as tokenizers that ignore case, accents and compatibility see it."""
    plain = unicodedata.normalize("NFKD", text).lower()
    return "".join(c for c in plain if unicodedata.category(c)[0] not in "MZC")


def byte_characters() -> dict[str, int]:
    """The byte that each character of a byte-level token stands for (GPT-2's table)."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    moved = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(256 + place): byte for place, byte in enumerate(moved)}


BYTES = byte_characters()


@pytest.mark.parametrize("context", [PLAIN, UNICODE], ids=["plain", "unicode"])
def test_spans_lie_where_the_tokens_came_from(family: PreTrainedTokenizerFast, context: str) -> None:
    windows = cut(rows((QUESTION, context)), family)
    ids, spans = tokens_of(windows, 0)
    assert all(0 <= start <= end <= len(context) for start, end in spans)
    assert [start for start, _ in spans] == sorted(start for start, _ in spans)
    for token, (start, end) in zip(ids, spans, strict=True):
        piece = context[start:end]
        assert piece == piece.strip()
        name = family.convert_ids_to_tokens(token)
        if name in ("[UNK]", "<unk>"):
            continue
        word = name.removeprefix("##").replace("▁", "")
        if family.cls_token == "<s>":
            said = bytes(BYTES[character] for character in name)
            if not piece:
                assert context[:start][-1].isspace()
                continue
            assert said.strip() in piece.encode()
            whole = said.strip().decode(errors="replace")
            assert whole == piece or "\ufffd" in whole  # the latter: a token of parts of characters
        elif len(spoken(word)) == len(spoken(piece)):
            assert spoken(word) == spoken(piece)
        else:  # a part of a character that stands for several, as the ligature fi does
            assert spoken(word) in spoken(piece)


def test_every_visible_character_belongs_to_a_token(family: PreTrainedTokenizerFast) -> None:
    windows = cut(rows((QUESTION, UNICODE)), family)
    _, spans = tokens_of(windows, 0)
    covered = {place for start, end in spans for place in range(start, end)}
    left = {UNICODE[place] for place in range(len(UNICODE)) if place not in covered and not UNICODE[place].isspace()}
    assert left <= {"\u200d"}  # the joiner, which some tokenizers drop, inside a sequence


def test_a_letter_keeps_its_combining_marks(family: PreTrainedTokenizerFast) -> None:
    words = ["Cafe\u0301", "re\u0301sume\u0301s", "Zu\u0308rich", "\u2764\ufe0f", "\u05e9\u05dc\u05d5\u05b9\u05dd"]
    windows = cut(
        rows(*[(QUESTION, UNICODE)] * len(words), answers=[place_of(word, UNICODE) for word in words]), family
    )
    for index, word in enumerate(words):
        row = windows.table[index]
        first, last = (row[name] - row["context_start"] for name in ("start_position", "end_position"))
        # Tokenizers that drop accents would otherwise answer "Cafe" where the text says "Café".
        assert UNICODE[row["char_starts"][first] : row["char_ends"][last]].rstrip(".") == word


def test_spans_are_moved_as_one_character_after_another_would_be() -> None:
    draw = random.Random(0)
    for _ in range(2000):
        text = "".join(draw.choices("ab \n\u0301\u0302", k=draw.randint(1, 14)))
        starts = sorted(draw.randint(0, len(text)) for _ in range(draw.randint(1, 5)))
        spans = [(start, draw.randint(start, len(text))) for start in starts]
        trimmed = []
        for start, end in spans:
            while start < end and text[start].isspace():
                start += 1
            while start < end and text[end - 1].isspace():
                end -= 1
            trimmed.append((start, end))
        with_marks = []
        for (start, end), following in zip(trimmed, [*(start for start, _ in trimmed[1:]), len(text)], strict=True):
            while start < end < following and unicodedata.combining(text[end]):
                end += 1
            with_marks.append(end)
        found = features._trim(text, *np.array(spans, dtype=np.int32).T)
        assert np.stack(found, axis=1).tolist() == [list(span) for span in trimmed]
        assert features._with_marks(text, *found).tolist() == with_marks


def test_cutting_takes_time_in_proportion_to_the_text(bert: PreTrainedTokenizerFast) -> None:
    text = "came " * 64_000 + "e" + "\u0301" * 64_000
    started = time.process_time()
    windows = PairWindows.cut([(QUESTION, text)], bert, token_types=True)
    assert time.process_time() - started < 3  # one pass over all tokens for each character takes many times as long
    assert len(windows) > 100


@pytest.mark.parametrize("context", [PLAIN, UNICODE], ids=["plain", "unicode"])
def test_labels_cover_the_answer(family: PreTrainedTokenizerFast, context: str) -> None:
    words = [match.span() for match in re.finditer(r"\S+", context)]
    windows = cut(rows(*[(QUESTION, context)] * len(words), answers=words), family)
    assert len(words) > 15
    for index, (start, end) in enumerate(words):
        row = windows.table[index]
        assert row["labelled"]
        assert row["char_starts"][row["start_position"] - row["context_start"]] == start
        assert row["char_ends"][row["end_position"] - row["context_start"]] == end


def test_white_space_neither_begins_nor_ends_an_answer(family: PreTrainedTokenizerFast) -> None:
    context = "  forty\u00a0 \u2003masons\n\n came \t"
    windows = cut(rows((QUESTION, context)), family)
    assert all(text == text.strip() for text in texts_of(windows, 0, context))
    batch = windows.collate(windows[0])
    row = windows.table[0]
    allowed = batch["context_mask"][0].nonzero().flatten().tolist()
    assert allowed[0] == windows.template.no_answer_position == 0
    assert all(context[row["char_starts"][i - row["context_start"]]].strip() for i in allowed[1:])
    assert {context[row["char_starts"][i - row["context_start"]]] for i in allowed[1:]} >= {"f", "m", "c"}


# --- windows -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("doc_stride", "steps"), [(5, 5), (12, 12), (1000, None)])
def test_doc_stride_is_the_step_between_windows(
    family: PreTrainedTokenizerFast, doc_stride: int, steps: int | None
) -> None:
    windows = cut(rows((QUESTION, PLAIN)), family, max_seq_len=64, doc_stride=doc_stride, max_query_length=40)
    whole = tokens_of(cut(rows((QUESTION, PLAIN)), family), 0)
    room = 64 - windows.table[0]["context_start"] - len(windows.template.suffix)
    first, seen = 0, set()
    for window in range(len(windows)):
        ids, spans = tokens_of(windows, window)
        assert ids == whole[0][first : first + room]
        assert spans == whole[1][first : first + room]
        assert len(windows.table[window]["input_ids"]) == windows.table[window]["length"] <= 64
        seen |= set(range(first, first + len(ids)))
        first += steps or room  # a step longer than a window would skip tokens
    assert seen == set(range(len(whole[0])))  # no token is left out
    assert len(windows) == max(1, -(-(len(whole[0]) - room) // (steps or room)) + 1)  # and no window is needless


def test_windows_of_examples_lie_together(bert: PreTrainedTokenizerFast) -> None:
    windows = cut(rows((QUESTION, PLAIN), ("who", "so"), (QUESTION, UNICODE)), bert, 32, 8, 16)
    assert windows.example_of.tolist() == sorted(windows.example_of.tolist())
    ranges = [windows.windows_of_examples(example, example + 1) for example in range(3)]
    assert [index for part in ranges for index in part] == list(range(len(windows)))
    assert len(ranges[0]) > 1
    assert len(ranges[1]) == 1
    assert windows.example_ids([ranges[2][0], ranges[0][0], ranges[2][1]]) == ["2", "0"]


def test_a_label_only_where_the_whole_answer_lies(bert: PreTrainedTokenizerFast) -> None:
    answer = "Cornelis Baak"
    windows = cut(rows((QUESTION, PLAIN), answers=[place_of(answer, PLAIN)]), bert, 32, 6, 16)
    begin = PLAIN.index(answer)
    inside = 0
    for window in range(len(windows)):
        row = windows.table[window]
        spans = tokens_of(windows, window)[1]
        here = (row["start_position"], row["end_position"])
        if spans[0][0] <= begin and begin + len(answer) <= spans[-1][1]:
            first, last = (position - row["context_start"] for position in here)
            assert PLAIN[spans[first][0] : spans[last][1]] == answer
            inside += 1
        else:
            assert here == (windows.template.no_answer_position, windows.template.no_answer_position)
        assert row["labelled"]
    assert 0 < inside < len(windows)


def test_lost_answers_are_counted_and_a_stride_that_loses_none_is_named(
    bert: PreTrainedTokenizerFast, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    words = [match.span() for match in re.finditer(r"\S+", PLAIN)]
    answers = [(words[place][0], words[place + 2][1]) for place in range(len(words) - 2)]
    examples = rows(*[("who", PLAIN)] * (len(answers) + 2), answers=answers)  # and two that are unanswerable

    def made(doc_stride: int) -> Windows:
        return Windows.cut(examples, bert, WindowSettings(20, doc_stride, 8), token_types=True, cache_dir=tmp_path)

    def without_label(windows: Windows) -> int:
        found = [0] * len(examples)
        for row in windows.table:
            found[row["example"]] += row["start_position"] > 0
        return found[: len(answers)].count(0)

    apart = made(20)
    lost = without_label(apart)
    assert 1 < lost < len(answers)
    for windows in (apart, made(20)):  # cut now, and found in the cache
        caplog.clear()
        windows.warn_of_lost_answers()
        (message,) = [record.getMessage() for record in caplog.records]
        assert message.startswith(f"{lost} of {len(answers)} answers lie in no window whole")
        stride = int(re.search(r"doc_stride=(\d+) loses none", message)[1])
    caplog.clear()
    near = made(stride)
    near.warn_of_lost_answers()
    assert not caplog.records
    assert without_label(near) == 0


def test_answers_longer_than_a_window_need_larger_windows(
    bert: PreTrainedTokenizerFast, caplog: pytest.LogCaptureFixture
) -> None:
    windows = cut(rows(("who", PLAIN), ("so", PLAIN), answers=[(0, len(PLAIN)), (4, 11)]), bert, 20, 5, 8)
    windows.warn_of_lost_answers()
    assert "1 of 2 answers lie in no window whole" in caplog.text
    assert "1 of them need a larger max_seq_len" in caplog.text
    assert "loses none" not in caplog.text


def test_the_default_stride_follows_the_length() -> None:
    assert [WindowSettings(length).doc_stride for length in (384, 256, 128, 512)] == [128, 85, 42, 170]
    assert WindowSettings().doc_stride == 128
    assert WindowSettings(384) == WindowSettings(384, 128)
    assert WindowSettings(256, max_query_length=30).doc_stride == 85
    assert WindowSettings(256, 128).doc_stride == 128


def test_labels_of_rows_without_an_answer(bert: PreTrainedTokenizerFast) -> None:
    impossible = cut(rows((QUESTION, PLAIN)), bert).table[0]
    assert (impossible["start_position"], impossible["end_position"], impossible["labelled"]) == (0, 0, True)
    transfer = cut(rows((QUESTION, PLAIN), labelled=False), bert).table[0]
    assert (transfer["start_position"], transfer["end_position"], transfer["labelled"]) == (0, 0, False)


def test_an_answer_that_no_token_stands_for_is_no_label(bert: PreTrainedTokenizerFast) -> None:
    row = cut(rows((QUESTION, "so \u200e it was"), answers=[(3, 4)]), bert).table[0]  # BERT drops the direction mark
    assert not row["labelled"]


def test_a_long_question_loses_its_end(family: PreTrainedTokenizerFast) -> None:
    question = " ".join([QUESTION] * 5)
    windows = cut(rows((question, PLAIN)), family, max_query_length=9)
    ids = family(question, add_special_tokens=False)["input_ids"]
    template = windows.template
    wanted = [*template.prefix, *ids[:9], *template.middle]
    assert windows.table[0]["input_ids"][: len(wanted)] == wanted
    assert windows.table[0]["context_start"] == len(wanted)
    assert tokens_of(windows, 0)[0] == family(PLAIN, add_special_tokens=False)["input_ids"]


# --- batches -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("multiple", [1, 5, 1000])
def test_a_batch_is_padded_to_a_multiple(family: PreTrainedTokenizerFast, multiple: int) -> None:
    windows = cut(rows((QUESTION, PLAIN), ("who", "so")), family)
    chosen = windows.__getitems__([0])
    windows_length = int(chosen.ints("length")[0])
    batch = windows.collate(chosen, multiple)
    expected = min(-(-windows_length // multiple) * multiple, windows.settings.max_seq_len)
    assert batch["input_ids"].shape == (1, expected)
    assert batch["attention_mask"].sum() == windows_length
    assert (batch["input_ids"][0, windows_length:] == windows.pad_token_id).all()


def test_a_batch_is_padded_to_its_own_longest_window(family: PreTrainedTokenizerFast) -> None:
    windows = cut(rows((QUESTION, PLAIN), ("who", "so"), ("who", "so it was")), family)
    batch = windows.collate(windows.__getitems__([1, 2]))
    longest = int(windows.lengths[2])
    assert batch["input_ids"].shape == (2, longest)
    assert longest < windows.lengths[0]
    short = int(windows.lengths[1])
    assert batch["attention_mask"].sum(dim=1).tolist() == [short, longest]
    assert set(batch["input_ids"][0, short:].tolist()) == {family.pad_token_id}
    assert not batch["context_mask"][0, short:].any()
    assert batch["token_type_ids"][0, short:].tolist() == [0] * (longest - short)
    assert batch["window"].tolist() == [1, 2]
    assert batch["weight"].tolist() == [1.0, 1.0]


def test_the_context_mask_holds_context_and_no_answer_position(family: PreTrainedTokenizerFast) -> None:
    windows = cut(rows((QUESTION, PLAIN)), family)
    mask = windows.collate(windows[0])["context_mask"][0].tolist()
    sequences = family(QUESTION, PLAIN).sequence_ids(0)
    spans = tokens_of(windows, 0)[1]
    context = [i for i, sequence in enumerate(sequences) if sequence == 1]
    visible = {position for position, (start, end) in zip(context, spans, strict=True) if end > start}
    assert {i for i, allowed in enumerate(mask) if allowed} == visible | {0}
    assert len(visible) > 20


def test_a_filler_weighs_nothing(bert: PreTrainedTokenizerFast) -> None:
    windows = cut(rows((QUESTION, PLAIN), ("who", "so")), bert)
    batch = windows.collate(windows.__getitems__([1, ~0, ~1]))
    assert batch["weight"].tolist() == [1.0, 0.0, 0.0]
    assert batch["window"].tolist() == [1, 0, 1]
    assert batch["input_ids"][0].tolist() == batch["input_ids"][2].tolist()


SHAPE = {"vocab_size": 50, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}


@pytest.mark.parametrize(
    ("config", "takes"),
    [
        (BertConfig(**SHAPE), True),
        (ElectraConfig(**SHAPE, embedding_size=8), True),
        (AlbertConfig(**SHAPE, embedding_size=8), True),
        (BertConfig(**SHAPE, type_vocab_size=1), False),
        (RobertaConfig(**SHAPE, type_vocab_size=1), False),
        (DistilBertConfig(vocab_size=50, dim=8, n_layers=1, n_heads=2, hidden_dim=8), False),
    ],
    ids=lambda value: getattr(value, "model_type", None),
)
def test_token_types_go_to_models_that_tell_them_apart(config: Any, takes: bool, bert: PreTrainedTokenizerFast) -> None:
    assert takes_token_types(Auto.from_config(config)) is takes
    windows = Windows.cut(rows(("who", "so")), bert, token_types=takes)
    assert ("token_type_ids" in windows.collate(windows[0])) is takes


# --- template, errors --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings",
    [{"max_seq_len": 0}, {"doc_stride": 0}, {"max_query_length": -1}, {"doc_stride": 1.5}, {"doc_stride": True}],
)
def test_window_settings_are_checked(settings: dict[str, Any]) -> None:
    with pytest.raises(DistilError, match=f"{next(iter(settings))} must be a whole number"):
        WindowSettings(**settings)


def test_window_settings_leave_room_for_the_context() -> None:
    with pytest.raises(DistilError, match="leaves no room for the context"):
        WindowSettings(max_seq_len=64, max_query_length=60)


def test_no_room_beside_a_real_question() -> None:
    backend = wordpiece()
    many = " ".join(["[SEP]"] * 8)
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair=f"[CLS] $A {many} $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    with pytest.raises(DistilError, match="leaves no room for the context in max_seq_len 16"):
        cut(rows((QUESTION, PLAIN)), fast(backend), max_seq_len=16, max_query_length=11)


# --- keys and cache ----------------------------------------------------------------------------------------------


def test_windows_are_cut_once(
    tokenizer: BertTokenizerFast, squad_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    examples = read_squad(squad_file)
    settings = WindowSettings(48, 16, 16)

    def make(**changed: Any) -> Windows:
        given = {"examples": examples, "tokenizer": tokenizer, "settings": settings} | changed
        return Windows.cut(**given, token_types=True, cache_dir=tmp_path / "cache")

    first = make()
    monkeypatch.setattr("haystack_distill.data.windows._cut", lambda *_: pytest.fail("cut again"))
    again = make()
    assert again.key == first.key
    assert again.table.to_list() == first.table.to_list()
    np.testing.assert_array_equal(again.lengths, first.lengths)
    for changed in (
        {"settings": WindowSettings(48, 15, 16)},
        {"examples": examples.select(range(7))},
        {"tokenizer": fast(wordpiece())},
    ):
        with pytest.raises(pytest.fail.Exception, match="cut again"):
            make(**changed)


def test_white_space_is_what_python_calls_so() -> None:
    found = features._IS_BLANK[np.minimum(np.arange(sys.maxunicode + 1), len(features._IS_BLANK) - 1)]
    assert np.flatnonzero(found).tolist() == [code for code in range(sys.maxunicode + 1) if chr(code).isspace()]
    marks = [code for code in range(sys.maxunicode + 1) if unicodedata.category(chr(code))[0] == "M"]
    assert min(marks) == features._FIRST_MARK


def test_windows_of_pairs_are_those_on_disk(tokenizer: BertTokenizerFast, squad_file: Path, tmp_path: Path) -> None:
    examples = read_squad(squad_file)
    settings = WindowSettings(24, 8, 10)
    kept = Windows.cut(examples, tokenizer, settings, token_types=True, cache_dir=tmp_path / "kept")
    pairs = list(zip(examples["question"], examples["context"], strict=True))
    loose = PairWindows.cut(pairs, tokenizer, settings, token_types=True)
    assert len(loose) == len(kept) > loose.n_examples == kept.n_examples == 8
    assert loose.contexts(2, 5) == kept.contexts(2, 5)
    assert loose.windows_of_examples(2, 5) == kept.windows_of_examples(2, 5)
    chosen = [5, 0, len(kept) - 1, ~1]
    of_pairs, on_disk = loose.__getitems__(chosen), kept.__getitems__(chosen)
    for name in ("example", "context_start", "length"):
        assert of_pairs.ints(name).tolist() == on_disk.ints(name).tolist()
        assert of_pairs.ints(name).dtype == on_disk.ints(name).dtype
    for name in ("input_ids", "char_starts", "char_ends"):
        for one, other in zip(of_pairs.lists(name), on_disk.lists(name), strict=True):
            assert one.dtype == other.dtype
            assert one.tolist() == other.tolist()
    batches = loose.collate(of_pairs), kept.collate(on_disk)
    for name in batches[0].keys() - {"labelled", "start_positions", "end_positions"}:
        assert batches[0][name].dtype == batches[1][name].dtype
        assert torch.equal(batches[0][name], batches[1][name])
    assert not loose.collate(loose[0])["labelled"].any()


def test_windows_do_not_depend_on_how_many_rows_are_cut_at_once(
    tokenizer: BertTokenizerFast, squad_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    examples = read_squad(squad_file)
    together = cut(examples, tokenizer, 48, 16, 16).table.to_list()
    monkeypatch.setattr("haystack_distill.data.windows._ROWS_PER_BATCH", 3)
    assert cut(examples, tokenizer, 48, 16, 16).table.to_list() == together


def test_half_a_surrogate_pair_is_replaced_where_it_stands(tiny_reader: Callable[..., Any], caplog: Any) -> None:
    reader = tiny_reader()
    context = "Ada \ud83d Lovelace \ude00 wrote the first program in 1843"
    mended = context.replace("\ud83d", "\ufffd").replace("\ude00", "\ufffd")
    found = reader.answer("Who\udfff?", context, 3)
    assert "replaced 3 lone surrogate(s)" in caplog.text
    assert found == reader.answer("Who\ufffd?", mended, 3)
    for answer in found:
        assert answer.text == mended[answer.start : answer.end]
    caplog.clear()
    reader.answer("Who 😀?", "Köln 😀 " + mended)
    assert caplog.text == ""
