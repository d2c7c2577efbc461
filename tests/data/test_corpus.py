import gzip
import io
import json
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from transformers import BertTokenizerFast

from haystack_distill.data.corpus import Corpus
from haystack_distill.data.text_windows import TextSettings, TextWindows
from haystack_distill.errors import DataError, DistilError

CONTEXTS = [
    "Ada Lovelace wrote the first program in 1843, long before there was a machine to run it on.",
    "The harbour of Lindow was built in 1702 by Cornelis Baak, who came from Delft with forty masons.",
    "Bees dance to tell their sisters where the flowers are; Karl von Frisch described it in 1927.",
    "A glacier moves a few metres a year. The fastest one ever measured moved forty metres a day.",
]
MakeWindows = Callable[..., TextWindows]


@pytest.fixture
def text_file(tmp_path: Path) -> Path:
    """Documents of one to three lines with an empty line between them, each told apart by the year in it."""
    lines = []
    for number in range(120):
        lines += [*[CONTEXTS[number % 4].replace("1843", str(1000 + number))] * (1 + number % 3), ""]
    path = tmp_path / "text.txt"
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


@pytest.fixture
def make(tokenizer: BertTokenizerFast, text_file: Path) -> MakeWindows:
    def windows(source: Any = None, *, n_steps: int = 100, seed: int = 3, **settings: Any) -> TextWindows:
        chosen = TextSettings(**{"max_seq_len": 16, "buffer_windows": 20} | settings)
        corpus = source if isinstance(source, Corpus) else Corpus(source or text_file)
        return TextWindows(corpus, tokenizer, chosen, n_steps=n_steps, seed=seed, token_types=True)

    return windows


def texts_of(corpus: Corpus) -> list[str]:
    return [text for texts, _ in corpus.read() for text in texts]


# --- corpus ----------------------------------------------------------------------------------------------------------


def test_names_are_no_patterns(tmp_path: Path) -> None:
    (tmp_path / "a [1].txt").write_text("One.")
    (tmp_path / "a*.txt").write_text("Two.")
    (tmp_path / "b [x]").mkdir()
    (tmp_path / "b [x]" / "c.txt").write_text("Three.")
    assert texts_of(Corpus(tmp_path / "a [1].txt")) == ["One."]
    assert texts_of(Corpus(tmp_path / "a*.txt")) == ["Two."]
    assert texts_of(Corpus(tmp_path / "b [x]")) == ["Three."]
    (tmp_path / "d::e.txt").write_text("Four.")
    with pytest.raises(DataError, match="must not have '::' in it; rename it"):
        Corpus(tmp_path / "d::e.txt")


def test_a_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("One.\n\nTwo.", encoding="utf-8-sig")
    (tmp_path / "b.txt.gz").write_bytes(gzip.compress("Three.".encode("utf-8-sig")))
    assert texts_of(Corpus(tmp_path)) == ["One.", "", "Two.", "Three."]


def test_every_kind_of_file_gives_its_texts(tmp_path: Path) -> None:
    rows = [{"text": text, "other": 1} for text in CONTEXTS]
    jsonl = "\n".join(json.dumps(row) for row in rows)
    (tmp_path / "a.jsonl").write_text(jsonl)
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(jsonl.encode()))
    datasets.Dataset.from_list(rows).to_parquet(str(tmp_path / "c.parquet"))
    (tmp_path / "d.txt").write_text("\n".join(CONTEXTS))
    (tmp_path / "e.txt.gz").write_bytes(gzip.compress("\n".join(CONTEXTS).encode()))
    for name in ("a.jsonl", "b.jsonl.gz", "c.parquet", "d.txt", "e.txt.gz"):
        assert texts_of(Corpus(tmp_path / name)) == CONTEXTS, name
    assert texts_of(Corpus([tmp_path / "a.jsonl", tmp_path / "b.jsonl.gz"])) == CONTEXTS * 2
    streamed = datasets.Dataset.from_list(rows).to_iterable_dataset()
    assert texts_of(Corpus(streamed)) == CONTEXTS


def test_a_directory_gives_its_files_by_name(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "b.txt").write_text("second")
    (tmp_path / "a.txt").write_text("first")
    (tmp_path / "deep" / "c.txt").write_text("third")
    (tmp_path / "notes.md").write_text("not a text of the corpus")
    corpus = Corpus(tmp_path)
    assert texts_of(corpus) == ["first", "second", "third"]
    assert corpus.identity == "a.txt (5 bytes), b.txt (6 bytes), c.txt (5 bytes)"


