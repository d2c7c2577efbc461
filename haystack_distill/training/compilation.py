"""Layers compiled by torch.compile while they train: fewer and larger kernels, at the price of making them first."""

import contextlib
from collections.abc import Iterator

import torch
from torch import nn
from transformers import PreTrainedModel

from haystack_distill.errors import DistilError
from haystack_distill.models.bilstm_config import MODEL_TYPE
from haystack_distill.models.early_exit import EarlyExitModel
from haystack_distill.models.outputs import OutputRequest
from haystack_distill.students.layers import layer_list_name

_BACKEND = "inductor"


def require_compilable(model: PreTrainedModel) -> None:
    """Check that the layers of a model can be compiled.

    Raises:
        DistilError: It has early exits, or is a BiLSTM.
    """
    if isinstance(model, EarlyExitModel) or model.config.model_type == MODEL_TYPE:
        raise DistilError(
            f"torch_compile compiles the layers of a transformer; {type(model).__name__} has others, so leave it out"
        )


@contextlib.contextmanager
def compiled_layers(model: PreTrainedModel, request: OutputRequest) -> Iterator[None]:
    """While it is active, the layers of a model run compiled, each as one graph for all lengths of a batch.

    Equal layers share what is compiled. Embeddings and head run as they are, and so do layers whose attention scores or
    queries, keys and values are requested, because these are picked up inside them.

    Args:
        model: The model, with everything that is added to it for training.
        request: The outputs that it is run for.

    Raises:
        DistilError: See `require_compilable`.
    """
    require_compilable(model)
    layers = _compilable(model, request)
    for layer in layers:
        # The forward pass and not the call, so that transformers' hooks, which collect hidden states, stay outside.
        layer.forward = torch.compile(layer.forward, dynamic=True, backend=_BACKEND)
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


def _compilable(model: PreTrainedModel, request: OutputRequest) -> list[nn.Module]:
    """The layers from which nothing is picked up, none twice."""
    watched = {*request.attention_scores, *request.query_key_value}
    name = layer_list_name(model)
    if name is None:  # ALBERT, whose layers are one
        found = next(module for name, module in model.named_modules() if name.endswith("albert_layer_groups"))
        return [] if watched else list(found)
    return [layer for number, layer in enumerate(model.get_submodule(name), start=1) if number not in watched]
