"""The fast reader node of Haystack 1 against FARMReader: the same answers, spans and scores."""

import importlib.util
import inspect
import itertools
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

if importlib.util.find_spec("haystack") is None or importlib.util.find_spec("haystack.nodes") is None:
    pytest.skip("farm-haystack is not in this environment", allow_module_level=True)

from haystack import Document, Pipeline
from haystack.document_stores import InMemoryDocumentStore
from haystack.errors import HaystackError
from haystack.nodes import BM25Retriever, FARMReader

from haystack_distill import DistilError, Reader, WindowSettings, students
from haystack_distill.export.exporting import ExportSettings, export_reader
from haystack_distill.integrations import farm_reader
from haystack_distill.integrations.farm import DistilFARMReader
from haystack_distill.integrations.farm_reader import DistilledReader
from haystack_distill.models.embedded_teacher import embedded_teacher
from tests.conftest import CONTEXTS, QUESTIONS

CUT = {"max_seq_len": 48, "doc_stride": 16, "max_query_length": 16, "use_gpu": False}
SHORT = {"max_seq_len": 64, "doc_stride": 24, "max_query_length": 16, "use_gpu": False}
LONG = " ".join(CONTEXTS)


@pytest.fixture(scope="module")
def directory(tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tiny random reader whose logits are far enough apart to rank by."""
    from tests.conftest import make_tiny_reader

    reader = make_tiny_reader(tokenizer, seed=3, initializer_range=0.4)
    return str(reader.save(tmp_path_factory.mktemp("models") / "reader"))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The embedded teacher: small, but it answers."""
    return str(embedded_teacher(device="cpu").save(tmp_path_factory.mktemp("models") / "teacher"))


@pytest.fixture(scope="module", params=[DistilFARMReader, DistilledReader])
def ours(request: pytest.FixtureRequest, trained: str) -> Any:
    return request.param(trained, progress_bar=False, num_processes=0, **SHORT)


def test_a_speed_for_each_call(directory: str, tmp_path: Path) -> None:
    """In `predict`, `run` and the parameters of a pipeline, in several threads at once."""
    reader = students.early_exit(Reader.load(directory, window_settings=WindowSettings(48, 16, 16)), branch_size=0)
    torch.nn.init.normal_(reader.model.branches[0].weight)
    node = DistilledReader(str(reader.save(tmp_path)), return_no_answer=True, **CUT)
    fast = DistilledReader(str(tmp_path), return_no_answer=True, speed=1.0, **CUT)
    query = QUESTIONS[0][0]

    def spans(found: dict[str, Any]) -> list[tuple[str, float]]:
        return [(one.answer, one.score) for one in found["answers"]]

    full, first = (spans(each.predict(query, documents())) for each in (node, fast))
    assert full != first
    # At this speed all documents but one are dropped before the first layer; not where each is asked by itself.
    of_documents = node.predict(query, documents(), top_k=20, speed=1.0)["answers"]
    assert len({one.document_ids[0] for one in of_documents if one.document_ids}) == 1
    alone = node.predict_batch([query], documents(), speed=1.0)["answers"]
    assert all(any(one.document_ids for one in answers) for answers in alone)
    pipeline = Pipeline()
    pipeline.add_node(node, "Reader", ["Query"])

    def ask(speed: float) -> list[tuple[str, float]]:
        return spans(pipeline.run(query=query, documents=documents(), params={"Reader": {"speed": speed}}))

    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(ask, [0.0, 1.0] * 4)) == [full, first] * 4
    batch = node.predict_batch([query], [documents()], speed=1.0)
    assert spans({"answers": batch["answers"][0]}) == first
    with pytest.raises(DistilError, match="speed must be a number from 0 to 1"):
        node.predict(query, documents(), speed=2)


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


def test_confidences_are_those_of_a_farm_reader(trained: str) -> None:
    """With a trained reader: FARM counts padding in, which a trained reader gives next to no probability."""
    directory = trained
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
    with pytest.raises(HaystackError, match="Number of queries"):
        reader.predict_batch(["Who?", "Where?"], [documents()])
    with pytest.raises(HaystackError, match="expected a Document"):
        reader.predict_batch(["Who?"], [*documents()[:1], "text"])
    with pytest.raises(DistilError, match="haystack-distill export"):
        DistilledReader(directory, backend="onnx", **CUT)
    with pytest.raises(DistilError, match="counts padding, which onnx-int8 leaves out"):
        DistilledReader(directory, backend="onnx-int8", farm_confidences=True, **CUT)


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


