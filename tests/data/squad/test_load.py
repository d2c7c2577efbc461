import gzip
import json
import logging
import re
import threading
from pathlib import Path

import datasets
import pytest

from haystack_distill.data.squad.load import (
    content_hash,
    load_examples,
    read_squad,
    read_squad_with_report,
    write_squad,
)
from haystack_distill.errors import DataError, DistilError

SHARED = Path(__file__).parents[4] / "shared" / "data" / "squad"
CONTEXT = "Zoë 😀 met Ann in Köln. Later Ann left."  # "Ann" twice, and characters outside of ASCII and of the BMP


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HAYSTACK_DISTILL_CACHE", str(tmp_path / "cache"))


def answer(text, start=None):
    return {"text": text, "answer_start": CONTEXT.index(text) if start is None else start}


def qa(id_="q1", *answers, **more):
    return {"id": id_, "question": f"Question {id_}?", "answers": list(answers), **more}


def squad(*qas, context=CONTEXT, title="A title"):
    return {
        "version": "v2.0",
        "data": [
            {"title": "First", "paragraphs": []},
            {"title": title, "paragraphs": [{"context": context, "qas": list(qas)}]},
        ],
    }


@pytest.fixture
def save(tmp_path):
    def save(content, name="data.json"):
        raw = content if isinstance(content, bytes) else json.dumps(content, ensure_ascii=False).encode()
        path = tmp_path / name
        path.write_bytes(gzip.compress(raw) if name.endswith(".gz") else raw)
        return path

    return save


GOOD = [
    qa("q1", answer("Köln")),
    qa("q2", answer("Ann"), answer("Ann", CONTEXT.rindex("Ann")), answer("Köln"), is_impossible=False),
    qa("q3", is_impossible=True, plausible_answers=[answer("Ann")]),
    {"id": "q4", "question": "To distil from?", "labelled": False},
]


@pytest.mark.parametrize("name", ["data.json", "data.json.gz"])
def test_reads_rows_of_the_hub_schema(save, name):
    dataset, report = read_squad_with_report(save(squad(*GOOD), name))
    assert dataset.features == datasets.Features(
        {
            **{name: datasets.Value("string") for name in ("id", "title", "context", "question")},
            "answers": datasets.Features.from_arrow_schema(dataset.data.schema)["answers"],
            "is_impossible": datasets.Value("bool"),
            "labelled": datasets.Value("bool"),
        }
    )
    assert (
        str(dataset.data.schema.field("answers").type)
        == "struct<text: list<item: string>, answer_start: list<item: int32>>"
    )
    assert dataset.cache_files, "the rows must lie in a file, not in memory"
    assert dataset["id"][:] == ["q1", "q2", "q3", "q4"]
    assert dataset["is_impossible"][:] == [False, False, True, False]
    assert dataset["labelled"][:] == [True, True, True, False]
    assert set(dataset["title"]) == {"A title"}
    assert [len(row["text"]) for row in dataset["answers"]] == [1, 3, 0, 0]
    for row in dataset:
        for text, start in zip(row["answers"]["text"], row["answers"]["answer_start"], strict=True):
            assert row["context"][start : start + len(text)] == text
    assert (report.read, report.skipped, report.repaired, report.reasons) == (4, 0, 0, {})


def test_several_files_are_joined_in_order(save):
    files = [save(squad(qa(id_, answer("Köln"))), f"{id_}.json") for id_ in ("b", "a")]
    assert read_squad(files)["id"][:] == ["b", "a"]
    assert load_examples([str(file) for file in files])["id"][:] == ["b", "a"]


def test_a_byte_order_mark_and_a_missing_title_do_no_harm(save):
    content = squad(qa("q1", answer("Köln")))
    del content["data"][1]["title"]
    dataset = read_squad(save(b"\xef\xbb\xbf" + json.dumps(content).encode()))
    assert dataset["title"][:] == [""]


def test_a_wrong_offset_is_put_right_and_reported_every_time(save, caplog):
    path = save(squad(qa("q1", answer("Köln", 3)), qa("q2", answer("Köln"))))
    for _ in range(2):  # the second time from the cache
        caplog.clear()
        dataset, report = read_squad_with_report(path)
        assert dataset[0]["answers"]["answer_start"] == [CONTEXT.index("Köln")]
        assert (report.read, report.repaired, report.repaired_ids) == (2, 1, ["q1"])
        (record,) = caplog.records
        assert record.levelno == logging.WARNING
        assert all(part in record.getMessage() for part in ("1 question", "q1", str(path)))


