"""A reader with a bidirectional LSTM in place of a transformer: for processors, and for teachers to be distilled into.

Tang et al. 2019 (arXiv 1903.12136) and Mukherjee & Awadallah 2019 (arXiv 1910.01769) distil BERT into a BiLSTM that
classifies texts. This one finds spans. Question and context go through the LSTM as one sequence, as in BERT, and
attention between them is that of DrQA (Chen et al. 2017, arXiv 1704.00051): aligned question embeddings and a word
match before the LSTM, a pooled question in the span head after it.
"""

from __future__ import annotations

import contextlib
import functools
import math
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoModelForQuestionAnswering, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput, QuestionAnsweringModelOutput

from haystack_distill.models.bilstm_config import MODEL_TYPE, BiLstmConfig


@functools.cache
def lstm_knows_bf16() -> bool:
    """Whether PyTorch's LSTM kernel can compute in bf16 on this processor (it needs AVX512); else it does in fp32."""
    known = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", None)  # private, which not every version has
    return known is None or bool(known())


class RecurrentDropoutLstm(nn.LSTM):
    """A bidirectional LSTM layer with dropout on its hidden-to-hidden weights.

    One mask for all time steps of a forward pass, as DropConnect in Merity et al. 2017 (arXiv 1708.02182, section 2):
    PyTorch's own kernels run. Its weights are named and initialised as those of `torch.nn.LSTM`.

    Args:
        input_size: Width of the input.
        units: Units of each direction.
        recurrent_dropout: The share of the hidden-to-hidden weights that is dropped in training mode.
    """

    def __init__(self, input_size: int, units: int, recurrent_dropout: float) -> None:
        super().__init__(input_size, units, batch_first=True, bidirectional=True)
        self.recurrent_dropout = recurrent_dropout

    def reset_parameters(self) -> None:
        """PyTorch's initial weights, with biases of 1 for the forget gates (Jozefowicz et al. 2015)."""
        super().reset_parameters()
        forget = slice(self.hidden_size, 2 * self.hidden_size)  # the gates are input, forget, cell, output
        with torch.no_grad():
            for name in ("bias_ih_l0", "bias_ih_l0_reverse"):
                self.get_parameter(name)[forget] = 1.0

    def forward(self, hidden: Tensor, lengths: Tensor) -> Tensor:  # type: ignore[override]
        """The hidden states of both directions, (B, L, 2 * units), 0 for padding.

        On a CPU each direction runs by itself over the padded batch, the second one over reversed windows: PyTorch has
        a fast kernel for that, but none for packed sequences of different lengths. A training step of 64 windows of up
        to 176 tokens took 2.9 s and not 8.0 in fp32, 2.0 and not 5.0 in bf16 (PyTorch 2.13, a thread of an AMD EPYC).

        Args:
            hidden: The input, (B, L, E), padded on the right.
            lengths: The tokens of each window, (B,), on the processor.
        """
        weights = {name: getattr(self, name) for name in self._flat_weights_names}
        if self.training and self.recurrent_dropout:
            for name in ("weight_hh_l0", "weight_hh_l0_reverse"):
                weights[name] = nn.functional.dropout(weights[name], self.recurrent_dropout)
        # ONNX has a node for both directions, which knows of lengths; and so do the kernels of GPUs.
        if torch.jit.is_tracing() or hidden.device.type != "cpu":
            return self._packed(hidden, lengths, weights)
        places = torch.arange(hidden.shape[1])[None]
        inside = places < lengths[:, None]
        backwards = torch.where(inside, lengths[:, None] - 1 - places, places)[:, :, None]

        def reverse(states: Tensor) -> Tensor:
            return states.gather(1, backwards.expand(-1, -1, states.shape[2]))

        first = self._one_direction(hidden, weights, "")
        second = reverse(self._one_direction(reverse(hidden), weights, "_reverse"))
        return torch.cat([first, second], dim=2).masked_fill(~inside[:, :, None], 0.0)

    def _one_direction(self, hidden: Tensor, weights: dict[str, Tensor], ending: str) -> Tensor:
        used = [weights[f"{name}_l0{ending}"] for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]
        with contextlib.nullcontext() if lstm_knows_bf16() else torch.autocast("cpu", enabled=False):
            hidden = hidden if lstm_knows_bf16() else hidden.float()
            state = hidden.new_zeros(1, len(hidden), self.hidden_size)
            found: Tensor = torch.lstm(hidden, (state, state), used, True, 1, 0.0, self.training, False, True)[0]
        return found

    def _packed(self, hidden: Tensor, lengths: Tensor, weights: dict[str, Tensor]) -> Tensor:
        packed = nn.utils.rnn.pack_padded_sequence(hidden, lengths, batch_first=True, enforce_sorted=False)
        # PyTorch keeps references to the weights beside the weights; those of a loaded model may be out of date.
        kept, self._flat_weights = self._flat_weights, [weights[name] for name in self._flat_weights_names]
        try:
            output, _ = super().forward(packed)
        finally:
            self._flat_weights = kept
        return nn.utils.rnn.pad_packed_sequence(output, batch_first=True, total_length=hidden.shape[1])[0]


