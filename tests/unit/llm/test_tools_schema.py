"""`tool`: from a typed function to what a model is told of it, and from what it gives to the arguments."""

from __future__ import annotations

import enum
import threading
from decimal import Decimal
from typing import Annotated, Any, Literal

import pytest
from pydantic import BaseModel, Field, ValidationError

from deltafan.errors import ConfigurationError
from deltafan.llm import Request, provider_facts
from deltafan.llm.body import params_of
from deltafan.llm.docstrings import read_docstring
from deltafan.llm.tools import Tool, tool


class Unit(enum.Enum):
    CELSIUS = "C"
    FAHRENHEIT = "F"


class Place(BaseModel):
    """Somewhere."""

    city: str = Field(description="Its name.", title="The city")
    country: str = "NO"
    inside: Place | None = None


async def weather(city: str, unit: Literal["C", "F"] = "C") -> dict[str, Any]:
    """The weather of a city."""
    return {"city": city, "unit": unit}


def parameters(made: Tool) -> dict[str, Any]:
    schema: dict[str, Any] = made.schema()["function"]["parameters"]
    return schema


def test_a_typed_function_becomes_a_strict_tool() -> None:
    assert tool(weather).schema() == {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "The weather of a city.",
            "parameters": {
                "type": "object",
                "properties": {
                    "city": {"type": "string"},
                    "unit": {
                        "anyOf": [{"type": "string", "enum": ["C", "F"]}, {"type": "null"}],
                        "description": '(null: "C")',
                    },
                },
                "required": ["city", "unit"],
                "additionalProperties": False,
            },
            "strict": True,
        },
    }


def test_without_strict_the_schema_is_pydantics() -> None:
    made = tool(weather, strict=False)
    assert "strict" not in made.schema()["function"]
    assert parameters(made) == {
        "type": "object",
        "properties": {"city": {"type": "string"}, "unit": {"type": "string", "enum": ["C", "F"], "default": "C"}},
        "required": ["city"],
        "additionalProperties": False,
    }


def test_it_decorates_bare_and_with_arguments() -> None:
    @tool
    def one(a: int) -> int:
        """One."""
        return a + 1

    @tool(name="second", description="Told so.", timeout=5)
    def two(a: int) -> int:
        """Two."""
        return a + 2

    assert (one.name, one.description, one(1)) == ("one", "One.", 2)
    assert (two.name, two.description, two.timeout, two(a=1)) == ("second", "Told so.", 5, 3)


def test_nested_models_are_closed_and_whole_in_strict_mode() -> None:
    @tool
    def go(place: Place, units: list[Unit], more: Place | None = None) -> None:
        """Go.

        Args:
            place: Where to.
        """

    made = parameters(go)
    assert made["required"] == ["place", "units", "more"]
    assert made["properties"]["place"] == {"anyOf": [{"$ref": "#/$defs/Place"}], "description": "Where to."}
    assert made["properties"]["more"] == {"anyOf": [{"$ref": "#/$defs/Place"}, {"type": "null"}]}
    place = made["$defs"]["Place"]
    assert (place["additionalProperties"], place["required"]) == (False, ["city", "country", "inside"])
    assert place["properties"]["city"] == {"type": "string", "description": "Its name."}
    assert made["$defs"]["Unit"] == {"type": "string", "enum": ["C", "F"]}


def any_keys(a: dict[str, int]) -> None: ...
def anything(a: Any) -> None: ...
def pair(a: tuple[int, str]) -> None: ...
def any_list(a: list[Any]) -> None: ...


@pytest.mark.parametrize("func", [any_keys, anything, pair, any_list])
def test_what_strict_mode_cannot_say_is_refused_or_left_as_it_is(func: Any) -> None:
    assert not tool(func).strict
    with pytest.raises(ConfigurationError, match="strict mode has no"):
        tool(func, strict=True)


def test_words_that_strict_mode_does_not_know_are_left_out() -> None:
    @tool(strict=True)
    def go(a: set[int], b: Annotated[Decimal, Field(examples=[1])], default: str, title: str = "x") -> None: ...

    made = parameters(go)
    assert made["properties"]["a"] == {"type": "array", "items": {"type": "integer"}}
    assert set(made["properties"]) == {"a", "b", "default", "title"}
    assert "examples" not in made["properties"]["b"]


def test_a_parameter_may_have_the_name_of_a_method_of_pydantics() -> None:
    @tool
    def go(json: str, copy: int, model_config: bool, schema: str = "s") -> None: ...

    assert go.arguments is not None
    assert list(parameters(go)["properties"]) == ["json", "copy", "model_config", "schema"]
    read = go.arguments.read({"json": "{}", "copy": 1, "model_config": True})
    assert read == {"json": "{}", "copy": 1, "model_config": True, "schema": "s"}


def test_null_stands_for_a_default_only_where_null_is_no_value() -> None:
    def go(a: int = 3, b: int | None = 4, c: Unit = Unit.CELSIUS, d: list[int] = [1]) -> None: ...  # noqa: B006

    model = tool(go).arguments
    assert model is not None
    read = model.read({"a": None, "b": None, "c": None, "d": None})
    assert read == {"a": 3, "b": None, "c": Unit.CELSIUS, "d": [1]}


