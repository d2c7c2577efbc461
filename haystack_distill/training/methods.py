"""The registry of methods: one name for a method everywhere (Python, command line, recipes, records, model cards)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from haystack_distill.utils.registry import Registry

if TYPE_CHECKING:
    from haystack_distill.objectives.method import Method

METHODS: Registry[Method] = Registry(
    "method",
    {
        "labels": "haystack_distill.objectives.labels:Labels",
        "prediction_layer": "haystack_distill.objectives.prediction_layer:PredictionLayer",
        "intermediate_layers": "haystack_distill.objectives.intermediate_layers:IntermediateLayers",
        "feature_maps": "haystack_distill.objectives.feature_maps:FeatureMaps",
        "attention_relations": "haystack_distill.objectives.relations:AttentionRelations",
        "contextual_relations": "haystack_distill.objectives.contextual_relations:ContextualRelations",
        "task_filters": "haystack_distill.objectives.task_aware_layers:TaskFilters",
        "task_aware_layers": "haystack_distill.objectives.task_aware_layers:TaskAwareLayers",
        "masked_language_model": "haystack_distill.objectives.masked_language_model:MaskedLanguageModel",
        "hard_targets": "haystack_distill.objectives.hard_targets:HardTargets",
        "logit_regression": "haystack_distill.objectives.logit_regression:LogitRegression",
        "patient": "haystack_distill.objectives.patient:Patient",
        "self_distillation": "haystack_distill.objectives.self_distillation:SelfDistillation",
        "representation": "haystack_distill.objectives.representation:Representation",
        "teacher_student": "haystack_distill.objectives.teacher_student:TeacherStudent",
        "triple_loss": "haystack_distill.objectives.triple_loss:TripleLoss",
    },
)
