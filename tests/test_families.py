"""Architectures end to end, with small random models: what each can learn, and what it is saved and exported as.

The table of docs/families.md is what these tests find. `make test` names a directory for both environments
(`HAYSTACK_DISTILL_FAMILIES`): what one version of transformers has saved, the other one loads.
"""

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import processors
from transformers import (
    CONFIG_MAPPING,
    MODEL_FOR_QUESTION_ANSWERING_MAPPING,
    AutoModelForQuestionAnswering,
    BertTokenizerFast,
    PreTrainedTokenizerFast,
    __version__,
)

from haystack_distill import DistilError, Reader, ReaderTrainer, TrainingSettings, WindowSettings, students
from haystack_distill.export.exporting import export_reader
from haystack_distill.objectives import AttentionRelations, ContextualRelations, IntermediateLayers, PredictionLayer
from tests.conftest import CONTEXTS, QUESTIONS

WINDOWS = WindowSettings(48, 16, 16)
PAIRS = [(question, CONTEXTS[place]) for question, place, _ in QUESTIONS]
SHAPE = {"hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 24}
RELATIVE = {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_biased_input": False}
FAMILIES: dict[str, dict[str, Any]] = {
    "bert": SHAPE,
    "roberta": SHAPE,
    "distilbert": {"dim": 16, "n_layers": 4, "n_heads": 2, "hidden_dim": 24},
    "electra": SHAPE | {"embedding_size": 8},
    "albert": SHAPE | {"embedding_size": 8},
    "mpnet": SHAPE,
    "xlm-roberta": SHAPE,
    "camembert": SHAPE,
    "deberta": SHAPE | RELATIVE,
    "deberta-v2": SHAPE | RELATIVE,
    "mobilebert": SHAPE | {"true_hidden_size": 16, "embedding_size": 16, "intra_bottleneck_size": 16},
    "squeezebert": SHAPE | {"embedding_size": 16},
    "big_bird": SHAPE | {"attention_type": "original_full"},
    "longformer": SHAPE | {"attention_window": [8] * 4, "sep_token_id": 3},
    "modernbert": SHAPE,
}
TWO_SEPARATORS = ("roberta", "xlm-roberta", "camembert", "mpnet", "longformer")  # between question and context
ONLY_5 = ("modernbert",)  # transformers 4.49 has no reader of that type
IS_5 = int(__version__.split(".")[0]) >= 5
HERE = [name for name in FAMILIES if IS_5 or name not in ONLY_5]
METHODS = {
    "answers": PredictionLayer(),
    "hidden states": IntermediateLayers(attention_loss_weight=0),
    "attention scores": IntermediateLayers(),
    "attention relations": AttentionRelations(),
}
RELATIONS = ContextualRelations()  # wherever hidden states are
SAVED = Path(os.environ["HAYSTACK_DISTILL_FAMILIES"]) if "HAYSTACK_DISTILL_FAMILIES" in os.environ else None
PAGE = Path(__file__).parent.parent / "docs" / "families.md"


def teacher_of(family: str, plain: BertTokenizerFast) -> Reader:
    """A random reader of a family with the layout of its tokenizers."""
    tokenizer = plain
    if family in TWO_SEPARATORS:
        backend = type(plain.backend_tokenizer).from_str(plain.backend_tokenizer.to_str())
        cls, sep = plain.cls_token, plain.sep_token
        backend.post_processor = processors.TemplateProcessing(
            single=f"{cls} $A {sep}",
            pair=f"{cls} $A {sep} {sep} $B {sep}",
            special_tokens=[(cls, plain.cls_token_id), (sep, plain.sep_token_id)],
        )
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, **plain.special_tokens_map, model_max_length=60)
    common = {"vocab_size": len(tokenizer), "max_position_embeddings": 66, "pad_token_id": tokenizer.pad_token_id}
    changed = {"sep_token_id": tokenizer.sep_token_id} if family == "longformer" else {}
    config = CONFIG_MAPPING[family](**(common | FAMILIES[family] | changed))
    torch.manual_seed(0)
    model = AutoModelForQuestionAnswering.from_config(config)
    return Reader(model, tokenizer, window_settings=WINDOWS, device="cpu", precision="fp32")


def cells_of_page() -> dict[str, dict[str, str]]:
    """The table of the page: cells by family and column."""
    lines = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("|")]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {re.findall("`(.+?)`", row[0])[0]: dict(zip(rows[0], row, strict=True)) for row in rows[2:]}


def cell(error: DistilError | None) -> str:
    """What the table has for a success, or for a refusal."""
    return "yes" if error is None else "no"


def attempt(act: Any) -> DistilError | None:
    """The refusal of something, if it is refused; each names a remedy."""
    refusal = None
    try:
        act()
    except DistilError as error:
        refusal = error
    assert refusal is None or re.search("; |: ", str(refusal)), refusal
    return refusal


