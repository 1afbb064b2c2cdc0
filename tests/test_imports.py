"""Dependencies point one way: who may import whom, held over every file's imports."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import resolve_name
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
STANDARD = sys.stdlib_module_names

STORAGE = [
    "curvserve.failpoints",
    "curvserve.sessions.storage",
    "curvserve_client.errors.MalformedBody",
    "curvserve_client.wire",
    "torch",
    "xxhash",
]

FILES = {
    **dict.fromkeys((ROOT / "curvserve").rglob("*.py"), "curvserve"),
    **dict.fromkeys((ROOT / "client/curvserve_client").rglob("*.py"), "curvserve_client"),
}


def module_name(path: Path) -> str:
    base = ROOT if FILES[path] == "curvserve" else ROOT / "client"
    parts = path.relative_to(base).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def package(path: Path) -> str:
    name = module_name(path)
    return name if path.name == "__init__.py" else name.rpartition(".")[0]


def imports(path: Path) -> Iterator[str]:
    """Yield the absolute name of everything that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            relative = "." * node.level + (node.module or "")
            base = resolve_name(relative, package(path))
            yield from (f"{base}.{alias.name}" for alias in node.names)


def within(name: str, *packages: str) -> bool:
    return any(name == package or name.startswith(package + ".") for package in packages)


def imported(part: str) -> dict[str, set[str]]:
    """Return module -> what it imports, of every module within a package."""
    modules = {module_name(path): set(imports(path)) for path in FILES}
    found = {name: names for name, names in modules.items() if within(name, part)}
    assert found, part
    return found


def outside(names: set[str], *allowed: str) -> set[str]:
    return {n for n in names if n.partition(".")[0] not in STANDARD and not within(n, *allowed)}


@pytest.mark.parametrize(
    ("part", "allowed"),
    [
        ("curvserve.engine", ["torch", "curvserve.engine"]),
        ("curvserve_client", ["torch", "httpx", "curvserve_client"]),
        ("curvserve.failpoints", []),
        ("curvserve.sessions.storage", STORAGE),
    ],
)
def test_a_package_imports_nothing_but(part: str, allowed: list[str]) -> None:
    strays = {module: outside(names, *allowed) for module, names in imported(part).items()}
    assert {module: names for module, names in strays.items() if names} == {}


@pytest.mark.parametrize(
    ("part", "banned"),
    [
        ("curvserve", ["tests", "benchmarks", "examples"]),
        ("curvserve.bench", ["curvserve.sessions", "curvserve.server", "fastapi", "httpx"]),
        ("curvserve.sessions", ["curvserve.server", "fastapi", "starlette", "uvicorn", "httpx"]),
        ("curvserve.sessions.storage", ["asyncio", "threading", "curvserve_client.protocol"]),
        ("curvserve.models", ["curvserve.server", "curvserve.sessions", "fastapi", "starlette"]),
        ("curvserve.data", ["curvserve.server", "curvserve.sessions", "curvserve.models"]),
        ("curvserve.server", ["curvserve.demo", "curvserve.cli", "typer"]),
    ],
)
def test_a_package_never_imports(part: str, banned: list[str]) -> None:
    wrong = {
        module: {name for name in names if within(name, *banned)}
        for module, names in imported(part).items()
    }
    assert {module: names for module, names in wrong.items() if names} == {}


def test_only_the_benchmark_knows_the_peers_and_only_the_command_line_knows_it() -> None:
    peers = ["backpack", "opacus", "curvlinops", "curvserve.bench"]
    others = {m: n for m, n in imported("curvserve").items() if not within(m, "curvserve.bench")}
    knowing = {m for m, names in others.items() if any(within(name, *peers) for name in names)}
    assert knowing == {"curvserve.cli.bench"}


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("curvserve_client", ["curvserve", "fastapi", "torchvision"]),
        ("curvserve.engine", ["fastapi", "httpx", "curvserve_client", "torchvision"]),
        ("curvserve", ["torch", "fastapi", "httpx"]),
        ("curvserve.server", ["torchvision", "backpack"]),
    ],
)
def test_what_is_not_loaded_with_a_package(module: str, absent: list[str]) -> None:
    program = f"import sys, {module}\nprint([n for n in {absent!r} if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout == "[]\n", done.stdout + done.stderr
