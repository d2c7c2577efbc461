"""The losses: hand-computed values, zero at identity, padding, gradients, infinities, autocast."""

import math

import pytest
import torch

from haystack_distill.errors import DistilError
from haystack_distill.objectives.losses import (
    attention_score_loss,
    correlation_loss,
    cosine_loss,
    hard_label_loss,
    hidden_state_loss,
    jensen_shannon_loss,
    kl_div_loss,
    masked_word_loss,
    mse_logits_loss,
    soft_target_loss,
)

INF = float("inf")


def bools(*rows):
    return torch.tensor(rows, dtype=torch.bool)


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_hard_label_loss_by_hand():
    logits = torch.log(torch.tensor([[1.0, 3.0, 4.0, 99.0], [2.0, 2.0, 2.0, 2.0]]))
    mask = bools([1, 1, 1, 0], [1, 1, 1, 1])
    loss = hard_label_loss(logits, torch.tensor([1, 2]), mask)
    torch.testing.assert_close(loss, torch.tensor([-math.log(3 / 8), math.log(4)]))


def test_hard_label_loss_gives_padding_no_gradient():
    logits = random(2, 4).requires_grad_()
    hard_label_loss(logits, torch.tensor([1, 0]), bools([1, 1, 0, 0], [1, 1, 1, 1])).sum().backward()
    assert logits.grad[0, 2:].eq(0).all()
    assert logits.grad[0, 1] < 0 < logits.grad[0, 0]


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_kl_div_by_hand(temperature):
    # At temperature T the logits T log x are the probabilities x.
    student = torch.log(torch.tensor([[1.0, 1.0, 2.0, 50.0]])) * temperature
    teacher = torch.log(torch.tensor([[7.0, 3.0, 1.0, 50.0]])) * temperature
    loss = kl_div_loss(student, teacher, bools([1, 1, 1, 0]), bools([0, 1, 1, 0]), temperature)
    expected = 3 / 4 * math.log((3 / 4) / (1 / 4)) + 1 / 4 * math.log((1 / 4) / (2 / 4))
    torch.testing.assert_close(loss, torch.tensor([expected]))


def test_kl_div_is_the_cross_entropy_for_a_certain_teacher():
    teacher = torch.tensor([[-INF, 0.0, -INF, -INF]])
    student, mask = random(1, 4), torch.ones(1, 4, dtype=torch.bool)
    torch.testing.assert_close(
        kl_div_loss(student, teacher, mask, mask), hard_label_loss(student, torch.tensor([1]), mask)
    )


def test_kl_div_is_not_symmetric_and_not_negative():
    a, b, mask = random(5, 7, seed=1), random(5, 7, seed=2), torch.ones(5, 7, dtype=torch.bool)
    forward, backward = kl_div_loss(a, b, mask, mask), kl_div_loss(b, a, mask, mask)
    assert (forward > 0).all()
    assert (backward > 0).all()
    assert not torch.allclose(forward, backward)


def test_kl_div_with_uncovered_tokens_has_finite_value_and_gradient():
    teacher = random(2, 6, seed=3)
    teacher[0, 2:4] = -INF
    student = random(2, 6).requires_grad_()
    student_mask, teacher_mask = bools([1, 1, 1, 1, 1, 0], [1] * 6), bools([1, 0, 1, 1, 1, 0], [1, 0, 0, 1, 1, 1])
    loss = kl_div_loss(student, teacher, student_mask, teacher_mask, 3.0)
    loss.sum().backward()
    assert loss.isfinite().all()
    assert student.grad.isfinite().all()
    # Where the teacher has probability 0 the student's is pushed down; padding is left alone.
    assert (student.grad[0, 1:4] > 0).all()
    assert student.grad[0, 5] == 0


