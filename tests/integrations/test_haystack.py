"""The component for Haystack 2 and 3."""

import asyncio
import importlib.util
import inspect
import logging
import math
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import ModuleType

import pytest
import torch

from haystack_distill import DistilError, Reader, WindowSettings, students
from haystack_distill.data.text_tokenizer import text_tokenizer
from haystack_distill.export.exporting import ExportSettings, export_reader
from haystack_distill.models import reader as reader_module
from haystack_distill.utils import transformers_compat as compat

try:
    version("haystack-ai")
    version("transformers-haystack")
except PackageNotFoundError:
    pytest.skip("haystack-ai and transformers-haystack are not in this environment", allow_module_level=True)

import haystack
from haystack import Document, ExtractedAnswer, Pipeline
from haystack.components.retrievers import InMemoryBM25Retriever
from haystack.document_stores.in_memory import InMemoryDocumentStore
from haystack.document_stores.types import DuplicatePolicy
from haystack.tools import ComponentTool
from haystack.utils import ComponentDevice, Secret
from haystack_integrations.components.readers.transformers import TransformersExtractiveReader

from haystack_distill.integrations import haystack as integration
from haystack_distill.integrations.haystack import DistilledReader, reader_from_haystack

CPU = ComponentDevice.from_str("cpu")
TEXTS = [
    "Ada Lovelace wrote the first program in 1843, long before there was a machine to run it on.",
    "The harbour of Lindow was built in 1702 by Cornelis Baak, who came from Delft with forty masons.",
    "Bees dance to tell their sisters where the flowers are.",
    "A glacier moves a few metres a year. The fastest one ever measured moved forty metres a day. " * 4,
]
QUERY = "Who built the harbour?"


@pytest.fixture
def reader(tiny_reader: Callable[..., Reader]) -> Reader:
    """A random reader whose answers are not all alike: its head is far from zero."""
    made = tiny_reader(seed=3)
    torch.manual_seed(1)
    torch.nn.init.normal_(made.model.qa_outputs.weight, std=0.6)
    return made


@pytest.fixture
def directory(reader: Reader, tmp_path: Path) -> str:
    return str(reader.save(tmp_path / "student"))


@pytest.fixture
def documents() -> list[Document]:
    return [Document(content=text) for text in TEXTS]


def make(directory: str, **parameters: object) -> DistilledReader:
    """A component with windows that fit the tiny model; fp32, also where bf16 is fast."""
    common = {"device": CPU, "precision": "fp32", "max_seq_length": 48, "stride": 8}
    return DistilledReader(directory, **common | parameters)


def spans(answers: list[ExtractedAnswer]) -> list[tuple]:
    """What identifies answers, in a form that compares exactly; scores are left to approx."""
    return [(a.document.id, a.document_offset.start, a.document_offset.end) if a.document else None for a in answers]


def batches_seen(component: DistilledReader) -> list[dict[str, torch.Tensor]]:
    """A list that fills with the inputs of every forward pass."""
    seen: list[dict[str, torch.Tensor]] = []
    component.warm_up()
    component.reader.model.register_forward_pre_hook(lambda _, __, inputs: seen.append(inputs), with_kwargs=True)
    return seen


# --- what it answers -------------------------------------------------------------------------------------------------


def test_answers_to_one_document_are_the_readers_own(directory: str, reader: Reader) -> None:
    component = make(directory, overlap_threshold=None, answers_per_seq=2000)
    answers = component.run(QUERY, [Document(content=TEXTS[1])], top_k=2000)["answers"]
    expected = reader.answer(QUERY, TEXTS[1], top_k=2001)
    assert sum(answer.no_answer for answer in expected) == 1
    assert len(reader.tokenizer(QUERY, TEXTS[1])["input_ids"]) <= 48
    assert [answer.data for answer in answers] == [None if answer.no_answer else answer.text for answer in expected]
    assert [answer.score for answer in answers] == pytest.approx([answer.score for answer in expected], rel=1e-4)
    for answer, theirs in zip(answers, expected, strict=True):
        assert answer.query == QUERY
        if not theirs.no_answer:
            assert (answer.document_offset.start, answer.document_offset.end) == (theirs.start, theirs.end)
            assert answer.document.content[theirs.start : theirs.end] == answer.data
        else:
            assert answer.document is None
            assert answer.document_offset is None


def test_long_documents_are_cut_into_windows_that_share_stride_tokens(directory: str, reader: Reader) -> None:
    component = make(directory, overlap_threshold=None, no_answer=False)
    seen = batches_seen(component)
    answers = component.run(QUERY, [Document(content=TEXTS[3])], top_k=20)["answers"]
    n_query = len(reader.tokenizer(QUERY, add_special_tokens=False)["input_ids"])
    room = 48 - n_query - 3
    rows = [
        row[mask.bool()]
        for inputs in seen
        for row, mask in zip(inputs["input_ids"], inputs["attention_mask"], strict=True)
    ]
    contexts = [row[n_query + 2 : -1].tolist() for row in rows]
    tokens = reader.tokenizer(TEXTS[3], add_special_tokens=False)["input_ids"]
    starts = range(0, len(tokens) - 8, room - 8)  # as in TransformersExtractiveReader: neighbours share 8 tokens
    assert len(starts) > 2
    assert sorted(contexts) == sorted(tokens[start : start + room] for start in starts)

    reader.window_settings = WindowSettings(48, doc_stride=room - 8, max_query_length=16)
    expected = reader.answer(QUERY, TEXTS[3], top_k=20, allow_no_answer=False)
    assert [(a.document_offset.start, a.document_offset.end) for a in answers] == [(a.start, a.end) for a in expected]
    assert max(answer.document_offset.start for answer in answers) > 100  # not only the first window answers


def test_scores_are_one_distribution_over_all_documents(directory: str, documents: list[Document]) -> None:
    component = make(directory, overlap_threshold=None, answers_per_seq=5000, max_answer_length=48)
    answers = component.run(QUERY, documents, top_k=100_000)["answers"]
    scores = [answer.score for answer in answers]
    assert scores == sorted(scores, reverse=True)
    assert all(0 < score < 1 for score in scores)
    # Spans whose end lies before their start have no answer of their own, so the sum stays below 1.
    assert 0.3 < sum(scores) < 1
    assert sum(answer.data is None for answer in answers) == 1
    # Ranked by logits: each document's answers keep the order they have on their own.
    alone = component.run(QUERY, documents[:1], top_k=100_000, no_answer=False)["answers"]
    assert spans(alone) == [span for span in spans(answers) if span and span[0] == documents[0].id]


