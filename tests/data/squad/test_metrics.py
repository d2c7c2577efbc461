import json
import logging
import random
import re
import string
from pathlib import Path

import datasets
import pytest

from haystack_distill.data.squad.load import load_examples, read_squad
from haystack_distill.data.squad.metrics import (
    example_scores,
    normalize_answer,
    read_predictions,
    squad_metrics,
    write_predictions,
)
from haystack_distill.errors import DataError, DistilError

SHARED = Path(__file__).parents[4] / "shared" / "data" / "squad"


def example(id_, *texts, **more):
    return {"id": id_, "answers": {"text": list(texts), "answer_start": [0] * len(texts)}, **more}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The  Cat, a dog and AN ant!", "cat dog and ant"),
        ("theatre", "theatre"),
        ("the-cat", "thecat"),  # punctuation goes before articles
        ("a.b", "ab"),
        ("“The” Who", "“ ” who"),  # only ASCII punctuation goes
        (" \t\n", ""),
        ("A", ""),
        ("naïve\u00a0café", "naïve café"),
    ],
)
def test_normalize_answer(text, expected):
    assert normalize_answer(text) == expected


def test_version_1_1_by_hand():
    examples = [
        example("a", "the big cat", "a cat"),
        example("b", "1999"),
        example("c", "Köln am Rhein"),
        example("d", "x"),
    ]
    metrics = squad_metrics(examples, {"a": "Cat!", "b": "in 1999", "c": "Bonn am Rhein", "d": "y"})
    # a: exact against "a cat"; b: precision 1/2, recall 1; c: 2 of 3 words either way; d: nothing.
    assert metrics == {"exact": 25.0, "f1": pytest.approx(100 * (1 + 2 / 3 + 2 / 3 + 0) / 4, abs=1e-12), "total": 4}


def test_repeated_words_count_as_often_as_they_stand_in_both():
    scores = example_scores([example("a", "no no yes")], {"a": "no no no"})
    assert scores["a"].exact == 0.0
    assert scores["a"].f1 == pytest.approx(2 / 3)


def test_version_2_0_by_hand():
    examples = [example("a", "red car"), example("b"), example("c"), example("d", "blue")]
    predictions = {"a": "car", "b": "", "c": "something", "d": ""}
    metrics = squad_metrics(examples, predictions, {"a": 0.1, "b": 0.9, "c": 0.8, "d": 0.3})
    third = 100 * (2 / 3)
    assert metrics == {
        "exact": 25.0,
        "f1": pytest.approx((third + 100) / 4),
        "total": 4,
        "HasAns_exact": 0.0,
        "HasAns_f1": pytest.approx(third / 2),
        "HasAns_total": 2,
        "NoAns_exact": 50.0,
        "NoAns_f1": 50.0,
        "NoAns_total": 2,
        # Answering nothing scores 2 of 4; for exact match no answer improves on that, for F1 answering "a" alone does.
        "best_exact": 50.0,
        "best_exact_thresh": 0.0,
        "best_f1": pytest.approx(100 * (2 + 2 / 3) / 4),
        "best_f1_thresh": 0.1,
    }


def test_a_threshold_makes_no_answer_of_what_exceeds_it():
    examples = [example("a", "red"), example("b"), example("c", "blue")]
    predictions = {"a": "red", "b": "wrong", "c": "blue"}
    scores = {"a": -2.0, "b": 1.5, "c": 1.0}
    assert squad_metrics(examples, predictions, scores)["exact"] == pytest.approx(200 / 3)
    assert squad_metrics(examples, predictions, scores, no_answer_threshold=1.0)["exact"] == 100.0
    metrics = squad_metrics(examples, predictions, scores, no_answer_threshold=0.5)
    assert (metrics["HasAns_exact"], metrics["NoAns_exact"]) == (50.0, 100.0)
    assert (metrics["best_exact"], metrics["best_exact_thresh"]) == (100.0, 1.0), (
        "best_* do not depend on the threshold"
    )


def test_the_best_threshold_may_be_to_answer_nothing():
    """Differences of logits may be negative, so that at 0 some of them would be answered."""
    examples = [example("a", "red"), example("b"), example("c")]
    predictions, scores = {"a": "wrong", "b": "x", "c": "y"}, {"a": -5.0, "b": -4.0, "c": 3.0}
    found = squad_metrics(examples, predictions, scores)
    assert found["best_f1"] == pytest.approx(200 / 3)
    assert squad_metrics(examples, predictions, scores, no_answer_threshold=found["best_f1_thresh"])["f1"] == (
        pytest.approx(found["best_f1"])
    )