def test_jensen_shannon_by_hand():
    """p = (0, 3/4, 1/4, -), q = (1/2, 1/4, 1/4, -): a token without a teacher score, and padding."""
    teacher = torch.tensor([[7.0, math.log(3.0), 0.0, 9.0]])
    student = torch.tensor([[math.log(2.0), 0.0, 0.0, 9.0]])
    masks = bools([1, 1, 1, 0]), bools([0, 1, 1, 0])
    p, q, m = (0, 3 / 4, 1 / 4), (1 / 2, 1 / 4, 1 / 4), (1 / 4, 1 / 2, 1 / 4)
    divergences = [sum(a * math.log(a / c) for a, c in zip(each, m, strict=True) if a) for each in (p, q)]
    assert jensen_shannon_loss(student, teacher, *masks).tolist() == pytest.approx([sum(divergences) / 2])
    doubled = jensen_shannon_loss(2 * student, 2 * teacher, *masks, 2.0)
    assert doubled.tolist() == pytest.approx([sum(divergences) / 2])


def test_jensen_shannon_is_symmetric_and_at_most_log_2():
    a, b, mask = random(1, 6, seed=1), random(1, 6, seed=2), torch.ones(1, 6, dtype=torch.bool)
    torch.testing.assert_close(jensen_shannon_loss(a, b, mask, mask), jensen_shannon_loss(b, a, mask, mask))
    apart = torch.tensor([[100.0, 0.0]])
    assert jensen_shannon_loss(apart, -apart, mask[:, :2], mask[:, :2]).item() == pytest.approx(math.log(2))


def test_correlation_by_hand():
    """p = (0, 3/4, 1/4) and q = (1/2, 1/4, 1/4): less their mean 1/3, the product is -1/12 and the squares 7/24, 1/24."""
    teacher = torch.tensor([[7.0, math.log(3.0), 0.0, 9.0]])
    student = torch.tensor([[math.log(2.0), 0.0, 0.0, 9.0]])
    masks = bools([1, 1, 1, 0]), bools([0, 1, 1, 0])
    expected = 1 - (-1 / 12) / math.sqrt(7 / 24 * 1 / 24)
    assert correlation_loss(student, teacher, *masks).tolist() == pytest.approx([expected])
    assert correlation_loss(2 * student, 2 * teacher, *masks, 2.0).tolist() == pytest.approx([expected])


@pytest.mark.parametrize("loss", [jensen_shannon_loss, correlation_loss])
def test_probability_0_of_either_has_finite_value_and_gradient(loss):
    student, teacher = random(2, 5).requires_grad_(), random(2, 5, seed=1)
    teacher[0, 2] = -INF  # a context token that the teacher's tokens do not cover
    value = loss(student, teacher, bools([1] * 5, [1, 1, 1, 0, 0]), bools([0, 1, 1, 1, 0], [0, 1, 1, 0, 0]), 3.0)
    value.sum().backward()
    assert value.isfinite().all()
    assert student.grad.isfinite().all()
    assert student.grad[0].ne(0).all()  # tokens without a teacher score are in the student's softmax


def test_mse_by_hand_leaves_out_what_the_teacher_does_not_score():
    student = torch.tensor([[1.0, 2.0, 3.0, 9.0], [0.0, 0.0, 1.0, 1.0]]).requires_grad_()
    teacher = torch.tensor([[0.0, 2.0, -INF, 0.0], [1.0, 2.0, 3.0, 4.0]])
    loss = mse_logits_loss(student, teacher, bools([1, 1, 1, 0], [0, 1, 1, 1]))
    torch.testing.assert_close(loss, torch.tensor([1 / 2, (4 + 4 + 9) / 3]))
    loss.sum().backward()
    torch.testing.assert_close(student.grad[0], torch.tensor([1.0, 0.0, 0.0, 0.0]))


def test_hidden_state_loss_by_hand():
    student = torch.tensor([[[1.0, 2.0], [3.0, 4.0], [9.0, 9.0]]])
    teacher = torch.tensor([[[1.0, 0.0], [0.0, 4.0], [0.0, 0.0]]])
    torch.testing.assert_close(
        hidden_state_loss(student, teacher, torch.tensor([[1, 1, 0]])), torch.tensor([(4 + 9) / 4])
    )


