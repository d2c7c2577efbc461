"""Fingerprints of models: what identifies a teacher in the cache and a student in a run's record."""

import hashlib
from typing import Any

import torch
from transformers import PreTrainedModel

from haystack_distill.utils.hashing import hash_json


def model_fingerprint(model: PreTrainedModel) -> str:
    """SHA-256 over a model's configuration and weights, whatever it is called and wherever it lies."""
    return _hash_of_weights(model, hash_json(type(model).__name__, _identifying_config(model))).hexdigest()


def student_record(model: PreTrainedModel) -> dict[str, Any]:
    """What a run records of its student as it is before the first step: class, configuration, hash of the weights."""
    weights = _hash_of_weights(model, "").hexdigest()
    return {"class": type(model).__name__, "config": _identifying_config(model), "weights": weights}


def _identifying_config(model: PreTrainedModel) -> dict[str, Any]:
    """What a model's configuration has of its own, without what says only where it came from and how it is kept."""
    kept = ("_name_or_path", "transformers_version", "torch_dtype", "dtype", "architectures")
    return {name: value for name, value in model.config.to_diff_dict().items() if name not in kept}


def _hash_of_weights(model: PreTrainedModel, begin: str) -> Any:
    digest = hashlib.sha256(begin.encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest
