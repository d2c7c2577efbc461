"""The losses, as pure functions of tensors. Each returns one value per window, shape (B,), in float32.

Teacher tensors are detached: no gradient reaches them. The value of a window depends on that window only, not on its
padding.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn.functional import (
    binary_cross_entropy_with_logits,
    cosine_similarity,
    cross_entropy,
    layer_norm,
    normalize,
)

from haystack_distill.errors import DistilError

LOG_ODDS_LIMIT = 10.0  # in `log_odds_loss`: probabilities of 4.5e-5 and 1 - 4.5e-5
_LOWEST = -1e30  # a score that a softmax turns to 0, finite: 0 times a difference of logarithms is 0 then, not NaN
_SCORES_CPU, _SCORES_GPU = 2**18, 2**26  # that are in memory at once


def hard_label_loss(logits: Tensor, positions: Tensor, mask: Tensor) -> Tensor:
    """Cross entropy of the labelled position.

    Args:
        logits: Student logits, (B, L).
        positions: The labelled token of each window, (B,), within `mask` (outside it the loss is infinite).
        mask: True for the tokens of the softmax, all except padding, (B, L).

    Returns:
        The loss of each window in nats, (B,).
    """
    return -_log_softmax(logits.float(), mask).gather(1, positions.long().unsqueeze(1)).squeeze(1)


def kl_div_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    student_mask: Tensor,
    teacher_mask: Tensor,
    temperature: float | Tensor = 1.0,
) -> Tensor:
    """KL(softmax(teacher / T) || softmax(student / T)), without the factor T^2 (Hinton et al. 2015, arXiv 1503.02531).

    Args:
        student_logits: (B, L).
        teacher_logits: (B, L). -inf for tokens without a teacher score, which have probability 0.
        student_mask: True for the tokens of the student's softmax, all except padding, (B, L).
        teacher_mask: True for the tokens of the teacher's softmax: the context and the no-answer position, (B, L).
            It must be a subset of `student_mask`, with at least one finite teacher logit per window.
        temperature: T > 0, one for all windows or one for each, (B,); higher is softer.

    Returns:
        The divergence of each window in nats, (B,).

    Raises:
        DistilError: The shapes differ.
    """
    _require_same_shape(student_logits, teacher_logits)
    if isinstance(temperature, Tensor):
        temperature = temperature.unsqueeze(1)
    teacher = _log_softmax(teacher_logits.detach().float() / temperature, teacher_mask)
    student = _log_softmax(student_logits.float() / temperature, student_mask)
    # 0 * log 0 is defined as 0; with -inf the value and the gradient would be NaN.
    impossible = torch.isneginf(teacher)
    difference = teacher.masked_fill(impossible, 0.0) - student.masked_fill(impossible, 0.0)
    return (teacher.exp() * difference).sum(dim=1)


def jensen_shannon_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    student_mask: Tensor,
    teacher_mask: Tensor,
    temperature: float = 1.0,
) -> Tensor:
    """KL(p || m) / 2 + KL(q || m) / 2 of the teacher's p, the student's q and their mean m, without a factor T^2.

    The Jensen-Shannon divergence of f-distillation (Wen et al. 2023, arXiv 2307.15190). Unlike the KL divergence it has
    a bound, log 2, and weighs what either of the two holds for probable.

    Args:
        student_logits: (B, L).
        teacher_logits: (B, L). -inf for tokens without a teacher score, which have probability 0.
        student_mask: True for the tokens of the student's softmax, all except padding, (B, L).
        teacher_mask: As for `kl_div_loss`, (B, L).
        temperature: T > 0; higher is softer.

    Returns:
        The divergence of each window in nats, (B,), from 0 to log 2.

    Raises:
        DistilError: The shapes differ.
    """
    student, teacher = _finite_log_softmaxes(student_logits, teacher_logits, student_mask, teacher_mask, temperature)
    mean = torch.logaddexp(student, teacher) - math.log(2)
    return (student.exp() * (student - mean) + teacher.exp() * (teacher - mean)).sum(dim=1) / 2


def correlation_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    student_mask: Tensor,
    teacher_mask: Tensor,
    temperature: float = 1.0,
) -> Tensor:
    """1 - Pearson's correlation of the probabilities of student and teacher over the tokens, without a factor T^2.

    The inter-class relation of DIST (Huang et al. 2022, arXiv 2205.10536): the student has to match the teacher's
    preferences, and not its probabilities.

    Args:
        student_logits: (B, L).
        teacher_logits: (B, L). -inf for tokens without a teacher score, which have probability 0.
        student_mask: True for the tokens of the student's softmax, all except padding, (B, L).
        teacher_mask: As for `kl_div_loss`, (B, L).
        temperature: T > 0; higher is softer.

    Returns:
        The loss of each window, (B,), from 0 to 2.

    Raises:
        DistilError: The shapes differ.
    """
    logs = _finite_log_softmaxes(student_logits, teacher_logits, student_mask, teacher_mask, temperature)
    student, teacher = (_centred(each.exp(), student_mask.bool()) for each in logs)
    return 1 - cosine_similarity(student, teacher, dim=1)


def _finite_log_softmaxes(
    student_logits: Tensor, teacher_logits: Tensor, student_mask: Tensor, teacher_mask: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    """Log softmaxes of both at a temperature, in which the logarithm of probability 0 is finite."""
    _require_same_shape(student_logits, teacher_logits)
    teacher_logits = teacher_logits.detach().float()
    student, teacher = (
        (logits / temperature).masked_fill(~mask, _LOWEST).log_softmax(dim=1)
        for logits, mask in (
            (student_logits.float(), student_mask.bool()),
            (teacher_logits, teacher_mask.bool() & ~torch.isneginf(teacher_logits)),
        )
    )
    return student, teacher


def window_temperatures(
    student_logits: Tensor, teacher_logits: Tensor, teacher_mask: Tensor, temperature: float, beta: float, gamma: float
) -> Tensor:
    """T - beta * (1 - cos(student, teacher))^gamma: a temperature for each window, lower where the two disagree.

    The focal-loss style weights of dynamic temperature distillation (Wen et al. 2019, arXiv 1911.07471), "flsw" in
    TextBrewer, with two differences. There the mean weight of the batch is added, so that T is the mean temperature of
    a batch; here T is the temperature of a window on which the two agree, and what a window learns does not depend on
    its batch. And the cosine is of logits less their mean: like a softmax it does not change if a number is added to
    all of them, as ensembles and teachers with other windows do. A cosine below 0 counts as 0.

    Args:
        student_logits: (B, L).
        teacher_logits: (B, L). Tokens with -inf are left out.
        teacher_mask: True for the context and the no-answer position, (B, L).
        temperature: T, above beta.
        beta: How far the temperature falls, 0 or more.
        gamma: Above 0; the larger, the fewer windows have a low temperature.

    Returns:
        Temperatures from T - beta to T, (B,), without a gradient.

    Raises:
        DistilError: The shapes differ.
    """
    _require_same_shape(student_logits, teacher_logits)
    scored = teacher_mask.bool() & ~torch.isneginf(teacher_logits)
    student, teacher = (_centred(logits.detach().float(), scored) for logits in (student_logits, teacher_logits))
    cosine = cosine_similarity(student, teacher, dim=1).clamp(0.0, 1.0)
    return temperature - beta * (1 - cosine) ** gamma


def _centred(logits: Tensor, scored: Tensor) -> Tensor:
    """Values (B, L) less the mean of those that are scored; 0 elsewhere."""
    kept = logits.masked_fill(~scored, 0.0)
    return (kept - kept.sum(dim=1, keepdim=True) / scored.sum(dim=1, keepdim=True)).masked_fill(~scored, 0.0)


def mse_logits_loss(student_logits: Tensor, teacher_logits: Tensor, teacher_mask: Tensor) -> Tensor:
    """Mean squared difference of the unscaled logits over the tokens with a teacher score.

    Args:
        student_logits: (B, L).
        teacher_logits: (B, L). Tokens with -inf are left out, because they have no finite target.
        teacher_mask: True for the context and the no-answer position, (B, L).

    Returns:
        The mean of each window, (B,).

    Raises:
        DistilError: The shapes differ.
    """
    _require_same_shape(student_logits, teacher_logits)
    scored = teacher_mask.bool() & ~torch.isneginf(teacher_logits)
    difference = (student_logits.float() - teacher_logits.detach().float()).masked_fill(~scored, 0.0)
    return difference.square().sum(dim=1) / scored.sum(dim=1)


def level_loss(student_logits: Tensor, teacher_logits: Tensor, mask: Tensor) -> Tensor:
    """Squared difference of the logarithms of the sums of exponentials of the logits.

    A divergence of softmaxes is blind to a number added to all logits, but a reader compares the logits of several
    windows: where both losses are 0, the logits are equal.

    Args:
        student_logits: (B, L).
        teacher_logits: (B, L), finite.
        mask: True for tokens, False for padding, (B, L).

    Returns:
        The squared difference of each window, (B,).

    Raises:
        DistilError: The shapes differ.
    """
    _require_same_shape(student_logits, teacher_logits)
    own, target = (
        logits.float().masked_fill(~mask.bool(), -torch.inf).logsumexp(dim=1)
        for logits in (student_logits, teacher_logits.detach())
    )
    return (own - target).square()


def binary_divergence(log_odds: Tensor, target: Tensor) -> Tensor:
    """The Kullback-Leibler divergence of two outcomes, KL(target || own), in nats.

    Args:
        log_odds: log(p / (1 - p)) of the own probability p, any shape.
        target: The other probability, from 0 to 1, of the same shape.

    Raises:
        DistilError: The shapes differ.
    """
    _require_same_shape(log_odds, target)
    target = target.detach().float()
    entropy = -(torch.xlogy(target, target) + torch.xlogy(1 - target, 1 - target))
    return binary_cross_entropy_with_logits(log_odds.float(), target, reduction="none") - entropy


def log_odds_loss(predicted: Tensor, teacher_logits: Tensor, teacher_mask: Tensor) -> Tensor:
    """Mean squared difference to logit(p) = log(p / (1 - p)) of the teacher's probabilities p.

    Equations 4 and 5 of Mukherjee & Awadallah 2019 (arXiv 1910.01769). So that it is finite, logit(p) is limited to
    -`LOG_ODDS_LIMIT` and `LOG_ODDS_LIMIT`.

    Args:
        predicted: The student's log-odds, (B, L).
        teacher_logits: (B, L). Tokens with -inf have no target and are left out.
        teacher_mask: True for the tokens of the teacher's softmax: the context and the no-answer position, (B, L).

    Returns:
        The mean of each window, (B,).

    Raises:
        DistilError: The shapes differ.
    """
    _require_same_shape(predicted, teacher_logits)
    log_p = _log_softmax(teacher_logits.detach().float(), teacher_mask)
    target = (log_p - torch.log1p(-log_p.exp())).clamp(-LOG_ODDS_LIMIT, LOG_ODDS_LIMIT)
    scored = teacher_mask.bool() & ~torch.isneginf(teacher_logits)
    difference = (predicted.float() - target).masked_fill(~scored, 0.0)
    return difference.square().sum(dim=1) / scored.sum(dim=1)


def hidden_state_loss(student: Tensor, teacher: Tensor, attention_mask: Tensor) -> Tensor:
    """Mean squared difference of hidden states over the tokens of a window and the dimensions of a token.

    The MSE of TinyBERT's equations 8 and 9 (Jiao et al. 2020, arXiv 1909.10351), without padding.

    Args:
        student: (B, L, H), projected to the teacher's width where the widths differ.
        teacher: (B, L, H).
        attention_mask: 1 or True for tokens, 0 or False for padding, (B, L).

    Returns:
        The mean of each window, (B,).

    Raises:
        DistilError: The shapes differ.
    """
    _require_same_shape(student, teacher)
    valid = attention_mask.bool()
    difference = (student.float() - teacher.detach().float()).masked_fill(~valid.unsqueeze(2), 0.0)
    return difference.square().sum(dim=(1, 2)) / (valid.sum(dim=1) * student.shape[2])


def attention_score_loss(student: Tensor, teacher: Tensor, attention_mask: Tensor) -> Tensor:
    """Mean squared difference of attention scores over heads and over pairs of a query token and a key token.

    TinyBERT's equation 7 (Jiao et al. 2020, arXiv 1909.10351): scores before the softmax, without padding.

    Args:
        student: (B, heads, L, L).
        teacher: (B, heads, L, L).
        attention_mask: 1 or True for tokens, 0 or False for padding, (B, L).

    Returns:
        The mean of each window, (B,).

    Raises:
        DistilError: The shapes differ.
    """
    _require_same_shape(student, teacher)
    valid = attention_mask.bool()
    pairs = (valid.unsqueeze(1) & valid.unsqueeze(2)).unsqueeze(1)
    difference = (student.float() - teacher.detach().float()).masked_fill(~pairs, 0.0)
    return difference.square().sum(dim=(1, 2, 3)) / (pairs.sum(dim=(1, 2, 3)) * student.shape[1])


def attention_kl_div_loss(student: Tensor, teacher: Tensor, attention_mask: Tensor) -> Tensor:
    """KL(softmax(teacher) || softmax(student)) over the keys, mean over heads and query tokens.

    The attention transfer of MobileBERT (Sun et al. 2020, arXiv 2004.02984) and MiniLM (Wang et al. 2020, arXiv
    2002.10957). Padding is left out of both softmaxes and of the mean.

    Args:
        student: Scores before the softmax, (B, heads, L, L); the last dimension is that of the keys.
        teacher: (B, heads, L, L).
        attention_mask: 1 or True for tokens, 0 or False for padding, (B, L).

    Returns:
        The mean divergence of each window in nats, (B,).

    Raises:
        DistilError: The shapes differ.
    """
    _require_same_shape(student, teacher)
    loss: Tensor = _ScoreDivergence.apply(student, teacher.detach(), attention_mask.bool())
    return loss


def relation_loss(
    student: tuple[Tensor, Tensor], teacher: tuple[Tensor, Tensor], attention_mask: Tensor, heads: int
) -> Tensor:
    """`attention_kl_div_loss` of the scaled dot products of two tensors, without keeping these products in memory.

    The relations of MiniLMv2 (Wang et al. 2021, arXiv 2012.15828).

    Args:
        student: Two of the student's queries, keys and values, each (B, L, H); `heads` divides H.
        teacher: The same two of the teacher, of any width that `heads` divides.
        attention_mask: 1 or True for tokens, 0 or False for padding, (B, L).
        heads: Number of relation heads, parts that the width is divided into.

    Returns:
        The mean divergence of each window in nats, (B,).
    """
    targets = (teacher[0].detach(), teacher[1].detach())
    loss: Tensor = _RelationDivergence.apply(*student, *targets, attention_mask.bool(), heads)
    return loss


class _ScoreDivergence(Function):
    """KL(teacher || student) of scores, with its gradient by hand, softmax(student) - softmax(teacher).

    Few windows at a time, so that intermediate results stay in the processor's caches: far faster than autograd.
    """

    @staticmethod
    def forward(ctx: Any, student: Tensor, teacher: Tensor, valid: Tensor) -> Tensor:
        losses, gradients = [], []
        for rows in _few_windows(student.shape[1], valid):
            loss, gradient = _divergence(student[rows].float().clone(), teacher[rows].float().clone(), valid[rows])
            losses.append(loss)
            gradients.append(gradient)
        ctx.precision = student.dtype
        ctx.save_for_backward(*gradients)
        return torch.cat(losses)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, given: Tensor) -> tuple[Tensor | None, ...]:
        gradient = torch.cat(ctx.saved_tensors).mul_(given[:, None, None, None])
        return gradient.to(ctx.precision), None, None


class _RelationDivergence(Function):
    """As `_ScoreDivergence`, of dot products: these and their gradients exist for few windows at a time."""

    @staticmethod
    def forward(
        ctx: Any, first: Tensor, second: Tensor, t_first: Tensor, t_second: Tensor, valid: Tensor, heads: int
    ) -> Tensor:
        losses, firsts, seconds = [], [], []
        with torch.autocast(first.device.type, enabled=False):
            for rows in _few_windows(heads, valid):
                own_first, own_second = _by_head(first[rows], heads), _by_head(second[rows], heads)
                target = torch.matmul(_by_head(t_first[rows], heads), _by_head(t_second[rows], heads).transpose(2, 3))
                scores = torch.matmul(own_first, own_second.transpose(2, 3))
                loss, gradient = _divergence(scores, target, valid[rows])
                losses.append(loss)
                if ctx.needs_input_grad[0] or ctx.needs_input_grad[1]:
                    scale = own_first.shape[3] ** -0.25  # of each factor, as in `_by_head`
                    in_first, in_second = gradient @ own_second, gradient.transpose(2, 3) @ own_first
                    firsts.append(in_first.mul_(scale).transpose(1, 2).flatten(2))
                    seconds.append(in_second.mul_(scale).transpose(1, 2).flatten(2))
        ctx.precision = first.dtype
        ctx.save_for_backward(*firsts, *seconds)
        return torch.cat(losses)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, given: Tensor) -> tuple[Tensor | None, ...]:
        half = len(ctx.saved_tensors) // 2
        in_first, in_second = (
            torch.cat(parts).mul_(given[:, None, None]).to(ctx.precision)
            for parts in (ctx.saved_tensors[:half], ctx.saved_tensors[half:])
        )
        return in_first, in_second, None, None, None, None


def _by_head(states: Tensor, heads: int) -> Tensor:
    """(B, L, H) to (B, heads, L, d), float32, divided by the fourth root of d: two of them give x y^T / sqrt(d)."""
    parts = states.float().unflatten(2, (heads, -1)).transpose(1, 2)
    return parts * parts.shape[3] ** -0.25


def _divergence(student: Tensor, teacher: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """KL(teacher || student) of (B, heads, L, L) scores, which it overwrites: the loss (B,) and its gradient."""
    padding = ~valid[:, None, None, :]
    log_student = student.masked_fill_(padding, _LOWEST).log_softmax(dim=3)
    log_teacher = teacher.masked_fill_(padding, _LOWEST).log_softmax(dim=3)
    probability = log_teacher.exp()
    share = valid / (valid.sum(dim=1, keepdim=True) * student.shape[1])  # of a query token and head in the mean
    loss = log_teacher.sub_(log_student).mul_(probability).sum(dim=3).mul_(share[:, None]).sum(dim=(1, 2))
    return loss, log_student.exp_().sub_(probability).mul_(share[:, None, :, None])


def _few_windows(heads: int, valid: Tensor) -> Iterator[slice]:
    """Parts of a batch whose scores, (heads, L, L) a window, have a size that the processor is fast with."""
    n_windows, length = valid.shape
    size = max(1, (_SCORES_CPU if valid.device.type == "cpu" else _SCORES_GPU) // (heads * length**2))
    return (slice(first, first + size) for first in range(0, n_windows, size))


def mean_attention_loss(student: Tensor, teacher: Tensor, attention_mask: Tensor) -> Tensor:
    """Mean squared difference of attention scores that are averaged over heads, so that head counts may differ.

    Args:
        student: Scores before the softmax, (B, student heads, L, L).
        teacher: (B, teacher heads, L, L).
        attention_mask: 1 or True for tokens, 0 or False for padding, (B, L).

    Returns:
        The mean of each window over pairs of a query token and a key token, (B,).

    Raises:
        DistilError: The numbers of windows or tokens differ.
    """
    own, target = (scores.float().mean(dim=1, keepdim=True) for scores in (student, teacher))
    return attention_score_loss(own, target, attention_mask)


def soft_target_loss(
    student_logits: Tensor, teacher_logits: Tensor, attention_mask: Tensor, temperature: float = 1.0
) -> Tensor:
    """KL(softmax(teacher / T) || softmax(student / T)) over the vocabulary, mean over tokens, without the factor T^2.

    DistilBERT's distillation loss (Sanh et al. 2019, arXiv 1910.01108).

    Args:
        student_logits: (B, L, V).
        teacher_logits: (B, L, V).
        attention_mask: 1 or True for the tokens that are compared, all but padding, (B, L).
        temperature: T > 0; higher is softer.

    Returns:
        The mean divergence of each window in nats, (B,); 0 for a window without any such token.

    Raises:
        DistilError: The shapes differ.
    """
    _require_same_shape(student_logits, teacher_logits)
    teacher = (teacher_logits.detach().float() / temperature).log_softmax(dim=2)
    student = (student_logits.float() / temperature).log_softmax(dim=2)
    return mean_over_tokens((teacher.exp() * (teacher - student)).sum(dim=2), attention_mask)


def masked_word_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross entropy of the masked words (BERT, Devlin et al. 2019, arXiv 1810.04805).

    Args:
        logits: (B, L, V).
        labels: The original token of a masked position, -100 elsewhere, (B, L).

    Returns:
        The mean over the masked words of each window in nats, (B,); 0 for a window without any.
    """
    loss = cross_entropy(logits.float().transpose(1, 2), labels, ignore_index=-100, reduction="none")
    return loss.sum(dim=1) / (labels != -100).sum(dim=1).clamp(min=1)