@pytest.mark.parametrize("family", HERE)
def test_a_family_end_to_end(family: str, tokenizer: BertTokenizerFast, squad_file: Path, tmp_path: Path) -> None:
    teacher = teacher_of(family, tokenizer)
    settings = TrainingSettings(max_steps=1, progress=False, batch_size=4, checkpoint_every=None)
    found: dict[str, str] = {}

    def student() -> Reader:
        return students.from_teacher(teacher, layers=2)

    trained = student()
    before = {name: weight.clone() for name, weight in trained.model.state_dict().items()}
    ReaderTrainer(trained, settings=settings).train(squad_file)
    assert any(not torch.equal(weight, before[name]) for name, weight in trained.model.state_dict().items())
    found["labels"] = "yes"
    for column, method in METHODS.items():
        learner = ReaderTrainer(student(), settings=settings)
        error = attempt(lambda learner=learner, method=method: learner.distil(teacher, squad_file, method))
        found[column] = cell(error)
        if error is not None:
            assert f"'{family}'" in str(error)
    related = attempt(lambda: ReaderTrainer(student(), settings=settings).distil(teacher, squad_file, RELATIONS))
    assert cell(related) == found["hidden states"]
    loaded = saved_and_loaded(trained, family, tmp_path)
    found["saved and loaded"] = "yes"
    found["ONNX"] = cell(attempt(lambda: export_reader(loaded, tmp_path / "exported")))
    assert found == {name: text for name, text in cells_of_page()[family].items() if name in found}


def saved_and_loaded(reader: Reader, name: str, tmp_path: Path) -> Reader:
    """The reader as it is read again; it and its answers stay for the other version, where there is one."""
    directory = (tmp_path if SAVED is None else SAVED / __version__.split(".")[0]) / name
    reader.save(directory)
    loaded = Reader.load(directory, window_settings=WINDOWS, device="cpu", precision="fp32")
    answers = reader.answer_batch(PAIRS, 3)
    assert loaded.answer_batch(PAIRS, 3) == answers
    written = [[[one.start, one.end, one.no_answer, one.score] for one in some] for some in answers]
    (directory / "answers.json").write_text(json.dumps(written), encoding="utf-8")
    return loaded


# Readers that are no plain model of a family, or have another tokenizer than its.
KINDS: dict[str, Callable[[Reader, Path], Reader]] = {
    "pruned": lambda teacher, data: students.pruned(teacher, data, layers=3, intermediate_size=8),
    "bilstm": lambda teacher, data: students.bilstm(teacher, units=8, embedding_size=8),
    "early-exit": lambda teacher, data: students.early_exit(teacher, branch_size=4, match_size=4),
    **{
        algorithm: lambda teacher, data, algorithm=algorithm: students.with_tokenizer(  # type: ignore[misc]
            teacher, CONTEXTS * 3, algorithm=algorithm, vocab_size=300
        )
        for algorithm in ("unigram", "bpe", "wordpiece")
    },
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_of_reader_is_saved_and_loaded(
    kind: str, tokenizer: BertTokenizerFast, squad_file: Path, tmp_path: Path
) -> None:
    reader = KINDS[kind](teacher_of("bert", tokenizer), squad_file)
    loaded = saved_and_loaded(reader, kind, tmp_path)
    assert type(loaded.model).__name__ == type(reader.model).__name__


def test_the_page_has_every_family() -> None:
    page = cells_of_page()
    assert list(page) == list(FAMILIES)
    assert {name for name, row in page.items() if "transformers 5" in row["family"]} == set(ONLY_5)
    known = {kind.model_type for kind in MODEL_FOR_QUESTION_ANSWERING_MAPPING}
    assert known.issuperset(HERE)
    assert IS_5 or known.isdisjoint(ONLY_5)


OTHER = None if SAVED is None else SAVED / ("4" if IS_5 else "5")
if OTHER is not None and OTHER.exists():

    @pytest.mark.parametrize(
        "directory",
        [OTHER / name for name in (*HERE, *KINDS) if name not in ONLY_5],
        ids=lambda one: one.name,
    )
    def test_what_the_other_version_has_saved(directory: Path) -> None:
        """The reader that another version of transformers has saved gives the answers that it gave there."""
        reader = Reader.load(directory, window_settings=WINDOWS, device="cpu", precision="fp32")
        expected = json.loads((directory / "answers.json").read_text(encoding="utf-8"))
        for found, there in zip(reader.answer_batch(PAIRS, 3), expected, strict=True):
            assert [[one.start, one.end, one.no_answer] for one in found] == [one[:3] for one in there]
            assert [one.score for one in found] == pytest.approx([one[3] for one in there], abs=1e-5)
