import csv
import datetime
import gzip
import json

import datasets
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from haystack_distill.data.squad.load import load_examples, read_squad, read_squad_with_report, write_squad
from haystack_distill.errors import DataError

CONTEXT = 'Zoë 😀 met Ann in Köln.\r\nLater Ann left, "so" they say.'  # two lines, "Ann" twice, quotes and a comma
FIRST = CONTEXT.index("Köln")


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HAYSTACK_DISTILL_CACHE", str(tmp_path / "cache"))


def test_a_title_of_another_type_is_named(tmp_path):
    table = pa.table(
        {
            "id": ["a"],
            "title": pa.array([datetime.date(2020, 1, 1)]),
            "context": [CONTEXT],
            "question": ["Where?"],
            "answers": [{"text": ["Ann"], "answer_start": [CONTEXT.index("Ann")]}],
        }
    )
    pq.write_table(table, tmp_path / "dates.parquet")
    with pytest.raises(DataError, match="the title must be a string"):
        read_squad(tmp_path / "dates.parquet")


def test_titles_that_are_missing_are_written(tmp_path):
    rows = load_examples(datasets.Dataset.from_list(squad_rows())).map(lambda row: row | {"title": None})
    write_squad(rows, tmp_path / "none.json")
    assert read_squad(tmp_path / "none.json")["title"] == ["", ""]


def squad_rows():
    return [
        {
            "id": "a",
            "title": "T",
            "context": CONTEXT,
            "question": "Where?",
            "answers": {"text": ["Köln", "Ann"], "answer_start": [FIRST, CONTEXT.rindex("Ann")]},
            "is_impossible": False,
        },
        {
            "id": "b",
            "title": "T",
            "context": CONTEXT,
            "question": "Why?",
            "answers": {"text": [], "answer_start": []},
            "is_impossible": True,
        },
    ]


def flat_rows(**more):
    return [
        {"context": CONTEXT, "question": "Where?", "answer": "Köln", **more},
        {"context": CONTEXT, "question": "Who?", "answer": "Zoë", **more},
    ]


WRITERS = {
    "data.csv": lambda dataset, path: dataset.to_csv(path),
    "data.tsv": lambda dataset, path: dataset.to_csv(path, sep="\t"),
    "semicolons.csv": lambda dataset, path: dataset.to_csv(path, sep=";"),
    "byte order mark.csv": lambda dataset, path: dataset.to_csv(path, encoding="utf-8-sig"),
    "indexed.csv": lambda dataset, path: dataset.to_pandas().to_csv(path),
    "packed.csv.gz": lambda dataset, path: dataset.to_pandas().to_csv(path, index=False),
    "data.jsonl": lambda dataset, path: dataset.to_json(path),
    "DATA.NDJSON": lambda dataset, path: dataset.to_json(path),
    "packed.jsonl.gz": lambda dataset, path: dataset.to_pandas().to_json(path, orient="records", lines=True),
    "lines of another name.json": lambda dataset, path: dataset.to_json(path),
    "records.json": lambda dataset, path: dataset.to_json(path, lines=False, orient="records"),
    "data.parquet": lambda dataset, path: dataset.to_parquet(path),
    "pandas.parquet": lambda dataset, path: dataset.to_pandas().to_parquet(path),
}


@pytest.mark.parametrize("name", WRITERS)
def test_what_datasets_and_pandas_write_is_read(tmp_path, name):
    dataset = datasets.Dataset.from_list(squad_rows())
    WRITERS[name](dataset, tmp_path / name)
    expected = load_examples(dataset).to_list()
    assert load_examples(str(tmp_path / name)).to_list() == expected
    write_squad(load_examples(tmp_path / name), tmp_path / "written.json")
    assert read_squad(tmp_path / "written.json").to_list() == expected


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("column", ["answer", "answer_text"])
def test_flat_columns_are_read(tmp_path, name, column):
    dataset = datasets.Dataset.from_list([{**row, column: row.pop("answer")} for row in flat_rows()])
    WRITERS[name](dataset, tmp_path / name)
    rows = read_squad(tmp_path / name)
    assert rows["id"][:] == ["row-0", "row-1"]
    assert rows["answers"][:] == [{"text": ["Köln"], "answer_start": [FIRST]}, {"text": ["Zoë"], "answer_start": [0]}]
    assert load_examples(dataset).to_list() == rows.to_list()


