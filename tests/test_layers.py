"""Imports go down only: those inside functions and those for type checkers too.

`python tests/test_layers.py` prints the structure in figures.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

FLOORS = (
    "errors digest seeding plotting version gradients moved",
    "files machine distributed remote config losses",
    "data models moo",
    "methods class_gradients evaluation",
    "updates records",
    "train hub importing",
    "diagnose bench leaderboard __init__",
    "cli",
    "__main__",
)
HEIGHT = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms.split()}
PACKAGE = Path(__file__).parent.parent / "ltbench"


def modules(file: Path) -> Iterator[str]:
    """Yield the dotted names below `ltbench` that a file imports, wherever it does."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            base = node.module.split(".")
            if base[0] == "ltbench":
                for alias in node.names:
                    yield ".".join([*base[1:], alias.name])
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.startswith("ltbench"):
                    yield alias.name.removeprefix("ltbench").lstrip(".") or "__init__"


def room_of(file: Path) -> str:
    """Return the file or folder directly inside the package that a file belongs to."""
    return file.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports() -> list[tuple[Path, str, str]]:
    """Return every import between two rooms: file, its room, the room imported."""
    found = []
    for file in sorted(PACKAGE.rglob("*.py")):
        own = room_of(file)
        for name in modules(file):
            room = name.split(".")[0]
            room = room if room in HEIGHT else "__init__"
            if room != own:
                found.append((file.relative_to(PACKAGE), own, room))
    return found


def up() -> list[str]:
    """Return the imports that do not go down; a room without a floor has a test of its own."""
    height = HEIGHT.get
    wrong = {f"{file} -> {to}" for file, own, to in imports() if height(to, -1) >= height(own, 99)}
    return sorted(wrong)


def test_imports_go_down() -> None:
    assert up() == []


def test_every_room_has_a_floor() -> None:
    files = {p.stem for p in PACKAGE.glob("*.py")}
    folders = {p.parent.name for p in PACKAGE.glob("*/__init__.py")}
    assert files | folders == set(HEIGHT)


def test_no_circle_of_files() -> None:
    assert circles() == []


def files_graph() -> dict[str, set[str]]:
    """Return which files of the package import which, lazily or not, by dotted name."""
    names = {}
    for file in PACKAGE.rglob("*.py"):
        parts = file.relative_to(PACKAGE).with_suffix("").parts
        names[".".join(parts[:-1] if parts[-1] == "__init__" else parts) or "__init__"] = file
    graph: dict[str, set[str]] = {}
    for name, file in names.items():
        wanted = set()
        for target in modules(file):
            while target and target not in names:
                target = target.rpartition(".")[0]
            if target and target != name:
                wanted.add(target)
        graph[name] = wanted
    return graph


def circles() -> list[list[str]]:
    """Return groups of files that reach each other by imports (Tarjan)."""
    graph, index, low, stack, found = files_graph(), {}, {}, [], []

    def visit(v: str) -> None:
        index[v] = low[v] = len(index)
        stack.append(v)
        for w in graph[v]:
            if w not in index:
                visit(w)
                low[v] = min(low[v], low[w])
            elif w in stack:
                low[v] = min(low[v], index[w])
        if low[v] == index[v]:
            group = stack[stack.index(v) :]
            del stack[stack.index(v) :]
            if len(group) > 1:
                found.append(sorted(group))

    for v in graph:
        if v not in index:
            visit(v)
    return found


def main() -> None:
    """Print the structure in figures."""
    files = list(PACKAGE.rglob("*.py"))
    lines = {f.relative_to(PACKAGE): len(f.read_text(encoding="utf-8").splitlines()) for f in files}
    longest = max(lines, key=lambda f: lines[f])
    between = imports()
    print(f"{len([p for p in PACKAGE.iterdir() if p.name != '__pycache__'])} entries in ltbench/")
    print(f"{len(FLOORS)} floors")
    print(f"{len(up())} imports up")
    print(f"{len({(own, room) for _, own, room in between})} arrows between rooms")
    print(f"{len(circles())} circles of files")
    print(f"{longest} is the largest file: {lines[longest]} lines")
    print(f"{sum(lines.values())} lines in {len(lines)} files")
    for line in up():
        print("up:", line)
    for group in circles():
        print("circle:", " ".join(group))


if __name__ == "__main__":
    main()
