"""How a file is multiplied: one dataclass, checked when it is made."""

from dataclasses import dataclass
from os import PathLike

from augment.tagging import TAGGERS
from haystack_distill.errors import DistilError
from haystack_distill.utils.checks import check_argument, is_integer, is_number

TEXTS = ("question", "context", "both")


@dataclass(frozen=True)
class AugmentSettings:
    """What is edited, how much and how often.

    Args:
        multiplication_factor: versions of each row, the original included.
        augment: which text is edited: "question", "context", or "both" (question only, context only, both, in turn,
            as Tang et al. 2019 treat pairs of sentences). "context" by measurement: see docs/recipe.md.
        p_mask: probability that a word becomes the mask token.
        p_pos: probability that a word becomes another word with its part-of-speech tag.
        p_ng: probability that a question, with `context_ngrams` a context too, is then reduced to one of its n-grams.
        longest_ngram: n is uniform in 1..`longest_ngram`.
        context_ngrams: sample n-grams of contexts too. A row whose answers do not survive is marked as unlabelled.
        replace_probability: probability that a word becomes what a masked language model would put there, where a
            `model` is named.
        word_possibilities: how many of the model's candidates are considered for a word.
        model: a masked language model, a directory or hub name; None leaves contextual replacement out.
        glove_path: vectors in the text form of GloVe, fastText or word2vec, for words of several pieces; None takes the
            model's own embeddings.
        device: where the model runs: "auto", "cpu", "cuda", ...
        batch_size: sequences a forward pass of the model; a text takes about seven.
        mask_token: what a masked word becomes; None takes it from `tokenizer`, or "[MASK]" without one.
        tokenizer: a directory with tokenizer.json or a hub name. With tagger "none" it also says what a word is.
        tagger: "auto", "nltk", "textblob", or "none", which leaves POS-guided replacement out.
        drop_labels: leave all answers out and mark each row as unlabelled (in a file also `is_impossible`, as
            Haystack 1 did), for distillation only.
        provenance: say in each row what was done to it.
        seed: of all random numbers.

    Raises:
        DistilError: a value that cannot be.
    """

    multiplication_factor: int = 20
    augment: str = "context"
    p_mask: float = 0.1
    p_pos: float = 0.1
    p_ng: float = 0.25
    longest_ngram: int = 5
    context_ngrams: bool = False
    replace_probability: float = 0.4
    word_possibilities: int = 20
    model: str | None = None
    glove_path: str | None = None
    device: str = "auto"
    batch_size: int = 16
    mask_token: str | None = None
    tokenizer: str | None = None
    tagger: str = "auto"
    drop_labels: bool = False
    provenance: bool = False
    seed: int = 42

    def __post_init__(self) -> None:
        for name in ("multiplication_factor", "longest_ngram", "word_possibilities", "batch_size"):
            value = getattr(self, name)
            check_argument(name, value, is_integer(value, 1), "a whole number of at least 1")
        for name in ("p_mask", "p_pos", "p_ng", "replace_probability"):
            value = getattr(self, name)
            check_argument(name, value, is_number(value) and 0 <= value <= 1, "a probability from 0 to 1")
        for name in ("context_ngrams", "drop_labels", "provenance"):
            check_argument(name, getattr(self, name), isinstance(getattr(self, name), bool), "True or False")
        for name in ("model", "glove_path", "mask_token", "tokenizer"):
            value = getattr(self, name)
            kinds = (str,) if name == "mask_token" else (str, PathLike)
            check_argument(
                name, value, value is None or (isinstance(value, kinds) and bool(str(value).strip())), "text, not empty"
            )
        check_argument("device", self.device, isinstance(self.device, str), "a device such as 'cpu'")
        check_argument("seed", self.seed, is_integer(self.seed), "a whole number")
        check_argument("augment", self.augment, self.augment in TEXTS, f"one of {', '.join(TEXTS)}")
        check_argument("tagger", self.tagger, self.tagger in TAGGERS, f"one of {', '.join(TAGGERS)}")
        if self.augment == "context" and not self.context_ngrams and self.p_ng not in (0, type(self).p_ng):
            raise DistilError("p_ng means nothing for contexts, which are not cut: set augment to question or both")
        if not self.model:
            for name in ("replace_probability", "word_possibilities", "glove_path", "device", "batch_size"):
                if getattr(self, name) != type(self).__dataclass_fields__[name].default:
                    raise DistilError(f"{name} is for contextual replacement: name a masked language model (model)")
        parts = ["p_mask", "p_pos", "replace_probability"] if self.model else ["p_mask", "p_pos"]
        total = sum(getattr(self, name) for name in parts)
        if total > 1 + 1e-9:
            raise DistilError(
                f"{' + '.join(parts)} is {total:g}, but only one of them can happen to a word: make them add up to at "
                "most 1"
            )
