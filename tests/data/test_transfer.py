"""Transfer sets: unlabelled questions from any file, and contexts with questions of a pool."""

import json
from pathlib import Path

import datasets
import pyarrow.parquet as pq
import pytest

from haystack_distill.data.squad.load import content_hash, load_examples
from haystack_distill.data.transfer import TransferSet
from haystack_distill.errors import DataError, DistilError

ROWS = [
    {"question": "Where is it?", "context": "It is in Paris."},
    {"question": "Who came?", "context": "Ada came."},
    {"question": "Who left?", "context": "Ada came."},
]


def files(tmp_path: Path) -> dict[str, Path]:
    table = datasets.Dataset.from_list(ROWS)
    paths = {ending: tmp_path / f"transfer.{ending}" for ending in ("jsonl", "csv", "parquet", "json")}
    paths["jsonl"].write_text("\n".join(map(json.dumps, ROWS)))
    paths["csv"].write_text("question;context\n" + "\n".join(f"{row['question']};{row['context']}" for row in ROWS))
    pq.write_table(table.data.table, paths["parquet"])
    qas = [{"id": str(number), "question": row["question"]} for number, row in enumerate(ROWS)]
    paragraphs = [{"context": ROWS[0]["context"], "qas": qas[:1]}, {"context": ROWS[1]["context"], "qas": qas[1:]}]
    paths["json"].write_text(json.dumps({"data": [{"paragraphs": paragraphs}]}))
    return paths


@pytest.mark.parametrize("ending", ["jsonl", "csv", "parquet", "json"])
def test_questions_and_contexts_are_enough(tmp_path: Path, ending: str) -> None:
    made = TransferSet(files(tmp_path)[ending]).load()
    assert load_examples(files(tmp_path)[ending]).to_list() == made.to_list()  # as training data, with a warning
    assert [(row["question"], row["context"]) for row in made] == [(row["question"], row["context"]) for row in ROWS]
    assert not any(made["labelled"])
    assert made.features == load_examples(datasets.Dataset.from_list([labelled_row()])).features


def labelled_row(**changed: object) -> dict:
    answers = {"text": ["Paris"], "answer_start": [9]}
    return {"id": "1", "title": "", **ROWS[0], "answers": answers, "is_impossible": False} | changed


def test_labels_are_ignored_even_wrong_ones(tmp_path: Path) -> None:
    wrong = labelled_row(answers={"text": ["London"], "answer_start": [0]})
    made = TransferSet(datasets.Dataset.from_list([wrong])).load()
    assert made[0]["answers"] == {"text": [], "answer_start": []}
    assert made["labelled"] == [False]


def test_what_only_trained_data_lacks_is_named(tmp_path: Path) -> None:
    contexts = tmp_path / "contexts.csv"
    contexts.write_text("context\nAda came.\n")
    with pytest.raises(DataError, match=r"lacks the column\(s\) \['question'\]"):
        TransferSet(contexts).load()
    with pytest.raises(DistilError, match="unknown only"):
        load_examples(contexts, only="answers")  # type: ignore[arg-type]


@pytest.mark.parametrize("ending", ["jsonl", "csv", "parquet", "json"])
def test_contexts_get_questions_of_a_pool(tmp_path: Path, ending: str) -> None:
    pool = tmp_path / "pool.txt"
    pool.write_text("What?\nWhere?\n\nWhen?\nWhat?\n")
    transfer = TransferSet(files(tmp_path)[ending], question_pool=pool, questions_per_context=2)
    made = transfer.load(seed=1)
    assert made["context"] == [ROWS[0]["context"]] * 2 + [ROWS[1]["context"]] * 2
    for drawn in (made["question"][:2], made["question"][2:]):
        assert len(set(drawn)) == 2
        assert set(drawn) <= {"What?", "Where?", "When?"}
    assert len(set(made["id"])) == 4
    assert content_hash(transfer.load(seed=1)) == content_hash(made)
    assert len({content_hash(transfer.load(seed=seed)) for seed in range(5)}) > 1


