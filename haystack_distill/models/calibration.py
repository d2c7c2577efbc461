"""What a calibration leaves in a reader: its temperature in the weights of the head, and a record in the configuration.

The record is the entry `calibration` of config.json. It goes wherever the weights go: into copies, exports and readers
with a smaller vocabulary. Training removes it, because other weights have another scale.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from haystack_distill.errors import DistilError
from haystack_distill.utils.checks import check_argument, is_number

RECORD = "calibration"  # the name of the entry
THRESHOLD = "no_answer_threshold"  # in the record: is taken off the no-answer's logit; absent where it is 0
TEMPERATURE = "temperature"  # in the record: the product of all temperatures that are folded into the head


def calibration_record(config: PretrainedConfig) -> dict[str, Any]:
    """The record of a reader's calibration; empty where it was not calibrated."""
    found = getattr(config, RECORD, None)
    return dict(found) if isinstance(found, dict) else {}


def stored_threshold(config: PretrainedConfig) -> float | None:
    """The no-answer threshold that a calibration stored, or None.

    Raises:
        DistilError: It is not a number.
    """
    threshold = calibration_record(config).get(THRESHOLD)
    if threshold is None:
        return None
    if not is_number(threshold):
        raise DistilError(
            f"config.json: {RECORD}.{THRESHOLD} must be a number, not {threshold!r}; correct it, or calibrate again"
        )
    return float(threshold)


def without_threshold(logits: Tensor, position: int, threshold: float) -> Tensor:
    """Logits (B, L) with a threshold taken off the no-answer's: "no answer" wins as if it had to exceed it.

    That changes the odds of the no-answer, as a change of its prior does, and so scores agree with what is chosen.
    """
    moved = logits.clone()
    moved[:, position] -= threshold
    return moved


def forget_calibration(config: PretrainedConfig) -> bool:
    """Remove the record of a calibration; returns whether there was one."""
    if not hasattr(config, RECORD):
        return False
    delattr(config, RECORD)
    return True


def answer_heads(model: PreTrainedModel) -> list[nn.Linear]:
    """The dense layers that compute a model's start and end logits.

    A model of another kind names them itself, by a method `answer_heads` that returns them; otherwise they are the
    dense layers with two outputs behind the encoder.

    Raises:
        DistilError: There are none.
    """
    if hasattr(model, "answer_heads"):
        return list(model.answer_heads())
    inside = {id(module) for module in model.base_model.modules()} if model.base_model is not model else set()
    found = [
        module
        for module in model.modules()
        if isinstance(module, nn.Linear) and module.out_features == 2 and id(module) not in inside
    ]
    if not found:
        raise DistilError(
            f"{type(model).__name__} has no dense layer for start and end that a temperature could be folded into; "
            "calibrate a reader of another family, such as BERT or RoBERTa"
        )
    return found


@torch.no_grad()
def fold_temperature(model: PreTrainedModel, temperature: float) -> None:
    """Divide start and end logits by a temperature, in place: the weights and biases of the head are divided by it.

    Temperature scaling (Guo et al. 2017, "On Calibration of Modern Neural Networks", arXiv 1706.04599) as a plain
    model: whatever loads the weights has the scaled logits.

    Args:
        model: A question answering model with weights.
        temperature: Above 0; above 1 it lowers confidence.

    Raises:
        DistilError: The temperature is no such number, or the model has no such head.
    """
    check_argument(TEMPERATURE, temperature, is_number(temperature) and temperature > 0, "a number above 0")
    for head in answer_heads(model):
        for parameter in head.parameters():
            parameter.div_(temperature)


def folds(before: Tensor, after: Tensor, temperature: float, mask: Tensor) -> bool:
    """Whether logits (B, L) where a mask is True are those of another model divided by a temperature."""
    wanted, found = (before / temperature)[mask], after[mask]
    return bool(torch.allclose(found, wanted, rtol=1e-2, atol=1e-2 * float(wanted.abs().max().clamp(min=1e-6))))
