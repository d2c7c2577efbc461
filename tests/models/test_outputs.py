"""run_model: what it collects, checked against the models' own eager attention."""

import pytest
import torch
import transformers
from transformers import AutoConfig, AutoModelForQuestionAnswering

from haystack_distill.errors import DistilError
from haystack_distill.models.outputs import OutputRequest, attention_width, dot_product_scores, run_model

LENGTHS = (9, 5)
ARCHITECTURES = [
    *("bert", "roberta", "xlm-roberta", "camembert", "distilbert", "electra", "albert", "mpnet", "mobilebert")
]
SEGMENTS = {"bert", "electra", "albert", "mobilebert"}


def tiny_config(model_type, **changes):
    if model_type == "distilbert":
        sizes = {"dim": 16, "n_layers": 3, "n_heads": 4, "hidden_dim": 32}
    else:
        sizes = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 32}
    if model_type in ("electra", "albert", "mobilebert"):
        sizes["embedding_size"] = 8
    if model_type == "mobilebert":  # without its normalisation, states would grow from layer to layer
        sizes |= {"intra_bottleneck_size": 8, "num_feedforward_networks": 2, "normalization_type": "layer_norm"}
    if model_type == "deberta-v2":  # relative positions go through the projections, too, as in the published models
        sizes |= {"relative_attention": True, "share_att_key": True, "pos_att_type": ["p2c", "c2p"]}
    # Weights large enough for attention to be far from uniform, or a wrong score would go unnoticed.
    sizes |= {"vocab_size": 50, "max_position_embeddings": 40, "initializer_range": 0.5}
    return AutoConfig.for_model(model_type, **(sizes | changes))


def tiny_model(model_type, attention=None, **changes):
    torch.manual_seed(0)
    kwargs = {} if attention is None else {"attn_implementation": attention}
    return AutoModelForQuestionAnswering.from_config(tiny_config(model_type, **changes), **kwargs).eval()


def tiny_inputs(model_type, lengths=LENGTHS, padded_to=None):
    generator = torch.Generator().manual_seed(1)
    length = padded_to or max(lengths)
    ids = torch.full((len(lengths), length), 1)
    mask = torch.zeros_like(ids)
    for row, n in enumerate(lengths):
        ids[row, :n] = torch.randint(5, 50, (n,), generator=generator)
        mask[row, :n] = 1
    inputs = {"input_ids": ids, "attention_mask": mask}
    if model_type in SEGMENTS:
        inputs["token_type_ids"] = (torch.arange(length) > 3).long().expand_as(ids) * mask
    return inputs


def last(model, *names):
    """The last module of a model with one of the names."""
    return [module for name, module in model.named_modules() if name.rpartition(".")[2] in names][-1]


