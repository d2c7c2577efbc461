"""MPNet's fused attention: transformers' values and gradients, in both precisions, and what falls back to its own."""

import copy

import pytest
import torch
from transformers import MPNetConfig, MPNetForQuestionAnswering
from transformers.models.mpnet.modeling_mpnet import MPNetEncoder, MPNetSelfAttention

from haystack_distill.models.mpnet_attention import FusedMPNetSelfAttention, use_fused_attention
from haystack_distill.models.outputs import OutputRequest, run_model

_SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}


def _models(dropout: float = 0.0) -> tuple[MPNetForQuestionAnswering, MPNetForQuestionAnswering]:
    """A model as transformers makes it, and the same one with fused attention."""
    torch.manual_seed(0)
    rates = {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
    plain = MPNetForQuestionAnswering(MPNetConfig(vocab_size=50, max_position_embeddings=40, **_SIZES, **rates))
    plain.mpnet.encoder.relative_attention_bias.weight.data.normal_()
    fused = copy.deepcopy(plain)
    use_fused_attention(fused)
    return plain, fused


def _inputs(padding: bool = True) -> dict[str, torch.Tensor]:
    ids = torch.randint(5, 50, (3, 13), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    if padding:
        mask[0, 9:], mask[2, 4:] = 0, 0
    return {"input_ids": ids, "attention_mask": mask}


def _loss(model: torch.nn.Module, inputs: dict[str, torch.Tensor], dtype: torch.dtype) -> torch.Tensor:
    with torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32):
        outputs = model(**inputs)
    real = inputs["attention_mask"].bool()
    scores = torch.cat([outputs.start_logits[real], outputs.end_logits[real]]).float()
    return (scores * torch.linspace(-1, 1, len(scores))).sum()


@pytest.mark.parametrize("padding", [False, True])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.05)])
def test_values_and_gradients_are_those_of_transformers(padding: bool, dtype: torch.dtype, tolerance: float) -> None:
    plain, fused = _models()
    losses = [_loss(model, _inputs(padding), dtype) for model in (plain, fused)]
    assert losses[1].item() == pytest.approx(losses[0].item(), rel=tolerance)
    for loss in losses:
        loss.backward()
    others = dict(plain.named_parameters())
    for name, parameter in fused.named_parameters():
        expected = others[name].grad
        if expected is None:
            assert parameter.grad is None
        elif not name.endswith("k.bias"):  # whose gradient is 0 but for rounding
            assert parameter.grad is not None
            assert (parameter.grad - expected).norm() <= tolerance * expected.norm() + 1e-6, name
    assert fused.mpnet.encoder.relative_attention_bias.weight.grad.any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_answers_are_those_of_transformers(dtype: torch.dtype) -> None:
    plain, fused = (model.eval() for model in _models())
    with torch.inference_mode():
        found, expected = (_loss(model, _inputs(), dtype).item() for model in (fused, plain))
    assert found == pytest.approx(expected, rel=1e-5 if dtype == torch.float32 else 0.05)


def test_attention_scores_are_captured() -> None:
    request = OutputRequest(logits=True, hidden_states=True, attention_scores=(1, 2))
    plain, fused = (run_model(model, _inputs(), request) for model in _models())
    for layer in (1, 2):
        torch.testing.assert_close(fused.attention_scores[layer], plain.attention_scores[layer])
        torch.testing.assert_close(fused.hidden_states[layer], plain.hidden_states[layer], rtol=1e-4, atol=1e-5)


def test_probabilities_and_dropout_are_transformers_own() -> None:
    plain, fused = _models()
    attentions = [model(**_inputs(), output_attentions=True).attentions for model in (plain, fused)]
    assert all(torch.allclose(*pair, atol=1e-6) for pair in zip(*attentions, strict=True))
    plain, fused = (model.train() for model in _models(dropout=0.2))
    found = []
    for model in (plain, fused):
        torch.manual_seed(3)
        found.append(model(**_inputs()).start_logits)
    torch.testing.assert_close(found[1], found[0])


def test_a_window_without_tokens_is_finite() -> None:
    _, fused = _models()
    inputs = _inputs()
    inputs["attention_mask"][1] = 0
    loss = _loss(fused, inputs, torch.bfloat16)
    loss.backward()
    assert all(one.grad.isfinite().all() for one in fused.parameters() if one.grad is not None)


def test_the_classes_are_swapped_and_copied() -> None:
    plain, fused = _models()
    assert {type(module) for module in plain.modules()} >= {MPNetEncoder, MPNetSelfAttention}
    copied = copy.deepcopy(fused)
    assert isinstance(copied.mpnet.encoder.layer[0].attention.attn, FusedMPNetSelfAttention)
    assert plain.state_dict().keys() == copied.state_dict().keys()