def test_a_negative_offset_does_not_count_from_the_end(save):
    context = "left Ann left"
    dataset = read_squad(save(squad(qa("q1", answer("Ann", 5 - len(context))), context=context)))
    assert dataset[0]["answers"]["answer_start"] == [5]


BAD_QUESTIONS = {
    "not an object": (17, "must be a JSON object", "wrong type"),
    "no id": ({"question": "Q?", "answers": [answer("Köln")]}, '"id" is missing', "missing key"),
    "fraction for id": (qa(7.5, answer("Köln")), "id must be a string, not the number 7.5", "wrong type"),
    "boolean for id": (qa(True, answer("Köln")), "id must be a string, not true", "wrong type"),
    "empty id": (qa("", answer("Köln")), "id is empty", "empty id"),
    "empty question": (qa("q1", answer("Köln"), question=" "), "question is empty", "empty question"),
    "no question": ({"id": "q1", "answers": [answer("Köln")]}, '"question" is missing', "missing key"),
    "answers missing": ({"id": "q1", "question": "Q?"}, '"answers" is missing', "missing key"),
    "answers missing, 2.0": (
        {"id": "q1", "question": "Q?", "is_impossible": True},
        '"answers" is missing',
        "missing key",
    ),
    "answers not a list": ({**qa(), "answers": answer("Köln")}, "answers must be a list, not an object", "wrong type"),
    "no answers, 1.1": (qa("q1"), "answerable question without answers", "no answers"),
    "no answers, 2.0": (qa("q1", is_impossible=False), "answerable question without answers", "no answers"),
    "impossible with answers": (
        qa("q1", answer("Köln"), is_impossible=True),
        "empty the list",
        "answers although impossible",
    ),
    "flag not a bool": (qa("q1", answer("Köln"), is_impossible="no"), 'not the string "no"', "wrong type"),
    "answer not an object": (qa("q1", "Köln"), "with text and answer_start", "wrong type"),
    "no answer_start": (qa("q1", {"text": "Köln"}), '"answer_start" is missing', "missing key"),
    "fraction": (qa("q1", answer("Köln", 18.0)), "must be an integer, not the number 18.0", "wrong type"),
    "boolean offset": (qa("q1", answer("Zoë", False)), "must be an integer, not false", "wrong type"),
    "empty answer": (qa("q1", answer("", 0)), "answer text is empty", "empty answer text"),
    "not in context": (qa("q1", answer("Bonn", 3)), "does not occur in the context", "answer not in context"),
    "ambiguous": (qa("q1", answer("Ann", 3)), "more than once", "answer_start does not match"),
    "duplicate": (qa("good", answer("Köln")), "already used in", "duplicate id"),
}


@pytest.mark.parametrize("case", BAD_QUESTIONS)
def test_a_bad_question_is_an_error_or_is_skipped_and_counted(save, caplog, case):
    bad, message, reason = BAD_QUESTIONS[case]
    path = save(squad(qa("good", answer("Köln")), bad))
    with pytest.raises(DataError) as caught:
        read_squad(path)
    text = str(caught.value)
    assert message in text
    assert all(part in text for part in (str(path), 'article "A title" (data[1])', "paragraph 0", "question 1"))
    if isinstance(bad, dict) and isinstance(bad.get("id"), str) and bad["id"]:
        assert f'(id "{bad["id"]}")' in text

    dataset, report = read_squad_with_report(path, on_bad_example="skip")
    assert dataset["id"][:] == ["good"]
    assert (report.read, report.skipped, report.reasons) == (1, 1, {reason: 1})
    assert any(
        "skipped 1 invalid" in record.getMessage() and reason in record.getMessage() for record in caplog.records
    )


@pytest.mark.parametrize(
    ("context", "message"), [("", "context is empty"), (None, "context must be a string, not null")]
)
def test_a_bad_context_spoils_its_questions(save, context, message):
    content = squad(qa("q1", answer("Köln")), qa("q2", answer("Köln")), context=context)
    with pytest.raises(DataError, match=message):
        read_squad(save(content))
    content["data"] += squad(qa("q3", answer("Köln")))["data"]
    dataset, report = read_squad_with_report(save(content), on_bad_example="skip")
    assert dataset["id"][:] == ["q3"]
    assert (report.skipped, report.skipped_ids) == (2, ["q1", "q2"])


