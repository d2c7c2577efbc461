"""What Haystack 1's own tests check of a FARMReader, of FARMReader and of both readers that stand in for it."""

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

if importlib.util.find_spec("haystack") is None or importlib.util.find_spec("haystack.nodes") is None:
    pytest.skip("farm-haystack is not in this environment", allow_module_level=True)

from haystack import Answer, Document, Span
from haystack.modeling.data_handler.inputs import QAInput, Question
from haystack.nodes import FARMReader
from haystack.nodes.reader.base import BaseReader

from haystack_distill.utils.transformers_compat import ignore_adapters

BERLIN, NEW_YORK = "Who lives in Berlin?", "Who lives in New York?"
BEER = (
    "Beer is one of the oldest and most widely consumed drinks in the world, and the third most popular drink overall "
    "after water and tea. It is produced by the brewing and fermentation of starches from cereal grains, most commonly "
    "from malted barley, though wheat, maize, rice and oats are also used. Most modern beer is brewed with hops, which "
    "add bitterness and other flavours and act as a natural preservative and stabilising agent."
)

Make = Callable[..., Any]


def texts(answers: list[Answer]) -> list[str]:
    return [answer.answer for answer in answers]


def test_it_is_a_reader_of_haystack(reader: Any) -> None:
    assert isinstance(reader, BaseReader)


@pytest.mark.parametrize(
    ("meta", "own", "expected"),
    [
        ({"page_number": 1}, None, {"answer_page_number": 2}),
        ({}, None, {}),
        ({"page_number": 1}, {"test": 1}, {"test": 1, "answer_page_number": 2}),
    ],
)
def test_an_answer_says_on_which_page_it_stands(reader: Any, meta: dict, own: dict | None, expected: dict) -> None:
    text = "This is a test.\fSentence on second page about nothing."
    page = Document(text, meta=meta)
    span = Span(text.index("nothing"), text.index("nothing") + 7)
    answer = Answer("nothing", "extractive", 0.2, text, document_ids=[page.id], offsets_in_document=[span], meta=own)
    found = reader._add_answer_page_number(documents=[page, Document("Second page.")], answer=answer)
    assert found.meta == expected


def test_the_answers_to_a_query(reader: Any, people: list[Document]) -> None:
    found = reader.predict(query=BERLIN, documents=people, top_k=5)
    assert found["query"] == BERLIN
    assert len(found["answers"]) == 5
    best = found["answers"][0]
    assert (best.answer, best.type, best.context) == ("Carla", "extractive", "My name is Carla and I live in Berlin")
    assert [(span.start, span.end) for span in best.offsets_in_context + best.offsets_in_document] == [(11, 16)] * 2
    assert 0 <= best.score <= 1
    assert best.document_ids == ["carla"]
    assert best.meta["answer_page_number"] == 2


def test_batches_have_the_shape_of_what_is_asked(reader: Any, people: list[Document]) -> None:
    def ask(queries: list[str], documents: list) -> list:
        found = reader.predict_batch(queries=queries, documents=documents, top_k=5)
        assert found["queries"] == queries
        return found["answers"]

    one = ask([BERLIN], people)
    assert len(one) == 5
    assert all(isinstance(answer, Answer) for answers in one for answer in answers)
    assert [len(answers) for answers in ask([BERLIN], [people, people])] == [5, 5]
    assert [len(answers) for answers in ask([BERLIN], [people])] == [5]
    assert [len(answers) for answers in ask([BERLIN, NEW_YORK], [people, people])] == [5, 5]
    each = ask([BERLIN, NEW_YORK], people)
    assert [len(of_query) for of_query in each] == [5, 5]
    assert [of_query[number][0].answer for number, of_query in ((1, each[0]), (0, each[1]))] == ["Carla", "Paul"]


def test_no_answer_is_one_of_the_answers(kind: str, model: str, make_reader: Make, people: list[Document]) -> None:
    query = "What is the meaning of life?"
    reader = make_reader(kind, model, return_no_answer=True, no_ans_boost=20)
    found = reader.predict(query=query, documents=people, top_k=5)
    assert len(found["answers"]) == 5
    assert texts(found["answers"]).count("") == 1
    first = found["answers"][0]
    assert (first.answer, first.context, first.document_ids) == ("", None, None)
    assert (first.offsets_in_context[0].start, first.offsets_in_context[0].end) == (0, 0)
    assert 0 <= first.score <= 1
    expected = make_reader("FARMReader", model, return_no_answer=True, no_ans_boost=20).predict(query, people, top_k=5)
    assert found["no_ans_gap"] == pytest.approx(expected["no_ans_gap"], rel=1e-4)
    assert first.score == pytest.approx(expected["answers"][0].score, rel=1e-4)


