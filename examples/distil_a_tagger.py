"""A transformer that tags words teaches a small LSTM, in a training loop of your own.

The script makes its data: sentences in which people, places and years have tags, most of them without labels for the
student. It trains the teacher on all of them, a student on the few labels alone, and a student with the teacher.

    python examples/distil_a_tagger.py --output-dir student
"""

import argparse
import random
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn.functional import cross_entropy
from transformers import BertConfig, BertForTokenClassification

from haystack_distill.objectives import TeacherStudentLoss

parser = argparse.ArgumentParser()
parser.add_argument("--output-dir", default="student")
parser.add_argument("--max-steps", type=int, default=300, help="optimiser steps of each training")
TeacherStudentLoss.add_args(parser)  # --kd_temp, --kd_dist_w, ...
parser.set_defaults(kd_dist_w=1.0)
arguments = parser.parse_args()

TAGS = ["none", "person", "place", "year"]
SENTENCES = ["{0} was born in {1} in {2} .", "in {2} {0} left {1} .", "{1} is where {0} worked until {2} ."]
SYLLABLES = ["ka", "lo", "mi", "ren", "ta", "vos", "el", "bur", "shi", "dan"]
UNLABELLED = -100


def words(count: int) -> list[str]:
    """Names that mean nothing: what a name is follows from the words around it."""
    return ["".join(random.choices(SYLLABLES, k=3)) for _ in range(count)]


random.seed(0)
torch.manual_seed(0)
NAMES, YEARS = words(400), [str(year) for year in range(1800, 1900)]
VOCABULARY = ["[PAD]", *sorted({*" ".join(SENTENCES).split(), *NAMES, *YEARS})]
NUMBERS = {word: number for number, word in enumerate(VOCABULARY)}


def sentences(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Words and tags of some sentences, (count, 9) each; padding has the word 0 and no tag."""
    tokens, tags = torch.zeros(count, 9, dtype=torch.long), torch.full((count, 9), UNLABELLED)
    for row in range(count):
        filled = (random.choice(NAMES), random.choice(NAMES), random.choice(YEARS))
        for place, word in enumerate(random.choice(SENTENCES).split()):
            tag = int(word[1]) + 1 if word.startswith("{") else 0
            tokens[row, place] = NUMBERS[filled[tag - 1] if tag else word]
            tags[row, place] = tag
    return tokens, tags


class LstmTagger(nn.Module):
    """Embeddings, one bidirectional LSTM and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.embeddings = nn.Embedding(len(VOCABULARY), 24, padding_idx=0)
        self.lstm = nn.LSTM(24, 24, batch_first=True, bidirectional=True)
        self.head = nn.Linear(48, len(TAGS))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.head(self.lstm(self.embeddings(tokens))[0])


class TransformerTagger(nn.Module):
    """A tagger of transformers; yours: AutoModelForTokenClassification.from_pretrained(...)."""

    def __init__(self) -> None:
        super().__init__()
        shape = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 96}
        self.model = BertForTokenClassification(BertConfig(vocab_size=len(VOCABULARY), num_labels=len(TAGS), **shape))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.model(tokens, attention_mask=(tokens != 0).long()).logits


def train(model: nn.Module, tokens: torch.Tensor, tags: torch.Tensor, teacher: nn.Module | None = None) -> nn.Module:
    """The loop: cross entropy of the tags and, with a teacher, the distance to its logits at every word."""
    distillation = None if teacher is None else TeacherStudentLoss.from_args(teacher, arguments)
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3)
    model.train()
    for _ in range(arguments.max_steps):
        rows = torch.randint(len(tokens), (32,))
        logits = model(tokens[rows])
        labelled = max(1, int((tags[rows] != UNLABELLED).sum()))  # a batch may be without any
        loss = cross_entropy(logits.flatten(0, 1), tags[rows].flatten(), reduction="sum") / labelled
        if distillation is not None:
            loss = distillation.distill_loss(
                loss, logits, distillation.teacher_logits(tokens[rows]), mask=tokens[rows] != 0
            )
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return model.eval()


@torch.no_grad()
def accuracy(model: nn.Module) -> float:
    """Right tags among the words of new sentences, in per cent."""
    real = test_tags != UNLABELLED
    return 100 * float((model(test_tokens).argmax(dim=2) == test_tags)[real].float().mean())


tokens, tags = sentences(2000)
test_tokens, test_tags = sentences(500)
few = tags.clone()
few[20:] = UNLABELLED  # the student's labels: 20 sentences
teacher = train(TransformerTagger(), tokens, tags)
alone = train(LstmTagger(), tokens[:20], tags[:20])
student = train(LstmTagger(), tokens, few, teacher)
for name, model in {"teacher": teacher, "labels alone": alone, "with the teacher": student}.items():
    print(f"{name}: {accuracy(model):.1f} % of tags, {sum(weight.numel() for weight in model.parameters())} weights")
Path(arguments.output_dir).mkdir(parents=True, exist_ok=True)
save_file(student.state_dict(), Path(arguments.output_dir) / "model.safetensors")
