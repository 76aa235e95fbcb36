"""What docs/architecture.md promises: the rooms, their order and size, and the stops on the way of the data."""

import ast
import io
import re
import tokenize
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "luna_monai"
#: Each room may import those before it; synthetic shares nothing with the others.
ROOMS = [
    "scans",
    "transforms",
    "data",
    "networks",
    "metrics",
    "training",
    "detection",
    "predictions",
    "reports",
    "apps",
]
#: Modules at the root that every room may use.
ROOT = {"__version__", "errors", "extras", "files", "lazy", "literals", "progress", "share", "tables"}
#: Modules at the root that run the bundle for commands.
RUN = {"settings", "torchrun", "workflow"}
MODULES = [path for path in sorted(PACKAGE.rglob("*.py")) if "_share" not in path.parts]


def dotted(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: Path) -> set[str]:
    """Names of the package that a module imports, also inside functions."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
    return {name for name in found if name.startswith("luna_monai.")}


def code_lines(path: Path) -> int:
    """Lines that are neither blank nor comments nor docstrings."""
    text = path.read_text(encoding="utf-8")
    skipped = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in skipped:
            lines.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and ast.get_docstring(
            node
        ):
            lines.difference_update(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    return len(lines)


@pytest.mark.parametrize("path", MODULES, ids=dotted)
def test_a_room_knows_only_the_rooms_above_it(path):
    room = path.relative_to(PACKAGE).parts[0]
    if room.endswith(".py"):
        return
    allowed = {room} | ROOT | (set(ROOMS[: ROOMS.index(room)]) if room in ROOMS else set())
    if room == "apps":
        allowed |= {"synthetic", *RUN}
    assert {name.split(".")[1] for name in imports(path)} <= allowed


def test_rooms_and_modules_keep_their_size():
    rooms = {
        folder.name: len(list(folder.rglob("*.py"))) - 1
        for folder in PACKAGE.iterdir()
        if (folder / "__init__.py").exists()
    }
    assert set(rooms) == {*ROOMS, "synthetic"}
    assert {room: count for room, count in rooms.items() if count > 12} == {}
    lines = {dotted(path): len(path.read_text(encoding="utf-8").splitlines()) for path in MODULES}
    assert {name: count for name, count in lines.items() if count > 350} == {}
    assert sum(map(code_lines, MODULES)) <= 7_500


def test_configurations_are_short_and_their_lines_too():
    root = PACKAGE.parent
    files = [*root.glob("bundle/configs/*.yaml"), *root.glob("configs/*.yaml")]
    lines = {path: path.read_text(encoding="utf-8").splitlines() for path in files}
    assert len(lines[root / "bundle" / "configs" / "train.yaml"]) <= 200
    assert [line for file in lines.values() for line in file if len(line) > 120] == []


def test_no_import_cycle():
    names = {dotted(path) for path in MODULES}
    graph = {
        dotted(path): {
            next(part for part in (name, name.rpartition(".")[0]) if part in names)
            for name in imports(path)
            if name in names or name.rpartition(".")[0] in names
        }
        for path in MODULES
        if path.name != "__init__.py"  # they import lazily
    }
    done: set[str] = set()

    def visit(name: str, way: tuple[str, ...]) -> None:
        assert name not in way, " -> ".join((*way, name))
        if name not in done:
            for other in graph.get(name, ()):
                visit(other, (*way, name))
            done.add(name)

    for name in graph:
        visit(name, ())


def test_the_stops_of_the_architecture_page_exist():
    page = PACKAGE.parent / "docs" / "architecture.md"
    stops = re.findall(r"^\d\. \[`([\w.]+)`\]\(\.\./(\S+\.py)\)", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert len(stops) == 16
    for name, file in stops:
        tree = ast.parse((PACKAGE.parent / file).read_text(encoding="utf-8"))
        body: list[ast.stmt] = tree.body
        for part in name.split("."):
            found = [node for node in body if getattr(node, "name", None) == part]
            assert found, f"{file} has no {name}"
            body = getattr(found[0], "body", [])