BLANK = {"text": "", "answer_start": -1, "answer_category": "NOT_GIVEN"}


def test_what_annotation_tools_write_is_taken(save):
    content = squad(
        qa(272819, answer("Köln"), is_impossible=None, labelled=None),
        qa("q2", BLANK, {"text": None, "answer_start": None}, is_impossible=True),
        title=None,
    )
    content["data"] += squad(qa(7, answer("Ann", 10)), title=1984)["data"]
    content["data"] += [{"paragraphs": None}, {"paragraphs": [{"context": CONTEXT, "qas": None}]}]
    dataset, report = read_squad_with_report(save(content))
    assert dataset["id"][:] == ["272819", "q2", "7"]
    assert dataset["title"][:] == ["", "", "1984"]
    assert dataset["is_impossible"][:] == [False, True, False]
    assert dataset["answers"][1] == {"text": [], "answer_start": []}
    assert (report.read, report.skipped) == (3, 0)


def test_numbers_and_texts_are_the_same_ids(save):
    with pytest.raises(DataError, match=r'id "7"\): this id was already used'):
        read_squad(save(squad(qa("7", answer("Köln")), qa(7, answer("Köln")))))
    large = 2**62
    assert read_squad(save(squad(qa(large, answer("Köln")))))["id"][:] == [str(large)]
    with pytest.raises(DataError, match="integer overflow"):
        read_squad(save(WHOLE.replace(b'"q1"', b"9" * 5000)))


def test_skipping_leaves_out_what_is_bad_wherever_it_stands(save, caplog):
    content = squad(qa("good", answer("Köln")))
    good = content["data"][1]["paragraphs"][0]
    content["data"][0:0] = [
        "not an article",
        {"title": "no paragraphs"},
        {"title": ["no title"], "paragraphs": [{"context": CONTEXT, "qas": [qa("q1", answer("Köln"))]}]},
        {"title": "bad paragraphs", "paragraphs": [5, {"context": CONTEXT}, {"context": CONTEXT, "qas": {}}, good]},
    ]
    good["qas"][0]["id"] = "first"
    content["data"] += squad(qa("second", answer("Köln")))["data"]
    content["data"].remove(content["data"][5])  # the other article with `good` in it
    path = save(content)
    with pytest.raises(DataError, match='an article must be an object with title and paragraphs, not the string "not'):
        read_squad(path)
    dataset, report = read_squad_with_report(path, on_bad_example="skip")
    assert dataset["id"][:] == ["first", "second"]
    assert report.reasons == {"wrong type": 4, "missing key": 2}
    assert "skipped 6 invalid question(s)" in caplog.text


def test_an_unlabelled_question_is_never_unanswerable(save):
    dataset = read_squad(save(squad(qa("q1", is_impossible=True, labelled=False))))
    assert (dataset[0]["is_impossible"], dataset[0]["labelled"]) == (False, False)


def test_only_an_unlabelled_question_may_be_empty(save):
    text_alone = qa("q1", question="", labelled=False)
    dataset = read_squad(save(squad(text_alone)))
    assert (dataset[0]["question"], dataset[0]["labelled"]) == ("", False)
    for bad in ({**text_alone, "question": " "}, {**text_alone, "question": None}, {**text_alone, "labelled": True}):
        with pytest.raises(DataError, match="the question"):
            read_squad(save(squad(bad)))


def of_haystack_1(copies=3):
    """A file as Haystack 1's `augment_squad` writes it: all answers dropped, each paragraph there several times."""
    content = squad(qa("q1"), qa("q2", is_impossible=False), qa("q3", is_impossible=True))
    paragraphs = content["data"][1]["paragraphs"]
    content["data"][1]["paragraphs"] = [{**paragraphs[0], "context": f"{CONTEXT} {i}"} for i in range(copies)]
    return {**content, "topics": content["data"]}


