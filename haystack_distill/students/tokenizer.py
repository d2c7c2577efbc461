"""A student with a tokenizer of its own, trained on a corpus: a smaller vocabulary, in the pieces of its domain."""

import io
from collections.abc import Iterable, Iterator
from itertools import groupby, islice
from typing import Literal

import datasets
import numpy as np
import torch
from sentencepiece import SentencePieceProcessor, SentencePieceTrainer
from tokenizers import Encoding, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from tokenizers.normalizers import Normalizer
from torch import Tensor
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from haystack_distill.data.squad.load import plain_rows
from haystack_distill.data.text_tokenizer import text_tokenizer
from haystack_distill.errors import DistilError
from haystack_distill.models.calibration import forget_calibration
from haystack_distill.models.reader import Reader
from haystack_distill.students.layers import require_weights
from haystack_distill.students.vocabulary import with_embeddings
from haystack_distill.utils.checks import check_argument, is_integer

Algorithm = Literal["wordpiece", "bpe", "unigram"]
ALGORITHMS = ("wordpiece", "bpe", "unigram")

_TEXTS_PER_BATCH = 1000
_PREFIX = "##"  # of a word's later pieces, in WordPiece


def with_tokenizer(
    reader: Reader, corpus: Iterable[str], *, algorithm: Algorithm = "unigram", vocab_size: int = 8000
) -> Reader:
    """Create a reader with a tokenizer of its own, for a smaller vocabulary or one of its domain.

    The tokenizer is trained on a corpus. Special tokens, their layout and the normaliser (lower case, accents) are
    those of the old one. The embedding of a new token is the mean of those of the old tokens at its places in the
    corpus, each by the share of its characters there; special tokens keep theirs. All other weights are copied. The
    result is a student: it reads other tokens than its layers are used to, and learns from any teacher's answers
    (`PredictionLayer`), which are compared by characters.

    Args:
        reader: The reader whose layers are kept. It is not changed.
        corpus: Texts of the domain, questions and contexts. They are held in memory. The same texts in the same order
            give the same tokenizer.
        algorithm: `"wordpiece"`, byte-level `"bpe"`, or `"unigram"` (SentencePiece's).
        vocab_size: Tokens of the new vocabulary, special ones included. A small corpus may give fewer.

    Returns:
        A reader with the same settings; its embedding table has a row for each token.

    Raises:
        DistilError: The corpus is empty, a value is invalid, the vocabulary is too small for the corpus' characters, or
            the model counts positions from a padding id that the new tokenizer would change.
    """
    require_weights(reader)
    check_argument("algorithm", algorithm, algorithm in ALGORITHMS, f"one of {', '.join(ALGORITHMS)}")
    check_argument("vocab_size", vocab_size, is_integer(vocab_size, 1), "a whole number of at least 1")
    texts = [text for text in corpus if text.strip()]
    if not texts:
        raise DistilError("the corpus has no text; give texts of the domain, questions and contexts")
    specials = _special_tokens(reader)
    tokenizer = _wrapped(_trained(reader.tokenizer, texts, algorithm, vocab_size, specials), reader.tokenizer)
    table = reader.model.get_input_embeddings().weight.detach()
    rows = _means(reader.tokenizer, tokenizer, texts, table)
    for token in specials:
        rows[tokenizer.convert_tokens_to_ids(token)] = table[reader.tokenizer.convert_tokens_to_ids(token)]
    number = {reader.tokenizer.convert_tokens_to_ids(token): id for id, token in enumerate(specials)}
    model = with_embeddings(reader.model, rows, number)
    forget_calibration(model.config)  # of a reader that reads other tokens
    return reader.replace(model=model, tokenizer=tokenizer)


def _special_tokens(reader: Reader) -> list[str]:
    """The special tokens in the order of their ids, which they have in the new vocabulary too, without gaps.

    Raises:
        DistilError: The model counts positions from the padding id, and that would change.
    """
    tokenizer = reader.tokenizer
    names = list(dict.fromkeys(tokenizer.all_special_tokens))
    names.sort(key=tokenizer.convert_tokens_to_ids)
    for name, module in reader.model.named_modules():
        padding = getattr(module, "padding_idx", None)
        if name.endswith("position_embeddings") and padding is not None:
            kept = padding < len(names) and tokenizer.convert_tokens_to_ids(names[padding]) == padding
            if not kept:
                raise DistilError(
                    f"{type(reader.model).__name__} counts positions from padding id {padding}, which a new tokenizer "
                    "would change; choose another reader"
                )
    return names


