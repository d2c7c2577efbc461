"""What Haystack 1's own tests check of evaluation, with each of the readers."""

import importlib.util
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

if importlib.util.find_spec("haystack") is None or importlib.util.find_spec("haystack.nodes") is None:
    pytest.skip("farm-haystack is not in this environment", allow_module_level=True)

from haystack import Answer, Document, EvaluationResult, Label, MultiLabel, Pipeline, Span
from haystack.document_stores import InMemoryDocumentStore
from haystack.nodes import TfidfRetriever
from haystack.pipelines import ExtractiveQAPipeline

BERLIN, MUNICH = "Who lives in Berlin?", "Who lives in Munich?"
FIVE = {"Retriever": {"top_k": 5}}
RETRIEVED = ("mrr", "map", "recall_multi_hit", "recall_single_hit", "ndcg")


def label(query: str, answer: str, key: str, text: str) -> MultiLabel:
    start = text.index(answer)
    span = [Span(start, start + len(answer))]
    given = Answer(answer, offsets_in_context=span, offsets_in_document=span, document_ids=[key])
    return MultiLabel([Label(query, Document(text, id=key), True, True, "gold-label", answer=given)])


@pytest.fixture
def matching() -> None:
    """Pipeline.eval compares contexts with rapidfuzz, which comes with farm-haystack[metrics]."""
    pytest.importorskip("rapidfuzz")


@pytest.fixture
def labels() -> list[MultiLabel]:
    """The first is of a document that the store has, the second of one that it has not."""
    return [
        label(BERLIN, "Carla", "carla", "My name is Carla and I live in Berlin"),
        label(MUNICH, "Carla", "something_else", "My name is Carla and I live in Munich"),
    ]


@pytest.fixture
def wrong() -> list[MultiLabel]:
    return [
        label(BERLIN, "Carla", "carla", "My name is Carla and I live in Berlin"),
        label(MUNICH, "Pete", "something_else", "My name is Pete and I live in Munich"),
    ]


@pytest.fixture
def store(people: list[Document]) -> InMemoryDocumentStore:
    store = InMemoryDocumentStore()
    store.write_documents(people)
    return store


@pytest.fixture
def pipeline(reader: Any, store: InMemoryDocumentStore, matching: None) -> ExtractiveQAPipeline:
    return ExtractiveQAPipeline(reader=reader, retriever=TfidfRetriever(document_store=store))


def first(result: pd.DataFrame, query: str) -> pd.Series:
    return result[(result["query"] == query) & (result["rank"] == 1)].iloc[0]


def assert_same_when_saved(result: EvaluationResult, directory: Path) -> EvaluationResult:
    result.save(directory)
    saved = EvaluationResult.load(directory)
    for node, frame in result.node_results.items():
        pd.testing.assert_frame_equal(frame, saved[node])
    return saved


@pytest.mark.parametrize("batch", [False, True])
def test_a_pipeline_is_measured(pipeline: Any, labels: list[MultiLabel], tmp_path: Path, batch: bool) -> None:
    evaluate = pipeline.eval_batch if batch else pipeline.eval
    result = evaluate(labels=labels, params=FIVE)
    columns = set(result["Reader"].columns)
    assert {"answer", "exact_match", "f1", "offsets_in_document", "offsets_in_context", "document_ids"} <= columns
    assert first(result["Reader"], BERLIN)["answer"] in first(result["Reader"], BERLIN)["gold_answers"]
    assert first(result["Retriever"], BERLIN)["document_id"] in first(result["Retriever"], BERLIN)["gold_document_ids"]
    assert (
        first(result["Retriever"], MUNICH)["document_id"] not in first(result["Retriever"], MUNICH)["gold_document_ids"]
    )
    for measured in (result, assert_same_when_saved(result, tmp_path)):
        metrics = measured.calculate_metrics(document_scope="document_id")
        assert metrics["Reader"]["exact_match"] == metrics["Reader"]["f1"] == 1.0  # Carla is among the answers to both
        assert [metrics["Retriever"][name] for name in RETRIEVED] == [0.5] * len(RETRIEVED)
        assert all(isinstance(value, float) for of_node in metrics.values() for value in of_node.values())
        of_document = measured.calculate_metrics(answer_scope="document_id")
        assert of_document["Reader"]["exact_match"] == 0.5


