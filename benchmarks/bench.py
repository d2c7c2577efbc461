"""Ours against what a user would take instead, side by side: distilling, serving and augmenting, in one run.

    make bench TEACHER=../shared/models/minilm-l6-squad2 SQUAD=../shared/data/squad

Every arm is a process of its own, in an environment built from pinned packages, and the arms alternate. Writes
RESULTS.md, results.json, results.png and served.svg beside this file. An interrupted run can be resumed (`--output`).
"""

import json
import os
import platform
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from bench_page import OWN, page, plot
from environments import ROOT, python_of
from watch import matrix_gigaflops

from haystack_distill import Reader, WindowSettings, students
from haystack_distill.data.squad.load import load_examples, write_squad
from haystack_distill.export.exporting import ExportSettings, export_reader
from haystack_distill.models.backends.exported import INT8_BACKENDS
from haystack_distill.training.run_record import versions
from haystack_distill.utils.atomic import write_atomically, write_json
from haystack_distill.utils.devices import AUTO_PRECISION_VARIABLE, resolve_precision

HERE = Path(__file__).resolve().parent
WINDOWS = WindowSettings(max_seq_len=384, doc_stride=128)
# Arm, method, epochs, environment. Two epochs are the default of FARMReader and of ours; in a single one nothing is
# gained by caching the teacher's outputs.
TRAINING = [
    ("ours", "answers", 1, "farm"),
    (f"ours{OWN}", "answers", 1, "farm"),
    ("farm", "answers", 1, "farm"),
    ("textbrewer", "answers", 1, "textbrewer"),
    ("textbrewer, our batches", "answers", 1, "textbrewer"),
    ("trainer", "answers", 1, "farm"),
    ("ours", "answers", 2, "farm"),
    (f"ours{OWN}", "answers", 2, "farm"),
    ("farm", "answers", 2, "farm"),
    ("textbrewer", "answers", 2, "textbrewer"),
    ("trainer", "answers", 2, "farm"),
    ("ours", "layers", 1, "farm"),
    (f"ours{OWN}", "layers", 1, "farm"),
    ("farm", "layers", 1, "farm"),
]
DIRECTORIES = {"teacher": "teacher", "student": "served"}
EPOCHS = 2  # of the student that is exported and served, and of the share of the machine that is reached
# Name, framework, backend, which reader. In fp32, which is theirs, unless the name says otherwise.
_OURS = [
    ("ours, teacher, torch", "torch", "teacher"),
    ("ours, teacher, onnx", "onnx", "teacher"),
    (f"ours, teacher, openvino{OWN}", "openvino", "teacher"),
    (f"ours, teacher, openvino-int8{OWN}", "openvino-int8", "teacher"),
    ("ours, student, torch", "torch", "student"),
    (f"ours, student, torch{OWN}", "torch", "student"),
    ("ours, student, onnx", "onnx", "student"),
    ("ours, student, onnx-int8", "onnx-int8", "student"),
    (f"ours, student, openvino{OWN}", "openvino", "student"),
    (f"ours, student, openvino-int8{OWN}", "openvino-int8", "student"),
    (f"ours, student, auto{OWN}", "auto", "student"),
]
SERVING = [
    (name, framework, backend, which)
    for framework, theirs in (("farm", "FARMReader"), ("haystack", "TransformersExtractiveReader"))
    for name, backend, which in [(f"{theirs}, teacher", "theirs", "teacher"), *_OURS]
]


