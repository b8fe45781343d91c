"""The one place that turns what the SDK, its transport and the providers call an error into a `CompletionError`.

Messages are the provider's own words, bounded, with whatever looks like a key taken out. The SDK's exception is not
chained: its text could hold what ours leaves out.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

from deltafan.errors import CompletionError

MAX_MESSAGE = 500

_SECRETS = re.compile(
    r"\bBearer\s+\S+"
    r"|\b(?:sk|pk|rk|gsk|xai|hf|fw|csk|r8|key|tgp)[-_][\w*.-]{6,}"
    r"|\bAIza[\w-]{10,}"
    r"|\beyJ[\w-]+\.[\w-]+\.[\w-]*"
    r"|(?<=://)[^/\s@]+(?=@)"
    r"|(?<=[?&]key=)[^&\s]+|(?<=api_key=)[^&\s]+",
    re.IGNORECASE,
)
# What is not closed goes to the end of the text: looking for its end again and again would take for ever.
_MARKUP = re.compile(r"<(?:script|style)\b.*?(?:</(?:script|style)>|\Z)|<[^>]*(?:>|\Z)", re.IGNORECASE | re.DOTALL)
_LOOKED_AT = 8192
"""Characters of a message that are looked at. A provider may send megabytes, and some patterns take long over them."""

_CODE_WORDS: dict[str, str] = {
    "authentication": "invalid_api_key authentication_error invalid_authentication unauthenticated unauthorized",
    "permission": "permission_error permission_denied forbidden",
    "quota": (
        "insufficient_quota billing_hard_limit_reached billing_not_active billing_error insufficient_balance "
        "insufficient_credits payment_required"
    ),
    "rate_limit": "rate_limit_exceeded rate_limit_error rate_limited resource_exhausted too_many_requests",
    "context_length": "context_length_exceeded context_window_exceeded model_max_prompt_tokens_exceeded",
    "content_filter": (
        "content_filter content_policy_violation content_filter_error responsibleaipolicyviolation "
        "data_inspection_failed moderation_blocked image_content_policy_violation bio_policy "
        "misalignment_policy_violation"
    ),
    "model_not_found": "model_not_found model_not_active model_not_available model_decommissioned not_found_error",
    "server_error": (
        "server_error internal_server_error internal_error api_error overloaded_error overloaded unavailable "
        "service_unavailable engine_overloaded timeout_error"
    ),
}
_REQUEST_WORDS = (
    "invalid_request_error invalid_prompt invalid_image invalid_image_format invalid_base64_image invalid_image_url "
    "image_too_large image_too_small image_parse_error invalid_image_mode image_file_too_large "
    "unsupported_image_media_type empty_image_file failed_to_download_image image_file_not_found"
)
"""Of errors inside a 200 answer, which have no status: the request is at fault, unless the message says more."""
_BY_CODE = {word: code for code, words in _CODE_WORDS.items() for word in words.split()}

_BY_MESSAGE: tuple[tuple[str, re.Pattern[str]], ...] = (
    (
        "context_length",
        re.compile(
            r"maximum context length|context (?:length|window|size)|prompt is too long|too many (?:input )?tokens"
            r"|reduce the length|input token count|exceeds the max(?:imum)? (?:number of )?(?:input )?tokens"
            r"|too large for model",
            re.IGNORECASE,
        ),
    ),
    (
        "quota",
        re.compile(
            r"insufficient (?:balance|credit|funds|quota)|credit balance is too low|out of credits", re.IGNORECASE
        ),
    ),
    (
        "content_filter",
        re.compile(r"content management policy|content filter|safety system|was flagged", re.IGNORECASE),
    ),
    (
        "model_not_found",
        re.compile(r"model\b.{0,120}?(?:does not exist|not found|is not a valid model|decommissioned)", re.IGNORECASE),
    ),
)
"""Looked at for 4xx only, and only where no code or type says it: the words of a 5xx are about the server."""

_BY_STATUS = {
    401: "authentication",
    402: "quota",
    403: "permission",
    404: "model_not_found",
    408: "connection",  # the server tired of waiting for our request
    409: "server_error",  # a lock that another request holds, says OpenAI; again is right
    425: "server_error",
    429: "rate_limit",
    498: "rate_limit",  # Groq: no capacity of the flex tier
}


def malformed(what: str) -> CompletionError:
    return CompletionError("malformed_stream", f"the provider's stream is malformed: {what}")


def redact(text: str, secret: str = "") -> str:
    """The text on one line, without keys, no longer than `MAX_MESSAGE` characters."""
    if secret:
        text = text.replace(secret, "[redacted]")
    text = " ".join(_SECRETS.sub("[redacted]", text[:_LOOKED_AT]).split())
    return text if len(text) <= MAX_MESSAGE else text[: MAX_MESSAGE - 1] + "…"


def from_body(
    body: Any, *, status: int | None = None, headers: Mapping[str, str] | None = None, secret: str = ""
) -> CompletionError:
    """The failure that a provider's error body describes: of a response, or of an event in a stream (no status)."""
    error = _unwrap(body)
    words = [_word(error.get(name)) for name in ("code", "type", "status")] if isinstance(error, dict) else []
    message = _message(error)
    if status is None and isinstance(error, dict):
        status = _status(error)
    code = _classify(words, message[:_LOOKED_AT], status)
    if not message:
        message = f"the provider answered {status}" if status else "the provider sent an error without a message"
    wait = retry_after(headers) if headers else None
    return CompletionError(code, redact(message, secret), status=status, retry_after=wait)