@pytest.mark.parametrize("name", ["data.csv", "data.jsonl", "records.json", "pandas.parquet"])
def test_offsets_and_ids_with_gaps_as_pandas_writes_them(tmp_path, name):
    # A column of whole numbers with a gap becomes one of floats: 12.0, and NaN or nothing in the gap.
    rows = [
        {"id": 5, "question": "Who?", "context": CONTEXT, "answer": "Ann", "answer_start": CONTEXT.rindex("Ann")},
        {"id": 6, "question": "Why?", "context": CONTEXT, "answer": None, "answer_start": None},
    ]
    frame = pd.DataFrame([{**row, "is_impossible": row["answer"] is None} for row in rows])
    assert frame["answer_start"].dtype == float
    path = tmp_path / name
    if name.endswith(".csv"):
        frame.to_csv(path, index=False)
    elif name.endswith(".parquet"):
        frame.to_parquet(path)
    else:
        frame.to_json(path, orient="records", lines=name.endswith("l"))
    found = read_squad(path)
    assert found["id"][:] == ["5", "6"]
    assert found["answers"][:] == [
        {"text": ["Ann"], "answer_start": [CONTEXT.rindex("Ann")]},
        {"text": [], "answer_start": []},
    ]
    assert found["is_impossible"][:] == [False, True]


def test_an_answer_without_an_offset_must_be_there_once(tmp_path):
    path = tmp_path / "data.csv"
    rows = [*flat_rows(), {"context": CONTEXT, "question": "Who left?", "answer": "Ann"}]
    pd.DataFrame(rows).to_csv(path, index=False)
    with pytest.raises(DataError, match=r"data\.csv: row 2 \(line 6\).*\"Ann\" occurs more than once.*answer_start"):
        read_squad(path)
    assert read_squad(path, on_bad_example="skip")["id"][:] == ["row-0", "row-1"]
    rows[2]["answer"] = "Bonn"
    pd.DataFrame(rows).to_csv(path, index=False)
    with pytest.raises(DataError, match='"Bonn" does not occur in the context'):
        read_squad(path)


def test_an_empty_flat_answer_is_a_gap_unless_the_row_says_otherwise(tmp_path):
    path = tmp_path / "data.csv"
    rows = flat_rows()
    rows[1]["answer"] = ""
    pd.DataFrame(rows).to_csv(path, index=False)
    with pytest.raises(DataError, match=r"answerable question without answers.*is_impossible.*labelled"):
        read_squad(path)
    pd.DataFrame([{**row, "labelled": row["answer"] != ""} for row in rows]).to_csv(path, index=False)
    assert read_squad(path)["labelled"][:] == [True, False]
    pd.DataFrame([{**row, "is_impossible": int(row["answer"] == "")} for row in rows]).to_csv(path, index=False)
    assert read_squad(path)["is_impossible"][:] == [False, True]


@pytest.mark.parametrize("name", WRITERS)
def test_questions_and_contexts_alone_are_unlabelled(tmp_path, caplog, name):
    rows = [{"question": row["question"], "context": row["context"]} for row in flat_rows()]
    dataset = datasets.Dataset.from_list(rows)
    WRITERS[name](dataset, tmp_path / name)
    found = read_squad(tmp_path / name)
    assert load_examples(dataset).to_list() == found.to_list()
    assert found["labelled"][:] == [False, False]
    assert found["question"][:] == [row["question"] for row in rows]
    assert "none of the 2 question(s) has an answer" in caplog.text


def test_a_row_without_answers_among_others_is_no_transfer_set(tmp_path):
    path = tmp_path / "data.jsonl"
    rows = flat_rows()
    del rows[1]["answer"]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(DataError, match=r'row 1 \(line 2\).*"answers" is missing.*"labelled": false'):
        read_squad(path)
    del rows[0]["answer"]
    rows[0]["labelled"] = False
    path.write_text("".join(json.dumps(row) + "\n" for row in rows[::-1]))
    assert read_squad(path)["labelled"][:] == [False, False]


def test_ids_that_were_made_are_unique_over_all_files(tmp_path):
    for name in ("one.csv", "two.csv"):
        pd.DataFrame(flat_rows()).to_csv(tmp_path / name, index=False)
    both = read_squad([tmp_path / "one.csv", tmp_path / "two.csv"])
    assert both["id"][:] == ["row-0", "row-1", "row-0-2", "row-1-2"]