class BiLstmEmbeddings(nn.Module):
    """Word-piece embeddings that know the question: what each piece of a window is in the question's terms.

    To the normalised embedding e_i of a piece a linear map of [a_i; e_i * a_i] is added, where the aligned question
    embedding a_i is the mean of the question's embeddings with the weights softmax_j(f(e_i) f(e_j)), f a dense layer
    with a ReLU (DrQA, section 3.2), and a vector where a piece of the context is one of the question's.
    """

    def __init__(self, config: BiLstmConfig) -> None:
        super().__init__()
        size = config.embedding_size
        self.word_embeddings = nn.Embedding(config.vocab_size, size, padding_idx=config.pad_token_id)
        self.word_norm = nn.LayerNorm(size)
        self.alignment = nn.Linear(size, size)
        self.aligned = nn.Linear(2 * size, size)
        self.match = nn.Parameter(torch.zeros(size))
        self.norm = nn.LayerNorm(size)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, question: Tensor) -> Tensor:
        """What the first layer is given, (B, L, E).

        Args:
            input_ids: (B, L).
            attention_mask: True for pieces, False for padding, (B, L).
            question: True for the pieces of the question and the first token, (B, L).
        """
        pieces = self.word_norm(self.word_embeddings(input_ids))
        projected = nn.functional.relu(self.alignment(pieces))
        scores = projected @ projected.transpose(1, 2) / math.sqrt(projected.shape[2])
        aligned = _softmax(scores, question[:, None]) @ pieces
        words = question & (torch.arange(question.shape[1], device=question.device) > 0)
        matches = ((input_ids[:, :, None] == input_ids[:, None]) & words[:, None]).any(dim=2)
        matches = matches & attention_mask & ~question
        more = self.aligned(torch.cat([aligned, pieces * aligned], dim=2))
        found: Tensor = self.dropout(self.norm(pieces + more + matches[:, :, None] * self.match))
        return found


class BiLstmEncoder(nn.Module):
    """BiLSTM layers, each over the output of the one below; padding has no influence."""

    def __init__(self, config: BiLstmConfig) -> None:
        super().__init__()
        widths = [config.embedding_size] + [config.hidden_size] * (config.num_hidden_layers - 1)
        self.layer = nn.ModuleList(
            RecurrentDropoutLstm(width, config.units, config.recurrent_dropout) for width in widths
        )
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, hidden: Tensor, lengths: Tensor) -> list[Tensor]:
        """The outputs of the layers, (B, L, 2 * units) each, 0 for padding.

        Args:
            hidden: The input, (B, L, E).
            lengths: The tokens of each window, (B,), on the processor.
        """
        found: list[Tensor] = []
        for layer in self.layer:
            hidden = self.dropout(layer(hidden, lengths))
            found.append(hidden)
        return found


class BiLstmPreTrainedModel(PreTrainedModel):  # type: ignore[misc]
    """What the BiLSTM models share: their configuration, and how new weights are initialised."""

    config_class = BiLstmConfig
    base_model_prefix = "bilstm"
    own_dropout = True  # trained with the dropout of its configuration, unless the settings name another

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            nn.init.uniform_(module.weight, -0.1, 0.1)
        elif isinstance(module, nn.LayerNorm):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
        elif isinstance(module, RecurrentDropoutLstm):
            module.reset_parameters()
        elif isinstance(module, BiLstmEmbeddings):
            nn.init.zeros_(module.match)


