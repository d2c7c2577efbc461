"""What Haystack 1's own tests check of ExtractiveQAPipeline, with each of the readers."""

import importlib.util
from collections.abc import Callable
from typing import Any

import pytest

if importlib.util.find_spec("haystack") is None or importlib.util.find_spec("haystack.nodes") is None:
    pytest.skip("farm-haystack is not in this environment", allow_module_level=True)

from haystack import Answer, Document
from haystack.document_stores import InMemoryDocumentStore
from haystack.nodes import TfidfRetriever
from haystack.pipelines import ExtractiveQAPipeline

BERLIN = "Who lives in Berlin?"


@pytest.fixture
def retriever(people: list[Document]) -> TfidfRetriever:
    store = InMemoryDocumentStore()
    store.write_documents(people)
    return TfidfRetriever(document_store=store)


def test_answers_carry_context_score_and_the_meta_of_their_document(reader: Any, retriever: TfidfRetriever) -> None:
    params = {"Retriever": {"top_k": 10}, "Reader": {"top_k": 3}}
    found = ExtractiveQAPipeline(reader, retriever).run(query=BERLIN, params=params)
    assert found["query"] == BERLIN
    assert len(found["answers"]) == 3
    best = found["answers"][0]
    assert type(best) is Answer
    assert (best.answer, best.context) == ("Carla", "My name is Carla and I live in Berlin")
    assert 0 <= best.score <= 1
    assert best.meta["name"] == "filename2"


def test_scores_that_are_not_normalised_are_a_farm_readers(
    kind: str, model: str, make_reader: Callable[..., Any], retriever: TfidfRetriever
) -> None:
    def ask(kind: str) -> list[Answer]:
        pipeline = ExtractiveQAPipeline(make_reader(kind, model, use_confidence_scores=False), retriever)
        return pipeline.run(query=BERLIN, params={"Reader": {"top_k": 3}})["answers"]

    found = ask(kind)
    assert (len(found), found[0].answer, found[0].meta["name"]) == (3, "Carla", "filename2")
    assert found[0].score > 1
    assert [one.score for one in found] == pytest.approx([one.score for one in ask("FARMReader")], abs=1e-3)


def test_offsets_cut_the_answer_out_of_its_context(reader: Any, retriever: TfidfRetriever) -> None:
    found = ExtractiveQAPipeline(reader, retriever).run(query=BERLIN, params={"Retriever": {"top_k": 5}})
    best = found["answers"][0]
    (span,) = best.offsets_in_context
    assert (span.start, span.end) == (11, 16)
    assert best.context[span.start : span.end] == best.answer
    for answer in found["answers"]:
        (span,) = answer.offsets_in_context
        assert answer.context[span.start : span.end] == answer.answer


def test_a_single_result(reader: Any, retriever: TfidfRetriever) -> None:
    params = {"Retriever": {"top_k": 1}, "Reader": {"top_k": 1}}
    assert len(ExtractiveQAPipeline(reader, retriever).run(query="testing finder", params=params)["answers"]) == 1


def test_a_batch_of_queries(reader: Any, retriever: TfidfRetriever) -> None:
    params = {"Retriever": {"top_k": 5}, "Reader": {"top_k": 2}}
    found = ExtractiveQAPipeline(reader, retriever).run_batch(queries=[BERLIN, "Who lives in Rome?"], params=params)
    assert [answers[0].answer for answers in found["answers"]] == ["Carla", "Matteo"]
    assert [len(answers) for answers in found["answers"]] == [2, 2]
    assert found["answers"][0][0].meta["name"] == "filename2"
