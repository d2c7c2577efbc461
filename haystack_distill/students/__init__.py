"""Ways to create a student: cut from a teacher, pruned, newly initialised with a smaller shape, on top of a general
student, with a smaller vocabulary, with a tokenizer of its own, with a BiLSTM in place of the layers, or with early
exits.

A model from the hub or a directory can be a student as it is: `Reader.load(name)`.
"""

from typing import TYPE_CHECKING

from haystack_distill.utils.lazy import lazy_names

if TYPE_CHECKING:
    from haystack_distill.students.configured import from_config
    from haystack_distill.students.cut import from_teacher
    from haystack_distill.students.encoder import from_language_model, with_language_model_head
    from haystack_distill.students.exits import early_exit
    from haystack_distill.students.pruning import pruned
    from haystack_distill.students.recurrent import bilstm
    from haystack_distill.students.tokenizer import with_tokenizer
    from haystack_distill.students.vocabulary import prune_vocabulary

__all__ = [
    "bilstm",
    "early_exit",
    "from_config",
    "from_language_model",
    "from_teacher",
    "prune_vocabulary",
    "pruned",
    "with_language_model_head",
    "with_tokenizer",
]

__getattr__ = lazy_names(
    __name__,
    {
        "bilstm": "haystack_distill.students.recurrent",
        "early_exit": "haystack_distill.students.exits",
        "from_config": "haystack_distill.students.configured",
        "from_language_model": "haystack_distill.students.encoder",
        "from_teacher": "haystack_distill.students.cut",
        "prune_vocabulary": "haystack_distill.students.vocabulary",
        "pruned": "haystack_distill.students.pruning",
        "with_language_model_head": "haystack_distill.students.encoder",
        "with_tokenizer": "haystack_distill.students.tokenizer",
    },
)