@pytest.mark.parametrize("word", ["NaN", "Infinity", "-Infinity"])
@pytest.mark.parametrize("ending", ["csv", "jsonl"])
def test_a_number_that_is_none_is_named(tmp_path, ending, word):
    row = {"id": "a", "context": CONTEXT, "question": "Who?", "answer": "Ann", "answer_start": float(word)}
    path = tmp_path / f"data.{ending}"
    frame = pd.DataFrame([{**row, "id": "good", "answer_start": CONTEXT.index("Ann")}, row])
    if ending == "csv":
        frame["answer_start"] = frame["answer_start"].astype(object)
        frame.to_csv(path, index=False, na_rep="NaN")
        path.write_bytes(path.read_bytes().replace(b",inf", b",Infinity").replace(b",-inf", b",-Infinity"))
    else:
        path.write_text("\n".join(map(json.dumps, frame.to_dict("records"))))
    with pytest.raises(DataError, match=rf"row 1 .*\(id \"a\"\): answer_start must be an integer, not .*{word}"):
        read_squad(path)
    assert read_squad(path, on_bad_example="skip")["id"][:] == ["good"]


@pytest.mark.parametrize("word", ["NaN", "Infinity", "-Infinity"])
@pytest.mark.parametrize("before", [0, 70_000])  # in the first block that is parsed, and behind it
def test_a_number_that_is_none_is_named_in_squad_json_too(tmp_path, word, before):
    qas = [{"id": name, "question": "é" * before + "?", "answers": []} for name in "ab"]
    paragraphs = [{"context": "c", "qas": []}, {"context": "NaN", "qas": qas}]
    content = {"data": [{"title": "First", "paragraphs": []}, {"title": "T", "paragraphs": paragraphs}]}
    raw = json.dumps(content, ensure_ascii=False).replace(
        '"answers": []}]}]}', f'"is_impossible": {word}, "answers": []}}]}}]}}'
    )
    path = tmp_path / "data.json"
    path.write_bytes(raw.encode())
    offset = raw.encode().index(f": {word},".encode()) + 2
    where = rf'article "T" \(data\[1\]\), paragraph 1, question 1: "is_impossible" is {word} \(at byte {offset}\), which is not valid'
    with pytest.raises(DataError, match=where):
        read_squad(path)
    (tmp_path / "version.json").write_text(f'{{"version": {word}, "data": []}}')
    with pytest.raises(DataError, match=rf'version\.json: "version" is {word} \(at byte 12\)'):
        read_squad(tmp_path / "version.json")
    records = tmp_path / "records.json"
    records.write_text(json.dumps([*flat_rows()[:1], {"question": float(word)}]))
    with pytest.raises(DataError, match=rf'row 1: "question" is {word} \(at byte'):
        read_squad(records)


ANSWERS = {
    "a list of answers": [{"text": "Köln", "answer_start": float(FIRST)}, {"text": "Zoë", "answer_start": 0, "id": 3}],
    "lists": {"text": ["Köln", "Zoë"], "answer_start": [FIRST, 0.0]},
}


@pytest.mark.parametrize("form", ANSWERS)
@pytest.mark.parametrize("name", ["data.jsonl", "records.json", "data.csv", "pandas.parquet"])
def test_answers_may_be_lists_or_a_list(tmp_path, form, name):
    row = {"id": "a", "context": CONTEXT, "question": "Where?", "answers": ANSWERS[form]}
    frame = pd.DataFrame([row])
    if name.endswith("csv"):
        frame.to_csv(tmp_path / name)
    elif name.endswith("parquet"):
        frame.to_parquet(tmp_path / name)
    else:
        (tmp_path / name).write_text(json.dumps([row] if name.endswith(".json") else row))
    assert read_squad(tmp_path / name)["answers"][0] == {"text": ["Köln", "Zoë"], "answer_start": [FIRST, 0]}


def test_several_flat_answers(tmp_path):
    row = {"context": CONTEXT, "question": "Who?", "answer": ["Köln", "Zoë"]}
    for more in ({}, {"answer_start": [FIRST, 0]}, {"answer_start": None}):
        (tmp_path / "data.jsonl").write_text(json.dumps({**row, **more}))
        assert read_squad(tmp_path / "data.jsonl")["answers"][0]["answer_start"] == [FIRST, 0]
    (tmp_path / "data.jsonl").write_text(json.dumps({**row, "answer_start": [FIRST]}))
    with pytest.raises(DataError, match="answer_start must be an integer, not null"):
        read_squad(tmp_path / "data.jsonl")


