"""The configuration of a BiLSTM reader; apart from the model, which other modules need not import to know its type."""

from typing import Any

from transformers import PretrainedConfig

MODEL_TYPE = "bilstm"


class BiLstmConfig(PretrainedConfig):  # type: ignore[misc]
    """The configuration of `BiLstmForQuestionAnswering`.

    Args:
        vocab_size: Word pieces.
        embedding_size: Width of their embeddings.
        units: Units of each direction of a layer; hidden states are twice as wide (`hidden_size`).
        num_hidden_layers: BiLSTM layers.
        dropout: Dropout on the input of the first layer and on the output of each.
        recurrent_dropout: The share of the hidden-to-hidden weights that is dropped in a forward pass of training.
        pad_token_id: The token that batches are padded with.
        sep_token_id: The token that ends the question.
        kwargs: Those of `PretrainedConfig`.
    """

    model_type = MODEL_TYPE

    def __init__(
        self,
        vocab_size: int = 30522,
        embedding_size: int = 300,
        units: int = 600,
        num_hidden_layers: int = 1,
        dropout: float = 0.4,
        recurrent_dropout: float = 0.2,
        pad_token_id: int = 0,
        sep_token_id: int = 102,
        **kwargs: Any,
    ) -> None:
        self.vocab_size = vocab_size
        self.embedding_size = embedding_size
        self.units = units
        self.hidden_size = 2 * units
        self.num_hidden_layers = num_hidden_layers
        self.dropout = dropout
        self.recurrent_dropout = recurrent_dropout
        kwargs.pop("hidden_size", None)  # from a file; it follows from the units
        super().__init__(pad_token_id=pad_token_id, sep_token_id=sep_token_id, **kwargs)
