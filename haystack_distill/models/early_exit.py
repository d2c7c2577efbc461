"""Readers with early exits: a small span head, a branch, on every layer but the last, where a window may leave.

FastBERT (Liu et al. 2020, arXiv 2004.02178). The backbone is a question answering model of transformers, layers and
span head unchanged, so that it answers by its last layer as the plain model does. When it runs with a `speed`, a window
leaves at the first layer whose branch is certain enough, and the layers above run on a smaller batch.
"""

from __future__ import annotations

from contextvars import ContextVar
from importlib import import_module
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForQuestionAnswering, PretrainedConfig, PreTrainedModel

from haystack_distill.errors import DistilError
from haystack_distill.utils.families import EARLY_EXIT

# The module of each family in transformers, and what the names of its classes begin with.
_FAMILIES = {
    "bert": ("bert", "Bert"),
    "roberta": ("roberta", "Roberta"),
    "xlm-roberta": ("xlm_roberta", "XLMRoberta"),
    "camembert": ("camembert", "Camembert"),
    "electra": ("electra", "Electra"),
    "distilbert": ("distilbert", "DistilBert"),
    "mpnet": ("mpnet", "MPNet"),
    "albert": ("albert", "Albert"),
}


class EarlyExits(NamedTuple):
    """What a model with early exits computes for B windows.

    Attributes:
        start_logits: Of the layer at which each window left, (B, L).
        end_logits: Likewise, (B, L).
        layers: How many layers ran for each window, (B,), on the CPU.
    """

    start_logits: Tensor
    end_logits: Tensor
    layers: Tensor


class EarlyExitModel(PreTrainedModel):
    """Base class of readers with early exits; their other base is a question answering model of transformers.

    `forward` is that of the plain model. The weights have its names too, and `branches`.

    Attributes:
        branches: For each layer but the last, a module that turns its hidden states (B, L, H) into logits (B, L, 2).
    """

    def __init__(self, config: PretrainedConfig) -> None:
        super().__init__(config)
        hidden, size = config.hidden_size, getattr(config, "branch_size", 0)
        self.branches = nn.ModuleList(_branch(hidden, size) for _ in range(config.num_hidden_layers - 1))
        for layer in _layers(self):
            layer.register_forward_pre_hook(_shrink_arguments, with_kwargs=True)
            layer.register_forward_hook(_leave)

    def exit_early(self, inputs: dict[str, Tensor], speed: float) -> EarlyExits:
        """Answer each window by the first layer whose uncertainty is below `speed`, else by the last.

        Windows that left are not in the batch of the layers above. Nothing is kept on the model: any number of threads
        may call this at once, each with its own speed.

        Args:
            inputs: The tensors that the model is called with: input_ids, attention_mask, maybe token_type_ids, (B, L).
            speed: 0 (all layers run, and the logits are those of `forward` to the bit) to 1 (only the first runs).
        """
        count, depth = len(inputs["input_ids"]), self.config.num_hidden_layers
        if not speed:
            output = self(**inputs)
            return EarlyExits(output.start_logits, output.end_logits, torch.full((count,), depth))
        run = _Run(self.branches, inputs["attention_mask"].bool(), speed)
        token = _PRESENT.set(run)
        try:
            output = self(**inputs)
        except _AllLeft:
            pass
        else:
            run.store(run.rows, output.start_logits, output.end_logits)
        finally:
            _PRESENT.reset(token)
        return EarlyExits(run.start_logits, run.end_logits, run.layers.cpu())


def _branch(hidden: int, size: int) -> nn.Module:
    if not size:
        return nn.Linear(hidden, 2)
    return nn.Sequential(nn.Linear(hidden, size), nn.GELU(), nn.Linear(size, 2))


def _layers(model: PreTrainedModel) -> list[nn.Module]:
    """The modules that run once for each layer; ALBERT's are few that run repeatedly."""
    for name, module in model.base_model.named_modules():
        if isinstance(module, nn.ModuleList) and name.rpartition(".")[2] in ("layer", "albert_layer_groups"):
            return list(module)
    raise AssertionError(f"{type(model).__name__} has no list of layers")


# --- one pass: which windows are left, while the family's own code runs its layers ------------------------------------


class _Run:
    """The state of one pass over a batch of B windows."""

    def __init__(self, branches: nn.ModuleList, mask: Tensor, speed: float) -> None:
        self.branches = branches
        self.mask = mask
        self.speed = speed
        self.depth = 0  # layers that ran
        self.rows = torch.arange(len(mask), device=mask.device)  # windows that are left
        self.start_logits = torch.zeros(mask.shape, device=mask.device)
        self.end_logits = torch.zeros(mask.shape, device=mask.device)
        self.layers = torch.zeros(len(mask), dtype=torch.long, device=mask.device)

    def store(self, rows: Tensor, start: Tensor, end: Tensor) -> None:
        self.start_logits[rows] = start.float()
        self.end_logits[rows] = end.float()
        self.layers[rows] = self.depth


