"""How a file is multiplied and how the job runs: two dataclasses, which hold each option, its default and its help."""

import os
import re
from collections.abc import Iterable, Mapping
from copy import copy
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from augment.tagging import require_tagger
from haystack_distill.errors import DistilError
from haystack_distill.utils.checks import check_argument, is_integer, is_number

TEXTS = ("question", "context", "both")
ON_BAD_EXAMPLE = ("error", "skip")

# Values that switch something off. They are never refused: where nothing is switched on, they hold anyway.
_OFF: dict[str, Any] = {
    "p_mask": 0,
    "p_pos": 0,
    "p_ng": 0,
    "replace_probability": 0,
    "context_ngrams": False,
    "tagger": "none",
}


class _Settings:
    """What both dataclasses share: a setting that is given must have an effect."""

    def without_effect(self) -> dict[str, str]:
        """The settings on which nothing depends, given the others: why, and what would give each an effect."""
        return {}

    def require_effect(self, names: Iterable[str]) -> None:
        """Check that settings that were given have an effect.

        Args:
            names: which were given; other names are passed over.

        Raises:
            DistilError: one has none, and its value does not just switch it off.
        """
        reasons = self.without_effect()
        for name in names:
            if name in reasons and getattr(self, name) != _OFF.get(name):
                raise DistilError(f"{name} has no effect {reasons[name]}, or leave {name} out")

    def _changed(self) -> list[str]:
        """The settings that differ from their defaults."""
        return [field.name for field in fields(self) if getattr(self, field.name) != field.default]  # type: ignore[arg-type]


