"""What all tests share: an offline environment, a cache of their own, tiny random readers, small SQuAD files."""

import json
import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HAYSTACK_TELEMETRY_ENABLED", "False")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import gc
import importlib.util
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tokenizers import BertWordPieceTokenizer
from transformers import BertConfig, BertForQuestionAnswering, BertTokenizerFast

from haystack_distill import Reader, WindowSettings
from haystack_distill.utils.cache import CACHE_VARIABLE

# Which of the two environments this is.
IS_FARM = bool(importlib.util.find_spec("haystack") and importlib.util.find_spec("haystack.nodes"))
# CONTRIBUTING's method is checked by ruff, too, which is installed in one of them.
collect_ignore = [] if IS_FARM else ["test_contributing.py"]
SHARED = Path(__file__).resolve().parent.parent.parent / "shared"

CONTEXTS = [
    "Ada Lovelace wrote the first program in 1843, long before there was a machine to run it on.",
    "The harbour of Lindow was built in 1702 by Cornelis Baak, who came from Delft with forty masons.",
    "Bees dance to tell their sisters where the flowers are; Karl von Frisch described it in 1927.",
    "A glacier moves a few metres a year. The fastest one ever measured moved forty metres a day.",
]
QUESTIONS = [
    ("When was the first program written?", 0, "1843"),
    ("Who wrote the first program?", 0, "Ada Lovelace"),
    ("Who built the harbour?", 1, "Cornelis Baak"),
    ("How many masons came?", 1, "forty"),
    ("Why do bees dance?", 2, "to tell their sisters where the flowers are"),
    ("Who described the dance?", 2, "Karl von Frisch"),
    ("How far does a glacier move?", 3, "a few metres a year"),
    ("Who owns the glacier?", 3, None),
]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what runs in the other environment, and begin with the notebooks.

    They take longest, and at the end one process would wait for the other.
    """
    here = "farm" if IS_FARM else "haystack"
    marks = {item: item.get_closest_marker("only_in") for item in items}
    elsewhere = [item for item, mark in marks.items() if mark is not None and mark.args != (here,)]
    if elsewhere:
        config.hook.pytest_deselected(items=elsewhere)
    items[:] = [item for item in items if item not in elsewhere]
    items.sort(key=lambda item: "test_tutorials" not in item.nodeid)


def pytest_collection_finish() -> None:
    """Spare the garbage collector what was imported, a million objects: the Trainer calls it after every run."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache that goes with the tests."""
    directory = tmp_path_factory.mktemp("cache")
    os.environ[CACHE_VARIABLE] = str(directory)
    torch.set_num_threads(1)  # tiny models: more threads only wait for each other
    return directory


def squad_content(repeat: int = 1) -> dict:
    """A small SQuAD 2.0 file's content: 8 questions over 4 paragraphs, `repeat` times."""
    articles = []
    for copy in range(repeat):
        paragraphs = []
        for number, context in enumerate(CONTEXTS):
            qas = []
            for index, (question, paragraph, answer) in enumerate(QUESTIONS):
                if paragraph == number:
                    answers = [] if answer is None else [{"text": answer, "answer_start": context.index(answer)}]
                    qas.append(
                        {
                            "id": f"q{copy}-{index}",
                            "question": question,
                            "answers": answers,
                            "is_impossible": answer is None,
                        }
                    )
            paragraphs.append({"context": context, "qas": qas})
        articles.append({"title": f"Article {copy}", "paragraphs": paragraphs})
    return {"version": "v2.0", "data": articles}


@pytest.fixture
def squad_file(tmp_path: Path) -> Path:
    """A valid SQuAD 2.0 file of 8 questions, one of them unanswerable."""
    path = tmp_path / "squad.json"
    path.write_text(json.dumps(squad_content()), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> BertTokenizerFast:
    """A WordPiece tokenizer that was trained on the contexts and questions above; training anew would vary a little."""
    made = BertWordPieceTokenizer(str(Path(__file__).parent / "vocab.txt"), lowercase=True)
    directory = tmp_path_factory.mktemp("tokenizer")
    made.save(str(directory / "tokenizer.json"))
    return BertTokenizerFast(tokenizer_file=str(directory / "tokenizer.json"), model_max_length=512)


def make_tiny_reader(
    tokenizer: BertTokenizerFast, *, seed: int = 0, window_settings: WindowSettings | None = None, **shape: int
) -> Reader:
    """A random BERT reader: 4 layers, 32 wide, 2 heads, unless `shape` says otherwise; fp32, also where bf16 is fast."""
    config = BertConfig(
        **{
            "vocab_size": len(tokenizer),
            "hidden_size": 32,
            "num_hidden_layers": 4,
            "num_attention_heads": 2,
            "intermediate_size": 48,
            "max_position_embeddings": 128,
        }
        | shape
    )
    torch.manual_seed(seed)
    settings = window_settings or WindowSettings(max_seq_len=48, doc_stride=16, max_query_length=16)
    return Reader(BertForQuestionAnswering(config), tokenizer, window_settings=settings, device="cpu", precision="fp32")


@pytest.fixture
def tiny_reader(tokenizer: BertTokenizerFast) -> Callable[..., Reader]:
    """`make_tiny_reader` with the tokenizer given: call it with a seed, window settings and a shape."""

    def make(**arguments: object) -> Reader:
        return make_tiny_reader(tokenizer, **arguments)  # type: ignore[arg-type]

    return make
