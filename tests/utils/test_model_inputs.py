"""The inputs of a model's forward pass."""

import torch
from transformers import BertConfig, BertModel, DistilBertConfig, DistilBertModel

from haystack_distill.utils.model_inputs import model_inputs, takes_token_types

SHAPE = {"vocab_size": 50, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}


def test_only_inputs_of_a_batch_go_into_the_model() -> None:
    names = ("input_ids", "attention_mask", "token_type_ids", "window", "start")
    batch = {name: torch.full((1, 2), number) for number, name in enumerate(names)}
    assert list(model_inputs(batch)) == ["input_ids", "attention_mask", "token_type_ids"]
    assert list(model_inputs(batch, token_types=False)) == ["input_ids", "attention_mask"]
    assert model_inputs(batch)["input_ids"] is batch["input_ids"]
    assert list(model_inputs({"input_ids": batch["input_ids"]})) == ["input_ids"]


def test_models_that_distinguish_token_types() -> None:
    assert takes_token_types(BertModel(BertConfig(**SHAPE)))
    assert not takes_token_types(BertModel(BertConfig(**SHAPE, type_vocab_size=1)))
    assert not takes_token_types(
        DistilBertModel(DistilBertConfig(vocab_size=50, dim=8, n_layers=1, n_heads=2, hidden_dim=8))
    )
