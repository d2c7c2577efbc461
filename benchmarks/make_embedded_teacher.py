"""Make the adapter of the embedded teacher: compress the difference between a BERT reader and its base model.

    python benchmarks/make_embedded_teacher.py --teacher DIR --data train-v1.1.json.gz --output DIR

1. Every linear layer's difference D = W_teacher - W_base becomes up @ down of rank <= 32: the truncated SVD of
   D C^(1/2), where C is the second moment of the layer's inputs over training windows, so that what the inputs use is
   kept.
   Biases, LayerNorms and the QA head are kept whole; of the word embeddings, the rows that matter most, as bytes allow.
2. The factors are trained on to give the teacher's logits (KL) and hidden states (MSE) on other training windows.
3. Everything is rounded to fp16, and the result compared with the teacher on held-out windows.

Took 23 minutes on two CPU cores that other work shared. Labels are not used, and no development set is read.
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch
from safetensors.torch import save
from torch.func import functional_call
from torch.nn.functional import kl_div, log_softmax
from transformers import AutoModelForQuestionAnswering, BertForQuestionAnswering, PreTrainedTokenizerBase
from transformers.modeling_outputs import QuestionAnsweringModelOutput

from haystack_distill.models.embedded_teacher import (
    BASE_SHA256,
    base_model_directory,
    base_tokenizer,
    base_weights,
    build_model,
    merge,
)
from haystack_distill.utils.transformers_compat import load_model

WORDS = "bert.embeddings.word_embeddings.weight"
POSITIONS = "bert.embeddings.position_embeddings.weight"
METADATA = {
    "format": "haystack-distill embedded teacher 1",
    "base_model": "sentence-transformers/all-MiniLM-L6-v2",
    "base_sha256": BASE_SHA256,
    "license": "CC-BY-SA-4.0",
}
Tensors = dict[str, torch.Tensor]


def sample_windows(
    data: Path, tokenizer: PreTrainedTokenizerBase, n_questions: int, elsewhere: float, max_seq_len: int, seed: int
) -> list[Tensors]:
    """One window for each of `n_questions` random questions; a share of them, `elsewhere`, is put to another paragraph
    of the same article, so that the teacher's no-answer behaviour is seen too. Contexts are cut at `max_seq_len`."""
    with (gzip.open if data.suffix == ".gz" else open)(data, "rt", encoding="utf-8") as stream:
        articles = [article["paragraphs"] for article in json.load(stream)["data"]]
    questions = [(a, p, qa["question"]) for a in articles for p in a for qa in p["qas"]]
    draw = random.Random(seed)
    windows = []
    for article, paragraph, question in draw.sample(questions, n_questions):
        if draw.random() < elsewhere:
            paragraph = draw.choice(article)
        encoding = tokenizer(question, paragraph["context"], truncation="only_second", max_length=max_seq_len)
        windows.append({name: torch.tensor(encoding[name]) for name in ("input_ids", "token_type_ids")})
    return windows


