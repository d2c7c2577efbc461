"""The losses, as pure functions of tensors. Each returns one value per window, shape (B,), in float32.

Teacher tensors are detached: no gradient reaches them. The value of a window depends on that window only, not on its
padding.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, cross_entropy, normalize

from haystack_distill.errors import DistilError

LOG_ODDS_LIMIT = 10.0  # in `log_odds_loss`: probabilities of 4.5e-5 and 1 - 4.5e-5


_LOWEST = -1e30  # a score that a softmax turns to 0


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


def window_temperatures(
    student_logits: Tensor, teacher_logits: Tensor, teacher_mask: Tensor, temperature: float, beta: float, gamma: float
) -> Tensor:
    """T - beta * (1 - cos(student, teacher))^gamma: a temperature for each window, lower where the two disagree.

    The focal-loss style weights of dynamic temperature distillation (Wen et al. 2019, arXiv 1911.07471), "flsw" in
    TextBrewer. There the mean weight of the batch is added, so that T is the mean temperature of a batch; here T is the
    temperature of a window on which the two agree, and what a window learns does not depend on its batch. A cosine
    below 0 counts as 0.

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
    student, teacher = (
        logits.detach().float().masked_fill(~scored, 0.0) for logits in (student_logits, teacher_logits)
    )
    cosine = cosine_similarity(student, teacher, dim=1).clamp(0.0, 1.0)
    return temperature - beta * (1 - cosine) ** gamma


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
    2002.10957), and, for other scaled dot products than those of queries and keys, the relations of MiniLMv2 (Wang et
    al. 2021, arXiv 2012.15828). Padding is left out of both softmaxes and of the mean.

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
    valid = attention_mask.bool()
    padding = ~valid[:, None, None, :]
    # Finite, so that probability 0 times the difference of the logarithms is 0 and not NaN.
    log_teacher = teacher.detach().float().masked_fill(padding, _LOWEST).log_softmax(dim=3)
    log_student = student.float().masked_fill(padding, _LOWEST).log_softmax(dim=3)
    divergence = (log_teacher.exp() * (log_teacher - log_student)).sum(dim=3)
    return _mean_over_tokens(divergence.mean(dim=1), attention_mask)


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
    return _mean_over_tokens((teacher.exp() * (teacher - student)).sum(dim=2), attention_mask)


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
    return _mean_over_tokens(1 - cosine_similarity(student.float(), teacher.detach().float(), dim=2), attention_mask)


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
    return _mean_over_tokens(difference.square().sum(dim=2), tokens)


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
    return _mean_over_tokens(difference.square(), attention_mask)


def variance_loss(student: Tensor, teacher: Tensor, attention_mask: Tensor) -> Tensor:
    """As `mean_loss`, of the variances (without Bessel's correction) of each token's feature map."""
    difference = student.float().var(dim=2, correction=0) - teacher.detach().float().var(dim=2, correction=0)
    return _mean_over_tokens(difference.square(), attention_mask)


def _mean_over_tokens(values: Tensor, attention_mask: Tensor) -> Tensor:
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
