"""What a model is called with."""

import inspect

import torch


def takes_token_types(model: torch.nn.Module) -> bool:
    """Whether a model takes `token_type_ids` and has more than one type to tell apart."""
    types = getattr(model.config, "type_vocab_size", 2)
    return "token_type_ids" in inspect.signature(model.forward).parameters and bool(types and types > 1)


def model_inputs(batch: dict[str, torch.Tensor], *, token_types: bool = True) -> dict[str, torch.Tensor]:
    """The part of a batch that goes into the model; without `token_type_ids` for a model that takes none."""
    names = ("input_ids", "attention_mask", "token_type_ids") if token_types else ("input_ids", "attention_mask")
    return {name: batch[name] for name in names if name in batch}
