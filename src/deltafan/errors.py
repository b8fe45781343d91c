"""Every error that deltafan raises, one tree.

    DeltafanError
    ├── ValidationError          what a caller sent is not right; names the fields and the rules
    ├── ConfigurationError       a setting is missing or wrong
    ├── ConflictError            an idempotency key or a job id is in use for something else
    ├── JobNotFound              no such job, or its record has expired
    ├── JobFailed                a job ended in `failed`, `cancelled` or `expired` and its result was asked for
    ├── LogExpired               the job is known, but its events are no longer kept
    ├── BrokerUnavailable        Redis cannot be reached, or refuses to serve
    ├── QueueFull                the queue is at its bound
    ├── TokenExpired             a stream token was good once
    ├── TokenInvalid             a stream token is not one of ours, or says what it may not
    └── CompletionError          a completion failed; `code` says what to do, and chooses the class
        └── APIError                         the provider failed it, or the way there
            ├── AuthenticationError          no key, or a wrong one
            ├── PermissionDeniedError        the key may not do this
            ├── NotFoundError                no such model
            ├── RateLimitError               too many requests or tokens; or no money left (`code` is `quota`)
            ├── BadRequestError              the provider does not take the request
            │   ├── ContextWindowExceededError   more tokens than the model reads
            │   └── ContentPolicyViolationError  refused for its content
            ├── InternalServerError
            │   └── ServiceUnavailableError  any 5xx
            └── APIConnectionError           no connection, or a broken one
                └── Timeout                  the model was too slow

`code` is stable and machine-readable. `retryable` says whether the same request may succeed later. The names below
`CompletionError` are those of the openai SDK and of litellm, so that their `except` clauses read on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Final, Self

from deltafan.events import Usage


@dataclass(frozen=True, slots=True)
class FieldError:
    """One thing that is wrong: where (`messages[0].role`), and the rule it breaks."""

    field: str
    message: str


class DeltafanError(Exception):
    """The root of the tree. `str()` of it is fit to be shown to a user."""

    code: str = "internal"
    retryable: bool = False
    status: int | None = None
    """The provider's HTTP status, where it answered with one."""
    provider: str | None = None
    model: str | None = None

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class ValidationError(DeltafanError):
    code = "invalid"

    def __init__(self, fields: Sequence[FieldError], message: str | None = None) -> None:
        self.fields = tuple(fields)
        super().__init__(message or "; ".join(f"{f.field}: {f.message}" if f.field else f.message for f in fields))


class ConfigurationError(DeltafanError):
    code = "configuration"


class ConflictError(DeltafanError):
    code = "conflict"


class JobNotFound(DeltafanError):
    """`code` is `job_gone` when the job was there before, and Redis has lost it while it was followed."""

    code = "not_found"

    def __init__(self, job_id: str, *, gone: bool = False) -> None:
        why = "Redis has lost it while it was followed" if gone else "it never was, or its record has expired"
        super().__init__(f"no job {job_id!r}{' any more' if gone else ''}: {why}")
        self.job_id = job_id
        if gone:
            self.code = "job_gone"


class NotDead(ConflictError):
    """The job is there, but not among the dead letters of that queue."""

    code = "not_dead"

    def __init__(self, job_id: str, state: str, queue: str, own_queue: str) -> None:
        if state != "failed":
            why = f"job {job_id!r} is {state}: only a job that failed for good has a dead letter"
        elif queue != own_queue:
            why = f"job {job_id!r} is of queue {own_queue!r}, and so is its dead letter, if it is still kept"
        else:
            why = f"the dead letter of job {job_id!r} is gone: it was retried or dropped before"
        super().__init__(why)
        self.job_id = job_id


class JobFailed(DeltafanError):
    """`code` is that of the job's error, or `cancelled` or `expired`."""

    def __init__(self, job_id: str, state: str, code: str, message: str) -> None:
        super().__init__(f"job {job_id} {state}: {message}" if message else f"job {job_id} {state}")
        self.job_id = job_id
        self.state = state
        self.code = code


