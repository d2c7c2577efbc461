"""One training run of one tool, in this process, as JSON on the last line: `bench.py` calls it.

Timed is the job from the file to the trained student: reading, teacher, training. Imports and loading models are not.
Every tool gets the same teacher, student, file, epochs, batch size, learning rate and windows.
"""

import argparse
import json
import math
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch._dynamo  # accelerate imports it in the first step, and imports are not timed

SEQUENCE, STRIDE, BATCH, RATE, TEMPERATURE, WEIGHT = 384, 128, 16, 1e-4, 2.0, 0.5


def ours(options: argparse.Namespace) -> dict[str, Any]:
    """haystack-distill."""
    from watch import Watch

    from haystack_distill import Reader, ReaderTrainer, TrainingSettings

    teacher, student = Reader.load(options.teacher), Reader.load(options.student)
    settings = TrainingSettings(
        n_epochs=options.epochs, learning_rate=RATE, batch_size=BATCH, seed=options.seed, progress=False
    )
    watch = Watch(teacher=teacher.model, student=student.model)
    trainer = ReaderTrainer(student, None, settings)
    if options.method == "layers":
        trainer.distil_intermediate_layers_from(teacher, options.data)
    else:
        trainer.distil_prediction_layer_from(
            teacher, options.data, temperature=TEMPERATURE, distillation_loss_weight=WEIGHT
        )
    result = watch.result()
    student.save(options.output)
    return result


def farm(options: argparse.Namespace) -> dict[str, Any]:
    """farm-haystack 1.26's FARMReader."""
    from haystack.nodes import FARMReader
    from haystack.utils.early_stopping import EarlyStopping  # noqa: F401 (its import is not timed)
    from watch import Watch

    from haystack_distill.integrations.farm import reader_from_farm

    arguments = {"use_gpu": False, "num_processes": 0, "max_seq_len": SEQUENCE, "doc_stride": STRIDE}
    arguments["progress_bar"] = False
    teacher, student = FARMReader(options.teacher, **arguments), FARMReader(options.student, **arguments)
    watch = Watch(teacher=teacher.inferencer.model, student=student.inferencer.model)
    common = {
        "data_dir": str(Path(options.data).parent),
        "train_filename": Path(options.data).name,
        "dev_split": 0,
        "use_gpu": False,
        "num_processes": 0,
        "max_seq_len": SEQUENCE,
        "n_epochs": options.epochs,
        "learning_rate": RATE,
        "batch_size": BATCH,
        "temperature": TEMPERATURE,
        "save_dir": f"{options.output}-farm",
    }
    if options.method == "layers":
        student.distil_intermediate_layers_from(teacher, **common)
    else:
        student.distil_prediction_layer_from(teacher, distillation_loss_weight=WEIGHT, **common)
    result = watch.result()
    reader_from_farm(student).save(options.output)
    return result


def features(path: str, tokenizer: Any, *, pad: bool) -> list[dict[str, Any]]:
    """Windows with labels as the question answering examples of transformers make them."""
    rows = []
    for article in json.loads(Path(path).read_text(encoding="utf-8"))["data"]:
        for paragraph in article["paragraphs"]:
            rows += [(qa["question"], paragraph["context"], qa["answers"]) for qa in paragraph["qas"]]
    questions, contexts, answers = zip(*rows, strict=True)
    encoded = tokenizer(
        [question.lstrip() for question in questions],
        list(contexts),
        truncation="only_second",
        max_length=SEQUENCE,
        stride=STRIDE,
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
        padding="max_length" if pad else False,
    )
    windows = []
    for number, row in enumerate(encoded["overflow_to_sample_mapping"]):
        offsets, sequences = encoded["offset_mapping"][number], encoded.sequence_ids(number)
        first, last = sequences.index(1), len(sequences) - 1 - sequences[::-1].index(1)
        begin = answers[row][0]["answer_start"]
        end = begin + len(answers[row][0]["text"])
        start_position = end_position = 0
        if offsets[first][0] <= begin and offsets[last][1] >= end:
            start_position = max(i for i in range(first, last + 1) if offsets[i][0] <= begin)
            end_position = min(i for i in range(first, last + 1) if offsets[i][1] >= end)
        window = {name: encoded[name][number] for name in ("input_ids", "attention_mask", "token_type_ids")}
        windows.append(window | {"start_positions": start_position, "end_positions": end_position})
    return windows


def models(options: argparse.Namespace) -> tuple[Any, Any, Any]:
    """Tokenizer, teacher and student, as transformers loads them."""
    from transformers import AutoModelForQuestionAnswering, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(options.teacher, trust_remote_code=False)
    teacher = AutoModelForQuestionAnswering.from_pretrained(options.teacher, trust_remote_code=False).eval()
    return tokenizer, teacher, AutoModelForQuestionAnswering.from_pretrained(options.student, trust_remote_code=False)


