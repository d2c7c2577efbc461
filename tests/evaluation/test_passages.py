"""Questions with several passages each."""

from collections.abc import Callable

import datasets
import pytest

from haystack_distill import Reader
from haystack_distill.data.squad.load import load_examples
from haystack_distill.errors import DistilError
from haystack_distill.evaluation.passages import answer_with_passages, with_other_passages


def examples() -> datasets.Dataset:
    rows = []
    for title, contexts in (("A", 4), ("B", 1), ("C", 3)):
        for number in range(contexts):
            context = f"Text {number} of {title} says so."
            for question in ("What?", "Who?"):
                impossible = title == "C" and question == "Who?"
                rows.append(
                    {
                        "id": f"{title}{number}{question}",
                        "title": title,
                        "context": context,
                        "question": question,
                        "answers": {"text": [] if impossible else ["Text"], "answer_start": [] if impossible else [0]},
                        "is_impossible": impossible,
                    }
                )
    return load_examples(datasets.Dataset.from_list(rows))


def test_each_question_has_its_own_passage_among_others_of_its_title() -> None:
    chosen, passages = with_other_passages(examples(), 100, 3)
    assert len(chosen) == 8 + 3  # all answerable ones whose title has three contexts
    for row, texts in zip(chosen, passages, strict=True):
        assert row["context"] in texts
        assert len(set(texts)) == 3
        assert all(f"of {row['title']} " in text for text in texts)
    assert len({texts.index(row["context"]) for row, texts in zip(chosen, passages, strict=True)}) == 3
    assert with_other_passages(examples(), 100, 3)[1] == passages
    assert with_other_passages(examples(), 100, 3, seed=2)[1] != passages
    few, alone = with_other_passages(examples(), 4, 1)
    assert alone == [[context] for context in few["context"]]
    assert len(set(few["title"])) > 1  # spread over the data
    with pytest.raises(DistilError, match=r"no question has an answer and 5 contexts with its title; ask for fewer"):
        with_other_passages(examples(), 4, 5)
    with pytest.raises(DistilError, match="passages must be at least 1"):
        with_other_passages(examples(), 4, 0)


def test_the_answers_are_those_of_the_reader(tiny_reader: Callable[..., Reader]) -> None:
    reader = tiny_reader()
    chosen, passages = with_other_passages(examples(), 3, 2)
    found = answer_with_passages(reader, chosen["question"], passages)
    assert found.texts == [
        reader.answer_passages(question, texts, allow_no_answer=False)[0].text
        for question, texts in zip(chosen["question"], passages, strict=True)
    ]
    assert found.layers == [4] * 6
    assert len(found.seconds) == 3
    assert all(length > 5 for length in found.tokens)
