"""What Haystack 1's own tests check of SQuAD data and of augment_squad: its SquadData reads ours, and ours reads its."""

import importlib.util
import json
from pathlib import Path

import pandas as pd
import pytest
import torch
from transformers import BertConfig, BertForMaskedLM, BertTokenizerFast

if importlib.util.find_spec("haystack") is None or importlib.util.find_spec("haystack.nodes") is None:
    pytest.skip("farm-haystack is not in this environment", allow_module_level=True)

from haystack.document_stores import InMemoryDocumentStore
from haystack.utils.squad_data import SquadData

from augment.augment_squad import augment_squad
from haystack_distill.data.squad.load import load_examples, write_squad


def rows(path: Path) -> list[tuple]:
    return sorted(
        (row["id"], row["title"], row["context"], row["question"], row["is_impossible"], str(row["answers"]))
        for row in load_examples(path)
    )


def test_what_haystack_saves_is_read(squad_file: Path, tmp_path: Path) -> None:
    """As it stands in the file, and after Haystack took it apart into a table and put it together again."""
    expected = rows(squad_file)
    data = SquadData.from_file(str(squad_file))
    data.save(str(tmp_path / "saved.json"))
    assert rows(tmp_path / "saved.json") == expected
    again = SquadData(SquadData.df_to_data(data.df))
    again.save(str(tmp_path / "again.json"))
    assert rows(tmp_path / "again.json") == expected


def test_what_we_write_is_read_by_haystack(squad_file: Path, tmp_path: Path) -> None:
    write_squad(load_examples(squad_file), tmp_path / "written.json")
    found, expected = (SquadData.from_file(str(path)) for path in (tmp_path / "written.json", squad_file))
    columns = ["title", "context", "question", "id", "answer_text", "answer_start", "is_impossible"]
    pd.testing.assert_frame_equal(found.df[columns], expected.df[columns])
    for unit in ("paragraphs", "questions", "answers", "no_answers", "span_answers"):
        assert found.count(unit) == expected.count(unit) > 0
    labels = found.to_label_objs(answer_type="generative")
    for label, (_, row) in zip(labels, found.df.iterrows(), strict=True):
        assert (label.query, label.id, label.document.content) == (row.question, row.id, row.context)
        assert label.answer.answer == row.answer_text or row.is_impossible


def test_what_we_write_goes_into_a_document_store(squad_file: Path, tmp_path: Path) -> None:
    write_squad(load_examples(squad_file), tmp_path / "written.json")
    store = InMemoryDocumentStore()
    store.add_eval_data(str(tmp_path / "written.json"), doc_index="documents", label_index="labels")
    assert (store.get_document_count(index="documents"), store.get_label_count(index="labels")) == (4, 8)
    (label,) = [one for one in store.get_all_labels(index="labels") if one.query == "Who built the harbour?"]
    assert (label.answer.answer, label.no_answer, label.origin) == ("Cornelis Baak", False, "gold-label")
    (span,) = label.answer.offsets_in_document
    document = store.get_document_by_id(label.document.id, index="documents")
    assert document.content[span.start : span.end] == "Cornelis Baak"


def test_augmentation_multiplies_paragraphs(squad_file: Path, tokenizer: BertTokenizerFast, tmp_path: Path) -> None:
    """Called as Haystack 1's function is, with a language model and a file of word vectors."""
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
    model = tmp_path / "model"
    BertForMaskedLM(BertConfig(vocab_size=len(tokenizer), **shape)).save_pretrained(model)
    tokenizer.save_pretrained(model)
    vectors = tmp_path / "glove.txt"
    vectors.write_text("".join(f"{word} {number} 1 0.5\n" for number, word in enumerate(("forty", "masons", "bees"))))
    augment_squad(
        model=model,
        tokenizer=model,
        squad_path=squad_file,
        output_path=tmp_path / "augmented.json",
        glove_path=vectors,
        multiplication_factor=5,
    )
    original, augmented = (SquadData.from_file(str(path)) for path in (squad_file, tmp_path / "augmented.json"))
    for unit in ("questions", "answers", "no_answers"):
        assert augmented.count(unit) == original.count(unit) * 5
    assert augmented.count("paragraphs") >= original.count("paragraphs") * 5
    for article in json.loads((tmp_path / "augmented.json").read_text())["data"]:
        for paragraph in article["paragraphs"]:
            for answer in (answer for qas in paragraph["qas"] for answer in qas["answers"]):
                assert paragraph["context"][answer["answer_start"] :].startswith(answer["text"])
