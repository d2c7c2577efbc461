"""kill -9 at random moments: a small recipe, killed and resumed until it is done, against the same one left alone.

    python benchmarks/recipe_kills.py [--kills 20]

The recipe is that of a tiny random reader, so that steps, checkpoints and files are what takes its time.
"""

import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated

import torch
import typer
import yaml
from safetensors.torch import load_file
from transformers import BertConfig, BertForQuestionAnswering

from haystack_distill import Reader, WindowSettings
from haystack_distill.data.sample import sample_path
from haystack_distill.data.squad.load import load_examples, write_squad
from haystack_distill.models.embedded_teacher import base_model_directory, base_tokenizer

MODELS = ("1-general", "2-layers", "3-answers", "reader")


def write_recipe(folder: Path, name: str) -> Path:
    """A recipe of three short stages on 200 questions of the sample, with a cache of its own."""
    quick = {"batch_size": 8, "learning_rate": 1e-3, "checkpoint_every": 5}
    text = {"max_seq_len": 64, "buffer_windows": 64}
    augment = {"multiplication_factor": 2, "tagger": "textblob"}
    answers = {"name": "prediction_layer", "temperature": 2.0, "distillation_loss_weight": 0.8}
    content = {
        "teacher": str(folder / "teacher"),
        "data": str(folder / "train.json"),
        "dev_data": str(folder / "train.json"),
        "output_dir": str(folder / name),
        "cache_dir": str(folder / f"{name}-cache"),
        "device": "cpu",
        "precision": "fp32",
        "max_seq_len": 128,
        "student": {"layers": 2},
        "stages": [
            {"name": "general", "method": "intermediate_layers", "corpus": text, "max_steps": 40, **quick},
            {"name": "layers", "method": "intermediate_layers", "augment": augment, "n_epochs": 1, **quick},
            {"name": "answers", "method": answers, "n_epochs": 2, **quick},
        ],
    }
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return path


def main(
    kills: Annotated[int, typer.Option(help="how many times to kill it")] = 20, seed: Annotated[int, typer.Option()] = 1
) -> None:
    """Run the recipe alone, then killed again and again, as often as so many kills take, and compare."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        torch.manual_seed(0)
        tokenizer = base_tokenizer(base_model_directory())
        shape = {"hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 128}
        model = BertForQuestionAnswering(BertConfig(vocab_size=len(tokenizer), max_position_embeddings=128, **shape))
        Reader(model, tokenizer, window_settings=WindowSettings(128, 64, 32), device="cpu").save(folder / "teacher")
        write_squad(load_examples(sample_path("train")).select(range(200)), folder / "train.json")

        def start(path: Path) -> subprocess.Popen:
            command = [sys.executable, "-m", "haystack_distill", "recipe", "--config", str(path), "--no-progress"]
            environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
            return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

        began = time.monotonic()
        assert start(write_recipe(folder, "whole")).wait() == 0
        alone = time.monotonic() - began
        moments, done, runs = random.Random(seed), 0, 0
        while done < kills:
            runs += 1
            path, before = write_recipe(folder, f"killed-{runs}"), done
            while True:
                process = start(path)
                try:
                    # Enough to get beyond what was finished before: imports take half of a short run.
                    assert process.wait(timeout=alone * moments.uniform(0.3, 0.8) if done < kills else None) == 0
                    break
                except subprocess.TimeoutExpired:
                    process.send_signal(signal.SIGKILL)
                    process.wait()
                    done += 1
            print(f"run {runs}, killed {done - before} times: {compared(folder, path.stem)}", flush=True)
        print(f"{done} kills; left alone the recipe takes {alone:.0f} s")


def compared(folder: Path, killed: str) -> str:
    """How the models of a killed run differ from those of the run left alone, and what it left on disk."""
    different = []
    for name in MODELS:
        one, other = (load_file(folder / run / name / "model.safetensors") for run in ("whole", killed))
        if one.keys() != other.keys() or not all(torch.equal(one[key], other[key]) for key in one):
            different.append(name)
    left = [
        str(path)
        for directory in (folder / killed, folder / f"{killed}-cache")
        for pattern in ("*.tmp", ".*", "checkpoints")
        for path in directory.rglob(pattern)
    ]
    same = f"DIFFERENT: {', '.join(different)}" if different else "identical weights"
    return f"{same}, {f'left over: {left}' if left else 'nothing left over'}"


if __name__ == "__main__":
    typer.run(main)
