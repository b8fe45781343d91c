"""litellm's parameters: what of them is the client's, what the provider's, and what is refused."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final

from deltafan.errors import FieldError, ValidationError

TIMEOUT: Final = 600.0
"""Seconds for a call; litellm's own."""
RETRIES: Final = 2
OF_THE_CLIENT: Final = (
    "api_key",
    "base_url",
    "api_base",
    "timeout",
    "request_timeout",
    "num_retries",
    "max_retries",
    "fallbacks",
    "custom_llm_provider",
)
_WITHOUT_EFFECT: Final = frozenset({"drop_params", "caching"})
"""What litellm does without its own tables of parameters and its own cache: nothing."""
_REFUSED: Final = {
    "mock_response": "is not supported: `deltafan provider` runs a provider that answers as it is told",
    "headers": "a call cannot set headers",
    "extra_headers": "a call cannot set headers",
    "api_version": "is not supported; an address with its version goes to api_base",
    "organization": "is not supported: a key of the organization's project chooses it",
    "top_logprobs": "log probabilities are not supported",
}


def split_params(params: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Those of the client, and those of the provider. `None` is as good as left out.

    :raises ValidationError: one of them is not supported.
    """
    given = {name: value for name, value in params.items() if value is not None and name not in _WITHOUT_EFFECT}
    errors = [FieldError(name, rule) for name, rule in _REFUSED.items() if name in given]
    if given.get("logprobs"):
        errors.append(FieldError("logprobs", _REFUSED["top_logprobs"]))
    if errors:
        raise ValidationError(errors)
    ours: dict[str, Any] = {name: given.pop(name) for name in OF_THE_CLIENT if name in given}
    return ours, given


def seconds_of(ours: Mapping[str, Any]) -> float:
    """`timeout`, or its other name; as litellm takes it, a number may be text.

    :raises ValidationError: it is none.
    """
    name = "timeout" if "timeout" in ours else "request_timeout"
    given = ours.get(name, TIMEOUT)
    try:
        seconds = math.nan if isinstance(given, bool) else float(given)
    except (TypeError, ValueError):
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise ValidationError([FieldError(name, "must be a number of seconds above 0")])
    return seconds


def attempts_of(ours: Mapping[str, Any]) -> int:
    """:raises ValidationError: the number of retries is none."""
    name = "num_retries" if "num_retries" in ours else "max_retries"
    retries = ours.get(name, RETRIES)
    if type(retries) is not int or retries < 0:
        raise ValidationError([FieldError(name, "must be a whole number, 0 or more")])
    return retries + 1


def fallbacks_of(ours: Mapping[str, Any]) -> list[str]:
    """The models to go on with: names, or litellm's `{"model": name}`.

    :raises ValidationError: they are neither.
    """
    given = ours.get("fallbacks", ())
    if not isinstance(given, list | tuple):
        raise ValidationError([FieldError("fallbacks", "must be a list of models")])
    return [_fallback(one, f"fallbacks[{place}]") for place, one in enumerate(given)]


def _fallback(given: Any, field: str) -> str:
    if isinstance(given, Mapping):
        more = sorted(given.keys() - {"model"}, key=str)
        if more:
            raise ValidationError([FieldError(f"{field}.{more[0]}", "a fallback can have a model only")])
        given = given.get("model")
    if not isinstance(given, str) or not given:
        raise ValidationError([FieldError(field, 'must be a model, or {"model": a model}')])
    return given


def model_of(model: Any, ours: Mapping[str, Any]) -> str:
    """The model with its provider, where `custom_llm_provider` names it.

    :raises ValidationError: it is no name.
    """
    if not isinstance(model, str) or not model:
        raise ValidationError([FieldError("model", "must be a name such as openai/gpt-5-mini")])
    provider = ours.get("custom_llm_provider")
    return f"{provider}/{model}" if provider and not model.startswith(f"{provider}/") else model
