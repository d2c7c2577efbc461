"""Fingerprints of models: they identify a teacher in the cache and a student in the record of a run."""

import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from haystack_distill.utils.hashing import hash_json


def model_fingerprint(model: PreTrainedModel) -> str:
    """SHA-256 (hex) of a model's configuration and weights, independent of its name and location."""
    return weights_fingerprint(model.state_dict(), hash_json(type(model).__name__, _identifying_config(model)))


def student_record(model: PreTrainedModel) -> dict[str, Any]:
    """The record of a student before the first step of a run: class, configuration and hash of the weights."""
    weights = weights_fingerprint(model.state_dict())
    return {"class": type(model).__name__, "config": _identifying_config(model), "weights": weights}


def _identifying_config(model: PreTrainedModel) -> dict[str, Any]:
    """A model's configuration without entries about its origin and its storage."""
    ignored = {"_name_or_path", "transformers_version", "torch_dtype", "dtype", "architectures"}
    ignored |= {"_attn_implementation_autoset"}  # of transformers 4, where it was loaded from files
    return {name: value for name, value in model.config.to_diff_dict().items() if name not in ignored}


def weights_fingerprint(weights: Mapping[str, Tensor], prefix: str = "") -> str:
    """SHA-256 (hex) of named weights, in any order, after a prefix."""
    digest = hashlib.sha256(prefix.encode())
    for name, tensor in sorted(weights.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
