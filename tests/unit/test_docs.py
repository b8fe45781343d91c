"""What the documentation says of settings and fields is what the code does."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from deltafan.errors import CompletionError
from deltafan.events import EVENT_CLASSES, FINISH_REASONS
from deltafan.job import JobSpec
from deltafan.wire import schema
from deltafan.wiring import COMPONENTS, TABLES, option_name, variable

DOCS = Path(__file__).parents[2] / "docs"
README = Path(__file__).parents[2] / "README.md"


@pytest.mark.parametrize("component", COMPONENTS, ids=lambda component: component.__name__)
def test_every_setting_is_documented_with_its_default(component: type) -> None:
    text = (DOCS / "operations.md").read_text()
    for name, field in component.model_fields.items():  # type: ignore[attr-defined]
        if name in TABLES:
            continue
        [(default, meaning)] = re.findall(rf"\| `{variable(name)}` \| (.*?) \| (.*?) \|", text)
        assert meaning == field.description, option_name(name)
        value = ",".join(field.default) if isinstance(field.default, tuple) else field.default
        assert default.strip("` ") == (f"{value:.10g}" if isinstance(value, float) else str(value))


def test_every_field_of_a_job_is_documented() -> None:
    text = (DOCS / "jobs.md").read_text()
    documented = re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE)
    assert documented == list(JobSpec.model_fields)


def test_every_event_type_and_code_is_documented() -> None:
    text = (DOCS / "wire-format.md").read_text()
    for name in (*EVENT_CLASSES, *FINISH_REASONS, *CompletionError.CODES):
        assert f"`{name}`" in text
    assert set(schema()["$defs"]) >= set(EVENT_CLASSES)


def test_links_of_the_documentation_lead_somewhere() -> None:
    for page in (README, *DOCS.glob("*.md")):
        for target in re.findall(r"\]\(([^)#]+)", page.read_text()):
            if not target.startswith("http"):
                assert (page.parent / target).exists(), f"{page.name}: {target}"