def test_scores_by_hand(directory: str, documents: list[Document]) -> None:
    component = make(directory)
    component.warm_up()
    logits = []  # (span logits of the best answer, no-answer logit, mass of everything but the no-answer)
    for document in documents[:2]:
        inputs = component.reader.tokenizer(QUERY, document.content, return_tensors="pt")
        with torch.inference_mode():
            output = component.reader.model(**inputs)
        context = torch.tensor([number == 1 for number in inputs.sequence_ids(0)])
        allowed = context.clone()
        allowed[0] = True
        pairs = output.start_logits[0].double()[:, None] + output.end_logits[0].double()[None, :]
        nothing = pairs[0, 0].item()
        mass = pairs[allowed][:, allowed].exp().sum().item() - pairs[0, 0].exp().item()
        inside = pairs[context][:, context]
        best = max(inside[i, j].item() for i in range(len(inside)) for j in range(i, min(i + 30, len(inside))))
        logits.append((best, nothing, mass))
    no_answer = min(nothing for _, nothing, _ in logits)
    total = sum(mass for _, _, mass in logits) + math.exp(no_answer)
    answers = component.run(QUERY, documents[:2], top_k=1, max_seq_length=100)["answers"]
    scores = {answer.data is None: answer.score for answer in answers}
    best = max(best for best, _, _ in logits)
    assert scores[False] == pytest.approx(math.exp(best) / total, rel=1e-4)
    assert scores[True] == pytest.approx(math.exp(no_answer) / total, rel=1e-4)


def test_a_sure_no_answer_comes_first_and_an_unsure_one_last(directory: str, documents: list[Document]) -> None:
    component = make(directory, top_k=3)
    component.warm_up()
    head = component.reader.model.qa_outputs

    def shift(amount: float) -> None:
        # The no-answer position is token 0: only its logits move.
        def hook(_: object, __: object, output: torch.Tensor) -> torch.Tensor:
            output[:, 0] += amount
            return output

        handle = head.register_forward_hook(hook)
        answers = component.run(QUERY, documents)["answers"]
        handle.remove()
        assert len(answers) == 4
        assert [answer.data is None for answer in answers].index(True) == (0 if amount > 0 else 3)
        score = next(answer.score for answer in answers if answer.data is None)
        assert score > 0.99 if amount > 0 else score < 1e-6

    with torch.inference_mode():
        shift(30.0)
        shift(-30.0)


def test_no_answer_only_if_asked_for(directory: str, documents: list[Document]) -> None:
    component = make(directory, top_k=2, no_answer=False)
    assert None not in [answer.data for answer in component.run(QUERY, documents)["answers"]]
    assert [answer.data for answer in component.run(QUERY, documents, no_answer=True)["answers"]].count(None) == 1
    assert None in [answer.data for answer in make(directory).run(QUERY, documents)["answers"]]


def test_top_k_counts_answers_without_the_no_answer(directory: str, documents: list[Document]) -> None:
    component = make(directory, top_k=2)
    assert len(component.run(QUERY, documents)["answers"]) == 3
    assert len(component.run(QUERY, documents, top_k=5)["answers"]) == 6
    assert len(component.run(QUERY, documents, top_k=1, no_answer=False)["answers"]) == 1