@dataclass(frozen=True)
class AugmentSettings(_Settings):
    """What is edited, how much and how often.

    Args:
        multiplication_factor: Versions of each row, the original included.
        augment: Which text is edited: question, context or both (question only, context only, both, in turn, as Tang
            et al. 2019 treat pairs of sentences). The default is the best by measurement, see docs/recipe.md.
        p_mask: Probability that a word becomes the mask token.
        p_pos: Probability that a word becomes another word with its part-of-speech tag.
        p_ng: Probability that a question, with context_ngrams a context too, is then reduced to one of its n-grams.
        longest_ngram: The n of these n-grams is uniform from 1 to this.
        context_ngrams: Sample n-grams of contexts too. A row whose answers do not survive is marked as unlabelled.
        replace_probability: Probability that a word becomes a candidate of the masked language model.
        word_possibilities: Candidates of the masked language model for a word.
        model: Masked language model for contextual replacement (TinyBERT's), a directory or hub name. Default: no
            contextual replacement.
        glove_path: Vectors in the text form of GloVe, fastText or word2vec, for words of several pieces. Default: the
            masked language model's own embeddings.
        device: Where the masked language model runs: auto, cpu, cuda, ...
        batch_size: Sequences in a forward pass of the masked language model; a text takes about seven.
        mask_token: What a masked word becomes: the student's mask token. Default: that of the tokenizer, or [MASK]
            without one.
        tokenizer: Directory with tokenizer.json, or hub name. Its mask token is used, and with tagger none it splits
            texts into words.
        tagger: Part-of-speech tagger: auto, nltk, textblob, or none, which leaves replacement by part of speech out.
        drop_labels: Leave all answers out and mark each row as unlabelled (in a file also is_impossible, as Haystack 1
            did): for distillation only.
        provenance: Record in each row what was done to it.
        seed: Seed of all random numbers.

    Raises:
        DistilError: a value that cannot be, a setting that has no effect, or settings that edit nothing.
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
    model: str | Path | None = None
    glove_path: str | Path | None = None
    device: str = "auto"
    batch_size: int = 16
    mask_token: str | None = None
    tokenizer: str | Path | None = None
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
            kinds = (str,) if name == "mask_token" else (str, os.PathLike)
            check_argument(
                name, value, value is None or (isinstance(value, kinds) and bool(str(value).strip())), "text, not empty"
            )
            if value is not None:
                object.__setattr__(self, name, str(value))  # so that equal settings are equal, as JSON too
        check_argument("device", self.device, isinstance(self.device, str), "a device such as 'cpu'")
        check_argument(
            "seed", self.seed, isinstance(self.seed, int) and not isinstance(self.seed, bool), "a whole number"
        )
        check_argument("augment", self.augment, self.augment in TEXTS, f"one of {', '.join(TEXTS)}")
        require_tagger(self.tagger)
        parts = ["p_mask", "p_pos", "replace_probability"] if self.model else ["p_mask", "p_pos"]
        total = sum(getattr(self, name) for name in parts)
        if total > 1 + 1e-9:
            raise DistilError(
                f"{' + '.join(parts)} is {total:g}, but only one of them can happen to a word: make them add up to at "
                "most 1"
            )
        if self.multiplication_factor > 1 and not self._edits():
            raise DistilError(
                "these settings edit nothing: set p_mask, p_pos (with a tagger), p_ng (for questions, or with "
                "context_ngrams) or replace_probability (with a model) above 0, or multiplication_factor to 1"
            )
        self.require_effect(self._changed())

    def with_tagger(self, tagger: str) -> "AugmentSettings":
        """These settings with the tagger that `choose_tagger` returned; since nobody set it, it may have no effect."""
        chosen = copy(self)
        object.__setattr__(chosen, "tagger", tagger)
        return chosen

    @property
    def chance_of_replacement(self) -> float:
        """Probability that a word is replaced by part of speech: without a tagger there is nothing to draw from."""
        return 0.0 if self.tagger == "none" else self.p_pos

    def _edits(self) -> bool:
        """Whether any operation can happen to any text."""
        contextual = self.replace_probability if self.model else 0.0
        ngrams = self.p_ng if self.augment != "context" or self.context_ngrams else 0.0
        return any((self.p_mask, self.chance_of_replacement, contextual, ngrams))

    def without_effect(self) -> dict[str, str]:
        """The settings on which nothing depends, given the others: why, and what would give each an effect."""
        if self.multiplication_factor == 1:
            used = ("multiplication_factor", "drop_labels", "provenance")
            unused = [field.name for field in fields(self) if field.name not in used]
            return dict.fromkeys(unused, "with a multiplication_factor of 1, which edits nothing: raise it")
        of_model = ("replace_probability", "word_possibilities", "glove_path", "device", "batch_size")
        rules = [
            (
                self.augment == "question",
                ("context_ngrams",),
                "where only questions are edited: set augment to context or both",
            ),
            (
                self.augment == "context" and not self.context_ngrams,
                ("p_ng", "longest_ngram"),
                "where only contexts are edited, which are not cut: set augment to question or both, or context_ngrams",
            ),
            (self.p_ng == 0, ("context_ngrams", "longest_ngram"), "where p_ng is 0: set p_ng above 0"),
            (self.tagger == "none", ("p_pos",), "without a tagger: choose another tagger"),
            (self.p_pos == 0, ("tagger",), "where p_pos is 0: set p_pos above 0"),
            (self.p_mask == 0, ("mask_token",), "where p_mask is 0: set p_mask above 0"),
            (
                self.tagger != "none" and self.p_mask == 0,
                ("tokenizer",),
                "where p_mask is 0 and tagger is not none: set p_mask above 0, or tagger to none",
            ),
            (
                self.tagger != "none" and self.mask_token is not None,
                ("tokenizer",),
                "where mask_token is set and tagger is not none: leave mask_token out, or set tagger to none",
            ),
            (self.model is None, of_model, "without a masked language model: set model"),
            (
                self.replace_probability == 0,
                ("model", *of_model[1:]),
                "where replace_probability is 0: set replace_probability above 0",
            ),
        ]
        found: dict[str, str] = {}
        for holds, names, reason in rules:
            if holds:
                found = dict.fromkeys(names, reason) | found
        return found


@dataclass(frozen=True)
class RunSettings(_Settings):
    """How a job runs; but for bad examples and shards, nothing of it shows in the output.

    Args:
        num_processes: Processes that work on articles.
        on_bad_example: What to do with a question that is not valid SQuAD data: error, or skip, which leaves it out and
            counts it.
        overwrite: Replace an output that exists.
        shard: i/n: only every n-th article, from the i-th on; needs statistics.
        statistics: File of counts of words by tag, made once for all shards (--statistics_only, make_statistics).

    Raises:
        DistilError: a value that cannot be, or a setting that has no effect.
    """

    num_processes: int = 1
    on_bad_example: str = "error"
    overwrite: bool = False
    shard: str | None = None
    statistics: str | Path | None = None

    def __post_init__(self) -> None:
        check_argument(
            "num_processes", self.num_processes, is_integer(self.num_processes, 1), "a whole number of at least 1"
        )
        known = self.on_bad_example in ON_BAD_EXAMPLE
        check_argument("on_bad_example", self.on_bad_example, known, f"one of {', '.join(ON_BAD_EXAMPLE)}")
        if self.shard is not None:
            parse_shard(self.shard)
            if self.statistics is None:
                raise DistilError(
                    "a shard needs the statistics of the whole file, or its words would be drawn from its own articles "
                    "alone: make them once (--statistics_only, or make_statistics) and pass them to every shard"
                )
        self.require_effect(self._changed())

    def without_effect(self) -> dict[str, str]:
        """The settings on which nothing depends, given the others: why, and what would give each an effect."""
        return {} if self.shard is not None else {"statistics": "on a whole file, which is counted anyway: set shard"}

    @property
    def part(self) -> tuple[int, int] | None:
        """(i, n) of the shard; None for the whole file."""
        return None if self.shard is None else parse_shard(self.shard)


def settings_from(options: Mapping[str, Any]) -> tuple[AugmentSettings, RunSettings]:
    """Both dataclasses from options by name; other names are passed over."""

    def those_of(kind: type) -> dict[str, Any]:
        return {field.name: options[field.name] for field in fields(kind) if field.name in options}

    return AugmentSettings(**those_of(AugmentSettings)), RunSettings(**those_of(RunSettings))


def parse_shard(text: str) -> tuple[int, int]:
    """(i, n) of "i/n".

    Raises:
        DistilError: not that, or i is not one of 1..n.
    """
    found = re.fullmatch(r"(\d+)/(\d+)", text.strip())
    if not found or not 1 <= int(found[1]) <= int(found[2]):
        raise DistilError(f"shard must be i/n with i from 1 to n, such as 2/4, not {text!r}")
    return int(found[1]), int(found[2])