@pytest.mark.parametrize("backend", ["openvino", "auto"])
def test_openvino_and_what_is_fastest(tiny_reader: Callable[..., Reader], tmp_path: Path, backend: str) -> None:
    pytest.importorskip("openvino")
    directory = str(tmp_path / "reader")
    made = tiny_reader(seed=3, initializer_range=0.4)
    export_reader(made, directory, ExportSettings(int8="none", runtime="openvino"))
    served = DistilledReader(directory, backend=backend, passages=4 if backend == "auto" else None, **CUT)
    assert served.inferencer.reader.backend in (("openvino",) if backend == "openvino" else ("openvino", "torch"))
    expected = DistilledReader(directory, **CUT).predict("Who built the harbour?", documents())["answers"]
    found = served.predict("Who built the harbour?", documents())["answers"]
    assert [(one.answer, one.document_ids) for one in found] == [(one.answer, one.document_ids) for one in expected]
    assert [one.score for one in found] == pytest.approx([one.score for one in expected], abs=1e-4)
    with pytest.raises(DistilError, match="farm_confidences counts padding"):
        DistilledReader(directory, backend="auto", farm_confidences=True, **CUT)


def test_a_batch_size_is_that_of_the_reader(directory: str) -> None:
    reader = DistilledReader(directory, **CUT)
    reader.predict_batch(["Who built the harbour?"], documents(), batch_size=3)
    assert reader.inferencer.reader.batch_size == 3


def scored(result: dict[str, Any]) -> list[tuple]:
    answers = result["answers"] if isinstance(result, dict) else result
    return [(answer.answer, answer.document_ids, float(answer.score)) for answer in answers]


def named(result: dict[str, Any]) -> list[tuple]:
    """Without scores, whose last digits depend on what else is in a batch."""
    return [one[:2] for one in scored(result)]


# --- Confidences to the bit -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [{}, {"batch_size": 3, "top_k_per_sample": 2}, {"no_ans_boost": 2.5}], ids=str)
def test_farm_confidences_are_a_farm_readers_to_the_bit(trained: str, settings: dict[str, Any]) -> None:
    given = {"return_no_answer": True, "use_gpu": False, "max_seq_len": 128, "doc_stride": 32} | settings
    theirs = FARMReader(trained, progress_bar=False, num_processes=0, **given)
    exact, default = (DistilledReader(trained, farm_confidences=how, **given) for how in (True, False))
    differences = []
    for question, _, _ in QUESTIONS[:3]:
        expected, found, unpadded = (reader.predict(question, documents()) for reader in (theirs, exact, default))
        assert scored(found) == scored(expected)
        assert plain(found) == plain(expected)
        assert found["no_ans_gap"] == expected["no_ans_gap"]
        of_default = {(text, *where): score for text, where, score in scored(unpadded) if where}
        differences += [
            abs(of_default.get((text, *where), score) - score) for text, where, score in scored(expected) if where
        ]
    assert max(differences) > 1e-3  # else the test would not see padding


# --- FARMReader's arguments and methods -------------------------------------------------------------------------------


def test_arguments_come_in_farm_readers_order_with_its_defaults() -> None:
    theirs, ours = (list(inspect.signature(kind).parameters.values()) for kind in (FARMReader, DistilledReader))
    assert [(one.name, one.default) for one in ours][: len(theirs)] == [(one.name, one.default) for one in theirs]
    for name in ("predict", "predict_batch", "predict_on_texts", "update_parameters", "run", "run_batch"):
        theirs, ours = (
            inspect.signature(getattr(kind, name)).parameters.values() for kind in (FARMReader, DistilledReader)
        )
        # ... and after them `speed`, which early exits need
        assert [(one.name, one.default) for one in ours if one.name != "speed"] == [
            (one.name, one.default) for one in theirs
        ]


def test_positional_arguments_mean_what_they_mean_in_farm_reader(directory: str) -> None:
    reader = DistilledReader(directory, None, 40, 7, False, None, 0.5, True, 4, 2, 1, 0, 48, 16, False, 0, False, None, None, False, False, None, 16)  # fmt: skip
    assert (reader.max_seq_len, reader.doc_stride, reader.max_query_length) == (48, 16, 16)
    assert (reader.inferencer.batch_size, reader.top_k, reader.top_k_per_candidate) == (7, 4, 2)
    head = reader.inferencer.model.prediction_heads[0]
    assert (head.context_window_size, head.no_ans_boost, head.n_best) == (40, 0.5, 3)


