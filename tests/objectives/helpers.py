"""Tiny models, a batch and a run of an objective, for objectives that read more of the models than logits."""

import torch
from transformers import AutoConfig, AutoModelForQuestionAnswering

from haystack_distill.models.outputs import run_model

SIZES = {"vocab_size": 40, "max_position_embeddings": 24, "initializer_range": 0.3}


def config(layers=2, width=12, heads=2, model_type="bert", **more):
    shape = {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": heads, "intermediate_size": 24}
    if model_type == "distilbert":
        shape = {"dim": width, "n_layers": layers, "n_heads": heads, "hidden_dim": 24}
    return AutoConfig.for_model(model_type, **(SIZES | shape | more))


def model(config, seed=0, **settings):
    torch.manual_seed(seed)
    return AutoModelForQuestionAnswering.from_config(config, **settings).eval()


def batch(lengths=(7, 4)):
    ids, mask = torch.ones(len(lengths), max(lengths), dtype=torch.long), torch.zeros(len(lengths), max(lengths))
    for row, length in enumerate(lengths):
        ids[row, :length] = torch.randint(5, 40, (length,), generator=torch.Generator().manual_seed(row))
        mask[row, :length] = 1
    return {"input_ids": ids, "attention_mask": mask.long(), "weight": torch.ones(len(lengths))}


def run(objective, student, teacher, batch):
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    outputs = run_model(student, inputs, objective.student_request)
    taught = run_model(teacher, inputs, objective.teacher_request)  # with gradients, which must not be used
    return {name: term.values for name, term in objective(outputs, taught, batch).items()}
