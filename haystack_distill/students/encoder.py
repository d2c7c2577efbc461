"""The same encoder under another head: a reader's, or one for masked language modelling."""

import copy

import torch
from transformers import AutoModelForMaskedLM, AutoModelForQuestionAnswering

from haystack_distill.data.window_settings import WindowSettings
from haystack_distill.errors import DistilError
from haystack_distill.models.calibration import forget_calibration
from haystack_distill.models.language_model import LanguageModel
from haystack_distill.models.reader import Reader
from haystack_distill.students.layers import require_weights
from haystack_distill.utils.transformers_compat import question_answering_config


def from_language_model(
    student: LanguageModel, teacher: Reader, window_settings: WindowSettings | None = None
) -> Reader:
    """Create a reader from a general student: its encoder, with the teacher's head where the shapes agree.

    Args:
        student: The result of general distillation. It is not changed.
        teacher: The reader whose settings and question answering head are used.
        window_settings: Windows of its own, such as longer ones than the teacher has positions for; None: the
            teacher's.

    Raises:
        DistilError: The student lacks weights of the encoder.
    """
    require_weights(teacher)
    require_weights(student)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # a head that is not copied is initialised the same every time
        model = AutoModelForQuestionAnswering.from_config(
            question_answering_config(student.model.config), trust_remote_code=False
        )
    forget_calibration(model.config)  # of the reader that the encoder came from
    missing, _ = model.base_model.load_state_dict(student.model.base_model.state_dict(), strict=False)
    if missing:
        raise DistilError(
            f"the student's encoder lacks {', '.join(missing)}, so it cannot become a reader: distil it again"
        )
    inside = f"{model.base_model_prefix}."
    own = model.state_dict()
    head = {
        name: weight
        for name, weight in teacher.model.state_dict().items()
        if not name.startswith(inside) and name in own and own[name].shape == weight.shape
    }
    model.load_state_dict(head, strict=False)
    windows = window_settings or teacher.window_settings
    return teacher.replace(model=model, tokenizer=student.tokenizer, window_settings=windows)


def with_language_model_head(encoder: LanguageModel, *, seed: int = 42) -> LanguageModel:
    """Create a masked language model from an encoder: a copy of its weights, and a fresh head.

    The words of the head are those of the embeddings, as in BERT; the rest of it is initialised at random.

    Args:
        encoder: An encoder without a head, such as `LanguageModel.of(reader)`. It is not changed.
        seed: The seed of the fresh weights.

    Raises:
        DistilError: There is no masked language model of its architecture.
    """
    config = copy.deepcopy(encoder.model.config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            model = AutoModelForMaskedLM.from_config(config, trust_remote_code=False)
        except ValueError as error:
            raise DistilError(
                f"there is no masked language model of the type {config.model_type}; take a method for a corpus that "
                "needs no head, such as intermediate_layers"
            ) from error
    missing, _ = model.base_model.load_state_dict(encoder.model.base_model.state_dict(), strict=False)
    if missing:
        raise DistilError(f"the encoder lacks {', '.join(missing)}; load it again from its files")
    model.tie_weights()
    return encoder.replace(model=model)