def test_where_the_versions_differ(caplog):
    # A reference of articles alone: 2.0 takes it for no answer; F1 of two empty texts is 0 in 1.1 and 1 in 2.0.
    examples = [example("a", "The"), example("b", "red")]
    assert squad_metrics(examples, {"a": "", "b": "red"}, version="1.1") == {"exact": 100.0, "f1": 50.0, "total": 2}
    assert squad_metrics(examples, {"a": "", "b": "red"}, version="2.0")["f1"] == 100.0
    # A reference of articles alone beside another: 1.1 keeps it, 2.0 drops it.
    examples = [example("a", "The", "red")]
    assert squad_metrics(examples, {"a": "."}, version="1.1")["exact"] == 100.0
    assert squad_metrics(examples, {"a": "."}, version="2.0")["exact"] == 0.0
    # A missing prediction: 1.1 counts it as wrong, 2.0 leaves it out.
    examples = [example("a", "red"), example("b", "blue")]
    caplog.set_level(logging.WARNING)
    for version, exact, total in (("1.1", 50.0, 2), ("2.0", 100.0, 1)):
        caplog.clear()
        metrics = squad_metrics(examples, {"a": "red"}, version=version)
        assert (metrics["exact"], metrics["total"]) == (exact, total)
        assert "1 of 2 questions have no prediction (b)" in caplog.text
    assert set(example_scores(examples, {"a": "red"}, version="2.0")) == {"a"}
    assert example_scores(examples, {"a": "red"}, version="1.1")["b"] == (0.0, 0.0)


def test_auto_takes_the_version_from_the_data():
    answerable = [example("a", "red")]
    assert set(squad_metrics(answerable, {"a": "red"}, {"a": 0.5})) == {"exact", "f1", "total"}
    assert "HasAns_total" in squad_metrics(answerable, {"a": "red"}, {"a": 0.5}, no_answer_threshold=0.7)
    assert "NoAns_total" in squad_metrics([*answerable, example("b")], {"a": "red", "b": ""})


def tiny_reference(examples, predictions, no_answer, threshold):
    """SQuAD 2.0 written in another way: sorted word lists, and every threshold tried by brute force."""

    def words(text):
        text = "".join(c for c in text.lower() if c not in string.punctuation)
        return [word for word in re.split(r"\s+", re.sub(r"\b(?:an|a|the)\b", " ", text)) if word]

    def f1(one, other):
        if not one or not other:
            return 1.0 if one == other else 0.0
        rest, common = list(other), 0
        for word in one:
            if word in rest:
                rest.remove(word)
                common += 1
        return 2 * common / (len(one) + len(other))  # the Dice form of F1

    exact, overlap = {}, {}
    for row in examples:
        golds = [words(text) for text in row["answers"]["text"]]
        golds = [gold for gold in golds if gold] or [[]]
        said = words(predictions[row["id"]])
        exact[row["id"]] = max(float(said == gold) for gold in golds)
        overlap[row["id"]] = max(f1(said, gold) for gold in golds)

    def mean(values, cut):
        total = 0.0
        for row in examples:
            id_ = row["id"]
            total += (not row["answers"]["text"]) if no_answer[id_] > cut else values[id_]
        return 100 * total / len(examples)

    cuts = [-1.0, *no_answer.values()]
    return {
        "exact": mean(exact, threshold),
        "f1": mean(overlap, threshold),
        "best_exact": max(mean(exact, cut) for cut in cuts),
        "best_f1": max(mean(overlap, cut) for cut in cuts),
    }


@pytest.mark.parametrize("seed", range(20))
def test_against_an_independent_reference(seed):
    rng = random.Random(seed)
    vocabulary = ["the", "A", "an", "red", "Red.", "car", "cars", "1,000", "$", "Köln", "x"]

    def phrase(least):
        return " ".join(rng.choices(vocabulary, k=rng.randint(least, 4)))

    examples, predictions, no_answer = [example("never", "red")], {"never": "red"}, {"never": 0.5}
    for i in range(60):
        texts = [phrase(1) for _ in range(rng.randint(0, 3))]
        examples.append(example(f"q{i}", *texts))
        predictions[f"q{i}"] = rng.choice([*texts, "", phrase(0)])
        no_answer[f"q{i}"] = rng.random()  # no ties: at a tie, the official best threshold depends on the order
    # The official search counts "." as an answer to an unanswerable question, although it scores as none.
    predictions = {id_: text if normalize_answer(text) else "" for id_, text in predictions.items()}
    threshold = rng.random()
    metrics = squad_metrics(examples, predictions, no_answer, no_answer_threshold=threshold, version="2.0")
    expected = tiny_reference(examples, predictions, no_answer, threshold)
    assert {name: metrics[name] for name in expected} == pytest.approx(expected, abs=1e-9)
    again = squad_metrics(
        examples, predictions, no_answer, no_answer_threshold=metrics["best_f1_thresh"], version="2.0"
    )
    assert again["f1"] == pytest.approx(metrics["best_f1"], abs=1e-9)
    parts = sum(metrics.get(f"{part}_f1", 0) * metrics.get(f"{part}_total", 0) for part in ("HasAns", "NoAns"))
    assert parts / metrics["total"] == pytest.approx(metrics["f1"], abs=1e-9)


