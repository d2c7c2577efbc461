"""Part-of-speech taggers: NLTK's perceptron where its data can be had, TextBlob's pattern tagger where not."""

import io
import logging
import os
import socket
import tempfile
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any

import numpy as np

from augment.words import Tagger
from haystack_distill.errors import DistilError
from haystack_distill.utils.checks import check_argument

logger = logging.getLogger(__name__)

TAGGERS = ("auto", "nltk", "textblob", "none")
_DATA = "averaged_perceptron_tagger_eng"
_PLACE = f"taggers/{_DATA}/"
_SECONDS_TO_WAIT = 10.0


def require_tagger(name: str) -> None:
    """Check that a tagger is one that is known.

    Raises:
        DistilError: it is not.
    """
    check_argument("tagger", name, name in TAGGERS, f"one of {', '.join(TAGGERS)}")


def choose_tagger(name: str = "auto") -> str:
    """The tagger that `name` means here: "nltk", "textblob" or "none".

    "auto" is NLTK's averaged perceptron (English) where its data is present and whole or can be
    downloaded, and TextBlob's `PatternTagger`, which needs no data, otherwise; which one it is goes to the log.

    Raises:
        DistilError: an unknown name, or "nltk" although its data can be neither used nor downloaded.
    """
    require_tagger(name)
    if name in ("textblob", "none"):
        return name
    trouble = _trouble_with_nltk()
    if trouble is None:
        if name == "auto":
            logger.info("tagging words with NLTK's perceptron tagger")
        return "nltk"
    if name == "nltk":
        raise DistilError(
            f"NLTK's tagger needs its data {_DATA!r}, which {trouble} and could not be downloaded: run "
            f"`python -m nltk.downloader {_DATA}` where there is a network, or choose the tagger 'textblob'"
        )
    logger.warning(
        "tagging words with TextBlob's PatternTagger: the data of NLTK's better tagger (%s) %s and could not be "
        "downloaded",
        _DATA,
        trouble,
    )
    return "textblob"


def make_tagger(name: str) -> Tagger | None:
    """The function behind a name that `choose_tagger` returned; None for "none"."""
    if name == "none":
        return None
    if name == "nltk":
        perceptron = _perceptron(str(_nltk().data.find(_PLACE)))
        return lambda tokens: [tag for _, tag in perceptron.tag(tokens)]
    _nltk()  # TextBlob imports it too
    from textblob.en import parser

    return lambda tokens: [tag for _, tag in parser.find_tags(tokens)]


class _ArrayPerceptron:
    """NLTK's averaged perceptron with its weights in an array: the same tags, several times as fast.

    Tagging is most of the time it takes to make a file ready, and NLTK adds up weights label by label in Python.

    Args:
        weights: feature -> tag -> weight, as NLTK keeps them.
        classes: all tags.
    """

    def __init__(self, weights: Mapping[str, Mapping[str, float]], classes: Iterable[str]) -> None:
        self._tags = sorted(classes, reverse=True)  # of equals NLTK takes the last by the alphabet, argmax the first
        column = {tag: number for number, tag in enumerate(self._tags)}
        self._row = {feature: number for number, feature in enumerate(weights)}
        self._weights = np.zeros((len(weights), len(self._tags)))
        for row, by_tag in enumerate(weights.values()):
            for tag, weight in by_tag.items():
                self._weights[row, column[tag]] = weight

    def predict(self, features: Mapping[str, int], return_conf: bool = False) -> tuple[str, None]:
        """The tag with the highest sum of weights; NLTK's interface, without its confidence."""
        rows = [self._row[feature] for feature in features if feature in self._row]
        return self._tags[int(self._weights[rows].sum(axis=0).argmax())], None


def _nltk() -> Any:
    """The package NLTK, which cannot be imported by itself where there is no home directory."""
    homeless = os.path.expanduser("~") == "~"
    if homeless:
        os.environ["HOME"] = tempfile.gettempdir()
    try:
        import nltk
    finally:
        if homeless:
            del os.environ["HOME"]
    return nltk


def _trouble_with_nltk() -> str | None:
    """Why NLTK's tagger cannot be used, None where it can; data that is not here or not whole is asked for first."""
    nltk = _nltk()
    trouble = _trouble()
    if trouble is None:
        return None
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_SECONDS_TO_WAIT)  # NLTK waits for ever where a firewall swallows what it asks
    try:
        quietly = {"quiet": True, "print_error_to": io.StringIO()}  # `choose_tagger` reports what is wrong
        nltk.download(_DATA, **quietly)
    except (OSError, ValueError) as error:  # ValueError: without a home directory it knows no place to put it
        logger.debug("NLTK's data cannot be downloaded: %s", error)
    finally:
        socket.setdefaulttimeout(before)
    return _trouble()


def _trouble() -> str | None:
    """What is wrong with the data that is here; None where the tagger tags with it."""
    try:
        place = str(_nltk().data.find(_PLACE))
    except LookupError:
        return "is not where NLTK looks (NLTK_DATA)"
    except Exception as error:  # a broken archive, a directory that NLTK may not read
        return f"is damaged ({type(error).__name__}: {error})"
    try:
        _perceptron(place).tag(["word"])
    except Exception as error:  # whatever NLTK raises, its files are what it stumbled over
        what = str(error).strip().splitlines() or [""]
        return f"is not whole in {place} ({type(error).__name__}: {what[0]})"
    return None


@lru_cache(maxsize=1)
def _perceptron(place: str) -> Any:
    """NLTK's tagger with the data that is at `place`, read once."""
    from nltk.tag import PerceptronTagger

    perceptron = PerceptronTagger()
    perceptron.model = _ArrayPerceptron(perceptron.model.weights, perceptron.classes)
    return perceptron
