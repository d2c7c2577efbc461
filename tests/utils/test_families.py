"""The shape of a model in words."""

from collections.abc import Callable

import pytest
from transformers import DistilBertConfig

from haystack_distill.models.bilstm_config import BiLstmConfig
from haystack_distill.models.reader import Reader
from haystack_distill.students import bilstm, early_exit
from haystack_distill.utils.families import shape_of


@pytest.mark.parametrize(
    ("config", "shape"),
    [
        (
            DistilBertConfig(n_layers=5, dim=384, n_heads=12, hidden_dim=1536, vocab_size=30522).to_dict(),
            "distilbert, 5 layers of width 384, 12 attention heads, 1,536 neurons, a vocabulary of 30,522",
        ),
        (
            BiLstmConfig(vocab_size=8000).to_dict(),
            "bilstm, 1 layer of width 1,200, 600 units a direction, a vocabulary of 8,000",
        ),
        ({"model_type": "early_exit_bert", "num_hidden_layers": 3}, "bert, 3 layers, early exits"),
        ({"model_type": "bert"}, "bert"),
        ({}, ""),
    ],
)
def test_a_shape_in_words(config: dict, shape: str) -> None:
    assert shape_of(config) == shape


def test_the_shapes_of_readers(tiny_reader: Callable[..., Reader]) -> None:
    def shape(reader: Reader) -> str:
        return shape_of(reader.model.config.to_dict())

    reader = tiny_reader(num_hidden_layers=2, intermediate_size=24)
    assert "bert, 2 layers of width" in shape(reader)
    assert ", 24 neurons," in shape(reader)
    assert shape(early_exit(reader)) == f"{shape(reader)}, early exits"
    assert shape(bilstm(reader, units=8)).startswith("bilstm, 1 layer of width 16, 8 units a direction, a vocabulary")