def test_what_does_not_apply_is_taken_with_one_warning(directory: str, caplog: pytest.LogCaptureFixture) -> None:
    quiet = {"num_processes": 0, "progress_bar": False, "devices": ["cpu"], "preprocessing_batch_size": 2}
    expected = DistilledReader(directory, **CUT, **quiet).predict("Who built the harbour?", documents()[:4])
    assert not caplog.records
    loud = {"num_processes": 4, "devices": [torch.device("cpu"), "cuda:1"], "model_kwargs": {"low_cpu_mem_usage": True}}
    local = {"proxies": {"http": "a.proxy:1"}, "local_files_only": True, "force_download": True}  # of a directory
    found = DistilledReader(directory, **CUT, **loud, **local).predict("Who built the harbour?", documents()[:4])
    assert [record.getMessage().partition("without effect: ")[2] for record in caplog.records] == [
        "num_processes, devices, model_kwargs"
    ]
    assert plain(found) == plain(expected)


def test_model_arguments_that_would_change_answers_are_done_or_refused(directory: str) -> None:
    assert (
        DistilledReader(directory, **CUT, model_kwargs={"torch_dtype": "torch.bfloat16"}).inferencer.reader.precision
        == "bf16"
    )
    for arguments, message in (
        ({"model_kwargs": {"load_in_8bit": True, "low_cpu_mem_usage": True}}, "model_kwargs: load_in_8bit is not done"),
        ({"model_kwargs": {"torch_dtype": torch.int8}}, "torch_dtype in model_kwargs must be"),
        ({"model_kwargs": {"torch_dtype": torch.bfloat16}, "precision": "fp16"}, "contradict"),
    ):
        with pytest.raises(DistilError, match=message):
            DistilledReader(directory, **CUT, **arguments)


def test_a_model_that_must_not_be_downloaded_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}

    def download(name: str, **arguments: Any) -> str:
        asked.update(arguments)
        raise FileNotFoundError("nothing there")

    monkeypatch.setattr(farm_reader.huggingface_hub, "snapshot_download", download)
    with pytest.raises(DistilError, match="cannot find 'some/model' in the hub's local cache: nothing there"):
        DistilledReader("some/model", "v1", local_files_only=True, use_auth_token=True)
    assert (asked["local_files_only"], asked["token"], asked["revision"]) == (True, True, "v1")
    with pytest.raises(DistilError, match="cannot find 'some/model' on the hub"):
        DistilledReader("some/model", force_download=True, proxies={"https": "some.proxy"})
    assert (asked["force_download"], asked["proxies"]) == (True, {"https": "some.proxy"})


def test_windows_that_skip_text_are_refused_as_in_farm_reader(directory: str) -> None:
    for cut in ({"max_seq_len": 129, "doc_stride": 128}, {"doc_stride": 999}, {"max_seq_len": 513}):
        with pytest.raises(AssertionError):
            FARMReader(directory, use_gpu=False, num_processes=0, **cut)
        with pytest.raises(DistilError, match=r"doc_stride|positions"):
            DistilledReader(directory, use_gpu=False, **cut)


def test_methods_that_it_lacks_say_where_they_are(directory: str) -> None:
    reader = DistilledReader(directory, **CUT)
    lacking = [
        name for name, one in inspect.getmembers(FARMReader, callable) if name[0] != "_" and not hasattr(reader, name)
    ]
    assert set(lacking) == {
        *("train", "distil_prediction_layer_from", "distil_intermediate_layers_from", "eval", "eval_on_file"),
        *("calibrate_confidence_scores", "save", "save_to_remote", "convert_to_onnx"),
    }
    for name in lacking:
        for owner in (reader, DistilledReader):
            with pytest.raises(AttributeError, match=rf"it has no {name}: .*(haystack|directory)"):
                getattr(owner, name)
    with pytest.raises(AttributeError, match="has no attribute 'nonsense'"):
        reader.nonsense  # noqa: B018


@pytest.mark.parametrize("farm_confidences", [False, True])
def test_a_stored_threshold_is_taken_off_the_no_answer(directory: str, tmp_path: Path, farm_confidences: bool) -> None:
    reader = Reader.load(directory, device="cpu", window_settings=WindowSettings(48, 16, 16))
    reader.model.config.calibration = {"no_answer_threshold": 100.0}
    more = CUT | {"return_no_answer": True, "farm_confidences": farm_confidences, "use_confidence_scores": False}
    stored = DistilledReader(str(reader.save(tmp_path)), **more)
    by_hand = DistilledReader(directory, no_ans_boost=-100.0, **more)
    found, expected = (one.predict("Who?", documents(), top_k=30) for one in (stored, by_hand))
    assert plain(found) == plain(expected)
    assert found["no_ans_gap"] == pytest.approx(expected["no_ans_gap"], abs=1e-4)