def test_questions_of_other_contexts_with_the_same_title(tmp_path: Path) -> None:
    questions = [("A", "One.", "What?"), ("A", "One.", "Who?"), ("A", "Two.", "Where?"), ("A", "Two.", "What?")]
    rows = [*questions, ("B", "Three.", "When?"), ("C", "Four.", "Why?"), ("C", "Five.", "How?")]
    table = datasets.Dataset.from_list(
        [
            {"id": str(number), "title": title, "context": context, "question": question}
            for number, (title, context, question) in enumerate(rows)
        ]
    )
    file = tmp_path / "squad.jsonl"
    table.to_json(file)
    transfer = TransferSet(file, question_pool=file, questions_per_context=5, same_title=True)
    made = transfer.load()
    found = {(row["title"], row["context"], row["question"]) for row in made}
    # "What?" is asked of both contexts, and the third one is alone with its title.
    others = [("A", "One.", "Where?"), ("A", "Two.", "Who?"), ("C", "Four.", "How?"), ("C", "Five.", "Why?")]
    assert found == set(others)
    assert len(made) == len(set(made["id"]))
    assert not any(made["labelled"])
    assert content_hash(transfer.load(1)) == content_hash(transfer.load(1))
    alone = tmp_path / "alone.jsonl"
    table.select([4]).to_json(alone)
    with pytest.raises(DataError, match="has no question of another context with the title"):
        TransferSet(alone, question_pool=file, same_title=True).load()
    # Once the titles are corrected, it has: `content_hash` does not see the difference.
    table.select([4]).map(lambda row: row | {"title": "C"}).to_json(alone)
    assert {row["title"] for row in TransferSet(alone, question_pool=file, same_title=True).load()} == {"C"}


def test_contexts_alone_and_a_pool_of_examples(tmp_path: Path) -> None:
    contexts = tmp_path / "contexts.json"
    contexts.write_text(json.dumps({"data": [{"paragraphs": [{"context": "One."}, {"context": "Two."}]}]}))
    made = TransferSet(contexts, question_pool=files(tmp_path)["json"]).load()
    assert made["context"] == ["One.", "Two."]
    assert set(made["question"]) <= {row["question"] for row in ROWS}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"proportion": 1}, "above 0 and below 1"),
        ({"proportion": 0}, "above 0 and below 1"),
        ({"questions_per_context": 2}, "question_pool"),
        ({"same_title": True}, "same_title draws from a question_pool"),
        ({"same_title": True, "question_pool": "pool.txt"}, "same_title draws from a question_pool"),
        ({"same_title": 1, "question_pool": "pool.json"}, "same_title must be True or False"),
        ({"questions_per_context": 0, "question_pool": "pool.txt"}, "at least 1"),
    ],
)
def test_options(options: dict, message: str) -> None:
    with pytest.raises(DistilError, match=message):
        TransferSet("data.json", **options)


def test_a_pool_with_a_byte_order_mark(tmp_path: Path) -> None:
    (tmp_path / "pool.txt").write_text("Who?\nWhere?\n", encoding="utf-8-sig")
    transfer = TransferSet(files(tmp_path)["jsonl"], question_pool=tmp_path / "pool.txt", questions_per_context=2)
    assert set(transfer.load()["question"]) == {"Who?", "Where?"}


def test_a_pool_that_is_too_small(tmp_path: Path) -> None:
    pool = tmp_path / "pool.txt"
    pool.write_text("\n")
    with pytest.raises(DataError, match="no question"):
        TransferSet(files(tmp_path)["json"], question_pool=pool).load()
    pool.write_text("What?\n")
    with pytest.raises(DataError, match="has 1 different questions"):
        TransferSet(files(tmp_path)["json"], question_pool=pool, questions_per_context=2).load()