def cosine_loss(student: Tensor, teacher: Tensor, attention_mask: Tensor) -> Tensor:
    """1 - cosine of the hidden states of student and teacher, mean over tokens (DistilBERT, arXiv 1910.01108).

    Args:
        student: (B, L, H).
        teacher: (B, L, H).
        attention_mask: 1 or True for tokens, 0 or False for padding, (B, L).

    Returns:
        The mean of each window, (B,), from 0 (same direction) to 2 (opposite).

    Raises:
        DistilError: The shapes differ.
    """
    _require_same_shape(student, teacher)
    return mean_over_tokens(1 - cosine_similarity(student.float(), teacher.detach().float(), dim=2), attention_mask)


def normalised_state_loss(student: Tensor, teacher: Tensor, tokens: Tensor) -> Tensor:
    """Squared distance of hidden states of length 1, mean over tokens: twice the cosine loss.

    Equation 7 of patient distillation (Sun et al. 2019, arXiv 1908.09355) for one layer.

    Args:
        student: (B, L, H).
        teacher: (B, L, H).
        tokens: 1 or True for the tokens that are compared, (B, L), at least one per window.

    Returns:
        The mean of each window, (B,), from 0 (same direction) to 4 (opposite).

    Raises:
        DistilError: The shapes differ.
    """
    _require_same_shape(student, teacher)
    difference = normalize(student.float(), dim=2) - normalize(teacher.detach().float(), dim=2)
    return mean_over_tokens(difference.square().sum(dim=2), tokens)


