"""The inputs of a model's forward pass."""

import inspect

import torch


def takes_token_types(model: torch.nn.Module) -> bool:
    """Whether a model accepts `token_type_ids` and distinguishes more than one type."""
    types = getattr(model.config, "type_vocab_size", 2)
    return "token_type_ids" in inspect.signature(model.forward).parameters and bool(types and types > 1)


def model_inputs(batch: dict[str, torch.Tensor], *, token_types: bool = True) -> dict[str, torch.Tensor]:
    """The tensors of a batch that are model inputs; `token_type_ids` only with `token_types`."""
    names = ("input_ids", "attention_mask", "token_type_ids") if token_types else ("input_ids", "attention_mask")
    return {name: batch[name] for name in names if name in batch}