def test_an_overlap_gives_an_answer_once(reader: Any) -> None:
    pieces = ("My name is Carla. I live in Berlin.", "I live in Berlin. My friends call me Carla.")
    metas = ([{"doc_id": "doc2", "range": (18, 35)}], [{"doc_id": "doc1", "range": (0, 17)}])
    documents = [
        Document(text, id=f"doc{number}", meta={"_split_id": number - 1, "_split_overlap": overlap})
        for number, (text, overlap) in enumerate(zip(pieces, metas, strict=True), 1)
    ]
    found = texts(reader.predict(query="Where does Carla live?", documents=documents, top_k=5)["answers"])
    assert found.count("Berlin") <= 1
    spans = [
        (one.document_ids[0], one.offsets_in_document[0].start)
        for one in reader.predict("Where?", documents)["answers"]
    ]
    assert len(set(spans)) == len(spans)


def test_a_model_that_is_not_there_and_must_not_be_downloaded(kind: str, make_reader: Make) -> None:
    with pytest.raises((OSError, ValueError)):
        make_reader(kind, "mfeb/albert-xxlarge-v2-squad2", local_files_only=True)


@pytest.mark.parametrize("size", [10, 15, 20])
def test_the_context_window_has_the_size_asked_for(reader: Any, people: list[Document], size: int) -> None:
    head = reader.inferencer.model.prediction_heads[0]
    before, head.context_window_size = head.context_window_size, size
    try:
        answers = reader.predict(query=BERLIN, documents=people, top_k=5)["answers"]
    finally:
        head.context_window_size = before
    for answer in answers:
        wanted = max(size, len(answer.answer))  # a longer answer widens its window; halves are rounded
        assert wanted - 1 <= len(answer.context) <= wanted + 1
        assert answer.answer in answer.context


@pytest.mark.parametrize("top_k", [2, 5, 10])
def test_top_k(kind: str, model: str, make_reader: Make, people: list[Document], top_k: int) -> None:
    reader = make_reader(kind, model, top_k_per_sample=4)
    reader.top_k_per_candidate = 4
    reader.inferencer.model.prediction_heads[0].n_best = 5
    assert len(reader.predict(query=BERLIN, documents=people, top_k=top_k)["answers"]) == top_k


@pytest.mark.parametrize(
    "cut", [{"max_seq_len": 513}, {"max_seq_len": 129, "doc_stride": 128}, {"doc_stride": 999}], ids=str
)
def test_impossible_windows(kind: str, embedded: str, make_reader: Make, cut: dict[str, int]) -> None:
    with pytest.raises((AssertionError, ValueError), match=r"max_seq_len|doc_stride"):
        make_reader(kind, embedded, **{"max_seq_len": 256, "max_query_length": 64} | cut)


def test_parameters_can_be_updated(kind: str, model: str, make_reader: Make, people: list[Document]) -> None:
    reader = make_reader(kind, model)
    cut = {"max_seq_len": 72, "doc_stride": 20}

    def ask(**parameters: Any) -> list[Answer]:
        if parameters:
            reader.update_parameters(**parameters)
        answers = reader.predict(query=BERLIN, documents=people, top_k=3)["answers"]
        assert len(answers) == 3
        return answers

    assert ask()[0].answer == "Carla"
    assert ask(context_window_size=100, no_ans_boost=100, return_no_answer=True, **cut)[0].answer == ""
    assert "" not in texts(ask(context_window_size=100, no_ans_boost=0, return_no_answer=False, **cut))
    assert len(ask(context_window_size=6, no_ans_boost=-10, **cut)[0].context) == 6
    for wrong in ({"doc_stride": 999}, {"max_seq_len": 39, "doc_stride": 24}, {"max_seq_len": 513}):
        with pytest.raises((AssertionError, ValueError)):
            ask(**(cut | wrong))


def test_a_reader_is_loaded_from_what_was_saved(kind: str, embedded: str, make_reader: Make, tmp_path: Path) -> None:
    """A Hugging Face directory, and one of a reader that was loaded from it and saved."""
    document = Document("My name is Carla and I live in Berlin")
    expected = make_reader(kind, embedded).predict(BERLIN, [document])["answers"]
    saving = make_reader("FARMReader" if kind == "FARMReader" else "DistilFARMReader", embedded)
    saving.save(tmp_path / "saved")
    found = make_reader(kind, tmp_path / "saved").predict(BERLIN, [document])["answers"]
    assert texts(found) == texts(expected)
    assert [one.score for one in found] == pytest.approx([one.score for one in expected], abs=1e-6)


def test_a_directory_that_farm_reader_saved_is_read(embedded: str, make_reader: Make, tmp_path: Path) -> None:
    make_reader("FARMReader", embedded).save(tmp_path / "farm")
    found = make_reader("DistilFARMReader", tmp_path / "farm").predict(BERLIN, [Document("Carla lives in Berlin.")])
    assert found["answers"][0].answer == "Carla"


