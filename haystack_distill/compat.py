"""Every difference between transformers 4.4x and 5.x that this package has to know about."""

import contextlib
import copy
from collections.abc import Iterator
from typing import Any

import torch
import transformers
from packaging.version import Version
from transformers import AutoConfig, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase, TrainingArguments

from haystack_distill.errors import DistilError

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


def load_with_tokenizer(
    auto_class: Any, name: str, what: str, **hub: Any
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, list[str]]:
    """`load_model` and the fast tokenizer beside it; `what` is named in the error, `hub` has `token` and `revision`.

    Raises:
        DistilError: Nothing there, or not a model and a fast tokenizer.
    """
    with _explained(name, what):
        tokenizer = AutoTokenizer.from_pretrained(name, use_fast=True, **hub)
        model, fresh = load_model(auto_class, name, **hub)
    return model, tokenizer, fresh


def load_shape(auto_class: Any, name: str, what: str, **hub: Any) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A model without its weights (they are on PyTorch's "meta" device) and the fast tokenizer beside it.

    Raises:
        DistilError: Nothing there, or not a model and a fast tokenizer.
    """
    with _explained(name, what):
        tokenizer = AutoTokenizer.from_pretrained(name, use_fast=True, **hub)
        config = AutoConfig.from_pretrained(name, **hub)
        with torch.device("meta"):
            return auto_class.from_config(config), tokenizer


@contextlib.contextmanager
def _explained(name: str, what: str) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError) as error:
        raise DistilError(
            f"cannot load a {what} from {name!r}: {error}. Give a directory with config.json, model.safetensors and "
            "tokenizer.json, or a model name that the hub (or, offline, its local cache) has"
        ) from error


def with_plain_attention(model: PreTrainedModel) -> PreTrainedModel:
    """A copy of a model, in fp32 and eval mode, whose attention is written out: exporters can read that."""
    config = copy.deepcopy(model.config)
    with torch.random.fork_rng(devices=[]):  # the weights drawn here are replaced
        plain = type(model)._from_config(config, attn_implementation="eager")
    plain.load_state_dict({name: tensor.cpu() for name, tensor in model.state_dict().items()})
    return plain.float().eval()


def training_arguments(**arguments: Any) -> TrainingArguments:
    """TrainingArguments that report nowhere by themselves and drive one device a process."""
    made = TrainingArguments(report_to="none", **arguments)
    made._n_gpu = min(made.n_gpu, 1)  # `accelerate launch` starts one process a GPU
    return made