BROKEN = {
    "no header.csv": (b"a,b\n1,2\n", r"lacks the column\(s\) \['context', 'question'\] \(it has \['a', 'b'\]\)"),
    "empty.csv": (b"", "lacks the column"),
    "twice.csv": (b"question,context,answer,answer\n", 'the column "answer" appears twice'),
    "cut off.csv": (b'question,context,answer\nq,"c', r"broken or truncated in row 0"),
    "latin.csv": ("question,context,answer\nq,Köln,Köln\n".encode("latin-1"), r"not UTF-8 \(at byte 27\).*iconv"),
    "latin.jsonl": ('{"question": "Köln"}'.encode("latin-1"), r"not UTF-8 \(at byte 15\).*iconv"),
    "utf-16.csv": ("question,context,answer\n".encode("utf-16"), r"not UTF-8 \(at byte 0\)"),
    "empty.jsonl": (b"", "no questions"),
    "cut off.jsonl": (b'{"question": "q", "con', r"row 0 \(line 1\): this line is not JSON"),
    "deep.jsonl": (b"[" * 100_000, "this line is not JSON"),
    "not an object.jsonl": (b"\n5\n", r"row 0 \(line 2\): a question must be a JSON object, not the number 5"),
    "no answers.jsonl": (
        b'{"question": "q", "context": "c", "answer": "c"}\n{"question": "q", "context": "c"}',
        r'row 1 \(line 2\).*"answers" is missing',
    ),
    "no context.jsonl": (b'{"id": "1", "question": "q", "answer": "c"}', '"context" is missing'),
    "wrong.parquet": (b"PAR1 and no more", "not a valid Parquet file"),
    "empty.parquet": (b"", "not a valid Parquet file"),
    "cells.csv": (b"question,context,answer\nq,c\n", r"row 0 \(line 2\): the row has 2 cells, but the header 3"),
    "flag.csv": (b"question,context,answer,is_impossible\nq,c,c,maybe\n", 'not the string "maybe"'),
    "answers.csv": (b'question,context,answers\nq,c,"open(1)"\n', "answers must be a list, not the string"),
    "cut off.csv.gz": (gzip.compress(b"question,context,answer\n" + b"q,c,c\n" * 50)[:-9], "gzip file is truncated"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_table_is_an_error_that_names_it(tmp_path, name):
    raw, message = BROKEN[name]
    (tmp_path / name).write_bytes(raw)
    with pytest.raises(DataError, match=message) as caught:
        read_squad(tmp_path / name)
    assert name in str(caught.value)


def test_a_cut_parquet_file_and_columns_of_other_types(tmp_path):
    path = tmp_path / "data.parquet"
    pq.write_table(pa.Table.from_pylist(flat_rows()), path)
    whole = path.read_bytes()
    for raw in (whole[:-10], whole[:100], whole.replace("Köln".encode(), "Köln".encode("latin-1") + b"\xff")):
        path.write_bytes(raw)
        with pytest.raises(DataError, match=r"data\.parquet: .*(not a valid Parquet file|not UTF-8)"):
            read_squad(path)
    pq.write_table(pa.table({"question": [1], "context": ["c"], "answer": ["c"]}), path)
    with pytest.raises(DataError, match="the question must be a string, not the number 1"):
        read_squad(path)


def test_bad_rows_are_skipped_and_counted(tmp_path):
    path = tmp_path / "data.jsonl"
    rows = [*flat_rows(), {"question": "Q?", "context": " ", "answer": "x"}]
    path.write_text("\n".join(["{", *map(json.dumps, rows)]))
    found, report = read_squad_with_report(path, on_bad_example="skip")
    assert found["id"][:] == ["row-1", "row-2"]
    assert report.reasons == {"not JSON": 1, "empty context": 1}


def test_a_context_may_be_a_book(tmp_path):
    book = "word " * 50_000 + "Ann"  # beyond what the csv module allows by itself
    path = tmp_path / "data.csv"
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows([["question", "context", "answer"], ["Who?", book, "Ann"]])
    assert read_squad(path)[0]["answers"]["answer_start"] == [250_000]


def test_answers_in_a_cell_are_never_run(tmp_path):
    path = tmp_path / "data.csv"
    code = f"__import__('pathlib').Path({str(tmp_path / 'ran')!r}).touch()"
    for cell in (code, f"[{code}]", f"array({code})", f"{{'text': array([{code}]), 'answer_start': [0]}}"):
        pd.DataFrame([{"question": "q", "context": "c", "answers": cell}]).to_csv(path, index=False)
        with pytest.raises(DataError, match="answers must be a list"):
            read_squad(path)
        assert not (tmp_path / "ran").exists()


def test_a_missing_table_is_a_missing_file_and_no_name_on_the_hub():
    for name in ("missing.csv", "missing.jsonl", "missing.parquet", "missing.csv.gz", "MISSING.CSV"):
        with pytest.raises(DataError, match="no such file"):
            load_examples(name)
