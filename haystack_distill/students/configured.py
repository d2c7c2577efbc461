"""Students from a configuration: the teacher's architecture in another shape, or another one, newly initialised."""

import copy
import inspect
from typing import Any

import torch
from transformers import (
    CONFIG_MAPPING,
    MODEL_FOR_QUESTION_ANSWERING_MAPPING,
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForQuestionAnswering,
    PretrainedConfig,
    PreTrainedModel,
)

from haystack_distill.errors import DistilError
from haystack_distill.models.bilstm_config import MODEL_TYPE
from haystack_distill.models.outputs import attention_width
from haystack_distill.models.reader import Reader, first_position, position_limit
from haystack_distill.students.exits import require_no_exits
from haystack_distill.students.layers import AnyModel, layer_index, new_model, require_weights, set_per_layer
from haystack_distill.utils.checks import check_argument, is_integer, is_number, require_seed
from haystack_distill.utils.families import EARLY_EXIT
from haystack_distill.utils.model_inputs import model_inputs


def from_config(teacher: AnyModel, *, seed: int = 42, **shape: Any) -> AnyModel:
    """Create a student with random layers: of the teacher's architecture in another shape, or of another architecture.

    Embeddings and head are taken from the teacher where the names of the weights and their shapes agree. The tokenizer
    is the teacher's.

    Args:
        teacher: The reader or language model whose configuration and tokenizer are used. It is not changed.
        seed: The seed of the random weights.
        shape: Changed values, named as in the model's configuration: `num_hidden_layers`, `hidden_size`,
            `num_attention_heads`, `intermediate_size`, ... With `model_type` another architecture, such as
            "mobilebert", whose other values are the defaults of that architecture.

    Raises:
        DistilError: The configuration lacks a name, a value has another type, the hidden size is not a multiple of the
            number of heads, or the architecture does not support the shape.

    Example:
        >>> from haystack_distill.models.embedded_teacher import embedded_teacher
        >>> from_config(embedded_teacher(), model_type="mobilebert", num_hidden_layers=6).model.config.hidden_size
        512
    """
    require_weights(teacher)
    require_no_exits(teacher, "take the shape of the reader that it was made from, then give that early exits")
    require_seed(seed)
    config = _config_of(teacher, shape.pop("model_type", None))
    for name, value in shape.items():
        if name not in config.to_dict() and name not in config.attribute_map:
            raise DistilError(f"the configuration of {config.model_type} has no {name!r}: give one of its own names")
        _check_shape(name, value, getattr(config, name))
        try:
            setattr(config, name, value)
        except Exception as error:  # transformers 5 validates fields with its own classes
            raise DistilError(f"{name} cannot be {value!r} ({error}): choose another value") from error
    own = teacher.model.config
    same_type = config.model_type == own.model_type
    like = own if same_type else CONFIG_MAPPING[config.model_type]()
    if config.model_type == "mobilebert":  # the width inside its layers, which its constructor computes
        config.true_hidden_size = config.intra_bottleneck_size if config.use_bottleneck else config.hidden_size
    if not is_integer(like.num_hidden_layers):
        raise DistilError(f"a {config.model_type} model has several kinds of layers: choose another model_type")
    layers = [layer % like.num_hidden_layers for layer in range(config.num_hidden_layers)]
    set_per_layer(config, like, layers, exclude=shape)
    width, heads = attention_width(config), getattr(config, "num_attention_heads", None)  # none in FNet
    if heads is not None and (heads < 1 or width % heads):
        name = "hidden_size" if width == config.hidden_size else "intra_bottleneck_size"
        raise DistilError(f"{name} {width} is not a multiple of num_attention_heads {heads}: change one of them")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            student = new_model(teacher.model, config) if same_type else _new_architecture(teacher, config)
        except Exception as error:  # each architecture has its own errors
            values = ", ".join(f"{name}={value!r}" for name, value in shape.items())
            reason = str(error).splitlines()[0]
            raise DistilError(
                f"no {config.model_type} model can be made with {values} ({reason}): choose another shape"
            ) from error
    weights = student.state_dict()
    copied = {
        name: weight
        for name, weight in teacher.model.state_dict().items()
        if name in weights and weights[name].shape == weight.shape and not _is_in_layer(teacher.model, name)
    }
    # Layers are not copied even if their shapes agree: a layer depends on those below it.
    student.load_state_dict(copied, strict=False)
    if same_type:
        return teacher.replace(model=student)
    try:
        made = teacher.replace(model=student)
    except DistilError:
        raise
    except Exception as error:  # CANINE reads characters and has no table of words, I-BERT's is none of PyTorch's
        raise DistilError(
            f"a {config.model_type} model does not read the tokens of a tokenizer as readers do: choose another "
            "model_type"
        ) from error
    if isinstance(made, Reader):
        _require_readable(made)
    return made


