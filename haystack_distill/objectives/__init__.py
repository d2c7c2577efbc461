"""What a student is taught: methods and the objectives they make, one family a file."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from haystack_distill.models.outputs import ModelOutputs, OutputRequest, run_model
    from haystack_distill.objectives.intermediate_layers import IntermediateLayers, resolve_layer_mapping
    from haystack_distill.objectives.labels import Labels
    from haystack_distill.objectives.masked_language_model import MaskedLanguageModel
    from haystack_distill.objectives.method import Method
    from haystack_distill.objectives.objective import LossTerm, Objective, WeightedSum
    from haystack_distill.objectives.prediction_layer import PredictionLayer

_MODULES = {
    "IntermediateLayers": "objectives.intermediate_layers",
    "Labels": "objectives.labels",
    "LossTerm": "objectives.objective",
    "MaskedLanguageModel": "objectives.masked_language_model",
    "Method": "objectives.method",
    "ModelOutputs": "models.outputs",
    "Objective": "objectives.objective",
    "OutputRequest": "models.outputs",
    "PredictionLayer": "objectives.prediction_layer",
    "WeightedSum": "objectives.objective",
    "resolve_layer_mapping": "objectives.intermediate_layers",
    "run_model": "models.outputs",
}
__all__ = [
    "IntermediateLayers",
    "Labels",
    "LossTerm",
    "MaskedLanguageModel",
    "Method",
    "ModelOutputs",
    "Objective",
    "OutputRequest",
    "PredictionLayer",
    "WeightedSum",
    "resolve_layer_mapping",
    "run_model",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"haystack_distill.{_MODULES[name]}"), name)