# --- Documents that are not plain text --------------------------------------------------------------------------------

QUERY = "Who built the harbour?"
BLANK = Document(" \n", id="blank")
TABLE = Document(pd.DataFrame({"harbour": ["Lindow"], "built by": ["Baak"]}), content_type="table", id="table")


@pytest.mark.parametrize("silent", [BLANK, TABLE, Document("", id="empty")], ids=lambda one: one.id)
def test_a_document_without_text_among_others_is_left_out(ours: Any, silent: Document) -> None:
    texts = documents()[:2]
    expected = named(ours.predict(QUERY, texts))
    assert expected
    for place in (0, 2):
        mixed = [*texts[:place], silent, *texts[place:]]
        assert named(ours.predict(QUERY, mixed)) == expected
        assert named(ours.run(QUERY, mixed)[0]) == expected
        assert [named(one) for one in ours.predict_batch([QUERY, QUERY], [mixed, [silent]])["answers"]] == [
            expected,
            [],
        ]
        alone = [named(one) for one in ours.predict_batch([QUERY], texts)["answers"]]
        alone.insert(place, [])
        result = ours.predict_batch([QUERY], mixed)
        assert result["queries"] == [QUERY]
        assert [named(one) for one in result["answers"]] == alone
        both = ours.predict_batch([QUERY, QUERY], mixed)["answers"]
        assert [[named(one) for one in of_query] for of_query in both] == [alone, alone]
    assert ours.predict(QUERY, [silent])["answers"] == []


def test_an_empty_query_has_no_answers(ours: Any) -> None:
    texts = documents()[:2]
    expected = [named(ours.predict(QUERY, [one])) for one in texts]
    assert ours.predict(" ", texts)["answers"] == ours.run("", texts)[0]["answers"] == []
    assert ours.predict_batch(["", QUERY], [texts, texts[:1]])["answers"][0] == []
    flat = ours.predict_batch(["", QUERY], texts)
    assert flat["queries"] == ["", QUERY]
    assert [[named(one) for one in of_query] for of_query in flat["answers"]] == [[[], []], expected]


def test_tables_are_named_in_one_warning(ours: Any, caplog: pytest.LogCaptureFixture) -> None:
    farm_reader._warn_of.cache_clear()
    for _ in range(3):
        ours.predict(QUERY, [TABLE, *documents()[:1]])
    assert [record.getMessage() for record in caplog.records if "'table'" in record.getMessage()] == [
        "documents of type 'table' are left out: this reader reads text; give them to a TableReader"
    ]


def overlapping(first: Any, second: Any) -> list[Document]:
    texts = ("My name is Carla. I live in Berlin.", "I live in Berlin. My friends call me Carla.")
    return [
        Document(text, id=f"d{number}", meta={} if overlap is None else {"_split_overlap": overlap})
        for number, (text, overlap) in enumerate(zip(texts, (first, second), strict=True), 1)
    ]


SECOND, FIRST = [{"doc_id": "d2", "range": (18, 35)}], [{"doc_id": "d1", "range": [0, 17]}]


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (SECOND, None),
        (None, FIRST),
        (SECOND, [{"doc_id": "elsewhere", "range": (0, 17)}]),
        ([], FIRST),
        (SECOND, [{"doc_id": "d1"}]),
        ([{"doc_id": "d1", "range": (0, 35)}], FIRST),
    ],
    ids=["first", "second", "another", "empty", "no range", "itself"],
)
def test_an_overlap_that_one_side_records_removes_nothing(ours: Any, first: Any, second: Any) -> None:
    query = "Where does Carla live?"
    assert named(ours.predict(query, overlapping(first, second))) == named(ours.predict(query, overlapping(None, None)))


def test_an_answer_in_an_overlap_is_given_once_as_by_a_farm_reader(ours: Any, trained: str) -> None:
    query, given = "Where does Carla live?", overlapping(SECOND, FIRST)
    theirs = FARMReader(trained, progress_bar=False, num_processes=0, **SHORT)
    answers = [answer.answer for answer in ours.predict(query, given)["answers"]]
    assert answers == [answer.answer for answer in theirs.predict(query, given)["answers"]]
    assert (
        answers.count("Berlin")
        == 1
        < [text for text, _ in named(ours.predict(query, overlapping(None, None)))].count("Berlin")
    )


