"""Variants of an example keep its answers, are all different, and depend on the seed and the row alone."""

from typing import Any

import datasets
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from augment.augmenter import Augmenter, augmented
from augment.settings import AugmentSettings
from haystack_distill import DataError, DistilError
from haystack_distill.data.squad.load import load_examples

CONTEXT = "Ada Lovelace wrote the first program in 1843, long before there was a machine to run it on."


def example(**changed: Any) -> dict[str, Any]:
    return {
        "id": "q1",
        "title": "Programs",
        "context": CONTEXT,
        "question": "Who wrote the first program?",
        "answers": {"text": ["Ada Lovelace", "Lovelace"], "answer_start": [0, 4]},
    } | changed


def make(**changed: Any) -> Augmenter:
    chosen = AugmentSettings(**({"tagger": "textblob", "multiplication_factor": 13} | changed))
    return Augmenter.of([example()], chosen)


def answers_hold(row: dict[str, Any]) -> bool:
    pairs = zip(row["answers"]["text"], row["answers"]["answer_start"], strict=True)
    return all(row["context"][start : start + len(text)] == text for text, start in pairs)


def test_the_original_comes_first_and_every_version_is_another() -> None:
    rows = make()(example())
    assert rows[0] == example(is_impossible=False, labelled=True)
    assert [row["id"] for row in rows] == ["q1"] + [f"q1-aug{number}" for number in range(1, 13)]
    assert len({(row["question"], row["context"]) for row in rows}) == 13
    for row in rows:
        assert answers_hold(row)
        assert row["answers"]["text"] == ["Ada Lovelace", "Lovelace"]
        assert (row["labelled"], row["is_impossible"], row["title"]) == (True, False, "Programs")


@pytest.mark.parametrize("which", ["question", "context"])
def test_one_text_alone_is_edited(which: str) -> None:
    other = {"question": "context", "context": "question"}[which]
    rows = make(augment=which)(example())
    assert {row[other] for row in rows} == {example()[other]}
    assert len({row[which] for row in rows}) == 13


def test_both_takes_turns() -> None:
    rows = make(augment="both", p_mask=0.5)(example())
    changed = [(row["question"] != rows[0]["question"], row["context"] != rows[0]["context"]) for row in rows[1:]]
    assert changed == [(True, False), (False, True), (True, True)] * 4


def test_a_smaller_factor_gives_the_first_of_a_larger_one_and_the_seed_others() -> None:
    rows = make()(example())
    assert make(multiplication_factor=5)(example()) == rows[:5]
    assert make()(example()) == rows
    assert make(seed=43)(example()) != rows
    assert make()(example(id="q2"))[1]["context"] != rows[1]["context"] or (
        make()(example(id="q2"))[1]["question"] != rows[1]["question"]
    )
    assert make(multiplication_factor=1, tagger="auto")(example()) == rows[:1]


def test_too_few_variants_end_the_list() -> None:
    row = example(context="Ada Lovelace.", question="Who?")
    rows = make(augment="both", p_ng=0, p_pos=0, tagger="none")(row)
    assert [(row["question"], row["context"]) for row in rows] == [
        ("Who?", "Ada Lovelace."),
        ("[MASK]?", "Ada Lovelace."),
    ]


@pytest.mark.parametrize(
    "rare", [{"p_mask": 0.02, "p_ng": 0}, {"p_mask": 0, "p_ng": 0.02}, {"p_mask": 0.004, "p_ng": 0}]
)
def test_rare_edits_are_drawn_until_there_are_enough(rare: dict[str, float]) -> None:
    augment = "context" if rare["p_mask"] == 0.004 else "question"
    rows = make(augment=augment, p_pos=0, tagger="none", **rare)(example())
    assert len(rows) == 13


def test_what_was_not_changed_counts_as_not_edited() -> None:
    augmenter = make(
        augment="both", p_mask=0.03, p_pos=0, p_ng=0, tagger="none", multiplication_factor=30, provenance=True
    )
    for row in augmenter(example())[1:]:
        done = row["augmentation"]
        assert done["of"] == "q1"
        assert ("question" in done) == (row["question"] != example()["question"])
        assert ("context" in done) == (row["context"] != CONTEXT)
        assert done.get("context", {}).get("mask", 0) == row["context"].count("[MASK]")
        assert done.get("question", {}).get("mask", 0) == row["question"].count("[MASK]")


def test_an_unanswerable_question_stays_so_and_an_unlabelled_one_too() -> None:
    nothing = {"text": [], "answer_start": []}
    rows = make()(example(answers=nothing, is_impossible=True))
    assert {(row["is_impossible"], row["labelled"]) for row in rows} == {(True, True)}
    rows = make()(example(answers=nothing, labelled=False))
    assert {(row["is_impossible"], row["labelled"]) for row in rows} == {(False, False)}
    rows = make()(example(answers=nothing, labelled=False, question=""))
    assert {row["question"] for row in rows} == {""}
    assert len({row["context"] for row in rows}) == 13