def test_a_file_of_haystack_1s_augment_squad_is_unlabelled(save, caplog):
    path = save(of_haystack_1())
    for _ in range(2):  # the second time from the cache
        caplog.clear()
        dataset, report = read_squad_with_report(path)
        assert dataset["id"][:] == ["q1", "q2", "q3", "q1-2", "q2-2", "q3-2", "q1-3", "q2-3", "q3-3"]
        assert not any(dataset["labelled"])
        assert not any(dataset["is_impossible"])
        assert (report.read, report.answerless, report.renamed, report.skipped) == (9, 9, 6, 0)
        assert "none of the 9 question(s) has an answer" in caplog.text
        assert "unlabelled questions to distil from; 6 repeated id(s) got the suffix -2, -3, ..." in caplog.text
    rows = datasets.Dataset.from_list([{**row, "labelled": True} for row in dataset.to_list()])
    assert not any(load_examples(rows)["labelled"])


def test_a_file_of_haystack_1s_augment_squad_goes_with_the_one_it_was_made_from(save):
    original = save(squad(qa("q1", answer("Köln")), qa("q3", is_impossible=True)), "original.json")
    dataset = read_squad([original, save(of_haystack_1(2))])
    assert dataset["id"][:] == ["q1", "q3", "q1-2", "q2", "q3-2", "q1-3", "q2-2", "q3-3"]
    assert dataset["labelled"][:] == [True, True, *[False] * 6]
    assert dataset["is_impossible"][:] == [False, True, *[False] * 6]


def test_many_repeated_ids_do_not_take_longer_each(save):
    dataset = read_squad(save(of_haystack_1(3000)))
    assert dataset["id"][-1] == "q3-3000"


def test_one_answer_says_that_the_others_are_missing(save):
    content = of_haystack_1(1)
    content["data"] += squad(qa("q9", answer("Köln")))["data"]
    with pytest.raises(DataError, match="an answerable question without answers"):
        read_squad(save(content))
    only_impossible = squad(qa("q1", is_impossible=True), qa("q2", is_impossible=True))
    assert read_squad(save(only_impossible))["is_impossible"][:] == [True, True]


def test_ids_are_unique_over_all_files(save):
    first, second = (save(squad(qa("same", answer("Köln"))), name) for name in ("one.json", "two.json"))
    with pytest.raises(DataError, match=r"two\.json.*already used in .*one\.json, article 1"):
        read_squad([first, second])


def test_a_file_without_a_good_question_is_an_error(save):
    with pytest.raises(DataError, match="no questions"):
        read_squad(save(squad()))
    with pytest.raises(DataError, match=r"all were skipped: 1 x empty id; the first is .*question 0: the id is empty"):
        read_squad(save(squad(qa("", answer("Köln")))), on_bad_example="skip")


WHOLE = json.dumps(squad(qa("q1", answer("Köln"))), ensure_ascii=False).encode()
BROKEN_FILES = {
    "an empty list": (b"[]", "no questions"),
    "a number": (b"5", "must hold a JSON object"),
    "no data": (b'{"version": "1.1"}', '"data" is missing'),
    "data an object": (b'{"data": {"item": {}}}', '"data" must be a list'),
    "article a string": (b'{"data": ["x"]}', 'must be an object with title and paragraphs, not the string "x"'),
    "no paragraphs": (b'{"data": [{"title": "T"}]}', 'article "T" .*"paragraphs" is missing'),
    "paragraphs an object": (b'{"data": [{"paragraphs": {}}]}', '"paragraphs" must be a list, not an object'),
    "paragraph a list": (b'{"data": [{"paragraphs": [[]]}]}', "paragraph 0: a paragraph must be an object"),
    "no qas": (b'{"data": [{"paragraphs": [{"context": "c"}]}]}', '"qas" is missing'),
    "nothing": (b"", r"truncated"),
    "truncated": (WHOLE[:-30], r"truncated after 1 complete articles"),
    "rubbish after the end": (WHOLE + b"}", "JSON is broken"),
    "not UTF-8": (WHOLE.replace("Köln".encode(), "Köln".encode("latin-1"), 1), r"not UTF-8 \(at byte \d+\)"),
    "UTF-16": (WHOLE.decode().encode("utf-16"), r"not UTF-8 \(at byte 0\)"),
}


@pytest.mark.parametrize("on_bad_example", ["error", "skip"])
@pytest.mark.parametrize("case", BROKEN_FILES)
def test_a_broken_file_is_an_error_that_names_it(save, tmp_path, case, on_bad_example):
    raw, message = BROKEN_FILES[case]
    with pytest.raises(DataError, match=message) as caught:
        read_squad(save(raw, "broken.json"), on_bad_example=on_bad_example)
    assert "broken.json" in str(caught.value)
    assert [path for path in (tmp_path / "cache").rglob("*") if path.is_file()] == [], "nothing half-made may stay"