def _trained(
    old: PreTrainedTokenizerBase, texts: list[str], algorithm: Algorithm, vocab_size: int, specials: list[str]
) -> Tokenizer:
    """A tokenizer of one of the three kinds, with the old one's normaliser and layout of pairs.

    Raises:
        DistilError: It cannot be trained on the corpus, or the vocabulary would be larger.
    """
    normalizer = old.backend_tokenizer.normalizer
    try:
        if algorithm == "bpe":
            made = _byte_pairs(texts, normalizer, vocab_size, specials)
        elif algorithm == "wordpiece":
            made = _word_pieces(texts, normalizer, vocab_size, specials, _unknown(old, algorithm))
        else:
            made = _unigram(texts, normalizer, vocab_size, specials, _unknown(old, algorithm))
    except DistilError:
        raise
    except Exception as error:  # the libraries raise no narrower class
        reason = str(error).strip().splitlines()[-1]
        raise DistilError(
            f"no {algorithm} tokenizer of {vocab_size} tokens can be trained on the corpus ({reason}); give more "
            "text, or another vocab_size"
        ) from error
    made.normalizer = normalizer
    n_tokens = made.get_vocab_size()
    if n_tokens > vocab_size:
        raise DistilError(
            f"vocab_size must be at least {n_tokens}, the special tokens and characters, not {vocab_size}"
        )
    made.post_processor = _layout(old, specials)
    return made


def _byte_pairs(texts: list[str], normalizer: Normalizer | None, vocab_size: int, specials: list[str]) -> Tokenizer:
    made = Tokenizer(models.BPE())
    made.normalizer = normalizer
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=specials,
        show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )
    made.train_from_iterator(texts, trainer)
    return made


def _word_pieces(
    texts: list[str], normalizer: Normalizer | None, vocab_size: int, specials: list[str], unknown: str
) -> Tokenizer:
    made = Tokenizer(models.WordPiece(unk_token=unknown))
    made.normalizer = normalizer
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    inside: set[str] = set()
    for text in _normalized(texts, normalizer):
        for word, _ in made.pre_tokenizer.pre_tokenize_str(text):
            inside.update(word[1:])
    # Given, because the trainer meets them in another order each time, and decides between equals by that.
    letters = [_PREFIX + letter for letter in sorted(inside)]
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size,
        special_tokens=[*specials, *letters],
        show_progress=False,
        continuing_subword_prefix=_PREFIX,
    )
    made.train_from_iterator(texts, trainer)
    plain = Tokenizer(models.WordPiece(made.get_vocab(), unk_token=unknown, continuing_subword_prefix=_PREFIX))
    plain.add_special_tokens(specials)  # without the letters
    plain.pre_tokenizer = made.pre_tokenizer
    plain.decoder = decoders.WordPiece(prefix=_PREFIX)
    return plain


def _unigram(
    texts: list[str], normalizer: Normalizer | None, vocab_size: int, specials: list[str], unknown: str
) -> Tokenizer:
    """Trained by SentencePiece, because the trainer of `tokenizers` gives another vocabulary each time."""
    written = io.BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=_normalized(texts, normalizer),
        model_writer=written,
        vocab_size=max(1, vocab_size - len(specials) + 1),  # with its own unknown
        model_type="unigram",
        normalization_rule_name="identity",
        character_coverage=1.0,
        hard_vocab_limit=False,
        max_sentence_length=1 << 20,  # bytes; longer ones are left out
        num_threads=1,  # the sums of several would depend on their number
        minloglevel=2,
        unk_id=0,
        bos_id=-1,
        eos_id=-1,
    )
    trained = SentencePieceProcessor(model_proto=written.getvalue())
    pieces = [(trained.id_to_piece(id), trained.get_score(id)) for id in range(1, trained.get_piece_size())]
    pieces = [(piece, score) for piece, score in pieces if piece not in specials]
    made = Tokenizer(models.Unigram([*((name, 0.0) for name in specials), *pieces], unk_id=specials.index(unknown)))
    made.add_special_tokens(specials)
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.decoder = decoders.Metaspace()
    return made


def _normalized(texts: Iterable[str], normalizer: Normalizer | None) -> Iterator[str]:
    return iter(texts) if normalizer is None else map(normalizer.normalize_str, texts)