def test_contexts_are_cut_only_when_asked_and_what_lost_its_answer_is_unlabelled() -> None:
    whole = make(augment="both", p_ng=1.0)(example())
    assert all(len(row["context"].split()) == len(CONTEXT.split()) for row in whole)
    rows = make(augment="context", p_ng=1.0, context_ngrams=True, multiplication_factor=40)(example())
    assert all(len(row["context"].split()) <= 5 for row in rows[1:])
    assert all(answers_hold(row) for row in rows)
    kept = {(bool(row["answers"]["text"]), row["labelled"], row["is_impossible"]) for row in rows[1:]}
    assert kept == {(True, True, False), (False, False, False)}
    assert any(row["answers"]["text"] == ["Lovelace"] for row in rows)  # one of two answers survived


def test_dropped_labels() -> None:
    for row in make(drop_labels=True)(example()):
        assert row["answers"] == {"text": [], "answer_start": []}
        assert (row["labelled"], row["is_impossible"]) == (False, False)


def test_without_a_tagger_words_are_masked_but_not_replaced() -> None:
    rows = make(tagger="none", augment="context", p_mask=0.3)(example())
    known = set(CONTEXT.replace(",", " ").replace(".", " ").split()) | {"[MASK]"}
    assert {word for row in rows for word in row["context"].replace(",", " ").replace(".", " ").split()} <= known
    assert any("[MASK]" in row["context"] for row in rows)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"id": "q1-aug3"}, 'variant of "q1"'),
        ({"id": None}, "id must be a string"),
        ({"context": None}, "context must be a string"),
        ({"answers": {"text": ["Ada", "Lovelace"], "answer_start": [0]}}, "answer_start must be an integer"),
        ({"answers": {"text": ["Ada"]}}, "answers must be a mapping of two lists"),
        ({"answers": [{"text": "Ada", "answer_start": 0}]}, "answers must be a mapping of two lists"),
        ({"answers": None, "is_impossible": False}, "an answerable question without answers"),
    ],
)
def test_what_is_no_example_is_refused(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        make()(example(**changed))


def test_other_ids_may_look_like_those_of_variants() -> None:
    assert make()(example(id="12-aug2019"))[1]["id"] == "12-aug2019-aug1"
    assert make()(example(id="-aug1"))[0]["id"] == "-aug1"


def test_a_wrong_answer_is_refused() -> None:
    with pytest.raises(DataError, match=r"question 'q1'.*does not occur in the context"):
        make()(example(answers={"text": ["Grace Hopper"], "answer_start": [0]}))


def test_examples_come_as_they_are_made_and_pass_the_reader() -> None:
    source = datasets.Dataset.from_list([example(), example(id="q2", question="When was it?")])
    chosen = AugmentSettings(multiplication_factor=4, tagger="textblob")
    made = datasets.Dataset.from_generator(lambda: augmented(source, chosen))
    assert load_examples(made)["id"][:4] == ["q1", "q1-aug1", "q1-aug2", "q1-aug3"]
    assert len(made) == 8
    with pytest.raises(DistilError, match="iterated over only once"):
        next(augmented(iter([example()]), chosen))


@given(
    st.text(min_size=1, max_size=80).filter(lambda text: not text.isspace()),
    st.text(min_size=1, max_size=30).filter(lambda text: not text.isspace()),
    st.integers(),
    st.data(),
)
@settings(max_examples=60, deadline=None)
def test_any_unicode_any_answer_any_seed(context: str, question: str, seed: int, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, len(context) - 1))
    end = data.draw(st.integers(start + 1, len(context)))
    if context[start:end].isspace():
        return
    row = example(context=context, question=question, answers={"text": [context[start:end]], "answer_start": [start]})
    augmenter = Augmenter.of([row], AugmentSettings(multiplication_factor=6, tagger="textblob", p_mask=0.4, seed=seed))
    rows = augmenter(row)
    assert rows == augmenter(row)
    assert 1 <= len(rows) <= 6
    assert all(answers_hold(row) and row["answers"]["text"] for row in rows)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"multiplication_factor": 0}, "multiplication_factor must be a whole number of at least 1, not 0"),
        ({"p_mask": 1.2}, "p_mask must be a probability from 0 to 1"),
        ({"p_ng": -0.1}, "p_ng must be a probability"),
        ({"p_mask": 0.6, "p_pos": 0.6}, r"p_mask \+ p_pos is 1\.2"),
        ({"model": "m", "p_mask": 0.4, "p_pos": 0.4}, r"p_mask \+ p_pos \+ replace_probability is 1\.2"),
        ({"augment": "title"}, "augment must be one of question, context, both"),
        ({"tagger": "spacy"}, "tagger must be one of"),
        *(({"mask_token": value}, "mask_token must be text, not empty, not") for value in (" ", 5, True)),
        *(({name: 5}, f"{name} must be text, not empty, not 5") for name in ("model", "tokenizer", "glove_path")),
        *(({name: True}, f"{name} must be a probability") for name in ("p_mask", "p_pos", "p_ng")),
        ({"p_mask": "0.1"}, "p_mask must be a probability from 0 to 1, not '0.1'"),
        *(({"seed": value}, "seed must be a whole number") for value in ("1", None, 1.5, True)),
        *(({name: "no"}, f"{name} must be True or False") for name in ("drop_labels", "provenance", "context_ngrams")),
        ({"device": 0}, "device must be a device"),
    ],
)
def test_settings_that_cannot_be(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(DistilError, match=message):
        AugmentSettings(**changed)
