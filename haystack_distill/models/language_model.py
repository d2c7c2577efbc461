"""LanguageModel: an encoder, with or without its masked-language-model head, and its tokenizer."""

import copy
import logging
import os
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForMaskedLM, PreTrainedModel, PreTrainedTokenizerBase

from haystack_distill.errors import DistilError
from haystack_distill.models.mpnet_attention import use_fused_attention
from haystack_distill.models.reader import Reader
from haystack_distill.utils.devices import resolve_device, resolve_precision
from haystack_distill.utils.transformers_compat import load_with_tokenizer, save_model

logger = logging.getLogger(__name__)


class LanguageModel:
    """The model of general distillation, teacher or student: one that has not been trained on questions yet.

    Args:
        model: An encoder, or a model for masked language modelling.
        tokenizer: Its fast tokenizer.
        precision: "auto", "fp32", "bf16" or "fp16" for forward passes of a teacher; see
            `utils.devices.resolve_precision`.
        device: "auto", "cpu", "cuda", ...

    Example:
        >>> teacher = LanguageModel.load("google-bert/bert-base-uncased")  # doctest: +SKIP
        >>> student = students.from_teacher(teacher, layers=4)  # doctest: +SKIP
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        precision: str = "auto",
        device: str | torch.device = "auto",
    ) -> None:
        use_fused_attention(model)
        self.model = model
        self.tokenizer = tokenizer
        self.device = resolve_device(device)
        self.precision = resolve_precision(precision, self.device, model.config.model_type)
        self.model.to(self.device)
        self.model.eval()

    @classmethod
    def load(
        cls, name_or_path: str | Path, *, token: str | None = None, revision: str | None = None, **settings: Any
    ) -> "LanguageModel":
        """Load a Hugging Face model directory or hub name in fp32; `settings` are the constructor's.

        A model whose files hold no masked-language-model head, such as a reader, gives its encoder alone.
        Only safetensors weights are read, and no code that comes with a model is ever run.

        Raises:
            DistilError: Nothing there, or not a model and a fast tokenizer.
        """
        name = os.path.expanduser(name_or_path)
        model, tokenizer, fresh = load_with_tokenizer(
            AutoModelForMaskedLM, name, "language model", token=token, revision=revision
        )
        inside = f"{model.base_model_prefix}."
        missing = [weight for weight in fresh if weight.startswith(inside)]
        if missing:
            raise DistilError(f"{name!r} holds no weights for {', '.join(missing)}: it is no whole encoder")
        if fresh:
            logger.debug("%s holds no head for masked language modelling; its encoder is taken", name)
            model = model.base_model
        return cls(model, tokenizer, **settings)

    @classmethod
    def of(cls, reader: Reader) -> "LanguageModel":
        """A reader's encoder. It shares the reader's weights: what it learns, the reader knows."""
        return cls(reader.model.base_model, reader.tokenizer, precision=reader.precision, device=reader.device)

    @property
    def has_head(self) -> bool:
        """Whether the model guesses masked words; an encoder alone does not."""
        return self.model.get_output_embeddings() is not None

    @property
    def n_parameters(self) -> int:
        """Weights of the model, shared ones counted once."""
        return sum(parameter.numel() for parameter in self.model.parameters())

    def replace(self, **changes: Any) -> "LanguageModel":
        """A language model with some of the constructor's arguments changed.

        It shares the weights of this one, unless `model` is changed; another `device` moves the weights of both.
        """
        arguments = {name: getattr(self, name) for name in ("model", "tokenizer", "precision", "device")}
        return LanguageModel(**arguments | changes)

    def copy(self) -> "LanguageModel":
        """An independent language model with the same weights and settings."""
        return self.replace(model=copy.deepcopy(self.model))

    def save(self, directory: str | Path) -> Path:
        """Write a plain Hugging Face model directory; see `Reader.save`."""
        return save_model(directory, self.model, self.tokenizer)
