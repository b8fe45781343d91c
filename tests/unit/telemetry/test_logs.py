"""Log lines: what they hold, and that writing them can never fail the work."""

from __future__ import annotations

import io
import json
import logging
import sys
from collections.abc import Iterator

import pytest
import structlog

from deltafan.telemetry.hooks import Signal
from deltafan.telemetry.logs import configure, log_hook


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    root.handlers, root.level = handlers, level
    structlog.reset_defaults()


def test_a_signal_is_one_line_of_json(capsys: pytest.CaptureFixture[str]) -> None:
    configure("info", "json")
    log_hook()(Signal("job.ended", "info", {"job": "0-x", "seconds": 1.5}))
    logging.getLogger("deltafan.relay").warning("two\nlines")
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert [(line["event"], line["level"]) for line in lines] == [("job.ended", "info"), ("two\nlines", "warning")]
    assert lines[0]["job"] == "0-x"


@pytest.mark.parametrize("stack", ["none: it is stopped", "Thread 1:\n  File 2"])
def test_a_stack_below_a_line_of_text_says_that_it_is_one(capsys: pytest.CaptureFixture[str], stack: str) -> None:
    configure("info", "text")
    log_hook()(Signal("supervisor.stuck", "error", {"pid": 7, "stack": stack}))
    _, _, below = capsys.readouterr().err.partition("\n")
    first, *rest = stack.splitlines()
    assert below.splitlines() == (["stack:", first, *rest] if rest else [f"stack: {first}"])


def test_a_standard_error_that_is_gone_costs_the_work_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    configure("info", "json")
    hook = log_hook()
    gone = io.StringIO()
    gone.close()
    monkeypatch.setattr(sys, "stderr", gone)
    hook(Signal("job.ended"))
    logging.getLogger("deltafan.relay").error("nobody reads this")
