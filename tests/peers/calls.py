"""The calls that are made through both, and where the answers are known to differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel

from deltafan.devserver.provider import Echo, Script, Text, ToolCall, parse_fault

Difference = tuple[Any, Any]
"""What litellm says, and what we say."""
ABSENT = "(absent)"


class Colour(BaseModel):
    name: str
    warm: bool


@dataclass(frozen=True, kw_only=True)
class Call:
    """One call, made whole and streamed, with `await` and without."""

    script: Script = field(default_factory=lambda: Script(source=Text("Because of Rayleigh.")))
    arguments: Mapping[str, Any] = field(default_factory=dict)
    differs: Mapping[str, Difference] = field(default_factory=dict)
    """In the answer, whole or streamed: a path, and what each says. No other difference is allowed."""
    streamed_differs: Mapping[str, Difference] = field(default_factory=dict)
    """In what the streamed answer amounts to."""
    asked_differs: Mapping[str, Difference] = field(default_factory=dict)
    """In what the provider was asked for."""
    counted: bool = True
    """The usage is the provider's. Else each estimates it in its own way."""


MODEL = "openai/gpt-4o-mini"
QUESTION = [{"role": "user", "content": "Why is the sky blue?"}]


def function(name: str, **more: Any) -> dict[str, Any]:
    properties = {"place": {"type": "string", "description": "a town"}}
    parameters = {"type": "object", "properties": properties, "required": ["place"], "additionalProperties": False}
    return {"type": "function", "function": {"name": name, "description": "Look.", "parameters": parameters, **more}}


TOOLS = [function("weather"), function("tide")]
PARIS, BREST = ToolCall("weather", '{"place":"Paris"}'), ToolCall("tide", '{"place":"Brest"}')
USED_TOOL: Sequence[Mapping[str, Any]] = [
    {"role": "user", "content": "How is the weather in Paris?"},
    {
        "role": "assistant",
        "tool_calls": [
            {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"place":"Paris"}'}}
        ],
    },
    {"role": "tool", "tool_call_id": "call_1", "content": "18 °C"},
]
SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "warm": {"type": "boolean"}},
    "required": ["name", "warm"],
    "additionalProperties": False,
}
JSON = Script(source=Text('{"name": "red", "warm": true}'))

# We send the name that OpenAI's newer models insist on, and that the older take too.
NEWER_NAME: Mapping[str, Difference] = {"max_tokens": (2, ABSENT), "max_completion_tokens": (ABSENT, 2)}

CALLS: Mapping[str, Call] = {
    "one message": Call(),
    "a conversation": Call(
        script=Script(source=Echo()),
        arguments={
            "messages": [
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": "Hello"},
                {"role": "assistant", "content": "Hello!"},
                {"role": "user", "content": "Goodbye"},
            ]
        },
    ),
    "parts": Call(
        arguments={
            "messages": [
                {
                    "role": "user",
                    "content": [
                        {"type": "text", "text": "What is this?"},
                        {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}},
                    ],
                }
            ]
        }
    ),
    "a name without a provider": Call(arguments={"model": "gpt-4o-mini"}),
    "a provider by argument": Call(arguments={"model": "Qwen/Qwen3-8B", "custom_llm_provider": "hosted_vllm"}),
    # Mistral tells the usage unasked, says litellm, and estimates where it is not told.
    "another provider": Call(arguments={"model": "mistral/mistral-small-latest"}, counted=False),
    "litellm's name of a provider": Call(arguments={"model": "hosted_vllm/Qwen/Qwen3-8B"}),
    "letters of many bytes": Call(script=Script(source=Text("Grüße, 漢字 👩‍🔧 🏳️‍🌈 ½ €"), chunk_size=1)),
    "reasoning": Call(script=Script(source=Text("Because."), reasoning="Let me think.")),
    "a refusal": Call(
        script=Script(refusal="I would rather not."),
        # litellm's chunks leave refusals out.
        streamed_differs={"choices[0].refusal": (ABSENT, "I would rather not.")}
        | {"choices[0].pieces": (ABSENT, ["I wo", "uld ", "rath", "er n", "ot."])},
    ),
    "a tool": Call(script=Script(tool_calls=(PARIS,)), arguments={"tools": TOOLS}),
    "tools in parallel": Call(
        script=Script(tool_calls=(PARIS, BREST, PARIS)), arguments={"tools": TOOLS, "parallel_tool_calls": True}
    ),
    "a text and a tool": Call(script=Script(source=Text("I look."), tool_calls=(PARIS,)), arguments={"tools": TOOLS}),
    "a tool that must be called": Call(
        script=Script(tool_calls=(BREST,)),
        arguments={
            "tools": [function("tide", strict=True)],
            "tool_choice": {"type": "function", "function": {"name": "tide"}},
        },
    ),
    "a tool's result": Call(arguments={"messages": USED_TOOL, "tools": TOOLS}),
    "a JSON object": Call(script=JSON, arguments={"response_format": {"type": "json_object"}}),
    "a JSON schema": Call(
        script=JSON,
        arguments={
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "Colour", "schema": SCHEMA, "strict": True},
            }
        },
    ),
    "a pydantic model": Call(
        script=JSON,
        arguments={"response_format": Colour},
        # Titles that say what names say are left out by us: they are tokens, and cost.
        asked_differs={
            "response_format.json_schema.schema.title": ("Colour", ABSENT),
            "response_format.json_schema.schema.properties.name.title": ("Name", ABSENT),
            "response_format.json_schema.schema.properties.warm.title": ("Warm", ABSENT),
        },
    ),
    "two answers": Call(
        arguments={"n": 2},
        # litellm's chunks name the role and the end of the first answer only.
        streamed_differs={
            "choices[1].role": (ABSENT, "assistant"),
            "choices[1].finish_reason": (ABSENT, "stop"),
        },
    ),
    "stop words": Call(script=Script(source=Text("one two END three")), arguments={"stop": ["END", "NEVER"]}),
    "no more than two tokens": Call(arguments={"max_tokens": 2}, asked_differs=NEWER_NAME),
    "no more than two tokens, by the newer name": Call(arguments={"max_completion_tokens": 2}),
    "an answer that a filter cut off": Call(
        script=Script(source=Text("one two three four five"), faults=(parse_fault("content_filter=2"),))
    ),
    "sampling": Call(
        arguments={
            "temperature": 0.2,
            "top_p": 0.9,
            "seed": 7,
            "presence_penalty": 0.1,
            "frequency_penalty": 0.2,
            "logit_bias": {"50256": -100},
            "user": "ann",
        }
    ),
    "arguments that are None": Call(arguments={"temperature": None, "tools": None, "stop": None}),
    "no usage": Call(script=Script(source=Text("Because."), usage=False), counted=False),
}