def test_a_dataset_counts_like_its_rows(tmp_path):
    rows = [
        {**example("a", "red"), "title": "t", "context": "red", "question": "q?"},
        {**example("b"), "title": "t", "context": "red", "question": "q?"},
    ]
    dataset = load_examples(datasets.Dataset.from_list(rows), cache_dir=tmp_path)
    predictions = {"a": "red", "b": "red"}
    expected = squad_metrics(rows, predictions)
    assert expected["exact"] == 50.0
    assert squad_metrics(dataset, predictions) == expected
    assert squad_metrics(dataset.select([1, 0]).with_format("numpy"), predictions) == expected
    assert squad_metrics(iter(rows), predictions) == expected


@pytest.mark.parametrize(
    ("examples", "predictions", "kwargs", "message"),
    [
        ([], {}, {}, "no examples"),
        ([{"id": "a"}], {"a": ""}, {}, "example 0 has no id or answers"),
        ([example("a", "x"), example("a", "x")], {"a": "x"}, {}, 'have the id "a"'),
        ([example("a", labelled=False)], {"a": "x"}, {}, '"a" is unlabelled'),
        ([example("a")], {"a": ""}, {"version": "1.1"}, 'no answers, which SQuAD 1.1 cannot score: use version="2.0"'),
        ([example("a")], {"b": ""}, {}, "none of the questions has a prediction"),
        ([example("a", "x")], {"a": None}, {}, 'prediction for "a" must be a string'),
        ([example("a")], {"a": ""}, {"no_answer_scores": {}}, '"a" has a prediction but no no-answer score'),
        ([example("a")], {"a": ""}, {"no_answer_scores": {"a": float("nan")}}, 'of "a" must be a number, not nan'),
        ([example("a")], {"a": ""}, {"no_answer_scores": {"a": "0.5"}}, "must be a number, not '0.5'"),
        ([example("a")], {"a": ""}, {"no_answer_threshold": 0.5}, "needs no_answer_scores"),
        (
            [example("a", "x")],
            {"a": ""},
            {"no_answer_threshold": 0.5, "no_answer_scores": {"a": 0.5}, "version": "1.1"},
            "1.1 has no no-answer threshold",
        ),
        ([example("a", "x")], {"a": ""}, {"version": "3"}, "unknown SQuAD version '3'"),
    ],
)
def test_errors_say_what_is_wrong(examples, predictions, kwargs, message):
    with pytest.raises(DistilError, match=re.escape(message)):
        squad_metrics(examples, predictions, **kwargs)


def test_predictions_round_trip(tmp_path):
    path = tmp_path / "deep" / "predictions.json"
    predictions = {"b": 'Köln "am" Rhein 😀', "a": ""}
    write_predictions({"old": "x"}, path)
    write_predictions(predictions, path)
    assert json.loads(path.read_text(encoding="utf-8")) == predictions
    assert list(read_predictions(path).items()) == list(predictions.items())
    with pytest.raises(DataError, match="'a' has None"):
        write_predictions({"a": None}, path)
    assert read_predictions(str(path)) == predictions, "a failed write must leave the file as it was"
    assert [file.name for file in path.parent.iterdir()] == ["predictions.json"]


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b'[{"a": "x"}]', "must be one JSON object"),
        (b'{"a": ["x"]}', """prediction for "a" must be a string ("" for no answer), not ['x']"""),
        (b'{"a": "x"', "broken or truncated"),
        (b'{"a": "x", "a": "y"}', '"a" appears more than once'),
        (b'{"a": "\xff"}', "not UTF-8 (at byte 7)"),
    ],
)
def test_wrong_prediction_files(tmp_path, raw, message):
    path = tmp_path / "predictions.json"
    path.write_bytes(raw)
    with pytest.raises(DataError, match=re.escape(message)) as caught:
        read_predictions(path)
    assert str(path) in str(caught.value)
    with pytest.raises(DataError, match="cannot be read"):
        read_predictions(tmp_path / "missing.json")


@pytest.mark.real_data
@pytest.mark.parametrize(("name", "total", "no_answer"), [("dev-v1.1", 10_570, None), ("dev-v2.0", 11_873, 5_945)])
def test_reference_answers_score_full_marks(tmp_path, name, total, no_answer):
    path = SHARED / f"{name}.json.gz"
    if not path.exists():
        pytest.skip("../shared is not here")
    dataset = read_squad(path, cache_dir=tmp_path)
    # By the scripts' rules, a reference such as "The" cannot score in full: take the last that says something.
    predictions = {
        row["id"]: next((text for text in reversed(row["answers"]["text"]) if normalize_answer(text)), "")
        for row in dataset
    }
    metrics = squad_metrics(dataset, predictions)
    assert (metrics["exact"], metrics["f1"], metrics["total"]) == (100.0, 100.0, total)
    assert metrics.get("NoAns_total") == no_answer
