"""Limits: requests and tokens within a window, by model and key, in one process or shared in Redis."""

from deltafan.llm.limits.bucket import TokenBucket
from deltafan.llm.limits.budget import Budget
from deltafan.llm.limits.headers import Allowance, Observation, learn
from deltafan.llm.limits.limiter import Limiter
from deltafan.llm.limits.ring import Limited, LimitedEmbedder
from deltafan.llm.limits.slot import Slot

__all__ = [
    "Allowance",
    "Budget",
    "Limited",
    "LimitedEmbedder",
    "Limiter",
    "Observation",
    "Slot",
    "TokenBucket",
    "learn",
]