def _unknown(old: PreTrainedTokenizerBase, algorithm: Algorithm) -> str:
    if old.unk_token is None:
        raise DistilError(f"the reader's tokenizer has no token for the unknown, which {algorithm} needs; choose bpe")
    return str(old.unk_token)


def _layout(old: PreTrainedTokenizerBase, specials: list[str]) -> processors.TemplateProcessing:
    """How the old tokenizer writes one text and two: its special tokens and token types."""
    templates = []
    for texts in (("a",), ("a", "b")):
        encoded = old(*texts, return_token_type_ids=True, padding=False, truncation=False)
        ids = encoded["input_ids"]
        types = encoded.get("token_type_ids") or [0] * len(ids)
        written: list[str] = []
        for id, sequence, kind in zip(ids, encoded.sequence_ids(0), types, strict=True):
            one = f"{old.convert_ids_to_tokens(id) if sequence is None else '$' + 'AB'[sequence]}:{kind}"
            if sequence is None or one not in written:  # a letter may be several tokens
                written.append(one)
        templates.append(written)
    return processors.TemplateProcessing(
        single=templates[0],
        pair=templates[1],
        special_tokens=[(token, id) for id, token in enumerate(specials)],
    )


def _wrapped(trained: Tokenizer, old: PreTrainedTokenizerBase) -> PreTrainedTokenizerFast:
    """The tokenizer as transformers loads it, with the old one's special tokens and limits."""
    return PreTrainedTokenizerFast(
        tokenizer_object=trained,
        model_max_length=old.model_max_length,
        model_input_names=old.model_input_names,
        padding_side=old.padding_side,
        clean_up_tokenization_spaces=False,
        **{name: str(token) for name, token in old.special_tokens_map.items() if isinstance(token, str)},
    )


def _means(old: PreTrainedTokenizerBase, new: PreTrainedTokenizerBase, texts: list[str], table: Tensor) -> Tensor:
    """A row for each new token: the mean of the old embeddings at its places in the texts.

    A token that is nowhere in the texts has the mean of the whole table.
    """
    n_old, n_new = len(table), len(new)
    sums = torch.zeros(n_new, table.shape[1], dtype=torch.float64)
    weights = torch.zeros(n_new, dtype=torch.float64)
    some_texts = iter(texts)
    while some := list(islice(some_texts, _TEXTS_PER_BATCH)):
        before, after = (text_tokenizer(one).encode_batch(some, add_special_tokens=False) for one in (old, new))
        pairs, shares = _overlaps(some, before, after, n_old)
        old_ids, new_ids = (torch.from_numpy(ids) for ids in (pairs % n_old, pairs // n_old))
        counted = torch.sparse_coo_tensor(
            torch.stack([new_ids, old_ids]), torch.from_numpy(shares), (n_new, n_old), check_invariants=False
        )
        sums += torch.sparse.mm(counted, table.cpu().double())
        weights.index_add_(0, new_ids, torch.from_numpy(shares))
    rows = table.cpu().double().mean(dim=0).expand(n_new, -1).clone()
    found = weights > 0
    rows[found] = sums[found] / weights[found, None]
    return rows.to(table.dtype)


def _overlaps(texts: list[str], old: list[Encoding], new: list[Encoding], n_old: int) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of a new and an old token at the same characters, `new * n_old + old`, and the old tokens' shares."""
    keys, shares = [], []
    for text, before, after in zip(texts, old, new, strict=True):
        at = np.full(len(text), -1, dtype=np.int64)
        part = np.zeros(len(text))
        for id, (start, end) in zip(before.ids, before.offsets, strict=True):
            at[start:end] = id
            part[start:end] = 1 / max(1, end - start)
        for id, (start, end) in zip(after.ids, after.offsets, strict=True):
            covered = at[start:end]
            there = covered >= 0
            keys.append(id * n_old + covered[there])
            shares.append(part[start:end][there])
    pairs, places = np.unique(np.concatenate(keys), return_inverse=True)
    return pairs, np.bincount(places, weights=np.concatenate(shares), minlength=len(pairs))


def corpus_of(examples: datasets.Dataset) -> Iterator[str]:
    """The texts of examples: each question, and each context once where its rows stand together.

    Args:
        examples: Rows as `load_examples` returns them; read as a stream.
    """
    for context, rows in groupby(plain_rows(examples, ["question", "context"]), lambda row: row["context"]):
        yield context
        yield from (row["question"] for row in rows)
