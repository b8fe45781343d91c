"""Finish reasons: the many words of the providers, and the few of ours."""

from __future__ import annotations

from deltafan.events import FinishReason

_SYNONYMS: dict[FinishReason, str] = {
    "stop": "stop end_turn stop_sequence eos eos_token end complete completed finished",
    "length": "length max_tokens max_output_tokens model_length model_context_window_exceeded",
    "tool_calls": "tool_calls tool_call tool_use function_call",
    "content_filter": (
        "content_filter content_filtered safety recitation blocklist prohibited_content spii sensitive refusal "
        "guardrail_intervened"
    ),
    "error": (
        "error abort aborted cancelled network_error internal_error insufficient_system_resource "
        "malformed_function_call"
    ),
}
FINISH_REASONS: dict[str, FinishReason] = {word: ours for ours, words in _SYNONYMS.items() for word in words.split()}
"""Provider's word, in lower case, to ours. `error` stands for output that the provider broke off."""


def finish_reason(word: str) -> FinishReason:
    """Ours for a provider's word. A word that is not known still says that the output is complete: `stop`."""
    return FINISH_REASONS.get(word.lower(), "stop")