def call(
    script: str,
    environment: str,
    arguments: dict[str, Any],
    cache: Path,
    *,
    ours: bool = True,
    own_precision: bool = False,
) -> dict[str, Any]:
    """Run a script in an environment, in fp32 unless it is to take its own precision; its last line is the result."""
    command = [str(python_of(environment)), str(HERE / script)]
    for name, value in arguments.items():
        command += [f"--{name}"] if value is True else [f"--{name}", str(value)]
    settings = {"HF_HUB_OFFLINE": "1", "HAYSTACK_TELEMETRY_ENABLED": "False", "TOKENIZERS_PARALLELISM": "false"}
    settings["HAYSTACK_DISTILL_CACHE"] = str(cache)
    surroundings = os.environ | settings
    surroundings.pop(AUTO_PRECISION_VARIABLE, None)
    if not own_precision:
        surroundings[AUTO_PRECISION_VARIABLE] = "fp32"
    # Importing our package sets this, here too. Our arms set it themselves, as they do for a user, or come too late;
    # the others, which borrow helpers from us, keep PyTorch's default.
    del surroundings["THP_MEM_ALLOC_ENABLE"]
    if not ours:
        surroundings["THP_MEM_ALLOC_ENABLE"] = "0"
    done = subprocess.run(command, env=surroundings, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def questions_with_passages(squad: Path, wanted: int, passages: int = 10) -> list[dict[str, Any]]:
    """Questions of the dev set, each with its own passage among others of its article, as a retriever would bring."""
    examples = load_examples(squad)
    chosen = random.Random(42)
    contexts: dict[str, list[str]] = {}
    for title, context in zip(examples["title"], examples["context"], strict=True):
        of_title = contexts.setdefault(title, [])
        if context not in of_title:
            of_title.append(context)
    rows = []
    for row in examples.select(chosen.sample(range(len(examples)), wanted)):  # in random order: the first are as all
        others = [text for text in contexts[row["title"]] if text != row["context"]]
        beside = chosen.sample(others, min(passages - 1, len(others)))
        together = [row["context"], *beside]
        chosen.shuffle(together)
        rows.append({"question": row["question"], "passages": together})
    return rows


def main(
    teacher: Annotated[Path, typer.Option(help="reader directory of the teacher")],
    squad: Annotated[Path, typer.Option(help="directory with train-v1.1.json.gz and dev-v1.1.json.gz")],
    output: Annotated[Path, typer.Option(help="where readers and finished runs are kept")] = ROOT / ".bench",
    questions: Annotated[int, typer.Option(help="training questions")] = 600,
    dev_questions: Annotated[int, typer.Option(help="questions that trained students are measured on")] = 500,
    asked: Annotated[int, typer.Option(help="questions that readers are served")] = 500,
    asked_slow: Annotated[int, typer.Option(help="of those, how many the slow readers get")] = 60,
    runs: int = 3,
    callers: int = 8,
) -> None:
    """Run the arms that are not finished yet, and write the results."""
    output.mkdir(parents=True, exist_ok=True)
    counts = {"questions": questions, "dev_questions": dev_questions, "asked": asked, "asked_slow": asked_slow}
    before = kept(output, "counts", lambda: counts)
    if before != counts:
        raise SystemExit(f"{output} holds runs of {before}, not of {counts}: take another --output")
    train, dev = squad / "train-v1.1.json.gz", squad / "dev-v1.1.json.gz"
    data, started = output / "train.json", output / "student"
    base = load(teacher)
    if not data.exists():
        write_squad(load_examples(train).select(range(questions)), data, version="1.1")
        students.from_teacher(base, layers=3).save(started)
    measured = load_examples(load_examples(dev).select(range(dev_questions)))
    own = resolve_precision("auto", torch.device("cpu"))
    found: dict[str, Any] = {"machine": machine(), "own_precision": own, **counts}
    found["training"] = distil(output, teacher.resolve(), measured, runs)
    windows = base.cut(load_examples(data)).lengths
    # A student's backward pass takes twice its forward pass; the teacher runs once.
    found["gigaflops_training"] = gigaflops(base, windows) + 3 * EPOCHS * gigaflops(load(started), windows)

    def export() -> Any:
        settings = ExportSettings(runtime="all", int8="auto")
        student = load(output / "made" / f"ours-answers-{EPOCHS}-0")
        made = {}
        for which, reader in (("teacher", base), ("student", student)):
            directory, calibration = output / DIRECTORIES[which], load_examples(data)
            made[which] = export_reader(reader, directory, settings, calibration=calibration, data=measured)
        return made

    found["export"] = kept(output, "export-auto", export)
    everything = questions_with_passages(dev, asked)
    for name, number in (("asked", asked), ("asked-slow", asked_slow)):
        write_json(output / f"{name}.json", everything[:number])
    found["serving"] = serve(output, runs, callers, found["export"])
    pairs = [(row["question"], passage) for row in everything for passage in row["passages"]]
    windows = base.cut_pairs(pairs).lengths
    found["gigaflops_passage"] = {
        which: gigaflops(load(output / at), windows) / len(pairs) for which, at in DIRECTORIES.items()
    }
    found["shares"] = kept(output, "shares", lambda: shares(output, teacher.resolve(), found))
    arguments = {"squad": train.resolve(), "repeats": runs, "json": True}
    found["augmenting"] = kept(output, "augment", lambda: call("augment_speed.py", "farm", arguments, output))
    arguments = {"teacher": teacher.resolve(), "train": train.resolve(), "json": True}
    found["memory"] = kept(output, "memory", lambda: call("memory.py", "farm", arguments, output))
    write_json(HERE / "results.json", found)
    write_atomically(HERE / "RESULTS.md", lambda aside: aside.write_text(page(found), encoding="utf-8"))
    plot(found, HERE / "results.png")
    readers = {"teacher": output / DIRECTORIES["teacher"], "student of 3 layers": output / DIRECTORIES["student"]}
    named = [part for name, directory in readers.items() for part in ("--reader", f"{name}={directory}")]
    sizes = ["--squad", squad, "--questions", asked_slow, "--rounds", runs]
    files = ["--chart", HERE / "served.svg", "--json", output / "served.json"]
    # Once more without what importing our package has set here: see `call`.
    surroundings = {name: value for name, value in os.environ.items() if name != "THP_MEM_ALLOC_ENABLE"}
    command = [sys.executable, HERE / "served.py", *named, *sizes, *files]
    subprocess.run([str(part) for part in command], env=surroundings, check=True)


def load(directory: Path) -> Reader:
    """A reader of ours in fp32."""
    return Reader.load(directory, window_settings=WINDOWS, device="cpu", precision="fp32")


def kept(output: Path, name: str, make: Callable[[], Any]) -> Any:
    """What `make` returned in this or an earlier call, as JSON keeps it."""
    path = output / "runs" / f"{_file_name(name)}.json"
    if not path.exists():
        path.parent.mkdir(exist_ok=True)
        write_json(path, make())
    return json.loads(path.read_text(encoding="utf-8"))


def _file_name(name: str) -> str:
    return name.replace(" ", "-").replace(",", "")


def distil(output: Path, teacher: Path, measured: Any, runs: int) -> dict[str, list[Any]]:
    """Every training arm, `runs` times in turn; the first time its student is measured."""
    found: dict[str, list[Any]] = {}
    for run in range(runs):
        for arm, method, epochs, environment in TRAINING:
            made = output / "made" / _file_name(f"{arm}-{method}-{epochs}-{run}")
            own, arm_alone = arm.endswith(OWN), arm.removesuffix(OWN)
            arguments = {"arm": arm_alone, "method": method, "epochs": epochs, "teacher": teacher}
            arguments |= {"student": output / "student", "data": output / "train.json", "output": made}

            def train(
                arguments: dict[str, Any] = arguments,
                environment: str = environment,
                made: Path = made,
                run: int = run,
                own: bool = own,
            ) -> Any:
                ours = arguments["arm"] == "ours"
                cache = output / "caches" / made.name
                shutil.rmtree(cache, ignore_errors=True)  # of a run that was interrupted: it would save work
                result = call("train_arm.py", environment, arguments, cache, ours=ours, own_precision=own)
                if run == 0:
                    result["f1"] = load(made).evaluate(measured)["f1"]
                print(f"{made.name}: {result['seconds']:.1f} s", flush=True)
                return result

            result = kept(output, f"train-{made.name}", train)
            many = "1 epoch" if epochs == 1 else f"{epochs} epochs"
            found.setdefault(f"{arm} / {method}, {many}", []).append(result)
    return found


def serve(output: Path, runs: int, callers: int, exported: dict[str, Any]) -> dict[str, list[Any]]:
    """Every reader in its pipeline, `runs` times in turn; the first time several callers at once ask it too.

    A runtime whose int8 models all lost more F1 than they may has none, and no row.
    """
    found: dict[str, list[Any]] = {}
    for run in range(runs):
        for name, framework, backend, which in SERVING:
            if backend in INT8_BACKENDS and backend not in exported[which]["backends"]:
                continue
            asked = "asked-slow.json" if which == "teacher" else "asked.json"
            arguments = {"framework": framework, "backend": backend, "model": output / DIRECTORIES[which]}
            arguments |= {"questions": output / asked, "callers": callers if run == 0 else 0}

            def ask(arguments: dict[str, Any] = arguments, framework: str = framework, name: str = name) -> Any:
                ours = arguments["backend"] != "theirs"
                cache, own = output / "caches" / "serving", name.endswith(OWN)
                result = call("serve_arm.py", framework, arguments, cache, ours=ours, own_precision=own)
                print(f"{framework}: {name}: {result['passages_per_second']:.1f} passages/s", flush=True)
                return result

            result = kept(output, f"serve-{framework}-{name}-{run}", ask)
            found.setdefault(f"{framework}: {name}", []).append(result)
    return found


def shares(output: Path, teacher: Path, found: dict[str, Any]) -> dict[str, float]:
    """How much of the machine's matrix throughput ours reaches, padding not counted, everything else included.

    A machine that is shared is now faster, now slower, so its throughput is measured right before and after.
    """

    def share(script: str, environment: str, arguments: dict[str, Any], done: Callable[[Any], float]) -> float:
        cache = output / "caches" / "shares"
        shutil.rmtree(cache, ignore_errors=True)
        before = matrix_gigaflops()
        result = call(script, environment, arguments, cache)
        return done(result) / ((before + matrix_gigaflops()) / 2)

    arguments = {"arm": "ours", "epochs": EPOCHS, "teacher": teacher, "student": output / "student"}
    arguments |= {"data": output / "train.json", "output": output / "made" / "shares"}
    needed = found["gigaflops_training"]
    reached = {
        "distilling answers": share("train_arm.py", "farm", arguments, lambda result: needed / result["seconds"])
    }
    for framework in ("farm", "haystack"):
        for which, backend in (("teacher", "torch"), ("student", "onnx")):
            arguments = {"framework": framework, "backend": backend, "model": output / DIRECTORIES[which]}
            arguments |= {"questions": output / "asked-slow.json"}
            passage = found["gigaflops_passage"][which]
            reached[f"serving in {framework}, {which}, {backend}"] = share(
                "serve_arm.py",
                framework,
                arguments,
                lambda result, passage=passage: result["passages_per_second"] * passage,
            )
    return reached


def gigaflops(reader: Reader, windows: np.ndarray) -> float:
    """Arithmetic of one forward pass over windows of so many tokens, padding not counted."""
    lengths = windows.astype(float)
    config = reader.model.config
    width, inner = config.hidden_size, config.intermediate_size
    products = 2 * lengths * (4 * width**2 + 2 * width * inner) + 4 * lengths**2 * width
    return config.num_hidden_layers * float(products.sum()) / 1e9


def machine() -> dict[str, Any]:
    """The machine that the numbers apply to."""
    about = Path("/proc/cpuinfo").read_text()
    flags = set(about.split())
    huge = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    name = next(
        (line.split(":")[1].strip() for line in about.splitlines() if "model name" in line), platform.processor()
    )
    return {
        "processor": name,
        "cores": len(os.sched_getaffinity(0)),
        "instructions": [name for name in ("avx512_vnni", "avx_vnni", "avx512_bf16", "amx_tile") if name in flags],
        "python": platform.python_version(),
        "huge_pages": huge.read_text().split("[")[1].split("]")[0] if huge.exists() else "none",
        "date": time.strftime("%Y-%m-%d"),
        "versions": versions("onnxruntime", "openvino", "farm-haystack"),
    }


if __name__ == "__main__":
    typer.run(main)