def test_the_byte_that_is_not_utf8_is_named_exactly(save):
    raw = b'{"data": ["' + "é".encode() * 700_000 + b"\xff"  # beyond a block, whose edge falls within an é
    with pytest.raises(DataError, match=rf"at byte {len(raw) - 1}\)"):
        read_squad(save(raw))


def test_broken_gzip(save, tmp_path):
    whole = save(WHOLE * 50, "data.json.gz").read_bytes()
    path = tmp_path / "cut.json.gz"
    for raw, message in (
        (whole[:-12], "gzip file is truncated"),
        (whole[:30] + b"\xff" * 20 + whole[50:], "not a valid gzip file"),
        (WHOLE, "not a valid gzip file"),
    ):
        path.write_bytes(raw)
        with pytest.raises(DataError, match=message):
            read_squad(path)


def test_paths_that_are_not_files(tmp_path):
    with pytest.raises(DataError, match=r"nowhere\.json: no such file"):
        read_squad(tmp_path / "nowhere.json")
    with pytest.raises(DataError, match="is a directory"):
        read_squad(tmp_path)
    with pytest.raises(DataError, match="no file to read"):
        read_squad([])
    with pytest.raises(DistilError, match="unknown on_bad_example 'ignore'"):
        read_squad(tmp_path, on_bad_example="ignore")


def test_the_cache_is_used_and_keyed_by_content(save, tmp_path):
    path = save(squad(qa("q1", answer("Köln"))))
    (file,) = read_squad(path, cache_dir=tmp_path / "own").cache_files
    before = Path(file["filename"]).stat()
    assert Path(file["filename"]).parent == tmp_path / "own" / "examples"
    (again,) = read_squad(save(squad(qa("q1", answer("Köln"))), "copy.json"), cache_dir=tmp_path / "own").cache_files
    assert again == file
    assert Path(file["filename"]).stat().st_mtime_ns == before.st_mtime_ns
    assert read_squad(save(squad(qa("q2", answer("Köln")))), cache_dir=tmp_path / "own")["id"][:] == ["q2"]


@pytest.mark.parametrize("damage", ["flip", "cut", "report", "no report"])
def test_a_damaged_cached_file_is_built_anew(save, caplog, damage):
    path = save(squad(*GOOD))
    dataset = read_squad(path)
    expected, rows = content_hash(dataset), dataset.to_list()
    arrow = Path(dataset.cache_files[0]["filename"])
    del dataset
    raw = arrow.read_bytes()
    if damage == "flip":
        arrow.write_bytes(raw.replace(b"Question q1", b"Question qX"))
    elif damage == "cut":
        arrow.write_bytes(raw[:200])
    elif damage == "report":
        arrow.with_suffix(".json").write_text("{")
    else:
        arrow.with_suffix(".json").unlink()
    again = read_squad(path)
    assert (content_hash(again), again.to_list()) == (expected, rows)
    assert arrow.read_bytes() == raw
    assert any("damaged" in record.getMessage() for record in caplog.records) == (damage != "no report")


def test_a_cache_directory_that_cannot_be_made(save, tmp_path):
    path = save(squad(*GOOD))
    with pytest.raises(DistilError, match="HAYSTACK_DISTILL_CACHE"):
        read_squad(path, cache_dir=path / "below a file")


def test_a_cache_that_cannot_be_written(save, tmp_path):
    path = save(squad(*GOOD))
    arrow = Path(read_squad(path).cache_files[0]["filename"])
    arrow.unlink()
    arrow.with_suffix(".json").unlink()
    arrow.with_suffix(".json").mkdir()  # in the way of the side file
    with pytest.raises(DistilError, match=r"cannot use the cache directory .*pass another cache_dir"):
        read_squad(path)
    assert read_squad(path, cache_dir=tmp_path / "another")["id"][:] == ["q1", "q2", "q3", "q4"]