def test_score_threshold(directory: str, documents: list[Document]) -> None:
    everything = make(directory).run(QUERY, documents)["answers"]
    middle = everything[len(everything) // 2].score
    kept = make(directory, score_threshold=middle).run(QUERY, documents)["answers"]
    assert 0 < len(kept) < len(everything)
    assert spans(kept) == spans([answer for answer in everything if answer.score >= middle])
    # A 0 given to `run` counts too.
    assert len(make(directory, score_threshold=middle).run(QUERY, documents, score_threshold=0.0)["answers"]) == len(
        everything
    )


def test_overlapping_answers_of_a_document_are_left_out(directory: str, documents: list[Document]) -> None:
    component = make(directory, top_k=30, no_answer=False)

    def shares(threshold: float) -> list[float]:
        """For each pair of answers in a document, the characters they share, as a part of the shorter."""
        answers = component.run(QUERY, documents, overlap_threshold=threshold)["answers"]
        characters = [set(range(a.document_offset.start, a.document_offset.end)) for a in answers]
        return [
            len(characters[i] & characters[j]) / min(len(characters[i]), len(characters[j]))
            for i, one in enumerate(answers)
            for j, two in enumerate(answers[:i])
            if one.document.id == two.document.id
        ]

    assert max(shares(0.0)) == 0
    assert 0 < max(shares(0.5)) <= 0.5
    assert max(shares(1.0)) == 1
    assert len(make(directory, overlap_threshold=None, top_k=30).run(QUERY, documents)["answers"]) == 31


def test_the_same_answers_are_left_out_as_by_haystacks_reader(directory: str, documents: list[Document]) -> None:
    everything = make(directory, overlap_threshold=None, no_answer=False, top_k=1000).run(QUERY, documents)["answers"]
    for threshold in (0.01, 0.3, 0.7):
        theirs = TransformersExtractiveReader(directory, device=CPU).deduplicate_by_overlap(everything, threshold)
        ours = make(directory, overlap_threshold=threshold, no_answer=False, top_k=1000).run(QUERY, documents)[
            "answers"
        ]
        assert spans(ours) == spans(theirs)
        assert len(ours) < len(everything)


def test_each_window_contributes_answers_per_seq_at_most(directory: str, documents: list[Document]) -> None:
    component = make(directory, answers_per_seq=1, overlap_threshold=None, no_answer=False, top_k=1000)
    seen = batches_seen(component)
    answers = component.run(QUERY, documents)["answers"]
    n_windows = sum(len(inputs["input_ids"]) for inputs in seen)
    assert n_windows > len(documents)
    assert len(documents) < len(answers) <= n_windows  # two windows may name the same span
    assert {answer.document.id for answer in answers} == {document.id for document in documents}
    assert len(component.run(QUERY, documents, answers_per_seq=4)["answers"]) > 2 * len(answers)


def test_max_answer_length(directory: str, documents: list[Document]) -> None:
    component = make(directory, max_answer_length=1, overlap_threshold=None, no_answer=False)
    assert all(" " not in answer.data for answer in component.run(QUERY, documents)["answers"])
    longer = make(directory, max_answer_length=12, overlap_threshold=None, no_answer=False)
    assert any(" " in answer.data for answer in longer.run(QUERY, documents)["answers"])


def test_page_numbers_as_in_haystacks_reader(directory: str, caplog: pytest.LogCaptureFixture) -> None:
    text = f"{TEXTS[0]}\f{TEXTS[1]}"
    component = make(directory, max_seq_length=100, top_k=50, no_answer=False, overlap_threshold=None)
    answers = component.run(QUERY, [Document(content=text, meta={"page_number": 4})])["answers"]
    pages = [4 + text[: answer.document_offset.start].count("\f") for answer in answers]
    assert [answer.meta for answer in answers] == [{"answer_page_number": page} for page in pages]
    assert set(pages) == {4, 5}
    answers = component.run(QUERY, [Document(content=text, meta={"page_number": "4"})])["answers"]
    assert all(answer.meta == {} for answer in answers)
    assert "page_number must be int" in caplog.text


# --- how it runs -----------------------------------------------------------------------------------------------------


def test_token_type_ids_reach_the_model_and_matter(directory: str, documents: list[Document]) -> None:
    component = make(directory)
    seen = batches_seen(component)
    component.run(QUERY, documents)
    for inputs in seen:
        types, real = inputs["token_type_ids"], inputs["attention_mask"]
        assert types.max() == 1
        separator = component.reader.tokenizer.sep_token_id
        first_separator = (inputs["input_ids"] == separator).int().argmax(1, keepdim=True)
        after = (torch.arange(types.shape[1])[None] > first_separator).long()
        assert torch.equal(types, after * real)


def test_documents_are_batched_by_length_together(directory: str, documents: list[Document]) -> None:
    component = make(directory)
    seen = batches_seen(component)
    contents = [documents[0].content, documents[2].content, documents[1].content] * 3
    mixed = [Document(id=f"{number}", content=content) for number, content in enumerate(contents)]
    component.run(QUERY, mixed, max_batch_size=3)
    assert [len(inputs["input_ids"]) for inputs in seen] == [3, 3, 3]
    lengths = [inputs["attention_mask"].sum(1) for inputs in seen]
    # Three lengths, three batches: nothing is padded, whatever the order of the documents.
    assert all(torch.equal(length, length[:1].expand(3)) for length in lengths)
    assert [int(length[0]) for length in lengths] == sorted((int(length[0]) for length in lengths), reverse=True)
    seen.clear()
    component.run(QUERY, mixed)
    assert len(seen) < 3
    seen.clear()
    component.run(QUERY, mixed, max_batch_size=1)
    assert len(seen) == 9


def test_neither_batches_nor_order_change_the_answers(directory: str, documents: list[Document]) -> None:
    component = make(directory, top_k=8)
    expected = component.run(QUERY, documents)["answers"]
    for other in (
        component.run(QUERY, documents[::-1])["answers"],
        component.run(QUERY, documents, max_batch_size=1)["answers"],
        make(directory, top_k=8, max_batch_size=2).run(QUERY, documents[2:] + documents[:2])["answers"],
    ):
        assert spans(other) == spans(expected)
        assert [answer.score for answer in other] == pytest.approx([answer.score for answer in expected], rel=1e-4)


def test_many_threads_may_run_it_at_once(
    directory: str, documents: list[Document], monkeypatch: pytest.MonkeyPatch
) -> None:
    component = make(directory)
    loads = []
    monkeypatch.setattr(component, "_load", lambda: loads.append(1) or DistilledReader._load(component))
    jobs = [
        {"query": query, "documents": documents, "max_seq_length": length, "top_k": top_k}
        for query in (QUERY, "How far does a glacier move?")
        for length, top_k in ((32, 3), (48, 5), (100, 2))
    ] * 2
    with ThreadPoolExecutor(6) as pool:
        together = list(pool.map(lambda job: component.run(**job)["answers"], jobs))
    assert loads == [1]
    alone = [make(directory).run(**job)["answers"] for job in jobs[:6]]
    assert len({tuple(spans(answers)) for answers in alone}) == 6
    for answers, expected in zip(together, alone * 2, strict=True):
        assert spans(answers) == spans(expected)
    assert component.reader.window_settings.max_seq_len == 48


def test_a_speed_for_each_run(reader: Reader, documents: list[Document], tmp_path: Path) -> None:
    early = students.early_exit(reader, branch_size=0)
    torch.nn.init.normal_(early.model.branches[0].weight)
    made = {"model": str(early.save(tmp_path)), "max_seq_length": 48, "stride": 8, "max_query_length": 16}
    node, fast = DistilledReader(**made), DistilledReader(**made, speed=1.0)
    assert DistilledReader.from_dict(fast.to_dict()).speed == 1
    query = "Who built the harbour?"
    full, first = (one.run(query, documents)["answers"] for one in (node, fast))
    assert full != first
    # At this speed all documents but one are dropped before the first layer.
    assert len({answer.document.id for answer in full if answer.document}) > 1
    assert len({answer.document.id for answer in first if answer.document}) == 1
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda speed: node.run(query, documents, speed=speed)["answers"], [0.0, 1.0] * 4))
    assert found == [full, first] * 4
    with pytest.raises(DistilError, match="speed must be a number from 0 to 1"):
        node.run(query, documents, speed=2)


def test_documents_without_text_are_left_out_with_a_warning(
    directory: str, documents: list[Document], caplog: pytest.LogCaptureFixture
) -> None:
    component = make(directory)
    expected = spans(component.run(QUERY, documents)["answers"])
    assert not caplog.records
    empty = [Document(id="nothing", content=None), Document(id="blank", content=" \n")]
    assert spans(component.run(QUERY, [empty[0], *documents, empty[1]])["answers"]) == expected
    assert "nothing" in caplog.text
    assert "blank" in caplog.text
    assert component.run(QUERY, empty) == {"answers": []}


def test_no_documents_no_answers_as_in_haystacks_reader(directory: str) -> None:
    theirs = TransformersExtractiveReader(directory, device=CPU).run(QUERY, [])
    assert make(directory).run(QUERY, []) == theirs == {"answers": []}


@pytest.mark.parametrize("query", ["", "  \n"])
def test_an_empty_query_has_no_answers(directory: str, documents: list[Document], query: str) -> None:
    assert make(directory).run(query, documents) == {"answers": []}


