"""Distillation methods and their objectives, one method per file."""

from typing import TYPE_CHECKING

from haystack_distill.utils.lazy import lazy_names

if TYPE_CHECKING:
    from haystack_distill.models.outputs import ModelOutputs, OutputRequest, run_model
    from haystack_distill.objectives.contextual_relations import ContextualRelations
    from haystack_distill.objectives.feature_maps import FeatureMaps
    from haystack_distill.objectives.hard_targets import HardTargets
    from haystack_distill.objectives.intermediate_layers import IntermediateLayers, resolve_layer_mapping
    from haystack_distill.objectives.labels import Labels
    from haystack_distill.objectives.logit_regression import LogitRegression
    from haystack_distill.objectives.masked_language_model import MaskedLanguageModel
    from haystack_distill.objectives.method import Method
    from haystack_distill.objectives.objective import LossTerm, Objective, WeightedSum
    from haystack_distill.objectives.patient import Patient
    from haystack_distill.objectives.prediction_layer import PredictionLayer
    from haystack_distill.objectives.relations import AttentionRelations
    from haystack_distill.objectives.representation import Representation
    from haystack_distill.objectives.schedule import Linear
    from haystack_distill.objectives.self_distillation import SelfDistillation
    from haystack_distill.objectives.task_aware_layers import TaskAwareLayers, TaskFilters
    from haystack_distill.objectives.teacher_student import TeacherStudent
    from haystack_distill.objectives.teacher_student_loss import TeacherStudentLoss
    from haystack_distill.objectives.triple_loss import TripleLoss

__all__ = [
    "AttentionRelations",
    "ContextualRelations",
    "FeatureMaps",
    "HardTargets",
    "IntermediateLayers",
    "Labels",
    "Linear",
    "LogitRegression",
    "LossTerm",
    "MaskedLanguageModel",
    "Method",
    "ModelOutputs",
    "Objective",
    "OutputRequest",
    "Patient",
    "PredictionLayer",
    "Representation",
    "SelfDistillation",
    "TaskAwareLayers",
    "TaskFilters",
    "TeacherStudent",
    "TeacherStudentLoss",
    "TripleLoss",
    "WeightedSum",
    "resolve_layer_mapping",
    "run_model",
]

__getattr__ = lazy_names(
    __name__,
    {
        "AttentionRelations": "haystack_distill.objectives.relations",
        "ContextualRelations": "haystack_distill.objectives.contextual_relations",
        "HardTargets": "haystack_distill.objectives.hard_targets",
        "FeatureMaps": "haystack_distill.objectives.feature_maps",
        "IntermediateLayers": "haystack_distill.objectives.intermediate_layers",
        "Labels": "haystack_distill.objectives.labels",
        "Linear": "haystack_distill.objectives.schedule",
        "LogitRegression": "haystack_distill.objectives.logit_regression",
        "LossTerm": "haystack_distill.objectives.objective",
        "MaskedLanguageModel": "haystack_distill.objectives.masked_language_model",
        "Method": "haystack_distill.objectives.method",
        "ModelOutputs": "haystack_distill.models.outputs",
        "Objective": "haystack_distill.objectives.objective",
        "OutputRequest": "haystack_distill.models.outputs",
        "Patient": "haystack_distill.objectives.patient",
        "PredictionLayer": "haystack_distill.objectives.prediction_layer",
        "Representation": "haystack_distill.objectives.representation",
        "SelfDistillation": "haystack_distill.objectives.self_distillation",
        "TaskAwareLayers": "haystack_distill.objectives.task_aware_layers",
        "TaskFilters": "haystack_distill.objectives.task_aware_layers",
        "TeacherStudent": "haystack_distill.objectives.teacher_student",
        "TeacherStudentLoss": "haystack_distill.objectives.teacher_student_loss",
        "TripleLoss": "haystack_distill.objectives.triple_loss",
        "WeightedSum": "haystack_distill.objectives.objective",
        "resolve_layer_mapping": "haystack_distill.objectives.intermediate_layers",
        "run_model": "haystack_distill.models.outputs",
    },
)
