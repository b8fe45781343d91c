"""How answers are made comparable, field by field, and what may differ between any two."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from deltafan.devserver.provider import RequestRecord
from tests.peers.calls import ABSENT, Difference


@dataclass(frozen=True)
class Varying:
    """A field in which any two answers may differ."""

    why: str
    is_right: Callable[[Any], bool]
    may_be_absent: bool = False


MAY_DIFFER: Mapping[str, Varying] = {
    "id": Varying("made anew by the provider for each answer", lambda value: value.startswith("chatcmpl-")),
    "created": Varying("the second of the answer", lambda value: type(value) is int and value > 1_700_000_000),
    "choices[].message.tool_calls[].id": Varying(
        "made anew by the provider for each answer", lambda value: value.startswith("call_")
    ),
    "choices[].tool_calls[].id": Varying("the same, of a stream", lambda value: value.startswith("call_")),
    "usage.cost": Varying(
        "litellm keeps that of a whole answer elsewhere; `cost_of` finds it, and it is compared by itself",
        lambda value: value >= 0,
        may_be_absent=True,
    ),
}
"""By path. All other fields must be equal, unless a call names how they differ."""


def answered(answer: Any, counted: bool = True) -> dict[str, Any]:
    """All fields of a whole answer that must be equal, by path. What is `None` is not there."""
    dumped = answer.model_dump()
    if not counted:
        del dumped["usage"]
    return steady(flat(dumped))


def amounts_to(chunks: Iterable[Any], counted: bool = True) -> dict[str, Any]:
    """What chunks amount to as their readers read them, by path; the pieces of each text one by one."""
    chunks = list(chunks)
    choices: dict[int, dict[str, Any]] = {}
    whole: dict[str, Any] = {"created": chunks[0].created}
    for chunk in chunks:
        for choice in chunk.choices:
            read_choice(choices.setdefault(choice.index, {}), choice)
        if getattr(chunk, "usage", None):
            assert "usage" not in whole, "it is told once"
            whole["usage"] = chunk.usage.model_dump()
    whole["usage is last"] = bool(getattr(chunks[-1], "usage", None))
    for name in ("id", "object", "model"):
        [whole[name]] = {getattr(chunk, name) for chunk in chunks}
    [whole["choices of a chunk"]] = {len(chunk.choices) for chunk in chunks}
    whole["choices"] = [choices[index] for index in sorted(choices)]
    for one in whole["choices"]:
        one["tool_calls"] = [one["tool_calls"][index] for index in sorted(one["tool_calls"])]
    if not counted:
        whole.pop("usage", None)
    return steady(flat(whole))


def steady(fields: Mapping[str, Any]) -> dict[str, Any]:
    """With the reason in place of what may differ, which must be right by itself."""
    out = {}
    for path, value in fields.items():
        varying = MAY_DIFFER.get(re.sub(r"\[\d+\]", "[]", path))
        if varying is None:
            out[path] = value
            continue
        assert varying.is_right(value), f"{path} is {value!r}"
        if not varying.may_be_absent:
            out[path] = varying.why
    return out


def read_choice(known: dict[str, Any], choice: Any) -> None:
    delta = choice.delta
    for name in ("role", "content", "refusal", "reasoning_content"):
        piece = getattr(delta, name, None)
        if piece:
            known[name] = known.get(name, "") + piece
            if name != "role":
                known.setdefault("pieces", []).append(piece)
    calls = known.setdefault("tool_calls", {})
    for call in delta.tool_calls or ():
        one = calls.setdefault(call.index, {"id": "", "name": "", "arguments": []})
        one["id"] += call.id or ""
        one["name"] += call.function.name or ""
        if call.function.arguments:
            one["arguments"].append(call.function.arguments)
    if choice.finish_reason:
        assert "finish_reason" not in known, "an answer ends once"
        known["finish_reason"] = choice.finish_reason


def cost_of(answer: Any) -> Any:
    """US dollars, wherever they are."""
    cost = getattr(getattr(answer, "usage", None), "cost", None)
    return cost if cost is not None else getattr(answer, "_hidden_params", {}).get("response_cost")


def asked(record: RequestRecord) -> dict[str, Any]:
    """What the provider was asked for. `stream: false` is what is meant by leaving it out."""
    params = {name: value for name, value in record.params.items() if (name, value) != ("stream", False)}
    return {"messages": record.messages_digest, **flat(params)}


def flat(value: Any, path: str = "") -> dict[str, Any]:
    """Leaves by path; without what is `None` and what is empty, which are as good as absent."""
    if isinstance(value, Mapping):
        items = [(f"{path}.{name}" if path else str(name), item) for name, item in value.items()]
    elif isinstance(value, list) and any(isinstance(item, dict | list) for item in value):
        items = [(f"{path}[{index}]", item) for index, item in enumerate(value)]
    else:
        return {} if value is None or value in ("", [], {}) else {path: value}
    return {name: leaf for path, item in items for name, leaf in flat(item, path).items()}


def differences(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> dict[str, Difference]:
    return {
        path: (theirs.get(path, ABSENT), ours.get(path, ABSENT))
        for path in sorted(theirs.keys() | ours.keys())
        if theirs.get(path, ABSENT) != ours.get(path, ABSENT)
    }


async def gather(chunks: Any) -> list[Any]:
    return [chunk async for chunk in chunks]


async def in_a_thread(call: Callable[..., Any], **arguments: Any) -> Any:
    """A plain function, called as from a program without a loop; a stream read to its end there."""

    def run() -> Any:
        answer = call(**arguments)
        return list(answer) if arguments.get("stream") else answer

    return await asyncio.to_thread(run)
