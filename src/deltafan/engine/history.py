"""What earlier attempts leave to the next: the text to go on from, and the usage that was lost with a worker."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import orjson
from redis.asyncio import Redis

from deltafan.broker.claims import Claim
from deltafan.broker.log import read_all
from deltafan.engine.joblog import output_size
from deltafan.events import EventId, Usage
from deltafan.llm.usage import add, estimate
from deltafan.transcript import Transcript


@dataclass(frozen=True, slots=True)
class History:
    prefix: str = ""
    """The text already streamed, from which this attempt goes on."""
    usage: Usage | None = field(default=None)
    """The sum over earlier attempts; those that were lost with their workers are estimated from what they streamed."""


def usage_from_json(stored: bytes) -> Usage | None:
    """Read a usage as the job's record keeps it; `None` for none."""
    if not stored:
        return None
    return Usage(**{name: value for name, value in orjson.loads(stored).items() if name in Usage.__slots__})


async def read_history(redis: Redis, claim: Claim) -> History:
    """Read the log only where something hangs on it."""
    usage = usage_from_json(claim.usage)
    if claim.how != "continued" and claim.usage_lost is None:
        return History(usage=usage)
    transcript = Transcript()
    output = Counter[int]()  # characters by attempt, void ones too: they were paid for
    async for page in read_all(redis, claim.job_id):
        for entry in page:
            event = entry.event()
            if event is None or entry.id >= EventId(claim.attempt, 0):
                continue
            output[entry.id.attempt] += output_size(event)
            transcript.add(event)
    if claim.usage_lost is not None:
        # Numbers are left out where Redis has lost writes: only what ran was paid for.
        for attempt in {claim.usage_lost, *(number for number in output if number > claim.usage_lost)}:
            lost = estimate(claim.spec.chat(), output[attempt])
            usage = lost if usage is None else add(usage, lost)
    return History(transcript.text if claim.how == "continued" else "", usage)