@pytest.mark.parametrize("limit", [0, 1500])  # within the schema, within the rows
def test_a_full_disk_is_named_and_leaves_nothing(save, tmp_path, limit):
    resource = pytest.importorskip("resource", reason="only Unix limits the size of files")
    path = save(squad(*GOOD))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        with pytest.raises(DistilError, match="make room there"):
            read_squad(path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [path for path in (tmp_path / "cache").rglob("*") if path.is_file()] == []
    assert len(read_squad(path)) == 4


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc/self/status, which only Linux has")
def test_memory_does_not_grow_with_the_file(tmp_path):
    # 80 MB of JSON that make 160 MB of rows; a batch takes its share whatever the size of the file.
    path = tmp_path / "large.json"
    with path.open("w") as file:
        file.write('{"data":[')
        for i in range(800):
            qas = [{"id": f"{i}-{j}", "question": "x?", "answers": [{"text": "word", "answer_start": 0}]} for j in "ab"]
            paragraph = {"context": "word " + "many more " * 10_000, "qas": qas}
            file.write(("," if i else "") + json.dumps({"title": f"{i}", "paragraphs": [paragraph]}))
        file.write("]}")

    def anonymous():  # MB of the process itself, without the pages of mapped files
        return int(re.search(r"RssAnon:\s+(\d+)", Path("/proc/self/status").read_text())[1]) / 1024

    def watch():
        while not done.wait(0.005):
            samples.append(anonymous())

    samples, done = [anonymous()], threading.Event()
    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        dataset = read_squad(path)
        content_hash(dataset)
        write_squad(load_examples(dataset), tmp_path / "again.json")
    finally:
        done.set()
        watcher.join()
    assert len(dataset) == 1600
    assert len(samples) > 20, "too few samples to see anything"
    assert max(samples) - samples[0] < 100


HUB_ROWS = [
    {"id": "a", "title": "T", "context": CONTEXT, "question": "Q?", "answers": {"text": ["Ann"], "answer_start": [10]}},
    {"id": "b", "title": "T", "context": CONTEXT, "question": "Q?", "answers": {"text": [], "answer_start": []}},
]


def test_a_dataset_gets_the_same_form_as_a_file(save):
    from_file = read_squad(save(squad(*GOOD)))
    from_dataset = load_examples(from_file.add_column("extra", range(4)))
    assert from_dataset.features == from_file.features
    assert from_dataset.to_list() == from_file.to_list()
    shuffled = from_file.select([2, 0])
    assert load_examples(shuffled)["id"][:] == ["q3", "q1"]


@pytest.mark.parametrize("kind", ["int32", "int64", "float64"])
def test_ids_of_a_dataset_may_be_numbers_and_titles_absent(kind):
    dataset = datasets.Dataset.from_list(HUB_ROWS).remove_columns(["id", "title"])
    dataset = dataset.add_column("id", [272819, 5]).cast_column("id", datasets.Value(kind))
    loaded = load_examples(dataset)
    assert (loaded["id"][:], loaded["title"][:]) == (["272819", "5"], ["", ""])
    titled = dataset.add_column("title", [7, None])
    assert load_examples(titled)["title"][:] == ["7", ""]


def test_a_null_flag_of_a_dataset_is_absent(caplog):
    dataset = datasets.Dataset.from_list([{**row, "is_impossible": None, "labelled": None} for row in HUB_ROWS])
    assert load_examples(dataset)["is_impossible"][:] == [False, True]
    assert "1 row(s) without answers" in caplog.text


def test_a_hub_dataset_says_unanswerable_by_having_no_answers(caplog):
    for _ in range(2):  # the second time from the cache
        caplog.clear()
        dataset = load_examples(datasets.Dataset.from_list(HUB_ROWS))
        assert dataset["is_impossible"][:] == [False, True]
        assert dataset["labelled"][:] == [True, True]
        assert any("1 row(s) without answers" in record.getMessage() for record in caplog.records)
    with pytest.raises(DataError, match=r'row 1 \(id "b"\): an answerable question without answers'):
        load_examples(datasets.Dataset.from_list([{**row, "is_impossible": False} for row in HUB_ROWS]))
    unlabelled = load_examples(datasets.Dataset.from_list([{**row, "labelled": row["id"] == "a"} for row in HUB_ROWS]))
    assert unlabelled["is_impossible"][:] == [False, False]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"context": None}, "row 0 .*context must be a string, not null"),
        ({"answers": None}, "row 0 .*answers must be a list, not null"),
        ({"answers": {"text": ["Ann"], "answer_start": []}}, "row 0 .*answer_start must be an integer, not null"),
        ({"answers": {"text": ["Ann"], "answer_start": [0]}}, "row 0 .*more than once"),
        ({"id": "b"}, "row 1 .*already used in dataset, row 0"),
    ],
)
def test_rows_of_a_dataset_pass_the_same_checks(change, message):
    dataset = datasets.Dataset.from_list([{**HUB_ROWS[0], **change}, HUB_ROWS[1]])
    with pytest.raises(DataError, match=message):
        load_examples(dataset)
    assert len(load_examples(dataset, on_bad_example="skip")) == 1