def _require_readable(reader: Reader) -> None:
    """Check that a model of another architecture reads what its tokenizer makes, a full window.

    Raises:
        DistilError: It does not: it looks for other special tokens, or has fewer positions than its configuration. Or
            it reads padding as if it were text.
    """
    if "attention_mask" not in inspect.signature(reader.model.forward).parameters:  # FNet
        raise DistilError(
            f"a {reader.model.config.model_type} model knows no padding, so its answers would depend on what else is "
            "in the batch: choose another model_type"
        )
    windows = reader.cut_pairs([("Who?", "word " * reader.window_settings.max_seq_len)])
    with torch.random.fork_rng(devices=[]):
        try:
            reader.forward(model_inputs(windows.collate(windows.__getitems__([0]))))
        except Exception as error:  # each architecture has its own errors
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise DistilError(
                f"a {reader.model.config.model_type} model cannot read this tokenizer's windows ({reason}): choose "
                "another model_type"
            ) from error


def _config_of(teacher: AnyModel, model_type: str | None) -> PretrainedConfig:
    """The teacher's configuration, or that of another architecture for the teacher's tokenizer and positions."""
    own = teacher.model.config
    if MODEL_TYPE in (model_type, own.model_type):
        raise DistilError("a BiLSTM reader is made of a teacher by students.bilstm; use that, or another model_type")
    if model_type is None or model_type == own.model_type:
        return copy.deepcopy(own)
    types = {kind.model_type for kind in MODEL_FOR_QUESTION_ANSWERING_MAPPING if kind.model_type}
    known = sorted(name for name in types if name != MODEL_TYPE and not name.startswith(EARLY_EXIT))
    check_argument("model_type", model_type, model_type in known, f"one of {', '.join(known)}")
    config = CONFIG_MAPPING[model_type]()
    pad = teacher.tokenizer.pad_token_id
    config.vocab_size = teacher.model.get_input_embeddings().num_embeddings
    config.pad_token_id = own.pad_token_id if pad is None else pad
    for name in ("bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id", "mask_token_id"):
        number = getattr(teacher.tokenizer, name, None)
        if number is not None and hasattr(config, name):  # BigBird looks for its separator in what it reads
            setattr(config, name, number)
    positions = position_limit(teacher.model)
    if positions is not None and (getattr(config, "max_position_embeddings", None) or 0) > 0:  # XLNet has no limit
        config.max_position_embeddings = positions + first_position(config)
    return config


def _new_architecture(teacher: AnyModel, config: PretrainedConfig) -> PreTrainedModel:
    """A newly initialised model of another architecture that does what the teacher does."""
    if isinstance(teacher, Reader):
        kind: Any = AutoModelForQuestionAnswering
    else:
        kind = AutoModelForMaskedLM if teacher.has_head else AutoModel
    return kind.from_config(config, trust_remote_code=False)


def _check_shape(name: str, value: Any, present: Any) -> None:
    """Check that a configuration value has the type of the present one.

    Raises:
        DistilError: It has another type.
    """
    if name in ("num_hidden_layers", "hidden_size", "num_attention_heads", "intermediate_size"):
        check_argument(name, value, is_integer(value, 1), "a whole number of at least 1")
    elif isinstance(present, bool):
        check_argument(name, value, isinstance(value, bool), "True or False")
    elif isinstance(present, int):
        check_argument(name, value, is_integer(value), "a whole number")
    elif isinstance(present, float):
        check_argument(name, value, is_number(value), "a number")
    elif isinstance(present, str):
        check_argument(name, value, isinstance(value, str), "text")


def _is_in_layer(model: PreTrainedModel, name: str) -> bool:
    """Whether a weight belongs to a layer, and not to the embeddings, the head or shared layers."""
    if model.config.model_type == "funnel":
        return ".encoder.blocks." in name or ".decoder.layers." in name
    return layer_index(model, name) is not None