def test_attention_score_loss_by_hand():
    student, teacher = torch.zeros(1, 2, 3, 3), torch.full((1, 2, 3, 3), 100.0)
    teacher[0, 0, :2, :2] = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    teacher[0, 1, :2, :2] = torch.tensor([[0.0, 0.0], [0.0, 5.0]])
    loss = attention_score_loss(student, teacher, torch.tensor([[1, 1, 0]]))
    torch.testing.assert_close(loss, torch.tensor([(1 + 4 + 9 + 16 + 25) / 8]))


def kl(student, teacher, mask):
    return kl_div_loss(student, teacher, mask, mask, 2.0)


def jensen_shannon(student, teacher, mask):
    return jensen_shannon_loss(student, teacher, mask, mask, 2.0)


def correlation(student, teacher, mask):
    return correlation_loss(student, teacher, mask, mask, 2.0)


# Each loss between a student and a teacher, with the shape of what it compares for windows of L tokens.
LOSSES = [
    pytest.param(kl, lambda b, n: (b, n), id="kl_div"),
    pytest.param(jensen_shannon, lambda b, n: (b, n), id="jensen_shannon"),
    pytest.param(correlation, lambda b, n: (b, n), id="correlation"),
    pytest.param(mse_logits_loss, lambda b, n: (b, n), id="mse"),
    pytest.param(hidden_state_loss, lambda b, n: (b, n, 5), id="hidden"),
    pytest.param(attention_score_loss, lambda b, n: (b, 3, n, n), id="attention"),
]


@pytest.mark.parametrize(("loss", "shape"), LOSSES)
def test_zero_at_identity_with_zero_gradient(loss, shape):
    student = random(*shape(2, 6)).requires_grad_()
    mask = bools([1, 1, 1, 1, 0, 0], [1] * 6)
    value = loss(student, student.detach().clone(), mask)
    value.sum().backward()
    torch.testing.assert_close(value, torch.zeros(2), atol=1e-6, rtol=0)
    torch.testing.assert_close(student.grad, torch.zeros_like(student), atol=1e-6, rtol=0)


@pytest.mark.parametrize(("loss", "shape"), LOSSES)
def test_a_window_does_not_depend_on_padding_or_neighbours(loss, shape):
    length, longer = 4, 7
    alone = [random(*shape(1, length), seed=seed) for seed in (1, 2)]
    together = [random(*shape(3, longer), seed=seed) * 50 for seed in (3, 4)]
    tokens = (1, ..., slice(length), slice(length)) if len(shape(1, 1)) == 4 else (1, slice(length))
    for large, small in zip(together, alone, strict=True):
        large[tokens] = small[0]
    mask = bools([1] * longer, [1] * length + [0] * (longer - length), [1, 1] + [0] * (longer - 2))
    expected = loss(*alone, torch.ones(1, length, dtype=torch.bool))
    assert expected[0] > 0.01
    torch.testing.assert_close(loss(*together, mask)[1:2], expected)


@pytest.mark.parametrize(("loss", "shape"), LOSSES)
def test_gradient_goes_to_the_student_and_not_to_padding_or_teacher(loss, shape):
    student, teacher = (random(*shape(1, 4), seed=seed).requires_grad_() for seed in (1, 2))
    loss(student, teacher, bools([1, 1, 1, 0])).sum().backward()
    assert teacher.grad is None
    assert student.grad.abs().sum() > 0
    padding = student.grad[0, :, 3] if student.dim() == 4 else student.grad[0, 3]
    assert padding.eq(0).all()


@pytest.mark.parametrize(("loss", "shape"), LOSSES)
def test_garbage_in_padding_is_harmless(loss, shape):
    student, teacher = (random(*shape(1, 4), seed=seed) for seed in (1, 2))
    student.select(-1 if student.dim() == 4 else 1, 3).fill_(INF)
    student.requires_grad_()
    value = loss(student, teacher, bools([1, 1, 1, 0]))
    value.sum().backward()
    assert value.isfinite().all()
    assert student.grad.isfinite().all()