def test_the_fingerprint_is_of_the_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.txt").write_text("first")
    (tmp_path / "b.txt").write_text("second")
    names = [tmp_path / "a.txt", tmp_path / "b.txt"]
    known = Corpus(names).fingerprint
    assert known == Corpus(tmp_path).fingerprint != Corpus(names[::-1]).fingerprint
    (tmp_path / "a.txt").write_text("First")
    assert Corpus(tmp_path).fingerprint != known
    rows = datasets.Dataset.from_list([{"text": "one"}])
    assert Corpus(rows.to_iterable_dataset()).fingerprint is None
    assert Corpus(rows.to_iterable_dataset(), name="one").fingerprint is not None
    with pytest.raises(DistilError, match="name is for an IterableDataset"):
        Corpus(tmp_path, name="files")

    class Builder:
        hash = "1st commit"

        def as_streaming_dataset(self, split: str) -> datasets.IterableDataset:
            return rows.to_iterable_dataset()

    monkeypatch.setattr(datasets, "load_dataset_builder", lambda *_: Builder())
    before = Corpus("some/data").fingerprint
    Builder.hash = "2nd commit"
    assert None not in (before, Corpus("some/data").fingerprint)
    assert before != Corpus("some/data").fingerprint


def test_another_column(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps({"body": "words"}))
    assert texts_of(Corpus(tmp_path / "a.jsonl", text_column="body")) == ["words"]
    with pytest.raises(DataError, match=r"no column 'text' \(it has body.*text_column"):
        texts_of(Corpus(tmp_path / "a.jsonl"))


@pytest.mark.parametrize(
    ("files", "source", "says"),
    [
        ([], "missing.txt", r"missing.txt: no such file"),
        ([], ".", r"has no file that ends in .txt"),
        (["a.txt", "b.jsonl"], ".", r"different formats"),
        (["a.md"], "a.md", r"unsupported format"),
        ([], "no/such", r"neither a file, a directory nor a dataset"),
    ],
)
def test_what_cannot_be_a_corpus(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: list[str], source: str, says: str
) -> None:
    for name in files:
        (tmp_path / name).write_text("text")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=says):
        Corpus(source)
    with pytest.raises(DataError, match="the corpus has no files"):
        Corpus([])


def test_processes_take_turns(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("\n".join(f"line {number}" for number in range(2345)))
    corpus = Corpus(tmp_path / "a.txt")
    whole = [texts for texts, _ in corpus.read()]
    turns = [[texts for texts, _ in corpus.read(process=process, processes=3)] for process in range(3)]
    assert len(whole) == 3
    for number, texts in enumerate(whole):
        assert [part[number] for part in turns] == [texts if number % 3 == process else [] for process in range(3)]


def test_a_broken_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "broken.jsonl").write_text('{"text": "good"}\n{"text": ')
    with pytest.raises(DataError, match=r"broken.jsonl.*cannot be read"):
        texts_of(Corpus(tmp_path / "broken.jsonl"))


def _parquet(number: int) -> bytes:
    made = io.BytesIO()
    texts = [f"words {number} of row {row}" for row in range(500)]
    datasets.Dataset.from_dict({"text": texts}).to_parquet(made)
    return made.getvalue()


