"""Layers compiled by torch.compile while they train: fewer and larger kernels, at the price of making them first."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from haystack_distill.errors import DistilError
from haystack_distill.models.bilstm_config import MODEL_TYPE
from haystack_distill.models.early_exit import EarlyExitModel
from haystack_distill.models.outputs import OutputRequest
from haystack_distill.students.layers import layer_list_name

_BACKEND = "inductor"


def require_compilable(model: PreTrainedModel, request: OutputRequest) -> None:
    """Check that a student has layers to compile.

    Args:
        model: The student.
        request: The outputs that it is run for.

    Raises:
        DistilError: It has early exits, is a BiLSTM or has layers that are not found, or the method looks into all of
            its layers.
    """
    if not _has_layers(model):
        raise DistilError(
            f"torch_compile compiles the layers of a transformer; {type(model).__name__} has others, so leave it out"
        )
    if not _compilable(model, request):
        raise DistilError(
            "torch_compile would have no effect: the method looks into the attention of every layer of the student; "
            "leave it out, or compare hidden states alone (attention_loss_weight=0)"
        )


class CompiledLayers:
    """A context in which the layers of some models run compiled, each as one graph for all lengths of a batch.

    Equal layers share what is compiled. Embeddings and head run as they are. So do layers whose attention scores or
    queries, keys and values are requested, because these are picked up inside them, and models of other kinds. It is
    entered for each step: what runs between steps, such as an evaluation or a copy, has the layers as they are.

    Args:
        models: Models, with everything that is added to them for training, and the outputs that they are run for.
    """

    def __init__(self, models: list[tuple[PreTrainedModel, OutputRequest]]) -> None:
        layers = [layer for model, request in models if _has_layers(model) for layer in _compilable(model, request)]
        # The forward pass and not the call, so that transformers' hooks, which collect hidden states, stay outside.
        self._compiled: dict[nn.Module, Callable[..., Any]] = {
            layer: torch.compile(layer.forward, dynamic=True, backend=_BACKEND) for layer in layers
        }

    def __enter__(self) -> None:
        for layer, compiled in self._compiled.items():
            layer.forward = compiled

    def __exit__(self, *_: object) -> None:
        for layer in self._compiled:
            del layer.forward


def _has_layers(model: PreTrainedModel) -> bool:
    if isinstance(model, EarlyExitModel) or model.config.model_type == MODEL_TYPE:
        return False
    try:
        layer_list_name(model)
    except DistilError:
        return False
    return True


def _compilable(model: PreTrainedModel, request: OutputRequest) -> list[nn.Module]:
    """The layers into which nothing looks, none twice."""
    watched = {*request.attention_scores, *request.query_key_value}
    name = layer_list_name(model)
    if name is None:  # ALBERT, whose layers are one
        found = next(module for name, module in model.named_modules() if name.endswith("albert_layer_groups"))
        return [] if watched else list(found)
    return [layer for number, layer in enumerate(model.get_submodule(name), start=1) if number not in watched]