def trainer(options: argparse.Namespace) -> dict[str, Any]:
    """transformers.Trainer with a compute_loss: random batches, padded to their longest, the teacher in every step."""
    from transformers import DataCollatorWithPadding, Trainer, TrainingArguments
    from watch import Watch

    tokenizer, teacher, student = models(options)

    class Distiller(Trainer):
        def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **_: Any) -> Any:
            predicted = model(**inputs)
            with torch.no_grad():
                expected = teacher(**{name: inputs[name] for name in ("input_ids", "attention_mask", "token_type_ids")})
            loss = 0.0
            padding = inputs["attention_mask"] == 0
            for mine, right in (
                (predicted.start_logits, expected.start_logits),
                (predicted.end_logits, expected.end_logits),
            ):
                mine, right = (x.masked_fill(padding, -1e4) / TEMPERATURE for x in (mine, right))
                loss = loss + torch.nn.functional.kl_div(
                    mine.log_softmax(-1), right.log_softmax(-1), log_target=True, reduction="batchmean"
                )
            return WEIGHT * TEMPERATURE**2 * loss / 2 + (1 - WEIGHT) * predicted.loss

    watch = Watch(teacher=teacher, student=student)
    arguments = TrainingArguments(
        output_dir=f"{options.output}-trainer",
        num_train_epochs=options.epochs,
        learning_rate=RATE,
        per_device_train_batch_size=BATCH,
        warmup_ratio=0.1,
        save_strategy="no",
        report_to="none",
        use_cpu=True,
        seed=options.seed,
        disable_tqdm=True,
    )
    data = features(options.data, tokenizer, pad=False)
    Distiller(student, arguments, train_dataset=data, data_collator=DataCollatorWithPadding(tokenizer)).train()
    result = watch.result()
    student.save_pretrained(options.output)
    tokenizer.save_pretrained(options.output)
    return result


def textbrewer(options: argparse.Namespace, *, our_batches: bool = False) -> dict[str, Any]:
    """TextBrewer's GeneralDistiller as in its SQuAD example: windows padded to their full length, random batches.

    With `our_batches` it gets our windows, grouped by length: what is left is the loop.
    """
    from textbrewer import DistillationConfig, GeneralDistiller, TrainingConfig
    from transformers import get_linear_schedule_with_warmup
    from watch import Watch

    tokenizer, teacher, student = models(options)
    watch = Watch(teacher=teacher, student=student)
    if our_batches:
        from haystack_distill import Reader

        reader = Reader.load(options.student)
        from haystack_distill.data.squad.load import load_examples

        windows = reader.cut(load_examples(options.data))
        names = ("input_ids", "attention_mask", "token_type_ids", "start_positions", "end_positions")

        class Loader:
            """Our batches, in another order in every epoch."""

            def __init__(self) -> None:
                self.order, self.epoch = windows.batches(BATCH, seed=options.seed), 0

            def __len__(self) -> int:
                return len(self.order)

            def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
                self.order.start_epoch(self.epoch)
                self.epoch += 1
                for batch in (windows.collate(windows.__getitems__(rows)) for rows in self.order):
                    yield {name: batch[name] for name in names}

        loader: Any = Loader()
    else:
        data = features(options.data, tokenizer, pad=True)
        columns = {name: torch.tensor([window[name] for window in data]) for name in data[0]}
        rows = torch.utils.data.TensorDataset(*columns.values())
        loader = torch.utils.data.DataLoader(
            rows,
            batch_size=BATCH,
            shuffle=True,
            collate_fn=lambda some: dict(zip(columns, map(torch.stack, zip(*some, strict=True)), strict=True)),
        )

    def adaptor(batch: Any, outputs: Any) -> dict[str, Any]:
        found = {"logits": (outputs.start_logits, outputs.end_logits), "logits_mask": (batch["attention_mask"],) * 2}
        return found | ({"losses": outputs.loss} if outputs.loss is not None else {})

    steps = len(loader) * options.epochs
    optimizer = torch.optim.AdamW(student.parameters(), lr=RATE)
    schedule = get_linear_schedule_with_warmup(optimizer, math.ceil(0.1 * steps), steps)
    distiller = GeneralDistiller(
        TrainingConfig(output_dir=f"{options.output}-textbrewer", device="cpu", ckpt_frequency=1),
        DistillationConfig(
            temperature=TEMPERATURE, hard_label_weight=1 - WEIGHT, kd_loss_weight=WEIGHT * TEMPERATURE**2
        ),
        teacher,
        student,
        adaptor,
        adaptor,
    )
    with distiller:
        distiller.train(optimizer, loader, num_epochs=options.epochs, scheduler=schedule, max_grad_norm=1.0)
    result = watch.result()
    student.save_pretrained(options.output)
    tokenizer.save_pretrained(options.output)
    return result


ARMS = {
    "ours": ours,
    "farm": farm,
    "trainer": trainer,
    "textbrewer": textbrewer,
    "textbrewer, our batches": lambda options: textbrewer(options, our_batches=True),
}


def main() -> None:
    """Run one arm."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--arm", choices=ARMS, required=True)
    parser.add_argument("--method", choices=["answers", "layers"], default="answers")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--seed", type=int, default=42)
    for name in ("teacher", "student", "data", "output"):
        parser.add_argument(f"--{name}", required=True)
    options = parser.parse_args()
    random.seed(options.seed)
    np.random.seed(options.seed)
    torch.manual_seed(options.seed)
    print(json.dumps(ARMS[options.arm](options)))


if __name__ == "__main__":
    main()