def test_a_document_passed_twice_counts_once(directory: str, documents: list[Document]) -> None:
    component = make(directory, top_k=30)
    once = component.run(QUERY, documents)["answers"]
    # As from a second retriever: the same document, with another score.
    again = [Document(id=one.id, content=one.content, score=0.5) for one in documents[::-1]]
    twice = component.run(QUERY, [*documents, *again, documents[0]])["answers"]
    assert spans(twice) == spans(once)
    assert [answer.score for answer in twice] == [answer.score for answer in once]
    assert all(answer.document.score is None for answer in twice if answer.document)  # the first one's
    assert spans(component.run(QUERY, documents + again, overlap_threshold=1.0)["answers"]) == spans(
        component.run(QUERY, documents, overlap_threshold=1.0)["answers"]
    )


def test_other_text_under_the_same_id_is_another_document(directory: str, documents: list[Document]) -> None:
    component = make(directory, top_k=30)
    expected = component.run(QUERY, documents[:2])["answers"]
    alike = [Document(id="x", content=documents[0].content), Document(id="x", content=documents[1].content)]
    found = component.run(QUERY, alike)["answers"]
    assert [(a.data, a.score) for a in found] == [(a.data, a.score) for a in expected]


def test_a_long_query_loses_its_end(
    directory: str, documents: list[Document], caplog: pytest.LogCaptureFixture
) -> None:
    component = make(directory, max_query_length=5, top_k=4)
    n_tokens = len(
        reader_from_haystack(warm(component)).tokenizer("who built the harbour of", add_special_tokens=False)[
            "input_ids"
        ]
    )
    component.max_query_length = n_tokens
    short = component.run("who built the harbour of", documents)["answers"]
    assert not caplog.records
    cut = component.run("who built the harbour of Lindow in 1702?", documents)["answers"]
    assert spans(cut) == spans(short)
    assert [answer.score for answer in cut] == pytest.approx([answer.score for answer in short])
    assert "max_query_length" in caplog.text


def test_a_document_without_a_token_says_nothing(directory: str, documents: list[Document]) -> None:
    component = make(directory, no_answer=True)
    expected = component.run(QUERY, documents)["answers"]
    empty = [Document(content=text) for text in ("\u200b", "\x07")]
    found = component.run(QUERY, [empty[0], *documents, empty[1]])["answers"]
    assert spans(found) == spans(expected)
    assert [answer.score for answer in found] == pytest.approx([answer.score for answer in expected], rel=1e-4)
    assert [answer.data for answer in component.run(QUERY, empty)["answers"]] == [None]


