"""The fast reader node of Haystack 1 against FARMReader: the same answers, spans and scores."""

import importlib.util
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

if importlib.util.find_spec("haystack") is None or importlib.util.find_spec("haystack.nodes") is None:
    pytest.skip("farm-haystack is not in this environment", allow_module_level=True)

from haystack import Document, Pipeline
from haystack.document_stores import InMemoryDocumentStore
from haystack.nodes import BM25Retriever, FARMReader

from haystack_distill import DistilError, Reader
from haystack_distill.embedded import embedded_teacher
from haystack_distill.export import export_reader
from haystack_distill.integrations.farm_reader import DistilledReader
from tests.conftest import CONTEXTS, QUESTIONS

CUT = {"max_seq_len": 48, "doc_stride": 16, "max_query_length": 16, "use_gpu": False}
LONG = " ".join(CONTEXTS)


@pytest.fixture(scope="module")
def directory(tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tiny random reader whose logits are far enough apart to rank by."""
    from tests.conftest import make_tiny_reader

    reader = make_tiny_reader(tokenizer, seed=3, initializer_range=0.4)
    return str(reader.save(tmp_path_factory.mktemp("models") / "reader"))


def documents() -> list[Document]:
    texts = [*CONTEXTS, LONG, "  " + CONTEXTS[1].replace(" ", "  ")]
    return [Document(content=text, id=f"d{number}", meta={"name": str(number)}) for number, text in enumerate(texts)]


def plain(result: dict[str, Any]) -> list[tuple]:
    return [
        (
            answer.answer,
            answer.type,
            answer.context,
            answer.document_ids,
            [(span.start, span.end) for span in answer.offsets_in_document],
            [(span.start, span.end) for span in answer.offsets_in_context],
            answer.meta,
        )
        for answer in result["answers"]
    ]


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"return_no_answer": True, "no_ans_boost": 1.5},
        {"top_k_per_sample": 4, "top_k_per_candidate": 5, "duplicate_filtering": 2},
        {"top_k_per_sample": 3, "duplicate_filtering": -1, "top_k": 20},
        {"confidence_threshold": 0.3, "context_window_size": 30},
    ],
    ids=str,
)
def test_answers_are_those_of_a_farm_reader(directory: str, settings: dict[str, Any]) -> None:
    theirs = FARMReader(directory, progress_bar=False, num_processes=0, use_confidence_scores=False, **CUT, **settings)
    ours = DistilledReader(directory, use_confidence_scores=False, **CUT, **settings)
    for question, _, _ in QUESTIONS[:4]:
        expected = theirs.predict(question, documents())
        found = ours.predict(question, documents())
        assert plain(found) == plain(expected)
        scores = ([answer.score for answer in result["answers"]] for result in (found, expected))
        assert next(scores) == pytest.approx(next(scores), abs=1e-4)
        assert found["no_ans_gap"] == pytest.approx(expected["no_ans_gap"], abs=1e-4)


def test_confidences_are_those_of_a_farm_reader(tmp_path: Path) -> None:
    """With a trained reader: FARM counts padding in, which a trained reader gives next to no probability."""
    directory = str(embedded_teacher(device="cpu").save(tmp_path / "teacher"))
    arguments: dict[str, Any] = {"use_gpu": False, "return_no_answer": True}
    theirs = FARMReader(directory, progress_bar=False, num_processes=0, **arguments)
    ours = DistilledReader(directory, **arguments)
    for question, _, _ in QUESTIONS:
        expected, found = (reader.predict(question, documents()[:4]) for reader in (theirs, ours))
        assert plain(found)[0] == plain(expected)[0]
        of_theirs = {answer.answer: answer.score for answer in expected["answers"]}
        assert {answer.answer: answer.score for answer in found["answers"]} == pytest.approx(of_theirs, abs=0.05)
    sure = DistilledReader(directory, confidence_threshold=0.6, use_gpu=False)
    kept = [answer.score for question, _, _ in QUESTIONS for answer in sure.predict(question, documents())["answers"]]
    assert kept
    assert min(kept) >= 0.6


def test_batches_are_grouped_as_a_farm_reader_groups_them(directory: str) -> None:
    theirs = FARMReader(directory, progress_bar=False, num_processes=0, **CUT)
    ours = DistilledReader(directory, **CUT)
    questions = [question for question, _, _ in QUESTIONS[:2]]
    for given in (documents(), [documents()[:2], documents()[2:]]):
        expected, found = (reader.predict_batch(questions, given) for reader in (theirs, ours))
        assert found["queries"] == expected["queries"]
        assert str(found["answers"])[:60] == str(expected["answers"])[:60]
        assert len(found["answers"]) == len(expected["answers"])


def test_in_a_pipeline_and_in_yaml(directory: str, tmp_path: Path) -> None:
    store = InMemoryDocumentStore(use_bm25=True)
    store.write_documents(documents()[:4])
    pipeline = Pipeline()
    pipeline.add_node(BM25Retriever(store), name="Retriever", inputs=["Query"])
    pipeline.add_node(DistilledReader(directory, **CUT), name="Reader", inputs=["Retriever"])
    answers = pipeline.run("Who built the harbour?")["answers"]
    assert answers
    assert answers[0].meta["name"] in "0123"
    pipeline.save_to_yaml(tmp_path / "pipeline.yaml")
    assert "DistilledReader" in (tmp_path / "pipeline.yaml").read_text()
    again = Pipeline.load_from_yaml(tmp_path / "pipeline.yaml").get_node("Reader")
    found, expected = (reader.predict("Who built it?", documents()) for reader in (again, pipeline.get_node("Reader")))
    assert plain(found) == plain(expected)


def test_several_threads_get_what_one_gets(directory: str) -> None:
    reader = DistilledReader(directory, **CUT)
    questions = [question for question, _, _ in QUESTIONS] * 3
    expected = [plain(reader.predict(question, documents())) for question in questions]
    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(lambda question: plain(reader.predict(question, documents())), questions)) == expected


def test_refused(directory: str, tiny_reader: Callable[..., Reader]) -> None:
    reader = DistilledReader(directory, **CUT)
    with pytest.raises(DistilError, match="query is empty"):
        reader.predict(" ", documents())
    with pytest.raises(DistilError, match="holds no text"):
        reader.predict("Who?", [Document(content=" ")])
    with pytest.raises(DistilError, match="haystack-distill export"):
        DistilledReader(directory, backend="onnx", **CUT)


def test_no_documents(directory: str) -> None:
    theirs = FARMReader(directory, progress_bar=False, num_processes=0, return_no_answer=True, **CUT)
    ours = DistilledReader(directory, return_no_answer=True, **CUT)
    expected, found = (reader.run("Who?", [Document(content=" ")])[0] for reader in (theirs, ours))
    assert plain(found) == plain(expected)


def test_text_without_tokens_holds_no_answer(directory: str) -> None:
    reader = DistilledReader(directory, return_no_answer=True, use_confidence_scores=False, **CUT)
    silent = Document(content="\u200b\u200b", id="silent")
    alone = reader.predict("Who built the harbour?", [silent])["answers"]
    assert [answer.answer for answer in alone] == [""]
    beside = plain(reader.predict("Who built the harbour?", [*documents(), silent]))
    assert beside == plain(reader.predict("Who built the harbour?", documents()))


def test_int8_answers_depend_on_no_other_query_or_document(tiny_reader: Callable[..., Reader], tmp_path: Path) -> None:
    made = tiny_reader(seed=3, initializer_range=0.4)
    export_reader(made, tmp_path / "reader")
    reader = DistilledReader(str(tmp_path / "reader"), backend="onnx-int8", top_k=8, **CUT)
    queries = [question for question, _, _ in QUESTIONS]
    alone = [reader.predict(query, documents())["answers"] for query in queries]
    together = reader.predict_batch(queries, [documents() for _ in queries], batch_size=16)["answers"]
    assert together == alone
    one = reader.predict(queries[0], documents()[:1])["answers"]
    assert all(answer in reader.predict(queries[0], documents(), top_k=100)["answers"] for answer in one)


def test_a_batch_size_is_that_of_the_reader(directory: str) -> None:
    reader = DistilledReader(directory, **CUT)
    reader.predict_batch(["Who built the harbour?"], documents(), batch_size=3)
    assert reader.inferencer.reader.batch_size == 3