def from_exception(exc: Exception, *, secret: str = "") -> CompletionError | None:
    """The failure behind an exception of the SDK or its transport. `None`: it is neither's, and so a fault of ours."""
    import aiohttp
    import httpx2
    import openai

    if isinstance(exc, CompletionError):
        return exc
    if isinstance(exc, openai.APIStatusError):
        return from_body(_body(exc), status=exc.status_code, headers=exc.response.headers, secret=secret)
    if isinstance(exc, (httpx2.InvalidURL, httpx2.UnsupportedProtocol)) or isinstance(
        exc.__cause__, (httpx2.InvalidURL, httpx2.UnsupportedProtocol)
    ):
        return CompletionError("bad_request", redact(f"base_url: {exc.__cause__ or exc}", secret))
    if isinstance(exc, httpx2.DecodingError):
        return malformed("its compression is broken")
    if isinstance(exc, (openai.APIConnectionError, httpx2.HTTPError, httpx2.StreamError, aiohttp.ClientError, OSError)):
        return CompletionError("connection", redact(f"the connection to the provider failed: {_root(exc)}", secret))
    if isinstance(exc, openai.OpenAIError):
        return CompletionError("server_error", redact(str(exc), secret))
    return None


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds to wait, from `retry-after-ms` or `retry-after` (seconds, or a date). `None` if absent or senseless."""
    milliseconds = _number(headers.get("retry-after-ms"))
    if milliseconds is not None:
        return milliseconds / 1000
    given = headers.get("retry-after")
    seconds = _number(given)
    if seconds is not None or not given:
        return seconds
    try:
        date = parsedate_to_datetime(given)
    except ValueError:
        return None
    date = date if date.tzinfo else date.replace(tzinfo=UTC)
    return max(0.0, (date - datetime.now(UTC)).total_seconds())


def _number(value: str | None) -> float | None:
    try:
        number = float(value) if value else -1.0
    except ValueError:
        return None
    return number if 0 <= number < float("inf") else None


def _classify(words: list[str], message: str, status: int | None) -> str:
    for word in words:
        if word in _BY_CODE:
            return _BY_CODE[word]
    if status is None or 400 <= status < 500:
        for code, pattern in _BY_MESSAGE:
            if pattern.search(message):
                return code
    if status in _BY_STATUS:
        return _BY_STATUS[status]
    if status is not None and 400 <= status < 500:
        return "bad_request"
    return "bad_request" if any(word in _REQUEST_WORDS.split() for word in words) else "server_error"


def _unwrap(body: Any) -> Any:
    """The error object in `{"error": …}`, `[{"error": …}]` (Gemini), `{"message": …}` (Mistral) or plain text."""
    if isinstance(body, list) and body:
        body = body[0]
    if isinstance(body, dict) and body.get("error"):
        return body["error"]
    return body


def _message(error: Any) -> str:
    if isinstance(error, str):
        return _MARKUP.sub(" ", error) if error.lstrip().startswith("<") else error
    if not isinstance(error, dict):
        return ""
    message = error.get("message") or error.get("detail") or error.get("msg")
    if isinstance(message, (dict, list)):
        message = "; ".join(_details(message))
    message = message if isinstance(message, str) else ""
    metadata = error.get("metadata")
    if isinstance(metadata, dict) and isinstance(metadata.get("raw"), str):  # OpenRouter: what the provider behind said
        message = f"{message}: {metadata['raw']}"
    return message


def _details(detail: Any) -> list[str]:
    """FastAPI's list of what is wrong, as text: `stream_options: Extra inputs are not permitted`."""
    if isinstance(detail, dict):
        detail = detail.get("detail", detail)
    out = []
    for item in detail if isinstance(detail, list) else [detail]:
        if isinstance(item, dict) and "msg" in item:
            where = ".".join(str(part) for part in item.get("loc") or () if part != "body")
            out.append(f"{where}: {item['msg']}" if where else str(item["msg"]))
        else:
            out.append(str(item))
    return out


def _word(value: Any) -> str:
    return value.lower() if isinstance(value, str) else ""


def _status(error: dict[str, Any]) -> int | None:
    for name in ("status_code", "code", "status"):
        value = error.get(name)
        if isinstance(value, str) and value.isdigit():
            value = int(value[:4])
        if type(value) is int and 400 <= value <= 599:
            return value
    return None


def _body(exc: Any) -> Any:
    """The error body. The SDK takes it out of its `error`, but leaves text as the text of the response."""
    return exc.body if exc.body is not None else exc.response.text


def _root(exc: BaseException) -> str:
    """What aiohttp said: the SDK says only "Connection error.", its transport calls a closed connection a timeout."""
    cause: BaseException | None = exc
    while cause is not None and type(cause).__module__.partition(".")[0] != "aiohttp":
        exc, cause = cause, cause.__cause__
    return str(cause or exc) or type(cause or exc).__name__