def test_a_dataset_of_another_form_is_an_error():
    dataset = datasets.Dataset.from_list(HUB_ROWS)
    with pytest.raises(DataError, match=r"lacks the column\(s\) \['context'\]"):
        load_examples(dataset.remove_columns("context"))
    with pytest.raises(DataError, match='column "id" must be string, not bool'):
        load_examples(dataset.remove_columns("id").add_column("id", [True, False]))
    with pytest.raises(DataError, match='column "answers" must be'):
        load_examples(dataset.remove_columns("answers").add_column("answers", [["x"], ["y"]]))
    with pytest.raises(DataError, match=r"choose one of \['dev', 'train'\]"):
        load_examples(datasets.DatasetDict(train=dataset, dev=dataset))
    with pytest.raises(DataError, match="without streaming"):
        load_examples(dataset.to_iterable_dataset())
    with pytest.raises(DataError, match="cannot load examples from int"):
        load_examples(5)


def test_hub_names(monkeypatch, tmp_path):
    calls = []

    def load_dataset(name, **kwargs):
        calls.append((name, kwargs))
        return datasets.Dataset.from_list(HUB_ROWS)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert load_examples("someone/squad_v2", split="validation")["id"][:] == ["a", "b"]
    assert calls == [("someone/squad_v2", {"split": "validation"})]

    def offline(name, **kwargs):
        raise ConnectionError("Couldn't reach the Hub")

    monkeypatch.setattr(datasets, "load_dataset", offline)
    with pytest.raises(DataError, match=r'cannot load split "train" of "squad" from the .* Hub.*offline give a SQuAD'):
        load_examples("squad")
    for path in ("missing.json", "missing.json.gz", tmp_path / "missing"):
        with pytest.raises(DataError, match="no such file"):
            load_examples(path)
    with pytest.raises(DataError, match="neither a file nor the name"):
        load_examples("some/where/else.txt")


@pytest.mark.parametrize("name", ["out.json", "deep/out.json.gz"])
def test_written_rows_read_back_the_same(save, tmp_path, name):
    content = squad(*GOOD)
    content["data"][1]["paragraphs"] += squad(qa("q5", answer("Köln", 0)), context='Köln\n"quoted" \\')["data"][1][
        "paragraphs"
    ]
    content["data"] += squad(qa("q6", answer("Köln")), title="Another")["data"]
    dataset = read_squad(save(content))
    path = tmp_path / name
    write_squad(dataset, path)
    assert read_squad(path).to_list() == dataset.to_list()
    written = json.loads(gzip.decompress(path.read_bytes()) if name.endswith(".gz") else path.read_bytes())
    assert written["version"] == "v2.0"
    assert [(article["title"], [len(p["qas"]) for p in article["paragraphs"]]) for article in written["data"]] == [
        ("A title", [4, 1]),
        ("Another", [1]),
    ]
    first = path.read_bytes()
    with pytest.raises(DistilError, match="overwrite=True"):
        write_squad(dataset, path)
    write_squad(dataset, path, overwrite=True)
    assert path.read_bytes() == first
    assert [file.name for file in path.parent.iterdir() if file.suffix == ".tmp"] == []


def test_version_1_1_has_no_unanswerable_questions(save, tmp_path):
    dataset = read_squad(save(squad(*GOOD)))
    path = tmp_path / "out.json"
    with pytest.raises(DataError, match=r'"q3" is unanswerable.*version="2\.0"'):
        write_squad(dataset, path, version="1.1")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["cache", "data.json"]
    answerable = dataset.select([0, 1, 3])
    write_squad(answerable, path, version="1.1")
    assert json.loads(path.read_bytes())["version"] == "1.1"
    assert b"is_impossible" not in path.read_bytes()
    assert read_squad(path).to_list() == answerable.to_list()