class _AllLeft(Exception):
    """No window is left for the layers above."""


# Of this thread (or task) alone; None outside of `exit_early`, where the hooks do nothing.
_PRESENT: ContextVar[_Run | None] = ContextVar("early exits", default=None)


def _leave(_layer: nn.Module, _arguments: Any, output: Any) -> Any:
    """After a layer: take the logits of the windows that are certain, and return the hidden states of the others."""
    run = _PRESENT.get()
    if run is None:
        return None
    run.depth += 1
    if run.depth > len(run.branches):
        return None
    hidden = output[0] if isinstance(output, tuple) else output
    start, end = run.branches[run.depth - 1](hidden).unbind(dim=-1)
    leaving = uncertainty(start, end, run.mask[run.rows]) < run.speed
    if run.speed >= 1:
        leaving = torch.ones_like(leaving)
    if not leaving.any():
        return None
    run.store(run.rows[leaving], start[leaving], end[leaving])
    run.rows = run.rows[~leaving]
    if not len(run.rows):
        raise _AllLeft
    remaining = hidden[~leaving]
    return (remaining, *output[1:]) if isinstance(output, tuple) else remaining


def _shrink_arguments(_layer: nn.Module, arguments: Any, keywords: Any) -> Any:
    """Before a layer: the rows of the windows that are left, of masks and biases that are made for the whole batch."""
    run = _PRESENT.get()
    if run is None or len(run.rows) == len(run.mask):
        return None

    def shrink(value: Any) -> Any:
        whole = isinstance(value, Tensor) and value.dim() > 1 and len(value) == len(run.mask)
        return value[run.rows] if whole else value

    return tuple(map(shrink, arguments)), {name: shrink(value) for name, value in keywords.items()}


def uncertainty(start_logits: Tensor, end_logits: Tensor, mask: Tensor) -> Tensor:
    """The mean of the normalised entropies of start and end: 0 for a single position, 1 for a uniform distribution.

    FastBERT (arXiv 2004.02178), equation 8, of two distributions over the tokens of a window.

    Args:
        start_logits: (B, L).
        end_logits: (B, L).
        mask: True for tokens, False for padding, (B, L).

    Returns:
        (B,), from 0 to 1, float32.
    """
    tokens = mask.bool()
    largest = tokens.sum(dim=1).clamp(min=2).float().log()
    entropies = []
    for logits in (start_logits, end_logits):
        logs = logits.float().masked_fill(~tokens, -torch.inf).log_softmax(dim=1)
        entropies.append(-(logs.exp() * logs.masked_fill(~tokens, 0.0)).sum(dim=1))
    return (entropies[0] + entropies[1]) / (2 * largest)


# --- the classes of each family ---------------------------------------------------------------------------------------


def families() -> list[str]:
    """The model types of which there are readers with early exits, such as "bert"."""
    return list(_FAMILIES)


def early_exit_config(family: str) -> type[PretrainedConfig]:
    """The configuration class of a family's readers with early exits: the family's, and `branch_size`.

    Args:
        family: A model type of transformers.

    Raises:
        DistilError: There are no readers with early exits of this family.
    """
    return early_exit_class(family).config_class  # type: ignore[return-value]


def early_exit_class(family: str) -> type[EarlyExitModel]:
    """The class of a family's readers with early exits; see `early_exit_config`."""
    if family not in _CLASSES:
        raise DistilError(
            f"a {family!r} model cannot have early exits (only {', '.join(families())} can); take a reader of one of "
            "these families"
        )
    return _CLASSES[family]


def _classes_of(family: str, folder: str, prefix: str) -> type[EarlyExitModel]:
    """A family's configuration and model, known to the auto classes."""
    package = f"transformers.models.{folder}"
    plain_config = getattr(import_module(f"{package}.configuration_{folder}"), f"{prefix}Config")
    plain = getattr(import_module(f"{package}.modeling_{folder}"), f"{prefix}ForQuestionAnswering")
    model_type = EARLY_EXIT + family
    config = _named(f"EarlyExit{prefix}Config", (plain_config,), model_type=model_type, branch_size=0)
    model = _named(f"EarlyExit{prefix}ForQuestionAnswering", (EarlyExitModel, plain), config_class=config)
    AutoConfig.register(model_type, config)
    AutoModelForQuestionAnswering.register(config, model)
    return model  # type: ignore[no-any-return]


def _named(name: str, bases: tuple[type, ...], **content: Any) -> Any:
    """A class in this module, where pickle looks for it."""
    made = type(name, bases, {"__module__": __name__, "__doc__": f"See `{EarlyExitModel.__name__}`.", **content})
    globals()[name] = made
    return made


_CLASSES: dict[str, type[EarlyExitModel]] = {family: _classes_of(family, *names) for family, names in _FAMILIES.items()}
