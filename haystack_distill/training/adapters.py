"""The adaptation `adapters`: small modules inside the layers are trained, the layers themselves are not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from haystack_distill.errors import DistilError
from haystack_distill.models.adapters import adapter_weights, adapters_of, insert_adapters, sublayer_ends
from haystack_distill.training.adaptation import Adaptation, head_of, train_if
from haystack_distill.utils.checks import check_argument, is_integer

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Adapters(Adaptation):
    """Bottleneck adapters after both sublayers of each layer are trained, with the layer norms and the head.

    Houlsby et al. 2019 (arXiv 1902.00751). An adapter cannot be merged into the layers, so the reader keeps its
    adapters. What is saved is the weights that differ from those of the reader or encoder that the student was loaded
    from, and `Reader.load` puts the two together. A student that was made in memory has no such base; all its weights
    are saved.

    Args:
        adapter_size: Width of the bottleneck; the paper's are 8, 64 and 256.
    """

    keeps_parts = True
    adapter_size: int = 64

    def __post_init__(self) -> None:
        size = self.adapter_size
        check_argument("adapter_size", size, is_integer(size, 1), "a whole number of at least 1")

    def prepare(self, model: PreTrainedModel) -> None:
        """Insert the adapters, unless the model has them already, and freeze the rest; see `Adaptation.prepare`.

        Raises:
            DistilError: The architecture's sublayers are not known, or the model has adapters of another size.
        """
        sizes = {module.down.out_features for module in adapters_of(model).values()}
        if sizes - {self.adapter_size}:
            raise DistilError(
                f"the student has adapters of size {sizes.pop()}, not {self.adapter_size}; set adapter_size to their "
                "size to train them further"
            )
        if not sizes:
            insert_adapters(model, sublayer_ends(model), self.adapter_size)
        names, head = adapter_weights(model), head_of(model)
        norms = [module for module in model.modules() if "norm" in type(module).__name__.lower()]
        trained = head | {id(parameter) for module in norms for parameter in module.parameters(recurse=False)}
        for name, parameter in model.named_parameters():
            train_if(name in names or id(parameter) in trained, parameter)
