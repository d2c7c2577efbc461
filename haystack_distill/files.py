"""Files: hashed by their content, written aside and renamed when whole."""

import glob
import hashlib
import json
import os
import secrets
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

RUN_FILE = "haystack_distill.json"  # what a run writes beside its model: what it was made from, and what came of it
EXPORT_FOLDER = "onnx"  # in a reader directory: what runs elsewhere than in PyTorch (as on the Hugging Face hub)
EXPORT_RECORD = "export.json"  # in it: how it was made, how near it is to the model, and what it scores


def expanded(path: str | Path) -> Path:
    """A path in which `~` stands for the home directory; one that names no user's stays as it is written."""
    return Path(os.path.expanduser(path))


def hash_of(*parts: Any) -> str:
    """SHA-256 (hex) over JSON-able parts, in order."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def file_hash(path: Path) -> str:
    """SHA-256 (hex) of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else _digest(file)


def _digest(file: Any) -> str:
    digest = hashlib.sha256()  # Python 3.10 has no hashlib.file_digest
    while block := file.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()


def write_aside(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary file beside `path`, then rename it to `path`: nobody ever sees half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = _aside(path)
    try:
        write(aside)
        os.replace(aside, path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise


def _aside(path: Path) -> Path:
    """A name beside `path` for what is being written; what killed processes left under such names is removed."""
    prefix = f".{path.name}.{socket.gethostname()}-"
    for left in path.parent.glob(f"{glob.escape(prefix)}*.tmp"):
        process = left.name[len(prefix) :].split("-")[0]
        if process.isdecimal() and not psutil.pid_exists(int(process)):
            shutil.rmtree(left) if left.is_dir() else left.unlink(missing_ok=True)
    # Not a name from tempfile: such files are their owner's alone, and here the umask shall decide.
    return path.with_name(f"{prefix}{os.getpid()}-{secrets.token_hex(4)}.tmp")


def write_json(path: Path, content: Any) -> None:
    """Write `content` as indented JSON, aside and renamed."""
    text = json.dumps(content, indent=2, ensure_ascii=False, sort_keys=False) + "\n"
    write_aside(path, lambda aside: aside.write_text(text, encoding="utf-8"))


def save_pretrained(directory: str | Path, *parts: Any) -> Path:
    """Let each part `save_pretrained` into a directory beside `directory`, then move all files there.

    Files of the same names that are there already are replaced, others stay.
    """
    target = expanded(directory)
    target.parent.mkdir(parents=True, exist_ok=True)
    aside = _aside(target)
    try:
        aside.mkdir()
        for part in parts:
            part.save_pretrained(aside)
        for file in aside.iterdir():  # safetensors writes files that are their owner's alone; the umask shall decide
            if file.is_file():
                file.chmod(aside.stat().st_mode & 0o666)
        target.mkdir(exist_ok=True)
        for file in aside.iterdir():
            file.replace(target / file.name)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return target
