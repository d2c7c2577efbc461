"""A random teacher of each architecture, for the tests of students."""

from collections.abc import Callable

import pytest
import torch
from transformers import (
    CONFIG_MAPPING,
    AlbertConfig,
    AutoModelForQuestionAnswering,
    BertConfig,
    BertTokenizerFast,
    BigBirdConfig,
    DebertaV2Config,
    DistilBertConfig,
    ElectraConfig,
    FunnelConfig,
    LongformerConfig,
    MobileBertConfig,
    ModernBertConfig,
    MPNetConfig,
    PretrainedConfig,
    RobertaConfig,
    SqueezeBertConfig,
    XLMRobertaConfig,
)

from haystack_distill import Reader, WindowSettings

LAYERS = {
    "bert": "bert.encoder.layer",
    "roberta": "roberta.encoder.layer",
    "distilbert": "distilbert.transformer.layer",
    "electra": "electra.encoder.layer",
}
QUESTION, CONTEXT = (
    "Who built the harbour?",
    "The harbour of Lindow was built in 1702 by Cornelis Baak, who came from Delft.",
)


def config_of(kind: str, vocabulary: int, layers: int = 6) -> PretrainedConfig:
    shape = {"hidden_size": 16, "num_hidden_layers": layers, "num_attention_heads": 2, "intermediate_size": 24}
    common = {"vocab_size": vocabulary, "max_position_embeddings": 66, "pad_token_id": 0}
    return {
        "bert": lambda: BertConfig(**common, **shape),
        "roberta": lambda: RobertaConfig(**common, **shape, type_vocab_size=1),
        "xlm-roberta": lambda: XLMRobertaConfig(**common, **shape, type_vocab_size=1),
        "mpnet": lambda: MPNetConfig(**common, **shape),
        "deberta-v2": lambda: DebertaV2Config(
            **common, **shape, relative_attention=True, pos_att_type=["p2c", "c2p"], position_buckets=8
        ),
        "big_bird": lambda: BigBirdConfig(**common, **shape, attention_type="original_full"),
        "mobilebert": lambda: MobileBertConfig(
            **common, **shape, embedding_size=8, true_hidden_size=8, intra_bottleneck_size=8, num_feedforward_networks=2
        ),
        "distilbert": lambda: DistilBertConfig(**common, dim=16, n_layers=layers, n_heads=2, hidden_dim=24),
        "electra": lambda: ElectraConfig(**common, **shape, embedding_size=8),
        "albert": lambda: AlbertConfig(**common, **shape, embedding_size=8),
        "longformer": lambda: LongformerConfig(
            **common, **shape, attention_window=[2 * i for i in range(1, layers + 1)]
        ),
        "modernbert": lambda: ModernBertConfig(**common, **shape),
        "jina_embeddings_v3": lambda: CONFIG_MAPPING["jina_embeddings_v3"](**common, **shape),
        "funnel": lambda: FunnelConfig(
            vocab_size=vocabulary, block_sizes=[2] * (layers // 2), d_model=16, n_head=2, d_head=8, d_inner=24
        ),
        "squeezebert": lambda: SqueezeBertConfig(**common, **shape, embedding_size=16),
    }[kind]()


@pytest.fixture
def make_teacher(tokenizer: BertTokenizerFast) -> Callable[..., Reader]:
    def make(kind: str = "bert", layers: int = 6) -> Reader:
        torch.manual_seed(0)
        model = AutoModelForQuestionAnswering.from_config(config_of(kind, len(tokenizer), layers))
        for parameter in model.parameters():  # biases too, so that no two layers share a weight by chance
            torch.nn.init.normal_(parameter, std=0.1)
        return Reader(
            model,
            tokenizer,
            window_settings=WindowSettings(48, 16, 16),
            max_answer_length=7,
            no_answer_threshold=0.25,
            batch_size=3,
            precision="fp32",
            device="cpu",
        )

    return make
