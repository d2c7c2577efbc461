"""What a student is taught: an objective turns the outputs of student and teacher on a batch into named losses."""

from haystack_distill.models.outputs import ModelOutputs, run_model
from haystack_distill.objectives.intermediate_layers import IntermediateLayersObjective, resolve_layer_mapping
from haystack_distill.objectives.labels import LabelObjective
from haystack_distill.objectives.language_model import LanguageModelObjective
from haystack_distill.objectives.objective import Objective
from haystack_distill.objectives.prediction_layer import PredictionLayerObjective

__all__ = [
    "IntermediateLayersObjective",
    "LabelObjective",
    "LanguageModelObjective",
    "ModelOutputs",
    "Objective",
    "PredictionLayerObjective",
    "resolve_layer_mapping",
    "run_model",
]
