"""Students with a BiLSTM in place of the teacher's layers."""

from pathlib import Path

import torch
from torch import Tensor

from haystack_distill.data.word_vectors import read_word_vectors, whole_words
from haystack_distill.errors import DistilError
from haystack_distill.models.bilstm import BiLstmForQuestionAnswering
from haystack_distill.models.bilstm_config import BiLstmConfig
from haystack_distill.models.reader import Reader
from haystack_distill.students.layers import require_weights
from haystack_distill.utils.checks import check_argument, is_integer, is_number, require_seed
from haystack_distill.utils.files import expand_user

TEACHER, RANDOM = "teacher", "random"
_SIZE = 300
_LIMIT = 0.1  # random embeddings are uniform between this and its negative


def bilstm(
    teacher: Reader,
    *,
    embeddings: str | Path = "teacher",
    embedding_size: int | None = None,
    units: int = 600,
    num_hidden_layers: int = 1,
    dropout: float = 0.4,
    recurrent_dropout: float = 0.2,
    seed: int = 42,
) -> Reader:
    """Create a BiLSTM reader with the teacher's tokenizer; see `models.bilstm` for what it computes.

    After Tang et al. 2019 (arXiv 1903.12136) and Mukherjee & Awadallah 2019 (arXiv 1910.01769), who distil BERT into a
    BiLSTM of this size. Its layers start random: train it with far more steps than a student that is cut, and a higher
    learning rate.

    Args:
        teacher: The reader whose tokenizer, settings and, where asked for, embeddings are used. It is not changed.
        embeddings: What the word-piece embeddings start from: "teacher" (its table, reduced by singular value
            decomposition), "random" (uniform from -0.1 to 0.1), or a text file of GloVe, fastText or word2vec vectors.
            A piece that is a word gets the word's vector, in lower case where the file has no other; pieces that
            continue a word, and those that the file lacks, are random.
        embedding_size: Width of the embeddings. None: 300 or, where that is less, the teacher's; with a file that of
            its vectors.
        units: LSTM units of each direction; hidden states are twice as wide.
        num_hidden_layers: Number of BiLSTM layers.
        dropout: Dropout on embeddings and hidden states while it trains, unless the run's own `dropout` is set.
        recurrent_dropout: Share of the hidden-to-hidden weights that is dropped in each step of training.
        seed: Seed of the random weights.

    Raises:
        DistilError: A value cannot be, the teacher is not a reader with a separator token and weights, or
            `embedding_size` is not that of the file, or above the teacher's.
        DataError: The file of vectors cannot be read; the message names the line.

    Example:
        >>> from haystack_distill.models.embedded_teacher import embedded_teacher
        >>> bilstm(embedded_teacher(), units=64).model.config.hidden_size
        128
    """
    check_argument("teacher", teacher, isinstance(teacher, Reader), "a Reader")
    require_weights(teacher)
    require_seed(seed)
    for name, size in (("units", units), ("num_hidden_layers", num_hidden_layers)):
        check_argument(name, size, is_integer(size, 1), "a whole number of at least 1")
    right = embedding_size is None or is_integer(embedding_size, 1)
    check_argument("embedding_size", embedding_size, right, "a whole number of at least 1, or None")
    for name, share in (("dropout", dropout), ("recurrent_dropout", recurrent_dropout)):
        check_argument(name, share, is_number(share) and 0 <= share < 1, "a number from 0 to below 1")
    tokenizer = teacher.tokenizer
    if tokenizer.sep_token_id is None or tokenizer.pad_token_id is None:
        raise DistilError(
            "the teacher's tokenizer has no separator or no padding token, by which a BiLSTM reader finds the "
            "question; take a teacher of another family, such as BERT or RoBERTa"
        )
    generator = torch.Generator().manual_seed(seed)
    table = _embeddings(teacher, embeddings, embedding_size, generator)
    config = BiLstmConfig(
        vocab_size=table.shape[0],
        embedding_size=table.shape[1],
        units=units,
        num_hidden_layers=num_hidden_layers,
        dropout=dropout,
        recurrent_dropout=recurrent_dropout,
        pad_token_id=tokenizer.pad_token_id,
        sep_token_id=tokenizer.sep_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = BiLstmForQuestionAnswering(config)
    with torch.no_grad():
        model.get_input_embeddings().weight.copy_(table)
    return teacher.replace(model=model)


def reduce_embeddings(table: Tensor, size: int) -> Tensor:
    """Embeddings (V, H) in their `size` principal directions, (V, size): U S of the singular value decomposition.

    The sign of each direction, which the decomposition leaves open, is such that its largest entry is positive.
    """
    wide = table.detach().cpu().double()
    # The right singular vectors are the eigenvectors of H x H numbers, found in a moment; V x H takes seconds.
    _, vectors = torch.linalg.eigh(wide.T @ wide)
    chosen = vectors.flip(1)[:, :size]
    largest = chosen.gather(0, chosen.abs().argmax(dim=0, keepdim=True))
    return (wide @ (chosen * largest.sign())).float()


def _embeddings(teacher: Reader, source: str | Path, size: int | None, generator: torch.Generator) -> Tensor:
    """The first word-piece embeddings of a student, (V, E)."""
    own = teacher.model.get_input_embeddings().weight
    if source == TEACHER:
        width = own.shape[1]
        if size is not None and size > width:
            raise DistilError(
                f"embedding_size {size} is more than the {width} of the teacher's embeddings, which can only be "
                "reduced; lower it, or take other embeddings"
            )
        return reduce_embeddings(own, size or min(_SIZE, width))
    if source == RANDOM:
        return _random(own.shape[0], size or _SIZE, generator)
    check_argument("embeddings", source, isinstance(source, (str, Path)), '"teacher", "random" or a file of vectors')
    path = expand_user(source)
    words = whole_words(teacher.tokenizer)
    wanted = {*words.values(), *(word.lower() for word in words.values())}
    vectors = dict(read_word_vectors(path, "embeddings", wanted))
    if not vectors:
        raise DistilError(f"{path}: none of its words is a piece of the teacher's tokenizer; take another file")
    width = len(next(iter(vectors.values())))
    if size is not None and size != width:
        raise DistilError(f"embedding_size is {size}, but the vectors of {path} have {width} numbers; leave it out")
    table = _random(own.shape[0], width, generator)
    for id_, word in words.items():
        vector = vectors.get(word, vectors.get(word.lower()))
        if vector is not None:
            table[id_] = torch.from_numpy(vector)
    return table


def _random(rows: int, size: int, generator: torch.Generator) -> Tensor:
    return torch.empty(rows, size).uniform_(-_LIMIT, _LIMIT, generator=generator)
