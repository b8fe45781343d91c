"""The examples of docs/client.md run as they stand, and print what they say they print."""

from __future__ import annotations

import ast
import asyncio
import builtins
import inspect
import json
import re
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from deltafan.devserver.provider import Provider, Script
from deltafan.devserver.provider.overrides import override
from deltafan.errors import CLASS_OF
from tests.unit.client.conftest import running_elsewhere

PAGE = Path(__file__).parents[3] / "docs" / "client.md"
_BLOCK = re.compile(r"(?:<!-- provider: (?P<options>.*?) -->\n)?```python\n(?P<code>.*?)```", re.DOTALL)
_PRINTS = re.compile(r"#> (.*)$", re.MULTILINE)


class Example(NamedTuple):
    line: int
    code: str
    options: dict[str, str]

    @property
    def prints(self) -> list[str]:
        return _PRINTS.findall(self.code)


def examples() -> list[Example]:
    text = PAGE.read_text()
    return [
        Example(text[: found.start("code")].count("\n") + 1, found["code"], json.loads(found["options"] or "{}"))
        for found in _BLOCK.finditer(text)
    ]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)


@pytest.mark.usefixtures("home")
@pytest.mark.parametrize("example", examples(), ids=lambda example: f"line {example.line}")
def test_an_example_runs(example: Example, use: Callable[[Provider], None], capsys: pytest.CaptureFixture[str]) -> None:
    code = compile(example.code, f"{PAGE.name}:{example.line}", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    key = "sk-test-0123456789abcdef" if "sk-wrong" in example.code else None
    with running_elsewhere(override(Script(require_key=key), example.options, str)) as provider:
        use(provider)
        namespace: dict[str, Any] = {"__name__": "example", "__builtins__": builtins}
        ran = types.FunctionType(code, namespace)()
        if inspect.iscoroutine(ran):
            asyncio.run(ran)
        assert provider.requests or "FastAPI" in example.code
    printed = capsys.readouterr().out.splitlines()
    for line in example.prints:
        assert line in printed


def test_the_page_has_examples() -> None:
    assert len(examples()) > 10


def test_every_class_of_an_error_is_documented_with_its_codes() -> None:
    rows = dict(re.findall(r"^\| `(\w+)`.*? \| (.*?) \|", PAGE.read_text(), re.MULTILINE))
    for code, kind in CLASS_OF.items():
        assert f"`{code}`" in rows[kind.__name__]
