"""How much the layers, attention heads and feed-forward neurons of a reader matter, measured on a sample."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import datasets
import numpy as np
import torch
from torch import Tensor, nn

from haystack_distill.data.squad.load import load_examples
from haystack_distill.errors import DistilError
from haystack_distill.models.reader import ExampleSource, Reader
from haystack_distill.students.layers import keep_layers
from haystack_distill.students.parts import Parts
from haystack_distill.utils.checks import check_argument, is_integer, require_seed
from haystack_distill.utils.files import temporary_directory
from haystack_distill.utils.model_inputs import model_inputs
from haystack_distill.utils.progress import progress_bar

IMPORTANCE_SAMPLE = 100  # questions


@dataclass(frozen=True)
class Sample:
    """The windows of some questions, in batches, with what a teacher answers to them.

    Attributes:
        batches: As `Windows.collate` makes them, on the CPU.
        start_logits: The teacher's, (B, L) for each batch, float32 on the CPU.
        end_logits: As `start_logits`.
    """

    batches: Sequence[dict[str, Tensor]]
    start_logits: Sequence[Tensor]
    end_logits: Sequence[Tensor]

    @classmethod
    def draw(cls, teacher: Reader, data: ExampleSource, size: int, seed: int) -> "Sample":
        """Draw questions, all of them where there are no more, and run the teacher over their windows.

        Args:
            teacher: The reader that answers.
            data: SQuAD files, a data set of such rows, or the name of one on the hub; labelled or not.
            size: How many questions are drawn.
            seed: The seed of the choice.

        Raises:
            DistilError: A value that cannot be, or the teacher's head is untrained.
        """
        check_argument("importance_sample", size, is_integer(size, 1), "a whole number of at least 1")
        require_seed(seed)
        teacher.require_trained()
        examples = data if isinstance(data, datasets.Dataset) else load_examples(data)
        if len(examples) > size:
            examples = examples.select(np.sort(np.random.default_rng(seed).choice(len(examples), size, replace=False)))
        reader = _exact(teacher)
        with temporary_directory() as scratch:
            examples = load_examples(examples, cache_dir=scratch)
            windows = reader.cut(examples, cache_dir=scratch)
            answered = list(reader.logits(windows, range(len(windows))))
        if not answered:
            raise DistilError("the sample has no windows; give questions whose contexts are not empty")
        batches, starts, ends = zip(*answered, strict=True)
        return cls(batches, starts, ends)

    def losses(self, reader: Reader) -> Tensor:
        """What a reader's answers cost in comparison with the teacher's, window by window: (windows,), in nats.

        Labelled windows: the cross entropy of the annotated start and end, less the teacher's. Unlabelled ones: the KL
        divergence of the teacher's distributions of start and end from the reader's. Both are means of start and end.
        """
        reader = _exact(reader)
        return torch.cat(
            [
                _cost(batch, (start, end), reader.forward(model_inputs(batch)))
                for batch, start, end in zip(self.batches, self.start_logits, self.end_logits, strict=True)
            ]
        )

    def targets(self) -> Iterator[tuple[dict[str, Tensor], Tensor, Tensor]]:
        """Each batch with the start and end of each window, (B,): those of the label, or else the teacher's best.

        With the teacher's whole distributions as targets there would be nothing to measure: at the teacher itself their
        loss has no gradient.
        """
        for batch, *logits in zip(self.batches, self.start_logits, self.end_logits, strict=True):
            labelled = batch["labelled"].bool()
            best = [one.masked_fill(~batch["context_mask"], -torch.inf).argmax(dim=1) for one in logits]
            names = ("start_positions", "end_positions")
            start, end = (torch.where(labelled, batch[name], own) for name, own in zip(names, best, strict=True))
            yield batch, start, end


def _exact(reader: Reader) -> Reader:
    """A reader that computes in fp32: small differences decide."""
    return reader.replace(precision="fp32")


def _cost(batch: dict[str, Tensor], teacher: tuple[Tensor, Tensor], reader: tuple[Tensor, Tensor]) -> Tensor:
    labelled, padding = batch["labelled"].bool(), ~batch["attention_mask"].bool()
    costs = []
    for name, theirs, own in zip(("start_positions", "end_positions"), teacher, reader, strict=True):
        expected, found = (_log_probabilities(logits, padding) for logits in (theirs, own))
        difference = (expected - found).masked_fill(padding, 0.0)
        position = batch[name].masked_fill(~labelled, 0)  # that of an unlabelled window may be out of range
        with_label = difference.gather(1, position[:, None])[:, 0]
        without = (expected.exp() * difference).sum(dim=1)
        costs.append(torch.where(labelled, with_label, without))
    return (costs[0] + costs[1]) / 2


def _log_probabilities(logits: Tensor, padding: Tensor) -> Tensor:
    return logits.double().masked_fill(padding, -torch.inf).log_softmax(dim=1)


def layer_costs(teacher: Reader, sample: Sample, kept: Sequence[int] | None = None) -> dict[int, float]:
    """What it costs to leave out each layer by itself: the mean of `Sample.losses` without it, in nats.

    Args:
        teacher: The reader.
        sample: Questions with the teacher's answers.
        kept: The layers that are still there, counted from 1; None for all.

    Raises:
        DistilError: The architecture does not allow single layers to be kept.
    """
    present = list(kept if kept is not None else range(1, teacher.model.config.num_hidden_layers + 1))
    costs = {}
    with torch.random.fork_rng(devices=[]):  # new models draw random weights, which are replaced
        for layer in present:
            without = keep_layers(teacher, [one for one in present if one != layer])
            costs[layer] = float(sample.losses(without).mean())
    return costs


def most_important_layers(teacher: Reader, layers: int, sample: Sample) -> list[int]:
    """The layers that remain, counted from 1, if the least costly one is left out until there are so many.

    What the others cost is measured anew without it. Of equal costs the later layer is left out.

    Args:
        teacher: The reader.
        layers: How many layers remain.
        sample: Questions with the teacher's answers.

    Raises:
        DistilError: The architecture does not allow single layers to be kept.
    """
    total = int(teacher.model.config.num_hidden_layers)
    kept = list(range(1, total + 1))
    if teacher.model.config.model_type == "albert":  # all layers are the same
        return kept[:layers]
    with progress_bar("importance of layers", total - layers, "layers") as bar:
        while len(kept) > layers:
            costs = layer_costs(teacher, sample, kept)
            kept.remove(min(reversed(kept), key=costs.__getitem__))
            bar.advance(1)
    return kept


def importance_of(reader: Reader, parts: Parts, sample: Sample) -> dict[str, Tensor]:
    """The importance of attention heads or feed-forward neurons.

    A part's outputs are multiplied by a mask variable of 1; its importance is the absolute value of the gradient of
    the window's loss with respect to that variable, summed over the windows of the sample (Michel et al. 2019, arXiv
    1905.10650, equation 2; for neurons, gradient times activation summed over the tokens, the first order of Molchanov
    et al. 2017, arXiv 1611.06440), and divided by its l2 norm over the parts of the layer, as both papers do. The loss
    is the cross entropy of start and end: the label's, or the teacher's best where there is none.

    Layers that share their weights (ALBERT) share their parts: the variable is one for all of them.

    Args:
        reader: The reader. It is not changed, and keeps no gradients.
        parts: Which parts, see `parts.neurons_of` and `parts.heads_of`.
        sample: Questions with the teacher's answers.

    Returns:
        For each place of parts, by the module's name, the importance of its parts, (parts,), float64 on the CPU.
    """
    reader = _exact(reader)
    model, width = reader.model, parts.width(reader.model.config)
    layers = parts.find(model)
    sums = {place: torch.zeros(module.in_features // width, dtype=torch.float64) for place, module in layers.items()}
    masks: dict[str, Tensor] = {}

    def masking(place: str) -> Callable[[nn.Module, tuple[Tensor, ...]], tuple[Tensor, ...]]:
        def mask_parts(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            states, *others = inputs
            if place not in masks:
                ones = torch.ones(len(states), 1, len(sums[place]), 1, device=states.device, dtype=states.dtype)
                masks[place] = ones.requires_grad_()
            return ((states.unflatten(-1, (-1, width)) * masks[place]).flatten(-2), *others)

        return mask_parts

    handles = [module.register_forward_pre_hook(masking(place)) for place, module in layers.items()]
    model.eval()
    try:
        with progress_bar("importance", len(sample.batches), "batches") as bar, torch.enable_grad():
            for batch, start, end in sample.targets():
                masks.clear()
                outputs = model(**{name: one.to(reader.device) for name, one in model_inputs(batch).items()})
                logits = (outputs.start_logits, outputs.end_logits)
                loss = _span_loss(logits, (start, end), batch["attention_mask"]).sum()
                gradients = torch.autograd.grad(loss, list(masks.values()))
                for place, gradient in zip(masks, gradients, strict=True):
                    sums[place] += gradient.abs().cpu().double().sum(dim=(0, 1, 3))
                bar.advance(1)
    finally:
        for handle in handles:
            handle.remove()
    return {place: total / total.norm().clamp_min(torch.finfo(total.dtype).tiny) for place, total in sums.items()}


def _span_loss(logits: tuple[Tensor, Tensor], targets: tuple[Tensor, Tensor], attention_mask: Tensor) -> Tensor:
    """The mean of the cross entropies of start and end, (B,)."""
    padding = ~attention_mask.bool()
    losses = [
        -_log_probabilities(one.cpu(), padding).gather(1, target[:, None])[:, 0]
        for one, target in zip(logits, targets, strict=True)
    ]
    return (losses[0] + losses[1]) / 2
