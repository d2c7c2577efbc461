"""The inputs of a model's forward pass."""

import functools
import inspect
from collections.abc import Callable

import torch


def takes_token_types(model: torch.nn.Module) -> bool:
    """Whether a model accepts `token_type_ids` and distinguishes more than one type."""
    types = getattr(model.config, "type_vocab_size", 2)
    forward = getattr(model.forward, "__func__", model.forward)  # of the class: the same for all that it has made
    return "token_type_ids" in _arguments_of(forward) and bool(types and types > 1)


@functools.lru_cache  # a reader asks for every question
def _arguments_of(forward: Callable[..., object]) -> frozenset[str]:
    return frozenset(inspect.signature(forward).parameters)


def model_inputs(batch: dict[str, torch.Tensor], *, token_types: bool = True) -> dict[str, torch.Tensor]:
    """The tensors of a batch that are model inputs; `token_type_ids` only with `token_types`."""
    names = ("input_ids", "attention_mask", "token_type_ids") if token_types else ("input_ids", "attention_mask")
    return {name: batch[name] for name in names if name in batch}