def test_what_cannot_be_written(save, tmp_path):
    dataset = read_squad(save(squad(*GOOD)))
    with pytest.raises(DistilError, match="unknown SQuAD version '3'"):
        write_squad(dataset, tmp_path / "out.json", version="3")
    with pytest.raises(DataError, match="no rows"):
        write_squad(dataset.select([]), tmp_path / "out.json")
    with pytest.raises(DataError, match="lacks the column"):
        write_squad(dataset.remove_columns("labelled"), tmp_path / "out.json")
    with pytest.raises(DistilError, match="exists"):
        write_squad(dataset, tmp_path, overwrite=True)


def test_content_hash_depends_on_the_values_alone(save):
    dataset = read_squad(save(squad(*GOOD)))
    expected = content_hash(dataset)
    in_memory = datasets.Dataset.from_list(dataset.to_list(), features=dataset.features)
    in_pieces = datasets.concatenate_datasets([dataset.select([i]) for i in range(4)])
    reordered = dataset.select([3, 2, 1, 0]).select([3, 2, 1, 0])
    wider = in_memory.cast_column("id", datasets.Value("large_string"))
    for same in (
        in_memory,
        in_pieces,
        reordered,
        wider,
        dataset.with_format("numpy"),
        dataset.add_column("n", range(4)),
    ):
        assert content_hash(same) == expected


@pytest.mark.parametrize(
    "change",
    [
        lambda rows: rows.reverse(),
        lambda rows: rows.pop(),
        lambda rows: rows[0].update(question="Question q1"),
        lambda rows: rows[0].update(labelled=False),
        lambda rows: rows[3].update(is_impossible=True),
        lambda rows: rows[1]["answers"]["answer_start"].reverse(),
        # The same characters, cut up in another way:
        lambda rows: (rows[0].update(id="q"), rows[1].update(id="1q2")),
        lambda rows: rows.__setitem__(0, {**rows[0], "answers": rows[1]["answers"]}),
    ],
)
def test_content_hash_sees_every_change(save, change):
    dataset = read_squad(save(squad(*GOOD)))
    rows = dataset.to_list()
    change(rows)
    assert content_hash(datasets.Dataset.from_list(rows, features=dataset.features)) != content_hash(dataset)


def test_content_hash_is_stable():
    # A fixed value: a change of it throws away everybody's caches, so it must be meant.
    dataset = load_examples(datasets.Dataset.from_list(HUB_ROWS[:1]))
    assert content_hash(dataset) == "a83db507aa26afa92082f98ed588f99bdf0d73bb2f506c3ccc1db3a24272647b"


@pytest.mark.real_data
@pytest.mark.parametrize(
    ("name", "answerable", "unanswerable", "articles"),
    [
        ("train-v1.1", 87_599, 0, 442),
        ("dev-v1.1", 10_570, 0, 48),
        ("dev-v2.0", 11_873 - 5_945, 5_945, None),
        ("train-v2.0-10-articles", 4_719 - 348, 348, 10),
        ("train-v2.0-rebuilt", 87_599, 34_259, None),
    ],
)
def test_real_files_are_read_in_full(name, answerable, unanswerable, articles):
    path = SHARED / f"{name}.json.gz"
    if not path.exists():
        pytest.skip("../shared is not here")
    dataset, report = read_squad_with_report(path)
    impossible = dataset.data["is_impossible"].to_pylist()
    assert (impossible.count(False), impossible.count(True)) == (answerable, unanswerable)
    assert (report.read, report.skipped, report.repaired) == (len(dataset), 0, 0)
    if articles is not None:
        assert len(dataset.unique("title")) == articles
    for row in dataset.select(range(0, len(dataset), 97)):
        for text, start in zip(row["answers"]["text"], row["answers"]["answer_start"], strict=True):
            assert row["context"][start : start + len(text)] == text


@pytest.mark.real_data
def test_a_real_file_survives_the_round_trip(tmp_path):
    if not SHARED.exists():
        pytest.skip("../shared is not here")
    dataset = read_squad(SHARED / "dev-v2.0.json.gz")
    write_squad(dataset, tmp_path / "out.json.gz")
    assert content_hash(read_squad(tmp_path / "out.json.gz")) == content_hash(dataset)
