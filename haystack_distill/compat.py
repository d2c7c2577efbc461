"""Every difference between transformers 4.4x and 5.x that this package has to know about."""

from typing import Any

import torch
import transformers
from packaging.version import Version
from transformers import PreTrainedModel, TrainingArguments

TRANSFORMERS_5 = Version(transformers.__version__) >= Version("5.0.0.dev0")


def load_model(auto_class: Any, name: str, **settings: Any) -> tuple[PreTrainedModel, list[str]]:
    """A model in fp32, from safetensors only, and the names of weights that the files did not hold."""
    dtype = {"dtype" if TRANSFORMERS_5 else "torch_dtype": torch.float32}  # 5.x would keep the files' own
    model, loading = auto_class.from_pretrained(
        name, use_safetensors=True, output_loading_info=True, **dtype, **settings
    )
    return model, sorted(key for key in loading["missing_keys"] if not key.endswith("position_ids"))


def training_arguments(*, warmup_proportion: float, **arguments: Any) -> TrainingArguments:
    """TrainingArguments from the arguments that mean the same in both, plus those that do not.

    Args:
        warmup_proportion: Share of the steps over which the learning rate rises.
        arguments: Passed on.
    """
    # In 5.x a float below 1 is a share of all steps.
    arguments["warmup_steps" if TRANSFORMERS_5 else "warmup_ratio"] = warmup_proportion
    made = TrainingArguments(report_to="none", **arguments)
    made._n_gpu = min(made.n_gpu, 1)  # one process drives one GPU; `accelerate launch` starts more processes
    return made