def batches(windows: list[Tensors], batch_size: int, seed: int | None = None) -> Iterator[Tensors]:
    """Padded batches of windows of like length, in random order where there is a seed."""
    order = sorted(range(len(windows)), key=lambda i: len(windows[i]["input_ids"]))
    groups = [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
    if seed is not None:
        random.Random(seed).shuffle(groups)
    for group in groups:
        batch = {
            name: torch.nn.utils.rnn.pad_sequence([windows[i][name] for i in group], batch_first=True)
            for name in ("input_ids", "token_type_ids")
        }
        yield batch | {"attention_mask": (batch["input_ids"] != 0).long()}  # 0 is [PAD]


@torch.no_grad()
def input_moments(model: BertForQuestionAnswering, windows: list[Tensors], batch_size: int) -> Tensors:
    """Second moment (in, in) of the inputs of every linear layer but the head, over the tokens of `windows`."""
    moments: Tensors = {}
    mask = torch.empty(0)

    def record(name: str) -> Callable[[torch.nn.Module, tuple[torch.Tensor, ...]], None]:
        def hook(_: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            tokens = inputs[0][mask]
            moments[name] = moments.get(name, 0) + tokens.T @ tokens

        return hook

    linears = [(n, m) for n, m in model.named_modules() if isinstance(m, torch.nn.Linear) and n.startswith("bert.")]
    handles = [module.register_forward_pre_hook(record(f"{name}.weight")) for name, module in linears]
    for batch in batches(windows, batch_size):
        mask = batch["attention_mask"].bool()
        model(**batch)
    for handle in handles:
        handle.remove()
    n_tokens = sum(len(window["input_ids"]) for window in windows)
    return {name: moment / n_tokens for name, moment in moments.items()}


def low_rank(
    difference: torch.Tensor, moment: torch.Tensor, max_rank: int, energy: float = 1.0
) -> tuple[torch.Tensor, torch.Tensor, float]:
    """The up @ down that minimises E ||(difference - up @ down) x||^2 for inputs x with this second moment, of the
    least rank that keeps the share `energy` of E ||difference x||^2, but at most `max_rank`; and the share kept."""
    values, vectors = torch.linalg.eigh(moment.double())
    values = values.clamp_min(values.max() * 1e-6)  # a direction that never occurs is still inverted below
    root, inverse = (vectors * values**power @ vectors.T for power in (0.5, -0.5))
    u, s, v = torch.linalg.svd(difference.double() @ root, full_matrices=False)
    kept = (s**2).cumsum(0) / (s**2).sum()
    rank = min(max_rank, int((kept < energy).sum()) + 1)
    scale = s[:rank].sqrt()
    up, down = u[:, :rank] * scale, scale[:, None] * v[:rank] @ inverse
    return up.float(), down.float(), float(kept[rank - 1])


def compress(
    base: Tensors, target: Tensors, moments: Tensors, counts: torch.Tensor, args: argparse.Namespace
) -> Tensors:
    """Adapter tensors that take `base` as close to `target` as `args.rank` and `args.max_bytes` allow."""
    adapter: Tensors = {}
    for name, value in base.items():
        difference = target[name] - value
        if name == WORDS:
            continue
        if name == POSITIONS:
            factors = low_rank(difference, torch.eye(difference.shape[1]), args.position_rank)
        elif name in moments:
            factors = low_rank(difference, moments[name], args.rank, args.energy)
        else:
            adapter[f"{name}.delta"] = difference
            continue
        adapter[f"{name}.up"], adapter[f"{name}.down"], kept = factors
        print(f"{name}: rank {factors[0].shape[1]} keeps {kept:.3f}")
    difference = target[WORDS] - base[WORDS]
    empty = {f"{WORDS}.rows": torch.zeros(0, dtype=torch.int32), f"{WORDS}.row_delta": difference[:0]}
    room = args.max_bytes - len(serialise(adapter | empty)) - 64  # the header's numbers grow by a few digits
    n_rows = room // (4 + 2 * difference.shape[1])
    gain = counts * difference.square().sum(dim=1)
    rows = gain.argsort(descending=True)[:n_rows].sort().values
    print(f"word embeddings: {n_rows} rows keep {gain[rows].sum() / gain.sum():.3f}")
    return adapter | {f"{WORDS}.rows": rows.int(), f"{WORDS}.row_delta": difference[rows]}


def serialise(adapter: Mapping[str, torch.Tensor]) -> bytes:
    """The adapter file's bytes: fp16, row numbers int32."""
    return save({n: (t.half() if t.is_floating_point() else t).contiguous() for n, t in adapter.items()}, METADATA)


def log_probabilities(logits: torch.Tensor, batch: Tensors) -> torch.Tensor:
    return log_softmax(logits.masked_fill(batch["attention_mask"] == 0, -1e9), dim=-1)


def distance(
    student: QuestionAnsweringModelOutput, teacher: QuestionAnsweringModelOutput, batch: Tensors
) -> tuple[torch.Tensor, torch.Tensor]:
    """(KL of start and end, MSE of hidden states relative to the teacher's variance), means over a batch."""
    parts = [
        kl_div(log_probabilities(ours, batch), log_probabilities(theirs, batch), log_target=True, reduction="batchmean")
        for ours, theirs in (
            (student.start_logits, teacher.start_logits),
            (student.end_logits, teacher.end_logits),
        )
    ]
    mask = batch["attention_mask"].bool()
    pairs = [
        (ours[mask], theirs[mask]) for ours, theirs in zip(student.hidden_states, teacher.hidden_states, strict=True)
    ]
    errors = [(ours - theirs).square().mean() / theirs.var() for ours, theirs in pairs]
    return torch.stack(parts).sum(), torch.stack(errors).mean()


def repair(
    model: BertForQuestionAnswering,
    teacher: BertForQuestionAnswering,
    base: Tensors,
    adapter: Tensors,
    windows: list[Tensors],
    args: argparse.Namespace,
) -> Tensors:
    """Train the adapter's numbers on to imitate the teacher; AdamW, linear warm-up (5 %) and decay, no dropout."""
    trained = {name: t.clone().requires_grad_() for name, t in adapter.items() if t.is_floating_point()}
    fixed = {name: t for name, t in adapter.items() if not t.is_floating_point()}
    n_steps = args.epochs * -(-len(windows) // args.batch_size)
    optimiser = torch.optim.AdamW(trained.values(), lr=args.learning_rate, weight_decay=0.0)
    warm_up = max(1, n_steps // 20)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda step: min((step + 1) / warm_up, (n_steps - step) / (n_steps - warm_up))
    )
    started, step, recent = time.monotonic(), 0, []
    for epoch in range(args.epochs):
        for batch in batches(windows, args.batch_size, seed=args.seed + epoch):
            with torch.no_grad():
                target = teacher(**batch, output_hidden_states=True)
            output = functional_call(model, merge(base, trained | fixed), kwargs=batch | {"output_hidden_states": True})
            kl, mse = distance(output, target, batch)
            optimiser.zero_grad()
            (kl + args.hidden_weight * mse).backward()
            torch.nn.utils.clip_grad_norm_(trained.values(), 1.0)
            optimiser.step()
            schedule.step()
            step += 1
            recent.append((kl.item(), mse.item()))
            if step % 25 == 0 or step == n_steps:
                means = [sum(values) / len(recent) for values in zip(*recent, strict=True)]
                spent = time.monotonic() - started
                print(f"step {step}/{n_steps} kl {means[0]:.4f} hidden {means[1]:.5f} {spent:.0f} s", flush=True)
                recent = []
    return {name: t.detach() for name, t in trained.items()} | fixed


@torch.no_grad()
def agreement(
    model: torch.nn.Module, teacher: torch.nn.Module, windows: list[Tensors], batch_size: int
) -> dict[str, float]:
    """How a reader compares with the teacher on windows: KL of start plus end, relative hidden-state error, and the
    share of windows where both logits have the same maximum."""
    kl = mse = same = 0.0
    for batch in batches(windows, batch_size):
        size, mask = len(batch["input_ids"]), batch["attention_mask"] == 0
        ours, theirs = (reader(**batch, output_hidden_states=True) for reader in (model, teacher))
        parts = distance(ours, theirs, batch)
        kl, mse = kl + size * float(parts[0]), mse + size * float(parts[1])
        equal = [
            a.masked_fill(mask, -1e9).argmax(-1) == b.masked_fill(mask, -1e9).argmax(-1)
            for a, b in ((ours.start_logits, theirs.start_logits), (ours.end_logits, theirs.end_logits))
        ]
        same += float((equal[0] & equal[1]).sum())
    return {"kl": kl / len(windows), "hidden": mse / len(windows), "same_span": same / len(windows)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--teacher", type=Path, required=True, help="BERT reader that was fine-tuned from the base model"
    )
    parser.add_argument("--data", type=Path, required=True, help="SQuAD-format training file, may be gzipped")
    parser.add_argument("--output", type=Path, required=True, help="folder for adapter.safetensors")
    parser.add_argument("--rank", type=int, default=32, help="at most, per linear layer")
    parser.add_argument("--energy", type=float, default=0.999, help="share of a layer's change that needs no more rank")
    parser.add_argument("--position-rank", type=int, default=16)
    parser.add_argument("--max-bytes", type=int, default=3_000_000)
    parser.add_argument("--max-seq-len", type=int, default=384)
    parser.add_argument("--calibration-questions", type=int, default=800)
    parser.add_argument("--train-questions", type=int, default=2400)
    parser.add_argument("--held-out-questions", type=int, default=300)
    parser.add_argument("--elsewhere", type=float, default=0.125, help="share of questions put to another paragraph")
    parser.add_argument("--epochs", type=int, default=1, help="0: no training after the SVD")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--learning-rate", type=float, default=2e-4)
    parser.add_argument("--hidden-weight", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    folder = base_model_directory()
    tokenizer = base_tokenizer(folder)
    base = base_weights(folder)
    teacher = load_model(AutoModelForQuestionAnswering, str(args.teacher))[0].eval()
    n_windows = args.calibration_questions + args.train_questions + args.held_out_questions
    windows = sample_windows(args.data, tokenizer, n_windows, args.elsewhere, args.max_seq_len, args.seed)
    held_out = windows[: args.held_out_questions]
    calibration = windows[args.held_out_questions :][: args.calibration_questions]
    training = windows[args.held_out_questions + args.calibration_questions :]

    moments = input_moments(teacher, calibration, args.batch_size)
    counts = torch.bincount(torch.cat([w["input_ids"] for w in calibration + training]), minlength=len(base[WORDS]))
    adapter = compress(base, teacher.state_dict(), moments, counts, args)
    print("SVD alone:", agreement(build_model(folder, adapter), teacher, held_out, args.batch_size), flush=True)
    if args.epochs:
        adapter = repair(build_model(folder, adapter), teacher, base, adapter, training, args)

    args.output.mkdir(parents=True, exist_ok=True)
    content = serialise(adapter)
    (args.output / "adapter.safetensors").write_bytes(content)
    rounded = {name: t.half().float() if t.is_floating_point() else t for name, t in adapter.items()}
    print("adapter:", agreement(build_model(folder, rounded), teacher, held_out, args.batch_size))
    print(f"{len(content)} bytes, {len(adapter)} tensors in {args.output}")


if __name__ == "__main__":
    main()