def standardised_state_loss(student: Tensor, teacher: Tensor, attention_mask: Tensor) -> Tensor:
    """Mean squared difference of hidden states whose every token has the mean 0 and the variance 1 (MobileBERT).

    What remains of `hidden_state_loss` where `mean_loss` and `variance_loss` compare the statistics. As in a layer
    normalisation 1e-5 is added to the variances.

    Args:
        student: Hidden states (B, L, H).
        teacher: (B, L, H).
        attention_mask: 1 or True for tokens, 0 or False for padding, (B, L).

    Returns:
        The mean of each window, (B,), from 0 to 4.

    Raises:
        DistilError: The shapes differ.
    """
    width = (student.shape[2],)
    return hidden_state_loss(layer_norm(student.float(), width), layer_norm(teacher.float(), width), attention_mask)


def mean_loss(student: Tensor, teacher: Tensor, attention_mask: Tensor) -> Tensor:
    """Squared difference of the means of each token's feature map, mean over tokens (MobileBERT, arXiv 2004.02984).

    Args:
        student: Hidden states (B, L, H); the mean is over H.
        teacher: (B, L, H).
        attention_mask: 1 or True for tokens, 0 or False for padding, (B, L).

    Returns:
        The mean of each window, (B,).
    """
    difference = student.float().mean(dim=2) - teacher.detach().float().mean(dim=2)
    return mean_over_tokens(difference.square(), attention_mask)


