"""The BiLSTM reader: its arithmetic, masks, dropout, files, and the auto classes of transformers."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModel, AutoModelForQuestionAnswering

from haystack_distill import Reader, WindowSettings, students
from haystack_distill.errors import DistilError
from haystack_distill.models.bilstm import (
    BiLstmForQuestionAnswering,
    BiLstmModel,
    RecurrentDropoutLstm,
    lstm_knows_bf16,
    question_tokens,
)
from haystack_distill.models.bilstm_config import BiLstmConfig
from haystack_distill.models.outputs import OutputRequest, run_model

SEP = 3
IDS = torch.tensor([[2, 10, 11, SEP, 12, 10, 13, SEP], [2, 10, SEP, 14, SEP, 0, 0, 0]])
MASK = torch.tensor([[1] * 8, [1] * 5 + [0] * 3])


def make(**shape: object) -> BiLstmForQuestionAnswering:
    torch.manual_seed(0)
    config = BiLstmConfig(
        **{"vocab_size": 50, "embedding_size": 6, "units": 4, "sep_token_id": SEP, "num_hidden_layers": 2} | shape
    )
    return BiLstmForQuestionAnswering(config).eval()


@pytest.fixture
def reader(tiny_reader: Callable[..., Reader]) -> Reader:
    return students.bilstm(tiny_reader(), embedding_size=12, units=8)


@torch.no_grad()
def test_padding_changes_nothing() -> None:
    model = make()
    both = model(IDS, MASK, output_hidden_states=True)
    for row, length in enumerate(MASK.sum(dim=1).tolist()):
        alone = model(IDS[row : row + 1, :length], output_hidden_states=True)
        torch.testing.assert_close(both.start_logits[row, :length], alone.start_logits[0])
        torch.testing.assert_close(both.end_logits[row, :length], alone.end_logits[0])
        for padded, plain in zip(both.hidden_states, alone.hidden_states, strict=True):
            torch.testing.assert_close(padded[row, :length], plain[0])
    other = torch.where(MASK.bool(), IDS, 40)
    assert torch.equal(model(other, MASK).start_logits * MASK, both.start_logits * MASK)


def test_the_gradient_never_depends_on_padding() -> None:
    model = make()
    found = []
    for length in (5, 8):
        model.zero_grad()
        output = model(IDS[1:, :length], MASK[1:, :length])
        ((output.start_logits + output.end_logits) * MASK[1:, :length]).sum().backward()
        found.append([parameter.grad for parameter in model.parameters()])
    for short, padded in zip(*found, strict=True):
        torch.testing.assert_close(short, padded)
    assert all(grad is not None and bool(grad.any()) for grad in found[0][1:])


@torch.no_grad()
def test_the_attention_by_hand() -> None:
    model = make()
    embeddings = model.bilstm.embeddings
    torch.nn.init.normal_(embeddings.match)
    question = question_tokens(IDS, MASK.bool(), SEP)
    assert question.tolist() == [[True] * 3 + [False] * 5, [True] * 2 + [False] * 6]
    pieces = embeddings.word_norm(embeddings.word_embeddings(IDS[0]))
    projected = torch.relu(embeddings.alignment(pieces))
    rows = []
    for place in range(8):
        weights = torch.softmax(torch.stack([projected[place] @ projected[j] for j in range(3)]) / 6**0.5, dim=0)
        aligned = sum(weight * pieces[j] for j, weight in enumerate(weights))
        more = embeddings.aligned(torch.cat([aligned, pieces[place] * aligned]))
        match = embeddings.match if place == 5 else 0  # piece 10 of the context is in the question
        rows.append(embeddings.norm(pieces[place] + more + match))
    hidden = model(IDS, MASK, output_hidden_states=True).hidden_states
    torch.testing.assert_close(hidden[0][0], torch.stack(rows))
    last = hidden[-1][0]
    weights = torch.softmax(model.question_score(last[:3]).squeeze(1), dim=0)
    pooled = model.question_projection(weights @ last[:3])
    expected = model.qa_outputs(last + last * pooled)
    torch.testing.assert_close(model(IDS, MASK).end_logits[0], expected[:, 1])


@torch.no_grad()
def test_the_layer_is_pytorchs_lstm() -> None:
    layer = make().bilstm.encoder.layer[0]
    plain = torch.nn.LSTM(6, 4, batch_first=True, bidirectional=True)
    plain.load_state_dict(layer.state_dict())
    inputs = torch.randn(2, 5, 6)
    torch.testing.assert_close(layer(inputs, torch.tensor([5, 5])), plain(inputs)[0])
    packed = torch.nn.utils.rnn.pack_padded_sequence(inputs, torch.tensor([3, 5]), True, enforce_sorted=False)
    expected = torch.nn.utils.rnn.pad_packed_sequence(plain(packed)[0], batch_first=True)[0]
    torch.testing.assert_close(layer(inputs, torch.tensor([3, 5])), expected)
    assert layer.bias_ih_l0[4:8].tolist() == [1.0] * 4


def test_bfloat16_is_near_fp32() -> None:
    torch.manual_seed(0)
    layer = RecurrentDropoutLstm(24, 16, 0.0)
    inputs, lengths = torch.randn(8, 60, 24), torch.randint(40, 61, (8,))
    found = {}
    for enabled in (False, True):
        layer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            states = layer(inputs, lengths).float()
        states.square().sum().backward()
        found[enabled] = (states.detach(), layer.weight_hh_l0.grad.clone(), layer.weight_ih_l0_reverse.grad.clone())
    for exact, rounded in zip(found[False], found[True], strict=True):
        assert float((exact - rounded).norm() / exact.norm()) < 0.02
        assert torch.equal(exact, rounded) is not lstm_knows_bf16()  # elsewhere it computes in fp32


def test_recurrent_dropout_drops_weights_in_training_alone() -> None:
    layer = make(recurrent_dropout=0.5).bilstm.encoder.layer[0]
    inputs, lengths = torch.randn(1, 3, 6), torch.tensor([3])
    expected = layer.eval()(inputs, lengths)
    layer.train()
    first = layer(inputs, lengths)
    assert not torch.equal(first, layer(inputs, lengths))
    torch.testing.assert_close(first[:, 0, :4], expected[:, 0, :4])  # the first time step has no hidden state before it
    torch.manual_seed(1)
    output = layer(inputs, lengths)
    torch.manual_seed(1)
    kept = torch.nn.functional.dropout(torch.ones_like(layer.weight_hh_l0), 0.5)
    output[0, 1, :4].sum().backward()  # of the second time step: one factor for each weight
    assert not layer.weight_hh_l0.grad[kept == 0].any()
    assert layer.weight_hh_l0.grad[kept > 0].any()
    layer.recurrent_dropout = 0.0
    torch.testing.assert_close(layer(inputs, lengths), expected)


def test_the_loss_is_the_cross_entropy_without_padding() -> None:
    model = make()
    starts, ends = torch.tensor([4, 3]), torch.tensor([99, 4])  # the first end lies beyond the window
    output = model(IDS, MASK, start_positions=starts, end_positions=ends)
    logits = [output.start_logits[0], output.start_logits[1, :5], output.end_logits[1, :5]]
    losses = [
        torch.nn.functional.cross_entropy(*pair) for pair in zip(logits, (starts[0], starts[1], ends[1]), strict=True)
    ]
    torch.testing.assert_close(output.loss, ((losses[0] + losses[1]) / 2 + losses[2]) / 2)


@torch.no_grad()
def test_hidden_states_of_a_request(reader: Reader) -> None:
    inputs = dict(reader.tokenizer("Who wrote it?", "Ada wrote it.", return_tensors="pt", return_token_type_ids=False))
    outputs = run_model(reader.model, inputs, OutputRequest(hidden_states=True))
    assert outputs.hidden_states is not None
    assert [states.shape[2] for states in outputs.hidden_states] == [12, 16]
    for request in (OutputRequest(attention_scores=(1,)), OutputRequest(query_key_value=(1,))):
        with pytest.raises(DistilError, match=r"of a 'bilstm' model are not available .*;"):
            run_model(reader.model, inputs, request)


def test_save_and_load(reader: Reader, tmp_path: Path) -> None:
    pair = ("Who wrote it?", "Ada Lovelace wrote it in 1843.")
    answer = reader.answer(*pair, allow_no_answer=False)[0]
    assert json.loads((reader.save(tmp_path / "a") / "config.json").read_text())["model_type"] == "bilstm"
    again = Reader.load(tmp_path / "a", window_settings=WindowSettings(48, 16, 16), device="cpu", precision="fp32")
    assert again.untrained == ()
    assert again.answer(*pair, allow_no_answer=False)[0] == answer
    long = " ".join(["Ada Lovelace wrote it in 1843, before there was a machine."] * 40)
    wide = again.replace(window_settings=WindowSettings(700, 100, 16))  # there are no positions to run out of
    assert wide.answer("Who wrote it?", long, allow_no_answer=False)[0].text


@pytest.mark.slow
def test_a_new_process_loads_it(reader: Reader, tmp_path: Path) -> None:
    """Where nothing has imported the model yet."""
    reader.save(tmp_path)
    given = ["--model", str(tmp_path), "--question", "Who wrote it?", "--context", "Ada wrote it."]
    command = [sys.executable, "-m", "haystack_distill", "ask", *given]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_auto_classes_know_it(tmp_path: Path) -> None:
    model = make()
    model.save_pretrained(tmp_path)
    assert isinstance(AutoConfig.from_pretrained(tmp_path), BiLstmConfig)
    assert isinstance(AutoModel.from_pretrained(tmp_path), BiLstmModel)
    loaded = AutoModelForQuestionAnswering.from_pretrained(tmp_path)
    assert all(torch.equal(weight, loaded.state_dict()[name]) for name, weight in model.state_dict().items())