@pytest.mark.parametrize(("loss", "shape"), LOSSES)
def test_half_precision_inputs_are_compared_in_float32_under_autocast(loss, shape):
    student, teacher = (random(*shape(2, 6), seed=seed).half() * 300 for seed in (1, 2))  # 300^2 overflows float16
    mask = torch.ones(2, 6, dtype=torch.bool)
    exact = loss(student.float(), teacher.float(), mask)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = loss(student, teacher, mask)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, exact)


@pytest.mark.parametrize(("loss", "shape"), LOSSES)
def test_shapes_that_would_broadcast_are_an_error(loss, shape):
    student = random(*shape(2, 6))
    with pytest.raises(DistilError, match="different shapes"):
        loss(student, student[:1], torch.ones(2, 6, dtype=torch.bool))


# --- language models -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_soft_targets_by_hand(temperature):
    # At temperature T the logits T log x are the probabilities x. Two tokens, a vocabulary of two; the third is padding.
    teacher = torch.log(torch.tensor([[[3.0, 1.0], [1.0, 1.0], [9.0, 1.0]]])) * temperature
    student = torch.log(torch.tensor([[[1.0, 1.0], [1.0, 1.0], [1.0, 9.0]]])) * temperature
    loss = soft_target_loss(student, teacher, bools([1, 1, 0]), temperature)
    expected = (3 / 4 * math.log(3 / 2) + 1 / 4 * math.log(1 / 2)) / 2
    torch.testing.assert_close(loss, torch.tensor([expected]))


def test_masked_words_by_hand():
    logits = torch.log(torch.tensor([[[1.0, 3.0], [1.0, 1.0], [5.0, 1.0]], [[1.0, 1.0]] * 3]))
    labels = torch.tensor([[1, -100, 1], [-100, -100, -100]])
    loss = masked_word_loss(logits, labels)
    torch.testing.assert_close(loss, torch.tensor([-(math.log(3 / 4) + math.log(1 / 6)) / 2, 0.0]))


def test_cosine_by_hand():
    student = torch.tensor([[[1.0, 0.0], [0.0, 2.0], [1.0, 1.0]]])
    teacher = torch.tensor([[[3.0, 0.0], [5.0, 0.0], [-1.0, -1.0]]])
    torch.testing.assert_close(cosine_loss(student, teacher, bools([1, 1, 0])), torch.tensor([0.5]))
    torch.testing.assert_close(cosine_loss(student, teacher, bools([1, 1, 1])), torch.tensor([1.0]))


@pytest.mark.parametrize("loss", [soft_target_loss, cosine_loss])
def test_language_losses_are_zero_at_identity_and_blind_to_padding(loss):
    one, other = random(2, 3, 5), random(2, 3, 5, seed=1)
    mask = bools([1, 1, 1], [1, 1, 0])
    torch.testing.assert_close(loss(one, one, mask), torch.zeros(2), atol=1e-6, rtol=0)
    assert (loss(one, other, mask) > 0.01).all()
    changed = one.clone()
    changed[1, 2] += 7
    torch.testing.assert_close(loss(one, other, mask), loss(changed, other, mask))
    with pytest.raises(DistilError, match="different shapes"):
        loss(one, other[:, :, :4], mask)


@pytest.mark.parametrize("loss", [soft_target_loss, cosine_loss])
def test_language_losses_move_the_student_alone(loss):
    student, teacher = random(1, 3, 5).requires_grad_(), random(1, 3, 5, seed=1).requires_grad_()
    loss(student, teacher, bools([1, 1, 0])).sum().backward()
    assert teacher.grad is None
    assert student.grad[0, :2].ne(0).any()
    assert student.grad[0, 2].eq(0).all()


def test_masked_words_move_their_own_logits_alone():
    logits = random(1, 3, 5).requires_grad_()
    masked_word_loss(logits, torch.tensor([[-100, 2, -100]])).sum().backward()
    assert logits.grad[0, [0, 2]].eq(0).all()
    assert logits.grad[0, 1, 2] < 0