class LogExpired(DeltafanError):
    code = "log_expired"

    def __init__(self, job_id: str) -> None:
        super().__init__(f"the events of job {job_id} are no longer kept; its status still is")
        self.job_id = job_id


class BrokerUnavailable(DeltafanError):
    code = "unavailable"
    retryable = True


class QueueFull(DeltafanError):
    code = "queue_full"
    retryable = True


class TokenExpired(DeltafanError):
    code = "token_expired"


class TokenInvalid(DeltafanError):
    code = "token_invalid"


class CompletionError(DeltafanError):
    """A completion failed. The code says what to do about it; `CODES` says whether trying again can help."""

    CODES: ClassVar[dict[str, bool]] = {
        "authentication": False,
        "permission": False,
        "rate_limit": True,
        "quota": False,
        "context_length": False,
        "content_filter": False,
        "bad_request": False,
        "model_not_found": False,
        "timeout_first_token": True,
        "timeout_stall": True,
        "timeout_total": False,
        "connection": True,
        "server_error": True,
        "malformed_stream": True,
        "worker_lost": True,
        "expired": False,
        "cancelled": False,
    }

    _fallback_status: ClassVar[int] = 500

    def __new__(cls, code: str, *args: Any, **kwargs: Any) -> Self:
        """The class that fits the code, so that whoever raises needs to know codes only."""
        fitting: type[CompletionError] = CLASS_OF.get(code, cls)
        return super().__new__(fitting if issubclass(fitting, cls) else cls, code, *args)

    def __init__(
        self,
        code: str,
        message: str,
        *,
        status: int | None = None,
        retry_after: float | None = None,
        provider: str | None = None,
        model: str | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.retryable = self.CODES.get(code, False)
        self.status = status
        self.retry_after = retry_after
        """Seconds the provider asked us to wait, where it did."""
        self.provider = provider
        self.model = model
        self.usage: Usage | None = None
        """What was used until it failed, where somebody knows: by a router's other models, by an agent's turns."""

    @property
    def status_code(self) -> int:
        """The provider's HTTP status; where it gave none, the one that says the same."""
        return self.status or self._fallback_status

    @property
    def llm_provider(self) -> str | None:
        """litellm's name of `provider`."""
        return self.provider

    def __reduce__(self) -> tuple[Any, ...]:
        # Exceptions are pickled as their class and `args`, of which the message alone is no error of ours.
        return type(self), (self.code, self.message), self.__dict__


class APIError(CompletionError):
    """The provider failed the completion, or the way to it did."""


class AuthenticationError(APIError):
    _fallback_status = 401


class PermissionDeniedError(APIError):
    _fallback_status = 403


class NotFoundError(APIError):
    _fallback_status = 404


class RateLimitError(APIError):
    """`code` tells a limit that passes (`rate_limit`) from money that is spent (`quota`)."""

    _fallback_status = 429


class BadRequestError(APIError):
    _fallback_status = 400


class ContextWindowExceededError(BadRequestError):
    pass


class ContentPolicyViolationError(BadRequestError):
    pass


class InternalServerError(APIError):
    pass


class ServiceUnavailableError(InternalServerError):
    _fallback_status = 503


class APIConnectionError(APIError):
    pass


class Timeout(APIConnectionError):
    _fallback_status = 408


CLASS_OF: Final[dict[str, type[CompletionError]]] = {
    "authentication": AuthenticationError,
    "permission": PermissionDeniedError,
    "rate_limit": RateLimitError,
    "quota": RateLimitError,
    "context_length": ContextWindowExceededError,
    "content_filter": ContentPolicyViolationError,
    "bad_request": BadRequestError,
    "model_not_found": NotFoundError,
    "timeout_first_token": Timeout,
    "timeout_stall": Timeout,
    "timeout_total": Timeout,
    "connection": APIConnectionError,
    "server_error": ServiceUnavailableError,
    "malformed_stream": APIError,
}
"""The class of a code. The others (`worker_lost`, `expired`, `cancelled`) are a job's, and no provider's."""