class BiLstmModel(BiLstmPreTrainedModel):
    """Embeddings and BiLSTM layers, without the span head."""

    def __init__(self, config: BiLstmConfig) -> None:
        super().__init__(config)
        self.embeddings = BiLstmEmbeddings(config)
        self.encoder = BiLstmEncoder(config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """The word-piece embeddings."""
        return self.embeddings.word_embeddings

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        """Replace the word-piece embeddings."""
        self.embeddings.word_embeddings = value

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        **_: Any,
    ) -> Any:
        """The hidden states of windows that are padded on the right.

        Args:
            input_ids: First token, question, separator, context, (B, L).
            attention_mask: 1 for tokens, 0 for padding, (B, L); None where nothing is padded.
            output_hidden_states: Whether to return what the first layer is given, (B, L, embedding_size), and the
                output of each layer, (B, L, hidden_size).
            return_dict: False returns a tuple.

        Returns:
            `last_hidden_state` (B, L, hidden_size) and maybe `hidden_states`.
        """
        mask = torch.ones_like(input_ids, dtype=torch.bool) if attention_mask is None else attention_mask.bool()
        question = question_tokens(input_ids, mask, self.config.sep_token_id)
        embedded = self.embeddings(input_ids, mask, question)
        layers = self.encoder(embedded, mask.sum(dim=1).clamp(min=1).cpu())
        output = BaseModelOutput(
            last_hidden_state=layers[-1], hidden_states=(embedded, *layers) if output_hidden_states else None
        )
        return output.to_tuple() if return_dict is False else output


class BiLstmForQuestionAnswering(BiLstmPreTrainedModel):
    """A BiLSTM with a span head: start and end logits for each token, of which those of the first are "no answer".

    The question is pooled to one vector q, the mean of its hidden states h_j with the weights softmax_j(w h_j), and the
    head reads h_i + h_i * (W q) of each token: a dense layer after the bilinear term of DrQA (section 3.2).
    """

    def __init__(self, config: BiLstmConfig) -> None:
        super().__init__(config)
        self.bilstm = BiLstmModel(config)
        self.question_score = nn.Linear(config.hidden_size, 1)
        self.question_projection = nn.Linear(config.hidden_size, config.hidden_size)
        self.qa_outputs = nn.Linear(config.hidden_size, 2)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        start_positions: Tensor | None = None,
        end_positions: Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
        **_: Any,
    ) -> Any:
        """The logits of windows; see `BiLstmModel.forward`.

        Args:
            input_ids: (B, L).
            attention_mask: (B, L).
            start_positions: The first token of each answer, (B,), for the loss.
            end_positions: The last token of each answer, (B,), for the loss.
            output_hidden_states: As for the model.
            output_attentions: Without effect; taken because other models take it.
            return_dict: False returns a tuple.

        Returns:
            `start_logits` and `end_logits` (B, L), `loss` with positions, and maybe `hidden_states`.
        """
        encoded = self.bilstm(input_ids, attention_mask, output_hidden_states=output_hidden_states)
        hidden = encoded.last_hidden_state
        mask = torch.ones_like(input_ids, dtype=torch.bool) if attention_mask is None else attention_mask.bool()
        question = question_tokens(input_ids, mask, self.config.sep_token_id)
        weights = _softmax(self.question_score(hidden).squeeze(2), question)
        pooled = (weights[:, None] @ hidden).squeeze(1)
        logits = self.qa_outputs(hidden + hidden * self.question_projection(pooled)[:, None])
        start, end = logits[:, :, 0].contiguous(), logits[:, :, 1].contiguous()
        loss = None
        if start_positions is not None and end_positions is not None:
            loss = (_span_loss(start, mask, start_positions) + _span_loss(end, mask, end_positions)) / 2
        output = QuestionAnsweringModelOutput(
            loss=loss, start_logits=start, end_logits=end, hidden_states=encoded.hidden_states
        )
        return output.to_tuple() if return_dict is False else output


def question_tokens(input_ids: Tensor, attention_mask: Tensor, sep_token_id: int) -> Tensor:
    """The tokens before the first separator, (B, L) bool: the first token of the window and the question."""
    return ((input_ids == sep_token_id).long().cumsum(dim=1) == 0) & attention_mask


def _softmax(scores: Tensor, mask: Tensor) -> Tensor:
    """A softmax over the last dimension, of what the mask is True for."""
    # Not -inf: a row without any token would become NaN.
    return torch.softmax(scores.masked_fill(~mask, torch.finfo(scores.dtype).min), dim=-1)


def _span_loss(logits: Tensor, mask: Tensor, positions: Tensor) -> Tensor:
    """The cross entropy of logits (B, L) without padding; positions beyond the window have none."""
    length = logits.shape[1]
    found = logits.float().masked_fill(~mask, -torch.inf)
    return nn.functional.cross_entropy(found, positions.clamp(0, length), ignore_index=length)


# For transformers' auto classes, see utils/auto_classes.py.
AutoConfig.register(MODEL_TYPE, BiLstmConfig, exist_ok=True)
AutoModel.register(BiLstmConfig, BiLstmModel, exist_ok=True)
AutoModelForQuestionAnswering.register(BiLstmConfig, BiLstmForQuestionAnswering, exist_ok=True)