def variance_loss(student: Tensor, teacher: Tensor, attention_mask: Tensor) -> Tensor:
    """Difference of the variances of each token's feature map, without its sign; otherwise as `mean_loss`.

    Not squared, as in the authors' code; the variances are without Bessel's correction.
    """
    difference = student.float().var(dim=2, correction=0) - teacher.detach().float().var(dim=2, correction=0)
    return mean_over_tokens(difference.abs(), attention_mask)


def mean_over_tokens(values: Tensor, attention_mask: Tensor) -> Tensor:
    """The mean of (B, L) values over the tokens that are not padding, (B,)."""
    valid = attention_mask.bool()
    # A window without any has the value 0: 0 / 0 would make the whole gradient NaN, though no mask counts the window.
    return values.masked_fill(~valid, 0.0).sum(dim=1) / valid.sum(dim=1).clamp(min=1)


def _log_softmax(logits: Tensor, mask: Tensor) -> Tensor:
    """Log softmax over the positions where `mask` is True; -inf elsewhere."""
    return logits.masked_fill(~mask.bool(), float("-inf")).log_softmax(dim=1)


def _require_same_shape(student: Tensor, teacher: Tensor) -> None:
    # Otherwise tensors may be broadcast silently, such as one teacher head to all heads of the student.
    if student.shape != teacher.shape:
        raise DistilError(
            f"student and teacher tensors have different shapes, {tuple(student.shape)} and {tuple(teacher.shape)}; "
            "run both on the same tokens, with the same width or number of heads"
        )
