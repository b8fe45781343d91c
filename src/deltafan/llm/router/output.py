"""What a reader has of an answer when somebody else is to go on with it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from deltafan.events import Event, ReasoningDelta, TextDelta, ToolCallDelta
from deltafan.llm.request import Request

MidStream = Literal["restart", "continue", "fail"]
"""What is done when a deployment fails after its first visible delta.

    restart   another begins anew; a `meta` with `restart` makes void what was streamed
    continue  another goes on from the text, after a `meta` with `continued`, where it can: it takes a prefill, and
              nothing but text and reasoning was streamed. Where it cannot, it begins anew
    fail      the failure stands
"""


@dataclass(frozen=True, slots=True)
class Turnover:
    """How somebody else is asked, and what a reader is told before his answer."""

    request: Request
    tell: Literal["restart", "continued"] | None = None


class Output:
    """The text so far, that which the request began with included."""

    def __init__(self, prefix: str) -> None:
        self._pieces = [prefix] if prefix else []
        self._continuable = True
        self.visible = False
        """Something of ours was streamed."""
        self.chars = 0
        """Characters of output, of every kind and also void ones: what an estimate of usage goes by."""

    def add(self, event: Event) -> None:
        """A visible event was streamed."""
        self.visible = True
        match event:
            case TextDelta(choice=0):
                self._pieces.append(event.text)
                self.chars += len(event.text)
            case ReasoningDelta(choice=0):
                self.chars += len(event.text)
            case _:
                self._continuable = False
                said = event.arguments if isinstance(event, ToolCallDelta) else getattr(event, "text", "")
                self.chars += len(said)

    def clear(self) -> None:
        """It was made void."""
        self._pieces.clear()
        self._continuable = True
        self.visible = False

    def turn_over(self, request: Request, policy: MidStream, can_prefill: bool) -> Turnover:
        """How the next is asked.

        :param can_prefill: whether it can go on from given text.
        """
        text = "".join(self._pieces)
        if not self.visible:
            if not text or can_prefill or policy == "fail":
                return Turnover(request)
            return Turnover(replace(request, prefix=""), "restart")
        if text and can_prefill and self._continuable and policy == "continue":
            return Turnover(replace(request, prefix=text), "continued")
        return Turnover(replace(request, prefix=""), "restart")
