import io
import json
import random

import pytest

from haystack_distill.data.squad.encoding import BLOCK, SurrogateReplacer
from haystack_distill.data.squad.load import read_squad_with_report
from haystack_distill.errors import DataError

HALF = "\ufffd"


def read(raw: bytes) -> tuple[bytes, int]:
    reader = SurrogateReplacer(io.BytesIO(raw))
    return io.BufferedReader(reader).read(), reader.replaced


@pytest.mark.parametrize(
    ("raw", "expected", "replaced"),
    [
        (rb'"\ud83d"', rb'"\ufffd"', 1),
        (rb'"\ude00"', rb'"\ufffd"', 1),
        (rb'"\ud83d\ude00"', rb'"\ud83d\ude00"', 0),
        (rb'"\uD83D\uDE00"', rb'"\uD83D\uDE00"', 0),
        (rb'"\ude00\ud83d"', rb'"\ufffd\ufffd"', 2),
        (rb'"\ud83d\ud83d\ude00\ude00"', rb'"\ufffd\ud83d\ude00\ufffd"', 2),
        (rb'"\\ud83d"', rb'"\\ud83d"', 0),  # a backslash, and a word
        (rb'"\\\ud83d"', rb'"\\\ufffd"', 1),
        (rb'"\\ud83d\ude00"', rb'"\\ud83d\ufffd"', 1),
        (rb'"\ud83d\\ude00"', rb'"\ufffd\\ude00"', 1),
        (rb'"\ud83d x \ude00 \u00e9 \n"', rb'"\ufffd x \ufffd \u00e9 \n"', 2),
        (rb"\ud83", rb"\ud83", 0),
        (b"", b"", 0),
    ],
)
def test_half_a_pair_is_replaced_and_nothing_else(raw, expected, replaced):
    assert read(raw) == (expected, replaced)


def test_where_blocks_end_does_not_matter(monkeypatch):
    monkeypatch.setattr("haystack_distill.data.squad.encoding.BLOCK", 7)
    chance = random.Random(0)
    parts = [r"\ud83d", r"\ude00", r"\\", r"\\", "\\n", "a", "ud83d", r"\u00e9", r"\ud83d\ude00"]
    for _ in range(300):
        raw = json.dumps("")[:1] + "".join(chance.choices(parts, k=chance.randrange(12))) + '"'
        expected = json.loads(raw).encode("utf-32", "surrogatepass").decode("utf-32", "replace")
        assert json.loads(read(raw.encode())[0]) == expected, raw


def test_what_is_read_is_as_long_as_what_is_there():
    raw = rb"\ud83d\\" * (BLOCK // 6)
    found, replaced = read(raw)
    assert (len(found), replaced) == (len(raw), BLOCK // 6)


@pytest.mark.parametrize("ending", ["json", "jsonl"])
def test_offsets_hold_behind_a_half_and_the_log_counts_them(tmp_path, monkeypatch, caplog, ending):
    monkeypatch.setenv("HAYSTACK_DISTILL_CACHE", str(tmp_path / "cache"))
    context = "half \ud83d and \ude00 of 😀 a pair"
    qa = {"id": "\udfff1", "question": "\ud800?", "answers": [{"text": "\ude00 of", "answer_start": 11}]}
    content = {"data": [{"title": "T\ud800", "paragraphs": [{"context": context, "qas": [qa]}]}]}
    if ending == "jsonl":
        content = {**qa, "title": "T\ud800", "context": context}
    path = tmp_path / f"data.{ending}"
    path.write_text(json.dumps(content))
    for _ in range(2):  # the second time from the cache
        caplog.clear()
        (row,), report = read_squad_with_report(path)
        assert row["context"] == f"half {HALF} and {HALF} of 😀 a pair"
        assert (row["id"], row["title"], row["question"]) == (f"{HALF}1", f"T{HALF}", f"{HALF}?")
        assert row["answers"] == {"text": [f"{HALF} of"], "answer_start": [11]}
        assert (report.replaced, report.repaired) == (6, 0)
        assert "replaced 6 lone surrogate(s)" in caplog.text


def test_surrogates_as_bytes_are_not_utf8(tmp_path):
    path = tmp_path / "data.json"
    path.write_bytes(b'\xef\xbb\xbf{"data": [{"title": "\xed\xa0\xbd\xed\xb8\x80"}]}')
    with pytest.raises(DataError, match=r"data\.json: not UTF-8 \(at byte 24\): convert it .*iconv"):
        read_squad_with_report(path)
