"""The registry of adaptations: one name for an adaptation everywhere, as `training.methods` has for methods."""

from __future__ import annotations

from typing import TYPE_CHECKING

from haystack_distill.utils.registry import Registry

if TYPE_CHECKING:
    from haystack_distill.training.adaptation import Adaptation

ADAPTATIONS: Registry[Adaptation] = Registry(
    "adaptation",
    {
        "all": "haystack_distill.training.adaptation:AllWeights",
        "last_layers": "haystack_distill.training.adaptation:LastLayers",
        "biases": "haystack_distill.training.adaptation:Biases",
    },
)
