"""What a reader answers: one `Answer`, and the `Prediction` that holds all of them for one example."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Answer:
    """One answer of a reader.

    Attributes:
        text: The answer, `context[start:end]`; empty for no-answer.
        start: First character in the context; 0 for no-answer.
        end: One past the last character; 0 for no-answer.
        score: Probability of this span among all starts and all ends of its window, no-answer included (0 to 1).
        logit: Start plus end logit, the figure that answers are ranked by.
        no_answer: Whether this is the no-answer: the context does not hold the answer.
    """

    text: str
    start: int
    end: int
    score: float
    logit: float
    no_answer: bool = False


@dataclass(frozen=True)
class PassageAnswer(Answer):
    """One answer of a reader to a question about several passages.

    Attributes:
        passage: Which passage it is in, counted from 0; None for no-answer.
    """

    passage: int | None = None


@dataclass(frozen=True)
class Prediction:
    """The answers of a reader to one example.

    Attributes:
        answers: Spans, best first; never a no-answer.
        no_answer: The no-answer, scored by the window where its logit is lowest.
    """

    answers: list[Answer]
    no_answer: Answer

    @property
    def no_answer_gap(self) -> float:
        """No-answer logit minus the best span's: above the reader's threshold, there is no answer."""
        return self.no_answer.logit - self.answers[0].logit if self.answers else float("inf")

    def ranked(self, top_k: int, no_answer_threshold: float) -> list[Answer]:
        """The first `top_k` answers with the no-answer in its place: first where the gap is above the threshold."""
        if self.no_answer_gap > no_answer_threshold:
            return [self.no_answer, *self.answers][:top_k]
        below = self.no_answer.logit - no_answer_threshold
        place = sum(answer.logit >= below for answer in self.answers)
        return [*self.answers[:place], self.no_answer, *self.answers[place:]][:top_k]


def merged(predictions: Sequence[Prediction]) -> Prediction:
    """The predictions for the passages of one question as one: all answers, best first, and the lowest no-answer.

    Args:
        predictions: One for each passage, in order, at least one.
    """
    answers = [
        _in_passage(answer, passage) for passage, prediction in enumerate(predictions) for answer in prediction.answers
    ]
    # A passage without a token does not count, unless all are like that.
    with_text = [prediction for prediction in predictions if prediction.answers] or predictions
    no_answer = min((prediction.no_answer for prediction in with_text), key=lambda answer: answer.logit)
    answers.sort(key=lambda answer: -answer.logit)  # of equal ones the earlier passage's first
    return Prediction(list(answers), _in_passage(no_answer, None))


def _in_passage(answer: Answer, passage: int | None) -> PassageAnswer:
    # Not by `asdict`, which copies each value and took a quarter of all the time that is not the model's.
    given = answer.text, answer.start, answer.end, answer.score, answer.logit, answer.no_answer
    return PassageAnswer(*given, passage=passage)
