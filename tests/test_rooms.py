"""The rooms of the package: a room imports only from rooms above it."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "haystack_distill"
# In the one order in which they may import. `augment` stands where it may be imported by recipes and cli.
ROOMS = [
    "errors",
    "utils",
    "data",
    "models",
    "students",
    "evaluation",
    "objectives",
    "teachers",
    "training",
    "export",
    "reporting",
    "augment",
    "recipes",
    "integrations",
    "cli",
]
FILES = sorted([*PACKAGE.rglob("*.py"), *(ROOT / "augment").rglob("*.py")])


def room_of(module: str) -> str | None:
    """The room of a module's dotted name; None where it is not ours, or the package itself."""
    parts = module.split(".")
    if parts[0] == "augment":
        return "augment"
    return parts[1] if parts[0] == "haystack_distill" and len(parts) > 1 else None


def imports_of(file: Path) -> set[str]:
    """The modules that a file imports anywhere in it, type checking and functions included."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def test_every_room_has_a_place() -> None:
    rooms = {path.name.removesuffix(".py") for path in PACKAGE.iterdir() if path.suffix == ".py" or path.is_dir()}
    assert rooms - {"__init__", "__main__", "__pycache__", "resources", "py.typed"} == set(ROOMS) - {"augment"}


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_rooms_import_only_from_rooms_above(file: Path) -> None:
    module = str(file.relative_to(ROOT)).removesuffix(".py").replace("/", ".")
    room = room_of(module)
    if room is None or room.startswith("__"):
        return  # the package's lazy public names, and `python -m`
    above = ROOMS[: ROOMS.index(room) + 1]
    if room == "augment":
        above = ["errors", "utils", "data", "augment"]
    backwards = {name for name in imports_of(file) if (found := room_of(name)) in ROOMS and found not in above}
    assert not backwards