def test_larger_batches_than_a_readers_own(
    directory: str, documents: list[Document], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a device with room for them: on a processor they would bring nothing."""
    monkeypatch.setattr(reader_module, "_CPU_TOKENS", 10**6)
    component = make(directory)
    seen = batches_seen(component)
    text = " ".join(document.content or "" for document in documents)
    for size in (20, 40):
        seen.clear()
        component.run(QUERY, [Document(content=text, id=str(number)) for number in range(12)], max_batch_size=size)
        assert max(len(batch["input_ids"]) for batch in seen) == size


def test_windows_compete_in_batches_of_any_size(reader: Reader, documents: list[Document], tmp_path: Path) -> None:
    directory = students.early_exit(reader, branch_size=8).save(tmp_path / "fast")
    component = make(str(directory), speed=0.95, top_k=50)
    expected = component.run(QUERY, documents)["answers"]
    for size in (1, 2):
        found = component.run(QUERY, documents, max_batch_size=size)["answers"]
        assert spans(found) == spans(expected)


@pytest.mark.parametrize(
    "wrong", [{"top_k": 2.5}, {"top_k": "5"}, {"stride": None}, {"score_threshold": 5}, {"overlap_threshold": "a"}]
)
def test_parameters_of_another_type(directory: str, documents: list[Document], wrong: dict[str, object]) -> None:
    with pytest.raises(DistilError, match=f"{next(iter(wrong))} must be"):
        make(directory, **wrong)
    if wrong != {"stride": None}:
        with pytest.raises(DistilError, match=f"{next(iter(wrong))} must be"):
            make(directory).run(QUERY, documents, **wrong)


def test_half_a_surrogate_pair_is_replaced(directory: str, documents: list[Document]) -> None:
    component = make(directory)
    broken = component.run("Who \ud83d built the harbour?", documents)["answers"]
    assert spans(broken) == spans(component.run("Who \ufffd built the harbour?", documents)["answers"])


def test_a_query_that_names_special_tokens_is_read_whole(directory: str, documents: list[Document]) -> None:
    component = make(directory)
    seen = batches_seen(component)
    query = "who [SEP] built [PAD] the harbour?"
    component.run(query, documents[:1])
    tokenizer = component.reader.tokenizer
    ids = seen[0]["input_ids"][0].tolist()
    separators = [place for place, id_ in enumerate(ids) if id_ == tokenizer.sep_token_id]
    assert len(separators) == 2
    asked = tokenizer.convert_ids_to_tokens(ids[1 : separators[0]])
    assert asked[-1] == tokenizer.tokenize("harbour?")[-1]
    assert len(asked) == len(text_tokenizer(tokenizer).encode(query, add_special_tokens=False).ids)


def warm(component: DistilledReader) -> DistilledReader:
    component.warm_up()
    return component


# --- Haystack --------------------------------------------------------------------------------------------------------


def test_a_saved_student_runs_in_haystacks_own_reader(
    directory: str, reader: Reader, documents: list[Document]
) -> None:
    theirs = TransformersExtractiveReader(directory, device=CPU, max_seq_length=100, stride=8, top_k=4, no_answer=False)
    answers = theirs.run(QUERY, documents[:3])["answers"]
    assert len(answers) == 4
    assert all(
        answer.data == answer.document.content[answer.document_offset.start : answer.document_offset.end]
        for answer in answers
    )
    for name, weight in reader.model.state_dict().items():
        assert torch.equal(weight, theirs.model.state_dict()[name])


def test_ranks_like_haystacks_reader_where_a_model_has_no_segments(
    directory: str, documents: list[Document], monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs = TransformersExtractiveReader(
        directory, device=CPU, max_seq_length=48, stride=8, top_k=30, no_answer=False, overlap_threshold=None
    )
    ours = make(directory, top_k=30, no_answer=False, overlap_threshold=None, max_answer_length=48)
    monkeypatch.setattr(reader_module, "takes_token_types", lambda model: False)
    expected = {}
    for span in spans(theirs.run(QUERY, documents, top_k=60)["answers"]):
        expected.setdefault(span)  # they name a span twice if two windows hold it
    assert spans(ours.run(QUERY, documents)["answers"]) == list(expected)[:30]


def test_what_haystacks_reader_does_otherwise(directory: str, documents: list[Document]) -> None:
    """The rows of the table in docs/serving.md that say something of TransformersExtractiveReader."""

    def theirs(**parameters: object) -> TransformersExtractiveReader:
        return TransformersExtractiveReader(
            directory, **{"device": CPU, "max_seq_length": 48, "stride": 8} | parameters
        )

    reader, ours = theirs(overlap_threshold=None), make(directory, overlap_threshold=None)
    answers = reader.run(QUERY, documents, top_k=1000)["answers"]
    # Scores: a calibrated sigmoid of each answer alone, so that they do not change with the other documents.
    alone = reader.run(QUERY, documents[:1], top_k=1000)["answers"]
    scores = {answer.data: answer.score for answer in alone if answer.data}
    shared = [answer for answer in answers if answer.document and answer.document.id == documents[0].id]
    assert shared
    assert [scores[answer.data] for answer in shared] == pytest.approx([answer.score for answer in shared])
    # The no-answer: what the others lack to 1, multiplied, and placed by its score; a None may come first there too.
    answers = reader.run(QUERY, documents, top_k=5)["answers"]
    rest = [answer.score for answer in answers if answer.document]
    assert [a.score for a in answers if not a.document] == pytest.approx([math.prod(1 - score for score in rest)])
    for component in (reader, ours):
        found = component.run(QUERY, documents)["answers"]
        assert [a.score for a in found] == sorted((a.score for a in found), reverse=True)
    assert [(a.data, a.score) for a in theirs(top_k=0).run(QUERY, documents)["answers"]] == [(None, 1)]
    # 0 and an empty query.
    assert len(theirs(top_k=3).run(QUERY, documents, top_k=0)["answers"]) == 4  # the constructor's
    assert theirs(score_threshold=1.0).run(QUERY, documents, score_threshold=0.0) == {"answers": []}  # likewise
    assert theirs().run("", documents)["answers"]
    # A document twice, and one without content.
    twice = theirs(overlap_threshold=None).run(QUERY, [documents[0]] * 2, top_k=2)["answers"]
    assert [answer.data for answer in twice].count(alone[0].data) == 2
    with pytest.raises(ValueError, match="batch length"):
        reader.run(QUERY, [*documents, Document(content=None)])
    # Plain strings.
    with pytest.raises(ValueError, match="Invalid component device"):
        theirs(device="cpu")
    with pytest.raises(AttributeError, match="resolve_value"):
        theirs(token="hf_secret").warm_up()


def pipeline_of(component: DistilledReader, documents: list[Document]) -> Pipeline:
    store = InMemoryDocumentStore()
    store.write_documents(documents)
    pipeline = Pipeline()
    pipeline.add_component("retriever", InMemoryBM25Retriever(store, top_k=3))
    pipeline.add_component("reader", component)
    pipeline.connect("retriever.documents", "reader.documents")
    return pipeline


def test_pipeline_and_its_yaml(directory: str, documents: list[Document]) -> None:
    pipeline = pipeline_of(make(directory, top_k=2), documents)
    inputs = {"retriever": {"query": QUERY}, "reader": {"query": QUERY}}
    answers = pipeline.run(inputs)["reader"]["answers"]
    assert len(answers) == 3
    again = Pipeline.loads(pipeline.dumps(), allowed_modules=["haystack_distill"])
    assert again.to_dict() == pipeline.to_dict()
    assert again.get_component("reader").reader is None  # loading a pipeline loads no model
    store = again.get_component("retriever").document_store
    store.write_documents(documents, policy=DuplicatePolicy.OVERWRITE)
    answers_again = again.run(inputs)["reader"]["answers"]
    assert spans(answers_again) == spans(answers)
    assert [answer.score for answer in answers_again] == [answer.score for answer in answers]
    assert ExtractedAnswer.from_dict(answers[0].to_dict()) == answers[0]


@pytest.mark.skipif(
    not hasattr(Pipeline, "run_async"), reason="this Haystack has another class for asynchronous pipelines"
)
def test_asynchronous_pipeline(directory: str, documents: list[Document]) -> None:
    pipeline = pipeline_of(make(directory, top_k=2), documents)
    inputs = {"retriever": {"query": QUERY}, "reader": {"query": QUERY}}
    expected = spans(pipeline.run(inputs)["reader"]["answers"])

    async def twice() -> list[dict]:
        return await asyncio.gather(pipeline.run_async(inputs), pipeline.run_async(inputs))

    assert [spans(result["reader"]["answers"]) for result in asyncio.run(twice())] == [expected, expected]


def test_to_dict_and_back(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = DistilledReader("somewhere")
    assert DistilledReader.from_dict(plain.to_dict()).to_dict() == plain.to_dict()
    given = {
        "model": "somewhere",
        "device": ComponentDevice.from_str("cuda:1"),
        "token": Secret.from_env_var("MY_TOKEN"),
        "top_k": 3,
        "score_threshold": 0.2,
        "max_seq_length": 256,
        "stride": 64,
        "max_batch_size": 5,
        "answers_per_seq": 7,
        "no_answer": False,
        "overlap_threshold": None,
        "max_query_length": 32,
        "max_answer_length": 9,
        "precision": "fp32",
        "revision": "v1",
        "backend": "torch",
        "num_threads": 3,
        "speed": 0.0,
        "passages": None,
    }
    monkeypatch.setenv("MY_TOKEN", "secret value")
    written = DistilledReader(**given).to_dict()
    assert written["type"] == "haystack_distill.integrations.haystack.DistilledReader"
    assert set(written["init_parameters"]) == set(given)
    assert "secret value" not in str(written)
    before = str(written)
    again = DistilledReader.from_dict(written)
    assert str(written) == before  # the dictionary is not changed
    assert again.to_dict() == written
    for name in set(given) - {"model"}:
        assert getattr(again, name) == given[name]
    assert again.model_name_or_path == "somewhere"
    with pytest.raises(ValueError, match="serialize"):
        DistilledReader("somewhere", token=Secret.from_token("secret value")).to_dict()


def test_what_was_serialised_before_calibration_factor_was_taken_still_loads() -> None:
    written = {
        "type": "haystack_distill.integrations.haystack.DistilledReader",
        "init_parameters": {
            "model": "somewhere",
            "device": {"type": "single", "device": "cpu"},
            "token": {"type": "env_var", "env_vars": ["HF_API_TOKEN", "HF_TOKEN"], "strict": False},
            "top_k": 3,
            "score_threshold": None,
            "max_seq_length": 256,
            "stride": 64,
            "max_batch_size": None,
            "answers_per_seq": None,
            "no_answer": True,
            "overlap_threshold": 0.01,
            "max_query_length": 64,
            "max_answer_length": 30,
            "precision": "auto",
            "revision": None,
            "backend": "torch",
            "num_threads": None,
        },
    }
    found = DistilledReader.from_dict(written).to_dict()
    assert found["init_parameters"].pop("speed") == 0  # which there was not then
    assert found["init_parameters"].pop("passages") is None
    assert found == written


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    found = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    caplog.clear()
    return found


def test_yaml_of_haystacks_reader_loads_with_a_warning(
    directory: str, documents: list[Document], caplog: pytest.LogCaptureFixture
) -> None:
    theirs = TransformersExtractiveReader(
        directory, device=CPU, max_seq_length=48, stride=8, model_kwargs={"dtype": torch.float32}
    )
    old = pipeline_of(theirs, documents).dumps()
    assert "calibration_factor: 0.1" in old
    name = "haystack_integrations.components.readers.transformers.extractive_reader.TransformersExtractiveReader"
    assert name in old
    new = old.replace(name, "haystack_distill.integrations.haystack.DistilledReader")
    pipeline = Pipeline.loads(new, allowed_modules=["haystack_distill"])
    (warning,) = warnings_of(caplog)
    assert "calibration_factor" in warning
    assert "dtype" in warning
    assert "precision" in warning
    assert "device_map" not in warning  # one device: used
    reader = pipeline.get_component("reader")
    assert reader.device == CPU
    assert reader.run(QUERY, documents)["answers"]
    again = Pipeline.loads(pipeline.dumps(), allowed_modules=["haystack_distill"])  # ours now: nothing to warn of
    assert again.to_dict() == pipeline.to_dict()
    assert not warnings_of(caplog)


def test_a_threshold_for_calibrated_scores_is_to_be_chosen_anew(caplog: pytest.LogCaptureFixture) -> None:
    DistilledReader("x", calibration_factor=0.1, score_threshold=0.6)
    assert any("score_threshold=0.6" in warning for warning in warnings_of(caplog))
    DistilledReader("x", score_threshold=0.6)
    assert not warnings_of(caplog)


def test_a_stored_threshold_decides_where_the_no_answer_stands(
    reader: Reader, documents: list[Document], tmp_path: Path
) -> None:
    for threshold, first in ((-1e3, True), (1e3, False)):
        reader.model.config.calibration = {"no_answer_threshold": threshold}
        answers = make(str(reader.save(tmp_path / f"{first}"))).run(QUERY, documents)["answers"]
        assert (answers[0].data is None) == first
        assert (answers[-1].data is None) != first
        assert [one.score for one in answers] == sorted((one.score for one in answers), reverse=True)
        assert answers[0 if first else -1].score == pytest.approx(float(first), abs=1e-6)


@pytest.mark.parametrize(
    ("model_kwargs", "device", "revision", "ignored"),
    [
        (None, None, None, ""),
        ({}, None, None, ""),
        ({"device_map": "cpu"}, "cpu", None, ""),
        ({"device_map": 1}, "cuda:1", None, ""),
        ({"device_map": {"": "cuda:1"}}, "cuda:1", None, ""),
        ({"device_map": "auto", "revision": "v1", "trust_remote_code": False}, None, "v1", ""),
        ({"device_map": {"bert": "cuda:0", "qa_outputs": "cpu"}}, None, None, "device_map"),
        ({"trust_remote_code": True}, None, None, "trust_remote_code"),
        ({"quantization_config": {"load_in_8bit": True}, "torch_dtype": "torch.float16"}, None, None, "quantization"),
        ({"quantization_config": None}, None, None, ""),
    ],
)
def test_what_applies_of_model_kwargs_is_used(
    model_kwargs: dict | None,
    device: str | None,
    revision: str | None,
    ignored: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    component = DistilledReader("x", model_kwargs=model_kwargs)
    assert component.device == (ComponentDevice.from_str(device) if device else None)
    assert component.revision == revision
    found = warnings_of(caplog)
    assert len(found) == bool(ignored)
    assert all(ignored in warning for warning in found)


def test_device_map_counts_more_than_device_as_in_haystacks_reader(caplog: pytest.LogCaptureFixture) -> None:
    theirs = TransformersExtractiveReader(
        "x", device=ComponentDevice.from_str("cuda:0"), model_kwargs={"device_map": "cpu"}
    )
    assert theirs.model_kwargs["device_map"] == "cpu"
    caplog.clear()
    component = DistilledReader("x", device="cuda:0", model_kwargs={"device_map": "cpu"})
    assert component.device == CPU
    assert any("device_map" in warning for warning in warnings_of(caplog))


@pytest.mark.parametrize(
    ("given", "device"),
    [("cpu", "cpu"), ("cuda:0", "cuda:0"), ("cuda", "cuda"), (torch.device("cpu"), "cpu"), (1, "cuda:1")],
)
def test_a_device_may_be_a_plain_string(given: object, device: str) -> None:
    component = DistilledReader("x", device=given)
    assert component.device == ComponentDevice.from_str(device)
    assert DistilledReader.from_dict(component.to_dict()).device == component.device


def test_a_plain_device_in_yaml_is_used(directory: str, documents: list[Document]) -> None:
    written = make(directory).to_dict()
    written["init_parameters"]["device"] = "cpu"
    assert warm(DistilledReader.from_dict(written)).reader.device == torch.device("cpu")
    assert DistilledReader("x", device="auto").device is None


@pytest.mark.parametrize("device", ["gpu", "cuda:x", "", -1])
def test_an_unknown_device_is_named(device: object) -> None:
    with pytest.raises(DistilError, match="such as 'cpu' or 'cuda:0'"):
        DistilledReader("x", device=device)


def test_a_plain_token_is_used_and_never_written(directory: str, monkeypatch: pytest.MonkeyPatch) -> None:
    component = make(directory, token="hf_secret")
    tokens = []
    load = Reader.load
    monkeypatch.setattr(
        Reader, "load", lambda *args, **given: tokens.append(given.pop("token")) or load(*args, **given)
    )
    component.warm_up()
    assert tokens == ["hf_secret"]
    assert "hf_secret" not in repr(component.token)
    pipeline = Pipeline()
    pipeline.add_component("reader", component)
    for write in (component.to_dict, pipeline.to_dict, pipeline.dumps):
        with pytest.raises(ValueError, match=r"Cannot serialize token-based secret. Use .* environment variables"):
            write()
    assert "hf_secret" not in repr(pipeline)
    assert make(directory, token="").token is None  # as `os.environ.get("HF_TOKEN", "")` gives it


def test_the_environment_may_allow_loading(
    directory: str, documents: list[Document], monkeypatch: pytest.MonkeyPatch
) -> None:
    yaml = pipeline_of(make(directory), documents).dumps()
    with pytest.raises(Exception, match="HAYSTACK_DESERIALIZATION_ALLOWLIST"):
        Pipeline.loads(yaml)
    monkeypatch.setenv("HAYSTACK_DESERIALIZATION_ALLOWLIST", "haystack_distill")
    assert Pipeline.loads(yaml).get_component("reader").model_name_or_path == directory


def test_a_tool_describes_every_parameter(directory: str) -> None:
    properties = ComponentTool(make(directory)).parameters["properties"]
    assert set(properties) == set(inspect.signature(DistilledReader.run).parameters) - {"self"}
    described = [entry["description"] for entry in properties.values()]
    assert len(set(described)) == len(described)
    assert all(len(description.split()) > 5 for description in described)
    assert not any("bove" in description or "onstructor" in description for description in described)
    assert "question" in properties["query"]["description"]
    assert "shares" in properties["overlap_threshold"]["description"]


def test_parameters_are_those_of_haystacks_reader() -> None:
    def parameters(function: Callable) -> dict[str, object]:
        return {name: p.default for name, p in inspect.signature(function).parameters.items()}

    run = parameters(DistilledReader.run)
    assert list(run)[-1] == "speed"  # ours, behind all of theirs
    assert {name: run[name] for name in run if name != "speed"} == parameters(TransformersExtractiveReader.run)
    theirs, ours = parameters(TransformersExtractiveReader.__init__), parameters(DistilledReader.__init__)
    assert list(ours)[: len(theirs)] == list(theirs)  # also by position
    assert {name for name in theirs if theirs[name] != ours[name]} == {"model", "calibration_factor"}
    sockets = [
        (c.__haystack_input__._sockets_dict, c.__haystack_output__._sockets_dict)
        for c in (DistilledReader("x"), TransformersExtractiveReader("x", device=CPU))
    ]
    for mine, original in zip(*sockets, strict=True):
        assert {name: socket.type for name, socket in mine.items() if name != "speed"} == {
            name: socket.type for name, socket in original.items()
        }


def test_token_and_revision_are_used_only_when_the_model_is_loaded(
    directory: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MY_TOKEN", raising=False)
    component = make(directory, token=Secret.from_env_var("MY_TOKEN"), revision="v1")  # not set yet: no error
    calls = []

    def spied(function: Callable) -> Callable:
        return lambda *args, **kwargs: calls.append(kwargs) or function(*args, **kwargs)

    monkeypatch.setattr(compat, "load_model", spied(compat.load_model))
    tokenizers = compat.AutoTokenizer
    monkeypatch.setattr(tokenizers, "from_pretrained", spied(tokenizers.from_pretrained))
    monkeypatch.setenv("MY_TOKEN", "secret value")
    component.warm_up()
    assert [(call["token"], call["revision"]) for call in calls] == [("secret value", "v1")] * 2
    component.warm_up()
    assert len(calls) == 2


def test_device_and_precision_reach_the_reader(directory: str) -> None:
    component = warm(make(directory, precision="bf16"))
    assert component.reader.device == torch.device("cpu")
    assert component.reader.precision == "bf16"
    assert (
        warm(DistilledReader(directory, device=None, max_seq_length=48)).reader.device
        == ComponentDevice.resolve_device(None).to_torch()
    )


def test_an_exported_reader_answers_as_its_model_does(directory: str, documents: list[Document]) -> None:
    export_reader(Reader.load(directory, window_settings=WindowSettings(48, 16, 16), device="cpu"), directory)
    expected = warm(make(directory)).run("Who built the harbour?", documents)["answers"]
    component = warm(DistilledReader(directory, backend="onnx", num_threads=1, max_seq_length=48, stride=8))
    found = component.run("Who built the harbour?", documents)["answers"]
    again = DistilledReader.from_dict(component.to_dict()).run("Who built the harbour?", documents)["answers"]
    assert spans(found) == spans(again)
    assert {answer.data for answer in found} == {answer.data for answer in expected}
    # A longer window than it was loaded with makes a reader anew, exported still.
    assert component.run("Who built the harbour?", documents, max_seq_length=64)["answers"]


@pytest.mark.parametrize("backend", ["openvino", "auto"])
def test_openvino_and_what_is_fastest(directory: str, documents: list[Document], backend: str) -> None:
    pytest.importorskip("openvino")
    export_reader(
        Reader.load(directory, window_settings=WindowSettings(48, 16, 16), device="cpu"),
        directory,
        ExportSettings(int8="none", runtime="openvino"),
    )
    expected = warm(make(directory)).run("Who built the harbour?", documents)["answers"]
    made = {"backend": backend, "num_threads": 1, "max_seq_length": 48, "stride": 8, "device": CPU}
    component = warm(DistilledReader(directory, precision="fp32", **made, passages=3 if backend == "auto" else None))
    found = component.run("Who built the harbour?", documents)["answers"]
    assert component.reader.backend in (("openvino",) if backend == "openvino" else ("openvino", "torch"))
    assert component.reader.precision == "fp32"
    assert spans(found) == spans(
        DistilledReader.from_dict(component.to_dict()).run("Who built the harbour?", documents)["answers"]
    )
    assert {answer.data for answer in found} == {answer.data for answer in expected}


def test_int8_answers_do_not_depend_on_the_batch(directory: str, documents: list[Document]) -> None:
    export_reader(Reader.load(directory, window_settings=WindowSettings(48, 16, 16), device="cpu"), directory)
    component = DistilledReader(directory, backend="onnx-int8", max_seq_length=48, stride=8, top_k=50)
    together = component.run(QUERY, documents)["answers"]
    by_itself = component.run(QUERY, documents, max_batch_size=1)["answers"]
    assert spans(together) == spans(by_itself)
    assert [a.score for a in together] == pytest.approx([a.score for a in by_itself], rel=1e-9)
    # Among other documents, a document's answers keep their order.
    alone = component.run(QUERY, documents[:1], no_answer=False)["answers"]
    among = component.run(QUERY, documents, no_answer=False, top_k=1000)["answers"]
    assert spans(alone) == [span for span in spans(among) if span[0] == documents[0].id]


def test_an_exported_reader_runs_on_the_processor_alone(directory: str) -> None:
    for elsewhere in ({"device": ComponentDevice.from_str("cuda:0")}, {"precision": "bf16"}):
        with pytest.raises(DistilError, match="runs on the processor"):
            DistilledReader(directory, backend="onnx-int8", **elsewhere)
    with pytest.raises(DistilError, match="backend must be one of"):
        DistilledReader(directory, backend="tensorrt")


# --- reader_from_haystack --------------------------------------------------------------------------------------------


def test_haystacks_reader_becomes_a_reader(directory: str, reader: Reader) -> None:
    component = TransformersExtractiveReader(directory, device=CPU, max_seq_length=100)
    component.warm_up()
    teacher = reader_from_haystack(component)
    assert teacher.model is component.model
    assert teacher.window_settings.max_seq_len == 100
    assert teacher.device == torch.device("cpu")
    assert teacher.answer(QUERY, TEXTS[1], 3) == reader_from_haystack(
        component, window_settings=reader.window_settings
    ).answer(QUERY, TEXTS[1], 3)
    expected = reader.answer(QUERY, TEXTS[1], 3)
    assert [(a.start, a.end) for a in teacher.answer(QUERY, TEXTS[1], 3)] == [(a.start, a.end) for a in expected]


def test_half_precision_weights_are_copied_in_fp32(reader: Reader, tmp_path: Path) -> None:
    reader.model.half()
    component = TransformersExtractiveReader(str(reader.save(tmp_path / "half")), device=CPU, max_seq_length=100)
    component.warm_up()
    assert component.model.dtype == torch.float16
    copied = reader_from_haystack(component)
    assert copied.model.dtype == copied.model.config.dtype == torch.float32
    assert students.early_exit(copied).model.dtype == torch.float32  # a model of its configuration
    torch.nn.init.constant_(copied.model.qa_outputs.bias, 1 / 3)
    assert torch.equal(compat.with_plain_attention(copied.model).qa_outputs.bias, copied.model.qa_outputs.bias)
    assert component.model.dtype == torch.float16


def test_distilled_reader_becomes_a_reader(directory: str) -> None:
    component = warm(make(directory, max_answer_length=3))
    teacher = reader_from_haystack(component, batch_size=2)
    assert teacher.model is component.reader.model
    assert (teacher.window_settings.max_seq_len, teacher.max_answer_length, teacher.batch_size) == (48, 3, 2)


# --- errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["top_k", "max_seq_length", "max_batch_size", "answers_per_seq", "stride", "overlap_threshold"]
)
def test_parameters_out_of_range(directory: str, documents: list[Document], name: str) -> None:
    with pytest.raises(DistilError, match=name):
        make(directory, **{name: -1})
    with pytest.raises(DistilError, match=name):
        make(directory).run(QUERY, documents, **{name: -1})
    if name not in ("stride", "overlap_threshold"):
        with pytest.raises(DistilError, match=name):
            make(directory).run(QUERY, documents, **{name: 0})


def test_stride_0_counts(directory: str, documents: list[Document]) -> None:
    component = make(directory, stride=20)
    seen = batches_seen(component)
    component.run(QUERY, documents)
    n_windows = sum(len(inputs["input_ids"]) for inputs in seen)
    seen.clear()
    component.run(QUERY, documents, stride=0)
    assert sum(len(inputs["input_ids"]) for inputs in seen) < n_windows


def test_what_cannot_work_says_so(directory: str, documents: list[Document], tmp_path: Path) -> None:
    component = make(directory)
    with pytest.raises(DistilError, match="raise max_seq_length or lower stride"):
        component.run(QUERY, documents, stride=45)
    with pytest.raises(DistilError, match="128 positions"):
        component.run(QUERY, documents, max_seq_length=129)
    with pytest.raises(DistilError, match="cannot load a reader"):
        make(str(tmp_path / "nothing")).run(QUERY, documents)
    with pytest.raises(DistilError, match="max_query_length"):
        make(directory, max_query_length=0)
    with pytest.raises(DistilError, match="one device"):
        make(directory, device=ComponentDevice.from_multiple(haystack.utils.DeviceMap({"a": CPU._single_device})))
    with pytest.raises(DistilError, match="warm_up"):
        reader_from_haystack(make(directory))
    with pytest.raises(DistilError, match="warm_up"):
        reader_from_haystack(TransformersExtractiveReader(directory, device=CPU))


def test_without_haystack_the_import_names_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    # `haystack` as it is in an environment with Haystack 1: there, but without the names of Haystack 2.
    monkeypatch.setitem(sys.modules, "haystack", ModuleType("haystack"))
    spec = importlib.util.spec_from_file_location("without_haystack", integration.__file__)
    with pytest.raises(ImportError, match=r'pip install "haystack-distill\[haystack\]"'):
        spec.loader.exec_module(importlib.util.module_from_spec(spec))


def test_a_bilstm_answers(tiny_reader: Callable[..., Reader], tmp_path: Path) -> None:
    reader = students.bilstm(tiny_reader(), embedding_size=12, units=8)
    export_reader(reader, tmp_path)
    expected = [answer.text for answer in reader.answer(QUERY, TEXTS[1], 3, allow_no_answer=False)]
    for backend in ("torch", "onnx"):
        component = make(str(tmp_path), backend=backend, no_answer=False, overlap_threshold=None)
        answers = component.run(QUERY, [Document(content=TEXTS[1])], top_k=3)["answers"]
        assert [answer.data for answer in answers] == expected