@pytest.mark.parametrize("confidences", [True, False])
def test_answers_are_sorted_as_the_head_sorts_them(kind: str, model: str, make_reader: Make, confidences: bool) -> None:
    reader = make_reader(kind, model, return_no_answer=True, use_confidence_scores=confidences, top_k_per_sample=1)
    query = "What is the third most popular drink?"
    answers = reader.predict(query=query, documents=[Document(BEER)], top_k=5)["answers"]
    asked = [QAInput(doc_text=BEER, questions=Question(query))]
    (prediction,) = reader.inferencer.inference_from_objects(asked, return_json=False)
    assert len(answers) >= 2
    for answer, candidate in zip(answers, prediction.prediction, strict=False):
        assert answer.answer == ("" if candidate.answer_type == "no_answer" else candidate.answer)
        assert answer.offsets_in_document[0].start == candidate.offset_answer_start
        assert answer.offsets_in_document[0].end == candidate.offset_answer_end
        assert answer.score == pytest.approx(candidate.confidence if confidences else candidate.score, rel=1e-6)


def test_empty_documents_are_skipped(kind: str, model: str, make_reader: Make) -> None:
    empty, munich = Document("", id="empty"), Document("My name is Carla and I live in Munich", id="munich")
    reader = make_reader(kind, model)
    assert reader.run(query=BERLIN, documents=[empty])[0]["answers"] == []
    batch = reader.run_batch(queries=[BERLIN, "Who lives in Munich?"], documents=[[empty], [munich]])[0]["answers"]
    assert batch[0] == []
    assert batch[1][0].answer == "Carla"
    reader.return_no_answers = True
    assert texts(reader.run(query=BERLIN, documents=[empty])[0]["answers"]) == [""]
    batch = reader.run_batch(queries=[BERLIN, "Who lives in Munich?"], documents=[[empty], [munich]])[0]["answers"]
    assert texts(batch[0]) == [""]
    assert "Carla" in texts(batch[1])[:2]


def test_offsets_in_a_long_document_are_never_negative(kind: str, embedded: str, make_reader: Make) -> None:
    reader = make_reader(kind, embedded, max_seq_len=256, doc_stride=192)
    text = "abbreviation " * 2550 + "Christelle lives in Madrid."
    best = reader.predict(query="Where does Christelle live?", documents=[Document(text)])["answers"][0]
    (span,) = best.offsets_in_document
    assert 0 <= span.start < span.end
    assert text[span.start : span.end] == best.answer


def test_pairs_are_computed_in_parts(
    kind: str, embedded: str, make_reader: Make, people: list[Document], monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = make_reader(kind, embedded, preprocessing_batch_size=2)
    sizes: list[int] = []
    inference = reader.inferencer.inference_from_objects

    def counted(objects: list, **arguments: Any) -> list:
        sizes.append(len(objects))
        return inference(objects=objects, **arguments)

    monkeypatch.setattr(reader.inferencer, "inference_from_objects", counted)
    reader.predict(query=BERLIN, documents=people)
    assert sizes == [2, 2, 1]
    reader.predict_batch(queries=[BERLIN, NEW_YORK], documents=people)
    assert sizes[3:] == [2] * 5


def test_model_arguments_are_taken(kind: str, embedded: str, make_reader: Make, people: list[Document]) -> None:
    reader = make_reader(kind, embedded, model_kwargs={"torch_dtype": torch.bfloat16})
    assert reader.predict(query=BERLIN, documents=people)["answers"][0].answer == "Carla"


TINY = {
    "My name is Carla and I live together with Abdul in Berlin": ("Who lives in Berlin?", ["Carla", "Abdul"]),
    "This is another test context": ("The model can't answer this", ["This", "is"]),
}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file as Haystack 1's tests train on: ids are numbers, questions have several answers."""
    articles = []
    for number, (context, (question, answers)) in enumerate(TINY.items(), 1):
        spans = [{"answer_start": context.index(answer), "text": answer} for answer in answers]
        qas = [{"answers": spans, "id": 721101104002104039 + number, "question": question, "is_impossible": False}]
        articles.append({"title": f"test{number}", "paragraphs": [{"context": context, "qas": qas}]})
    path = tmp_path_factory.mktemp("squad") / "tiny.json"
    path.write_text(json.dumps({"data": articles}))
    return path


@pytest.mark.parametrize("training", ["FARMReader", "DistilFARMReader"])
@pytest.mark.parametrize("extra", [{"evaluate_every": 0}, {"evaluate_every": 2, "test_filename": "tiny.json"}], ids=str)
def test_training(
    training: str, embedded: str, make_reader: Make, tiny: Path, tmp_path: Path, extra: dict[str, Any]
) -> None:
    cut = {"max_seq_len": 16, "max_query_length": 8}
    reader = make_reader(training, embedded, doc_stride=2, **cut)
    before = reader.inferencer.model.prediction_heads[0].feed_forward.feed_forward[0].weight.clone()
    reader.train(
        data_dir=str(tiny.parent),
        train_filename=tiny.name,
        dev_filename=tiny.name,
        n_epochs=1,
        batch_size=1,
        grad_acc_steps=1,
        save_dir=f"{tmp_path}/trained",
        **cut,
        **extra,
    )
    assert reader.inferencer.model.training is False
    assert not torch.equal(before, reader.inferencer.model.prediction_heads[0].feed_forward.feed_forward[0].weight)
    with ignore_adapters():
        trained = FARMReader(f"{tmp_path}/trained", use_gpu=False, num_processes=0)
    assert trained.predict(BERLIN, [Document("Carla")])