def n_hooks(model):
    # transformers 5 keeps hooks of its own on whole layers, so only those of the projections are counted.
    return sum(len(module._forward_hooks) for module in model.modules() if isinstance(module, torch.nn.Linear))


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_softmax_of_the_scores_is_the_models_own_attention(model_type):
    model, eager = tiny_model(model_type), tiny_model(model_type, attention="eager")
    eager.load_state_dict(model.state_dict())
    inputs = tiny_inputs(model_type)
    expected = eager(**inputs, output_attentions=True, output_hidden_states=True)

    outputs = run_model(model, inputs, OutputRequest(hidden_states=True, attention_scores=(1, 2, 3)))

    padding = inputs["attention_mask"][:, None, None, :] == 0
    valid_queries = inputs["attention_mask"][:, None, :, None]
    assert sorted(outputs.attention_scores) == [1, 2, 3]
    for number, attention in enumerate(expected.attentions, start=1):
        probabilities = outputs.attention_scores[number].masked_fill(padding, float("-inf")).softmax(dim=-1)
        torch.testing.assert_close(probabilities * valid_queries, attention * valid_queries, atol=1e-5, rtol=1e-4)
    assert (expected.attentions[0] - expected.attentions[2]).abs().max() > 0.05  # layers can be told apart
    assert len(outputs.hidden_states) == 4
    for ours, theirs in zip(outputs.hidden_states, expected.hidden_states, strict=True):
        torch.testing.assert_close(ours[0], theirs[0], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(ours[1, :5], theirs[1, :5], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(outputs.start_logits[0], expected.start_logits[0], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(outputs.end_logits[0], expected.end_logits[0], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("model_type", [*ARCHITECTURES, "deberta-v2"])
def test_queries_keys_and_values_are_those_of_the_layer(model_type):
    model, eager = tiny_model(model_type), tiny_model(model_type, attention="eager")
    eager.load_state_dict(model.state_dict())
    inputs = tiny_inputs(model_type, lengths=(6, 6))  # without padding, which transformers treats as it likes
    expected = eager(**inputs, output_attentions=True, output_hidden_states=True)

    found = run_model(model, inputs, OutputRequest(query_key_value=(1, 3))).query_key_value

    assert sorted(found) == [1, 3]
    for number, (queries, keys, values) in found.items():
        assert {queries.shape, keys.shape, values.shape} == {(2, 6, attention_width(model.config))}
        if model_type not in ("mpnet", "deberta-v2"):  # their positions have a part in the attention
            attention = dot_product_scores(queries, keys, 4).softmax(dim=-1)
            torch.testing.assert_close(attention, expected.attentions[number - 1], atol=1e-5, rtol=1e-4)
    before = expected.hidden_states[2]
    names = {"values": ("value", "value_proj", "v_lin", "v")}
    if model_type != "mobilebert":  # its queries and keys come from a bottleneck
        names |= {"queries": ("query", "query_proj", "q_lin", "q"), "keys": ("key", "key_proj", "k_lin", "k")}
    for name, modules in names.items():
        expected_output = last(model, *modules)(before)
        torch.testing.assert_close(getattr(found[3], name), expected_output, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("model_type", ["bert", "distilbert", "albert"])
def test_only_what_is_asked_for_is_kept(model_type):
    model, inputs = tiny_model(model_type), tiny_inputs(model_type)
    everything = run_model(model, inputs, OutputRequest(attention_scores=(1, 2, 3)))
    some = run_model(model, inputs, OutputRequest(attention_scores=(3, 1)))
    nothing = run_model(model, inputs)
    assert set(some.attention_scores) == {1, 3}
    for number in (1, 3):
        assert torch.equal(some.attention_scores[number], everything.attention_scores[number])
    assert some.hidden_states is None
    assert nothing.hidden_states is None
    assert nothing.attention_scores is None
    assert torch.equal(nothing.start_logits, everything.start_logits)


@pytest.mark.parametrize("model_type", ["bert", "electra", "albert"])
def test_first_hidden_state_is_what_the_first_layer_is_given(model_type):
    model, inputs = tiny_model(model_type), tiny_inputs(model_type)
    encoder = model.base_model.encoder
    first = encoder.albert_layer_groups[0] if model_type == "albert" else encoder.layer[0]
    seen = []
    first.register_forward_pre_hook(lambda _module, args: seen.append(args[0]))
    states = run_model(model, inputs, OutputRequest(hidden_states=True)).hidden_states
    assert torch.equal(states[0], seen[0])
    assert states[0].shape == (2, 9, 16)  # the encoder's width, although ELECTRA's and ALBERT's embeddings have 8


def test_albert_with_two_groups_counts_repetitions_in_each():
    model = tiny_model("albert", attention="eager", num_hidden_layers=4, num_hidden_groups=2)
    inputs = tiny_inputs("albert", lengths=(6, 6))
    expected = model(**inputs, output_attentions=True).attentions
    scores = run_model(model, inputs, OutputRequest(attention_scores=(1, 2, 3, 4))).attention_scores
    for number, attention in enumerate(expected, start=1):
        torch.testing.assert_close(scores[number].softmax(dim=-1), attention, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("model_type", ["bert", "distilbert", "albert"])
def test_gradients_flow_through_the_scores(model_type):
    model = tiny_model(model_type)
    run_model(model, tiny_inputs(model_type), OutputRequest(attention_scores=(2,))).attention_scores[
        2
    ].square().mean().backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    for part in ("word_embeddings", "q_lin" if model_type == "distilbert" else "query"):
        assert any(part in name and gradient.abs().max() > 0 for name, gradient in gradients.items())


def test_the_position_bias_of_mpnet_gets_a_gradient():
    model = tiny_model("mpnet")
    for number in (1, 3):  # every layer adds it
        model.zero_grad()
        scores = run_model(model, tiny_inputs("mpnet"), OutputRequest(attention_scores=(number,))).attention_scores
        scores[number].square().mean().backward()
        assert model.base_model.encoder.relative_attention_bias.weight.grad.abs().max() > 0


@pytest.mark.parametrize("model_type", ["bert", "albert", "deberta-v2"])
def test_gradients_flow_through_queries_keys_and_values(model_type):
    model = tiny_model(model_type)
    found = run_model(model, tiny_inputs(model_type), OutputRequest(query_key_value=(2,))).query_key_value[2]
    for name, tensor in zip(("query", "key", "value"), found, strict=True):
        model.zero_grad()
        tensor.square().mean().backward(retain_graph=True)
        trained = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
        assert any(f".{name}.weight" in weight or f".{name}_proj.weight" in weight for weight in trained)


def test_scores_are_float32_under_autocast():
    model, inputs = tiny_model("bert"), tiny_inputs("bert")
    exact = run_model(model, inputs, OutputRequest(attention_scores=(1,))).attention_scores[1]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        scores = run_model(model, inputs, OutputRequest(attention_scores=(1,))).attention_scores[1]
    assert scores.dtype == torch.float32
    torch.testing.assert_close(scores, exact, atol=0.1, rtol=0.1)


def test_hooks_are_removed_whether_the_model_returns_or_raises():
    model = tiny_model("bert")
    run_model(model, tiny_inputs("bert"), OutputRequest(attention_scores=(1, 2)))
    assert n_hooks(model) == 0

    def explode(*_args):
        assert n_hooks(model) == 2  # query and key of layer 1: the check is not blind
        raise RuntimeError("boom")

    model.base_model.encoder.layer[2].register_forward_pre_hook(explode)
    with pytest.raises(RuntimeError, match="boom"):
        run_model(model, tiny_inputs("bert"), OutputRequest(attention_scores=(1,)))
    assert n_hooks(model) == 0


def test_gradient_checkpointing_leaves_the_gradient_as_it_is():
    def gradient(checkpointing):
        model = tiny_model("bert", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0).train()
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        request = OutputRequest(hidden_states=True, attention_scores=(2,), query_key_value=(1, 2))
        outputs = run_model(model, tiny_inputs("bert"), request)
        values = outputs.query_key_value[2].values
        losses = (outputs.attention_scores[2], outputs.hidden_states[3], values)
        sum(tensor.square().mean() for tensor in losses).backward()
        return model.base_model.encoder.layer[0].attention.self.query.weight.grad

    torch.testing.assert_close(gradient(True), gradient(False))


def test_reentrant_gradient_checkpointing_is_an_error_not_a_missing_gradient():
    model = tiny_model("bert").train()
    model.gradient_checkpointing_enable({"use_reentrant": True})
    for request in (OutputRequest(attention_scores=(2,)), OutputRequest(query_key_value=(2,))):
        with pytest.raises(DistilError, match="use_reentrant"):
            run_model(model, tiny_inputs("bert"), request)


def test_a_layer_that_is_not_there():
    for number in (0, 4):
        with pytest.raises(DistilError, match=f"no layer {number}.*1 to 3"):
            run_model(tiny_model("bert"), tiny_inputs("bert"), OutputRequest(attention_scores=(number,)))


@pytest.mark.parametrize("model_type", ["deberta", "deberta-v2", "modernbert"])
def test_other_architectures_give_hidden_states_but_no_scores(model_type):
    if model_type == "modernbert" and int(transformers.__version__.split(".")[0]) < 5:
        pytest.skip("transformers 4.49 has no ModernBERT for question answering")
    extra = {"pad_token_id": 1, "cls_token_id": 2, "sep_token_id": 3, "bos_token_id": 2, "eos_token_id": 3}
    model = tiny_model(model_type, **(extra if model_type == "modernbert" else {}))
    inputs = tiny_inputs(model_type)
    with pytest.raises(DistilError, match=f"{model_type}.*attention_loss_weight=0"):
        run_model(model, inputs, OutputRequest(attention_scores=(1,)))
    if model_type != "deberta-v2":
        with pytest.raises(DistilError, match=f"queries, keys and values of a '{model_type}'.*attention_loss_weight=0"):
            run_model(model, inputs, OutputRequest(query_key_value=(1,)))
    assert [state.shape for state in run_model(model, inputs, OutputRequest(hidden_states=True)).hidden_states] == [
        (2, 9, 16)
    ] * 4


def test_relative_positions_are_refused():
    model = tiny_model("bert")
    model.config.position_embedding_type = "relative_key"
    with pytest.raises(DistilError, match=r"relative_key.*attention_loss_weight=0"):
        run_model(model, tiny_inputs("bert"), OutputRequest(attention_scores=(1,)))


def test_albert_with_inner_groups_is_refused():
    for request in (OutputRequest(attention_scores=(1,)), OutputRequest(query_key_value=(1,))):
        with pytest.raises(DistilError, match=r"inner_group_num=2.*attention_loss_weight=0"):
            run_model(tiny_model("albert", inner_group_num=2), tiny_inputs("albert"), request)


def test_wrong_number_of_hidden_states_is_an_error():
    model = tiny_model("bert")
    model.config.num_hidden_layers = 5
    with pytest.raises(DistilError, match="4 hidden states, not the 6"):
        run_model(model, tiny_inputs("bert"), OutputRequest(hidden_states=True))
