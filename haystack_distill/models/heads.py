"""Several heads on one encoder: each window of a batch is answered by one of them."""

from __future__ import annotations

import contextlib
import copy
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from haystack_distill.errors import DistilError
from haystack_distill.models.reader import Reader
from haystack_distill.models.trained_weights import load_reader_model
from haystack_distill.utils.checks import check_argument
from haystack_distill.utils.model_files import HEADS_FOLDER

_HEAD = "qa_outputs"  # where the models of most families keep their span head
_NAME = re.compile(r"[A-Za-z0-9][\w.-]*")


def check_head(name: object) -> None:
    """Check the name of a head.

    Raises:
        DistilError: It cannot be the name of a directory on every system.
    """
    check_argument(
        "head",
        name,
        isinstance(name, str) and _NAME.fullmatch(name) is not None and not name.endswith("."),
        "letters, digits, dots, dashes and underscores, because a directory is named so",
    )


class Heads(nn.Module):
    """Several heads of a reader on its encoder.

    In place of the model's own head (`inserted`) it is a module that answers each window by its head; the rest of the
    model is unchanged, so that training, checkpoints and adaptations treat the heads as they treat a single one. The
    first head is the model's own. The others start as copies of it.

    Args:
        model: The reader's model.
        names: The name of each head. The first may have none: the head of all windows whose source names no other.

    Attributes:
        names: As given.

    Raises:
        DistilError: The model has no span head of its own after its encoder.
    """

    def __init__(self, model: PreTrainedModel, names: Sequence[str | None]) -> None:
        super().__init__()
        own = getattr(model, _HEAD, None)
        if not isinstance(own, nn.Linear):
            raise DistilError(
                f"the head of {type(model).__name__} is not one dense layer after the encoder, so sources cannot have "
                "heads of their own; leave head out, or take a student of another family, such as BERT or RoBERTa"
            )
        self.names = tuple(names)
        self.all = nn.ModuleList([own, *(copy.deepcopy(own) for _ in self.names[1:])])
        self._numbers: Tensor | None = None

    @contextlib.contextmanager
    def inserted(self, model: PreTrainedModel) -> Iterator[None]:
        """Have a model answer by these heads within the context, and by the first of them alone afterwards."""
        setattr(model, _HEAD, self)
        try:
            yield
        finally:
            setattr(model, _HEAD, self.all[0])

    def forward(self, hidden: Tensor) -> Tensor:
        """The logits (B, L, 2) of hidden states (B, L, H): each window's by its head (`choose`), else by the first."""
        logits: Tensor = self.all[0](hidden)
        if self._numbers is not None:
            for number, head in enumerate(self.all[1:], start=1):
                logits = torch.where((self._numbers == number)[:, None, None], head(hidden), logits)
        return logits

    @contextlib.contextmanager
    def choose(self, numbers: Tensor) -> Iterator[None]:
        """Choose the head of each window, counted from 0, (B,), for forward passes within the context."""
        self._numbers = numbers
        try:
            yield
        finally:
            self._numbers = None

    def readers(self, reader: Reader) -> dict[str, Reader]:
        """A reader for each head that has a name. All share the encoder of `reader`, whose heads these are."""
        found = {}
        for name, head in zip(self.names, self.all, strict=True):
            if name is None:
                continue
            model = copy.copy(reader.model)
            model._modules = dict(model._modules)  # the copy shared this, too
            setattr(model, _HEAD, head)
            found[name] = reader.replace(model=model)
        return found

    def restore(self, directory: Path) -> None:
        """Load the heads of a finished run from its output directory.

        Raises:
            DistilError: A reader is missing or broken.
        """
        for name, head in zip(self.names, self.all, strict=True):
            if name is not None:
                saved, _, _ = load_reader_model(str(directory / HEADS_FOLDER / name))
                head.load_state_dict(getattr(saved, _HEAD).state_dict())


def choosing(model: PreTrainedModel, numbers: Tensor | None) -> contextlib.AbstractContextManager[None]:
    """The context in which a model answers each window of a batch by its head.

    Args:
        model: A model with inserted heads, or without where `numbers` is None.
        numbers: The head of each window, (B,), or None.
    """
    return contextlib.nullcontext() if numbers is None else getattr(model, _HEAD).choose(numbers)