def test_arguments_come_as_the_types_that_were_asked_for() -> None:
    def go(place: Place, unit: Unit) -> None: ...

    model = tool(go).arguments
    assert model is not None
    assert model.read({"place": {"city": "Oslo"}, "unit": "F"}) == {
        "place": Place(city="Oslo"),
        "unit": Unit.FAHRENHEIT,
    }
    with pytest.raises(ValidationError, match=r"(?s)place\.city.*unit"):
        model.read({"place": {}, "unit": "K"})


def test_a_field_describes_a_parameter_before_the_docstring_does() -> None:
    def go(a: Annotated[int, Field(description="From the field.", ge=1)], b: int = Field(2, le=9)) -> None:
        """Go.

        :param a: From the docstring.
        :param int b: A number.
        """

    made = tool(go)
    assert made.description == "Go."
    assert parameters(made)["properties"]["a"] == {"type": "integer", "minimum": 1, "description": "From the field."}
    assert parameters(made)["properties"]["b"]["description"] == "A number. (null: 2)"
    assert made.arguments is not None
    assert made.arguments.read({"a": 1}) == {"a": 1, "b": 2}


GOOGLE = """Find it.

More of it.

Args:
    name (str): What it is
        called.
    *rest: The others: all.

    limit: At most.

Returns:
    What was found.
"""
NUMPY = """Find it.

Parameters
----------
name : str
    What it is
    called.
limit
    At most.

Returns
-------
str
"""
SPHINX = """Find it.

:param str name: What it is
    called.
:type limit: int
:param limit: At most.
:return: What was found.
"""


@pytest.mark.parametrize(
    ("doc", "rest"),
    [
        (GOOGLE, "Find it.\n\nMore of it.\n\nReturns:\n    What was found."),
        (NUMPY, "Find it.\n\nReturns\n-------\nstr"),
        (SPHINX, "Find it.\n\n:return: What was found."),
        ("Nothing but text: so it stays.\n\nArgs", "Nothing but text: so it stays.\n\nArgs"),
        ("", ""),
    ],
)
def test_what_a_docstring_says_of_parameters_is_read(doc: str, rest: str) -> None:
    text, told = read_docstring(doc)
    assert text == rest
    if "name" in doc:
        assert (told["name"], told["limit"]) == ("What it is called.", "At most.")


def test_a_function_without_parameters_or_docstring_is_a_tool_too() -> None:
    def now() -> str:
        return "noon"

    made = tool(now)
    assert (made.description, parameters(made)["properties"]) == ("", {})


def _no_annotation(a) -> None: ...  # type: ignore[no-untyped-def]
def _many(*args: int) -> None: ...
def _named(**options: int) -> None: ...
def _unnamed(a: int, /) -> None: ...
def _no_schema(a: threading.Thread) -> None: ...
def _unknown(a: Nowhere) -> None: ...  # type: ignore[name-defined]  # noqa: F821
def _private(_a: int) -> None: ...


@pytest.mark.parametrize(
    ("func", "rule"),
    [
        (_no_annotation, "parameter 'a' needs a type annotation"),
        (_many, "parameter 'args' needs"),
        (_named, "parameter 'options' needs"),
        (_unnamed, "to be given by name"),
        (_no_schema, "no schema for its parameters"),
        (_unknown, "cannot be read: name 'Nowhere'"),
        (_private, "must not begin with _"),
        (lambda: 1, "give a name of 1 to 64"),
        (tool(weather), "is a tool already"),
    ],
)
def test_a_function_that_no_model_could_call_is_refused(func: Any, rule: str) -> None:
    with pytest.raises(ConfigurationError, match=rule):
        tool(func)


def test_a_tool_by_hand_takes_its_schema_as_it_is() -> None:
    made = Tool("look_up", "Looks up.", {"properties": {"q": {"type": "string"}}}, lambda q: q)
    assert made.schema() == {
        "type": "function",
        "function": {
            "name": "look_up",
            "description": "Looks up.",
            "parameters": {"type": "object", "properties": {"q": {"type": "string"}}},
        },
    }


@pytest.mark.parametrize(
    ("given", "rule"),
    [
        ({"name": "a b"}, "give a name"),
        ({"parameters": {"type": "string"}}, "JSON Schema of an object"),
        ({"func": 5}, "func must be callable"),
        ({"timeout": 0}, "timeout must be"),
    ],
)
def test_a_tool_by_hand_that_cannot_work_is_refused(given: dict[str, Any], rule: str) -> None:
    whole: dict[str, Any] = {"name": "a", "description": "", "parameters": {}, "func": print, "timeout": 1}
    with pytest.raises(ConfigurationError, match=rule):
        Tool(**(whole | given))


@pytest.mark.parametrize(("provider", "sent"), [("openai", True), ("vllm", True), ("xai", None), ("cerebras", None)])
def test_strict_is_not_sent_to_who_does_not_take_it(provider: str, sent: bool | None) -> None:
    request = Request("m", [], {"tools": [tool(weather).schema(), {"type": "custom", "custom": {"name": "x"}}]})
    ours, theirs = params_of(request, provider_facts(provider))["tools"]
    assert (ours["function"]["name"], ours["function"].get("strict")) == ("weather", sent)
    assert theirs == {"type": "custom", "custom": {"name": "x"}}
