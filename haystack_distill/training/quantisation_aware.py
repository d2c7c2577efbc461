"""The adaptation `quantisation_aware`: all weights are trained for int8."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from haystack_distill.errors import DistilError
from haystack_distill.students.layers import dense_layers
from haystack_distill.training.adaptation import Adaptation
from haystack_distill.utils.checks import check_argument, is_integer

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class QuantisationAware(Adaptation):
    """All weights are trained for int8: dense layers and embeddings compute with rounded values.

    Quantisation-aware training (Jacob et al. 2018, arXiv 1712.05877): in each step weights and the inputs of dense
    layers are rounded as in ONNX Runtime's dynamic int8, so that the student learns to be right in spite of it. The
    weights themselves stay in floating point, and the saved reader is a plain one, to be exported in int8. For the last
    epoch of a student, with a low learning rate.

    Args:
        weight_bits: Bits of the rounded weights: 7, as `haystack-distill export` writes them by default, or 8, as with
            `--no-reduce-range`.
    """

    weight_bits: int = 7

    def __post_init__(self) -> None:
        bits = self.weight_bits
        check_argument("weight_bits", bits, is_integer(bits, 7) and bits <= 8, "7 or 8")

    def prepare(self, model: PreTrainedModel) -> None:
        """Put rounding layers in the place of the dense layers and the embeddings; see `Adaptation.prepare`.

        Raises:
            DistilError: The model has no dense layers.
        """
        from torch import nn

        from haystack_distill.models.fake_quantisation import (
            Int8Embedding,
            Int8Linear,
            TokensOf,
            of_same_shape,
            replace_module,
        )

        if not dense_layers(model):
            raise DistilError(
                f"a {model.config.model_type!r} model has no dense layers, so quantisation_aware has no effect; choose "
                "the adaptation all"
            )
        tokens = TokensOf(model.base_model)
        for name, module in list(model.named_modules()):
            made: nn.Module
            if type(module) is nn.Linear:
                made = of_same_shape(Int8Linear, module)
                made.bits, made.tokens = self.weight_bits, tokens
            elif type(module) is nn.Embedding:
                made = of_same_shape(Int8Embedding, module)
            else:
                continue
            replace_module(model, name, made)

    def finish(self, model: PreTrainedModel) -> None:
        """Put plain layers in the place of the rounding ones; see `Adaptation.finish`."""
        from torch import nn

        from haystack_distill.models.fake_quantisation import Int8Embedding, Int8Linear, of_same_shape, replace_module

        for tokens in {module.tokens for module in model.modules() if isinstance(module, Int8Linear)}:
            if tokens is not None:
                tokens.forget()
        for kind, plain in ((Int8Linear, nn.Linear), (Int8Embedding, nn.Embedding)):
            for name in [name for name, module in model.named_modules() if isinstance(module, kind)]:
                replace_module(model, name, of_same_shape(plain, model.get_submodule(name)))