def test_metrics_of_fewer_answers_and_documents(pipeline: Any, labels: list[MultiLabel]) -> None:
    result = pipeline.eval(labels=labels, params=FIVE)
    for top_k, right in ((1, None), (5, 1.0)):
        metrics = result.calculate_metrics(simulated_top_k_reader=top_k, document_scope="document_id")
        found = metrics["Reader"]["exact_match"]
        assert found == right if right is not None else 0.5 <= found <= 1.0
        assert metrics["Retriever"]["mrr"] == 0.5
    for documents in (1, 3):
        metrics = result.calculate_metrics(simulated_top_k_retriever=documents, document_scope="document_id")
        assert metrics["Reader"]["exact_match"] >= 0.5
        assert metrics["Retriever"]["precision"] == pytest.approx(0.5 / documents)


def test_a_reader_alone_is_measured(reader: Any, labels: list[MultiLabel], matching: None) -> None:
    pipeline = Pipeline()
    pipeline.add_node(component=reader, name="Reader", inputs=["Query"])
    documents = [[one.document for one in of_query.labels] for of_query in labels]
    metrics = pipeline.eval(labels=labels, documents=documents, params={}).calculate_metrics(
        document_scope="document_id"
    )
    assert metrics["Reader"]["exact_match"] == metrics["Reader"]["f1"] == 1.0


def test_a_reader_is_measured_in_isolation(pipeline: Any, labels: list[MultiLabel], reader: Any) -> None:
    other = deepcopy(labels[0].labels[0])  # of the same document, which is then read once
    other.answer = Answer("I", offsets_in_context=[Span(21, 22)])
    labels[0].labels.append(other)
    result = pipeline.eval(labels=labels, add_isolated_node_eval=True)
    isolated = result.calculate_metrics(simulated_top_k_reader=1, eval_mode="isolated")
    assert isolated["Reader"]["exact_match"] == isolated["Reader"]["f1"] == 1.0
    frame = result["Reader"]
    assert len(frame[frame["eval_mode"] == "isolated"]) == len(labels) * reader.top_k_per_candidate


def test_wrong_examples_and_the_report(pipeline: Any, wrong: list[MultiLabel], capsys: pytest.CaptureFixture) -> None:
    result = pipeline.eval(labels=wrong, params=FIVE, add_isolated_node_eval=True)
    for node in ("Retriever", "Reader"):
        (example,) = result.wrong_examples(node=node, n=1)
        assert example["query"] == MUNICH
    pipeline.print_eval_report(result)
    assert "Reader" in capsys.readouterr().out


def test_empty_documents_do_not_stop_an_evaluation(pipeline: Any, labels: list[MultiLabel]) -> None:
    labels[0].labels[0].document.content = ""
    for evaluate in (pipeline.eval, pipeline.eval_batch):
        assert evaluate(labels=labels)["Reader"]["answer"].iloc[0] == "Carla"
        frame = evaluate(labels=labels, add_isolated_node_eval=True)["Reader"]
        assert frame[frame["eval_mode"] == "isolated"]["answer"].iloc[0] == ""


# --- FARMReader's own evaluation --------------------------------------------------------------------------------------


@pytest.mark.parametrize("confidences", [True, False])
def test_eval_on_a_store_and_on_a_file(
    embedded: str, make_reader: Callable[..., Any], squad_file: Path, confidences: bool
) -> None:
    def measure(kind: str) -> tuple[dict, dict]:
        # eval_on_file cuts with the stride and query length of Haystack 1's defaults, whatever the reader's are.
        cut = {"max_seq_len": 256, "doc_stride": 128, "max_query_length": 64}
        reader = make_reader(kind, embedded, use_confidence_scores=confidences, **cut)
        of_store = reader.eval(store, device="cpu", label_index="label", doc_index="eval_document")
        of_file = reader.eval_on_file(squad_file.parent, squad_file.name, device="cpu")
        return {name: of_store[name] for name in of_store if "second" not in name and "time" not in name}, of_file

    store = InMemoryDocumentStore()
    store.add_eval_data(filename=str(squad_file), doc_index="eval_document", label_index="label")
    found, expected = measure("DistilFARMReader"), measure("FARMReader")
    assert found == expected
    assert expected[0]["f1"] > 50
    assert found[1]["top_n_accuracy"] >= found[1]["EM"] > 0
