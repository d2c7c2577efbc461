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
    level = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()  # who calls this says better what missing weights mean
    try:
        model, loading = auto_class.from_pretrained(
            name, use_safetensors=True, output_loading_info=True, **dtype, **settings
        )
    finally:
        transformers.logging.set_verbosity(level)
    return model, sorted(key for key in loading["missing_keys"] if not key.endswith("position_ids"))


def training_arguments(**arguments: Any) -> TrainingArguments:
    """TrainingArguments that report nowhere by themselves and drive one device a process."""
    made = TrainingArguments(report_to="none", **arguments)
    made._n_gpu = min(made.n_gpu, 1)  # `accelerate launch` starts one process a GPU
    return made
