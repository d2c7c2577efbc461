"""Readers with early exits: F1, layers that ran per window, and questions per second, against `speed`.

    python benchmarks/early_exit.py --model READER [--model ...] --data DEV [--questions 300] [--passages 10]
        [--speeds 0,0.1,0.2] [--rounds 3] [--precision fp32] [--json FILE]

A question comes with its own passage among others of the same article, in random order, or with its own passage alone
(`--passages 1`). Questions are asked one at a time, as a pipeline asks them. The speeds take turns, and the fastest of
the rounds counts. A weight of layers by the tokens of their windows is the share of the computation: layers per token.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch

from haystack_distill import Reader
from haystack_distill.data.squad.load import load_examples
from haystack_distill.data.squad.metrics import example_scores
from haystack_distill.evaluation.passages import answer_with_passages, with_other_passages


def measure(
    reader: Reader, examples: datasets.Dataset, passages: list[list[str]], speeds: list[float], rounds: int
) -> list[dict[str, Any]]:
    """One row for each speed."""
    readers = {speed: reader.replace(speed=speed) for speed in speeds}
    seconds = dict.fromkeys(speeds, float("inf"))
    found: dict[float, dict[str, Any]] = {}
    questions, ids = examples["question"], examples["id"]
    answer_with_passages(reader, questions[:3], passages[:3])
    for _ in range(rounds):
        for speed, one in readers.items():
            began = time.perf_counter()
            texts, layers, tokens, _ = answer_with_passages(one, questions, passages)
            seconds[speed] = min(seconds[speed], time.perf_counter() - began)
            scores = example_scores(examples, dict(zip(ids, texts, strict=True)))
            found[speed] = {
                "speed": speed,
                "f1": 100 * float(np.mean([f1 for _, f1 in scores.values()])),
                "layers_per_window": float(np.mean(layers)),
                "layers_per_token": float(np.dot(layers, tokens) / np.sum(tokens)),
            }
    return [row | {"questions_per_second": len(questions) / seconds[row["speed"]]} for row in found.values()]


def main() -> None:
    """Measure the curves and print them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", action="append", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--questions", type=int, default=300)
    parser.add_argument("--passages", type=int, default=10)
    parser.add_argument("--speeds", default="0,0.05,0.1,0.15,0.2,0.3,0.4")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    speeds = [float(speed) for speed in options.speeds.split(",")]
    examples, passages = with_other_passages(
        load_examples(options.data), options.questions, options.passages, options.seed
    )
    report = []
    for model in options.model:
        reader = Reader.load(model, precision=options.precision)
        rows = measure(reader, examples, passages, speeds, options.rounds)
        base = rows[0]["questions_per_second"]
        print(f"{model}, {reader.precision}, {options.passages} passages, {len(examples)} questions")
        print(f"{'speed':>6} {'F1':>6} {'layers':>7} {'by token':>8} {'q/s':>7} {'times':>6}")
        for row in rows:
            numbers = (row["layers_per_window"], row["layers_per_token"], row["questions_per_second"])
            print(f"{row['speed']:6.2f} {row['f1']:6.1f} {numbers[0]:7.2f} {numbers[1]:8.2f} {numbers[2]:7.2f} "
                  f"{numbers[2] / base:6.2f}", flush=True)  # fmt: skip
        report.append({"model": model, "precision": reader.precision, "passages": options.passages, "rows": rows})
    if options.json:
        options.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