@pytest.mark.parametrize(
    ("kind", "spoil"),
    [
        (".parquet", lambda whole: whole[: len(whole) // 2]),
        (".parquet", lambda whole: whole[:300] + bytes(255 - byte for byte in whole[300:1500]) + whole[1500:]),
        (".parquet", lambda _: b""),
        (".parquet", lambda _: b"version https://git-lfs.github.com/spec/v1\n"),
        (".jsonl.gz", lambda whole: whole[: len(whole) // 2]),
        (".jsonl.gz", lambda whole: gzip.decompress(whole)),
        (".jsonl.gz", lambda whole: whole[:20] + bytes(255 - byte for byte in whole[20:60]) + whole[60:]),
        (".txt", lambda _: b"caf\xe9\n"),
    ],
)
def test_the_broken_one_of_several_files_is_named(tmp_path: Path, kind: str, spoil: Callable[[bytes], bytes]) -> None:
    lines = "".join(json.dumps({"text": f"line {number}"}) + "\n" for number in range(500)).encode()
    whole = {".parquet": _parquet, ".jsonl.gz": lambda _: gzip.compress(lines), ".txt": lambda _: lines}[kind]
    names = [f"{name}{kind}" for name in "dacb"]
    for number, name in enumerate(names):
        (tmp_path / name).write_bytes(whole(number) if number != 2 else spoil(whole(number)))
    for corpus in (Corpus(tmp_path), Corpus([tmp_path / name for name in names])):
        with pytest.raises(DataError, match=rf"^{re.escape(str(tmp_path / names[2]))} cannot be read \(.*\S"):
            texts_of(corpus)


# --- windows ---------------------------------------------------------------------------------------------------------


def test_windows_are_the_text_in_full_windows(make: MakeWindows, tokenizer: BertTokenizerFast, text_file: Path) -> None:
    windows = make(mask_probability=0.0)
    batch = windows.collate(windows.__getitems__(range(20)))
    assert batch["input_ids"].shape == (20, 16)
    assert batch["attention_mask"].all()
    assert not batch["token_type_ids"].any()
    assert (batch["labels"] == -100).all()
    assert batch["weight"].tolist() == [1.0] * 20
    assert batch["window"].tolist() == list(range(20))
    assert set(batch["input_ids"][:, 0].tolist()) == {tokenizer.cls_token_id}
    assert set(batch["input_ids"][:, -1].tolist()) == {tokenizer.sep_token_id}
    # Put back in order, the first chunk is the beginning of the text: documents joined, a separator behind each.
    documents = text_file.read_text().split("\n\n")
    text = [token for document in documents for token in [*tokenizer.tokenize(document), "[SEP]"]]
    order = np.random.default_rng([3, 0, 0]).permutation(20)
    found = np.empty((20, 14), dtype=np.int64)
    found[order] = batch["input_ids"][:, 1:-1].numpy()
    assert tokenizer.convert_ids_to_tokens(found.flatten().tolist()) == text[: 20 * 14]


def test_special_tokens_written_in_the_corpus_are_text(
    make: MakeWindows, tokenizer: BertTokenizerFast, tmp_path: Path
) -> None:
    (tmp_path / "a.txt").write_text("Ada wrote [SEP] and [CLS] first\n\nforty [MASK] came")
    windows = make(tmp_path / "a.txt", mask_probability=0.0, buffer_windows=1)
    once = np.concatenate([windows._tokens_of(texts) for texts, _ in windows.corpus.read()])
    assert (once == tokenizer.sep_token_id).sum() == 1  # between the documents; the second ends with the corpus
    assert tokenizer.cls_token_id not in once
    assert (once == tokenizer.mask_token_id).sum() == 1


def test_the_corpus_begins_again_and_loses_nothing(make: MakeWindows, tokenizer: BertTokenizerFast) -> None:
    lines = make(mask_probability=0.0, buffer_windows=1)
    tokens = [lines.__getitems__([number]).tokens[0] for number in range(900)]
    stream = np.concatenate(tokens)
    once = sum(len(lines._tokens_of(texts)) for texts, _ in lines.corpus.read())
    assert len(stream) > 2 * once
    assert np.array_equal(stream[:once], stream[once : 2 * once])


def test_windows_depend_on_corpus_and_seed_alone(make: MakeWindows) -> None:
    one, same, other = make(), make(), make(seed=4)
    indices = [0, 1, 25, 70, 199]
    first = one.collate(one.__getitems__(indices))
    assert all(value.equal(first[name]) for name, value in same.collate(same.__getitems__(indices)).items())
    # Also window by window, and out of order.
    alone = [same.collate(same.__getitems__([index]))["input_ids"][0] for index in reversed(indices)]
    assert all(a.equal(b) for a, b in zip(reversed(alone), first["input_ids"], strict=True))
    assert not other.collate(other.__getitems__(indices))["input_ids"].equal(first["input_ids"])


@pytest.mark.parametrize("window", [0, 19, 20, 39, 40, 150, 777])
def test_going_on_from_a_place(make: MakeWindows, window: int) -> None:
    whole = make()
    for index in range(window):
        whole.__getitems__([index])
    place = json.loads(json.dumps(whole.place_of(window)))
    resumed = make()
    read = []
    original = resumed.corpus.read
    resumed.corpus.read = lambda state=None, **turns: read.append(state) or original(state, **turns)  # type: ignore[method-assign, func-returns-value]
    resumed.go_to(place)
    for index in range(window, window + 70):
        assert np.array_equal(whole.__getitems__([index]).tokens, resumed.__getitems__([index]).tokens)
    assert (read[0] is None) == (window < 20)  # only the first chunk begins at the beginning


def test_a_corpus_that_does_not_fill_the_buffer_begins_at_once(make: MakeWindows, tmp_path: Path) -> None:
    path = tmp_path / "page.txt"
    path.write_text("\n\n".join(CONTEXTS))
    short = make(path, mask_probability=0.0, buffer_windows=4096)
    passes = []
    original = short.corpus.read
    short.corpus.read = lambda state=None, **turns: passes.append(state) or original(state, **turns)  # type: ignore[method-assign, func-returns-value]
    began = time.process_time()
    short.__getitems__(range(3 * 4096))
    assert time.process_time() - began < 5
    assert len(passes) == 1


@pytest.mark.parametrize("buffer_windows", [7, 19, 40, 333])
def test_a_short_corpus_is_repeated_as_if_it_were_read_again(
    make: MakeWindows, tmp_path: Path, buffer_windows: int
) -> None:
    path = tmp_path / "page.txt"
    path.write_text("\n\n".join([*CONTEXTS, *CONTEXTS]))
    windows = make(path, mask_probability=0.0, buffer_windows=buffer_windows)
    once = np.concatenate([windows._tokens_of(texts) for texts, _ in windows.corpus.read()])
    assert 7 * 14 < len(once) < 40 * 14  # some buffers are filled by one pass, others are not
    count = 4 * buffer_windows
    stream = np.tile(once, 1 + count * 14 // len(once))[: count * 14].reshape(4, buffer_windows, 14)
    for chunk, expected in enumerate(stream):
        order = np.random.default_rng([3, 0, chunk]).permutation(buffer_windows)
        first = chunk * buffer_windows
        found = windows.__getitems__(range(first, first + buffer_windows)).tokens
        assert np.array_equal(found, expected[order])
    for start in (0, 1, 2, 3):
        ahead = make(path, mask_probability=0.0, buffer_windows=buffer_windows)
        ahead.__getitems__(range(start * buffer_windows + 1))
        resumed = make(path, mask_probability=0.0, buffer_windows=buffer_windows)
        resumed.go_to(json.loads(json.dumps(ahead.place_of(start * buffer_windows))))
        indices = range(start * buffer_windows, count)
        assert np.array_equal(resumed.__getitems__(indices).tokens, windows.__getitems__(indices).tokens)


def test_masks(make: MakeWindows, tokenizer: BertTokenizerFast) -> None:
    windows, clear = make(buffer_windows=400), make(buffer_windows=400, mask_probability=0.0)
    batch, before = (made.collate(made.__getitems__(range(2000))) for made in (windows, clear))
    original, labels, now = before["input_ids"], batch["labels"], batch["input_ids"]
    guessed = labels != -100
    words = (original != tokenizer.cls_token_id) & (original != tokenizer.sep_token_id)
    assert labels[guessed].equal(original[guessed])
    assert now[~guessed].equal(original[~guessed])
    assert not (guessed & ~words).any()  # neither special tokens nor separators
    n = int(words.sum())
    assert abs(int(guessed.sum()) / n - 0.15) < 4 * (0.15 * 0.85 / n) ** 0.5
    shares = {
        "masked": (now == tokenizer.mask_token_id)[guessed].double().mean().item(),
        "left": (now == original)[guessed].double().mean().item(),
    }
    assert shares["masked"] == pytest.approx(0.8, abs=0.03)
    assert shares["left"] == pytest.approx(0.1, abs=0.03)
    swapped = now[guessed & (now != original) & (now != tokenizer.mask_token_id)]
    assert not set(swapped.tolist()) & set(tokenizer.all_special_ids)


def test_masks_are_drawn_anew_in_each_pass(make: MakeWindows, tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_text(CONTEXTS[0])
    windows = make(tmp_path / "short.txt", buffer_windows=1, max_seq_len=25)
    rows = windows.__getitems__(range(60))
    repeated = [number for number in range(60) if np.array_equal(rows.tokens[number], rows.tokens[0])]
    assert len(repeated) > 2
    inputs = windows.collate(rows)["input_ids"][repeated]
    assert len({tuple(row.tolist()) for row in inputs}) > 1


def test_a_corpus_without_text(make: MakeWindows, tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text("\n \n\n")
    with pytest.raises(DataError, match=r"empty.txt.*holds no text"):
        make(tmp_path / "empty.txt").__getitems__([0])


def test_a_tokenizer_without_masks(make: MakeWindows, tokenizer: BertTokenizerFast, text_file: Path) -> None:
    import copy

    without = copy.deepcopy(tokenizer)
    without.mask_token = None
    with pytest.raises(DistilError, match="no mask token; set mask_probability=0"):
        TextWindows(Corpus(text_file), without, TextSettings(), n_steps=1, seed=0, token_types=False)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("max_seq_len", [4, "128", 128.0, None]),
        ("mask_probability", [1.0, "0.15", None, True, float("nan")]),
        ("buffer_windows", [0, "16", 16.0, True]),
    ],
)
def test_settings_that_cannot_be(name: str, values: list[Any]) -> None:
    for value in values:
        with pytest.raises(DistilError, match=f"^{name} must be a .*number"):
            TextSettings(**{name: value})


def test_what_windows_are_called(make: MakeWindows) -> None:
    assert make().describe([3, 4]) == "the windows 3, 4 of the corpus"


def test_closed_windows_can_be_read_again(make: MakeWindows) -> None:
    windows = make()
    first = windows.__getitems__([0, 5]).tokens
    windows.close()
    windows.close()
    assert (windows.__getitems__([0, 5]).tokens == first).all()
    windows.close()