def test_an_answer_in_two_overlaps_takes_no_other_with_it(trained: str) -> None:
    """FARMReader removes the answer that stands where the removed one stood, or ends in an IndexError."""
    texts = {"a": "Well, well. I live in Berlin.", "b": "I live in Berlin.", "c": "I live in Berlin. Oh yes."}
    ranges = {"ab": (12, 29), "ba": (0, 17), "bc": (0, 17), "cb": (0, 17)}
    made = [
        Document(
            text,
            id=key,
            meta={"_split_overlap": [{"doc_id": b, "range": ranges[a + b]} for a, b in ranges if a == key]},
        )
        for key, text in texts.items()
    ]
    given = {"progress_bar": False, "num_processes": 0, "top_k_per_sample": 5, **SHORT}
    for kind in (DistilFARMReader, DistilledReader):
        reader = kind(trained, **given)
        found = {
            tuple(sorted((text, *where) for text, where in named(reader.predict("Where do I live?", list(order)))))
            for order in itertools.permutations(made)
        }
        assert len(found) == 1
        assert ("I live", "b") in next(iter(found))


# --- Settings that change ---------------------------------------------------------------------------------------------


def test_parameters_are_updated_as_a_farm_readers(trained: str) -> None:
    theirs = FARMReader(trained, use_gpu=False, progress_bar=False, num_processes=0)
    ours = DistilledReader(trained, use_gpu=False, farm_confidences=True)
    for change in (
        {"no_ans_boost": 100, "return_no_answer": True, "max_seq_len": 128, "doc_stride": 32},
        {"context_window_size": 20, "no_ans_boost": -10},
        {"return_no_answer": False, "max_seq_len": 100},
    ):
        for reader in (theirs, ours):
            reader.update_parameters(**change)
        expected, found = (reader.predict(QUERY, documents()) for reader in (theirs, ours))
        assert scored(found) == scored(expected)
        assert plain(found) == plain(expected)
    for change in ({"doc_stride": 999}, {"max_seq_len": 70}, {"max_seq_len": 513}):
        with pytest.raises(DistilError):
            ours.update_parameters(context_window_size=7, **change)
    assert (ours.max_seq_len, ours.doc_stride, ours.inferencer.head.context_window_size) == (100, 32, 20)


# --- YAML in another process ------------------------------------------------------------------------------------------

LOAD = """
import haystack_distill.integrations.farm
from pathlib import Path
from haystack import Document, Pipeline
for name in ("DistilFARMReader", "DistilledReader"):
    pipeline = Pipeline.load_from_yaml(Path(name + ".yaml"))
    answers = pipeline.run("Who?", documents=[Document("Ada wrote it.")])["answers"]
    print(type(pipeline.get_node("Reader")).__name__, len(answers) > 0)
"""


@pytest.mark.slow
def test_yaml_in_a_fresh_process(directory: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for kind in (DistilFARMReader, DistilledReader):
        caplog.clear()
        pipeline = Pipeline()
        pipeline.add_node(kind(directory, **CUT), name="Reader", inputs=["Query"])
        assert not [record for record in caplog.records if "YAML" in record.getMessage()]
        pipeline.save_to_yaml(tmp_path / f"{kind.__name__}.yaml")
        (warning,) = [record.getMessage() for record in caplog.records if "YAML" in record.getMessage()]
        assert kind.__name__ in warning
        assert warning.endswith(f"import {kind.__module__} first")
    run = subprocess.run([sys.executable, "-c", LOAD], cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert run.stdout.split() == ["DistilFARMReader", "True", "DistilledReader", "True"]


def test_a_bilstm_answers(tiny_reader: Callable[..., Reader], tmp_path: Path) -> None:
    reader = students.bilstm(tiny_reader(), embedding_size=12, units=8)
    node = DistilledReader(str(reader.save(tmp_path)), progress_bar=False, num_processes=0, **CUT)
    question = QUESTIONS[0][0]
    answers = node.predict(question, documents()[:1], top_k=3)["answers"]
    assert [answer.answer for answer in answers]
    wanted = {(one.start, one.end) for one in reader.answer(question, CONTEXTS[0], 20)}
    assert {(answer.offsets_in_document[0].start, answer.offsets_in_document[0].end) for answer in answers} <= wanted
