"""A job whose log had ended when its entry was taken: its worker died before the sinks had everything."""

from __future__ import annotations

from typing import Any

import orjson

from deltafan.broker.claims import Claims, Ended
from deltafan.broker.connections import Connections, redis_errors
from deltafan.broker.keys import partition
from deltafan.engine.services import Services, job_info
from deltafan.events import EventId
from deltafan.job import JobSpec
from deltafan.sinks.fanout import Fanout, Start
from deltafan.wire import parse_event_id

_THROUGH = ("delivered", "incomplete", "failed")


async def deliver_late(services: Services, connections: Connections, claims: Claims, ended: Ended) -> None:
    """Give each sink what it misses, and acknowledge. The model is not asked again.

    How far a sink had got is known only when its worker could still say so; else everything is sent again, and
    receivers drop the ids they have.
    """
    with redis_errors():
        record: Any = await connections.commands.hmget(
            partition(ended.job_id).job(ended.job_id), ["spec", "sinks", "tenant", "attempt", "seq"]
        )
    spec_json, sinks_json, tenant, attempt, seq = record
    if not spec_json:
        await claims.acknowledge(ended.taken, ended.job_id, {})
        return
    last = EventId(int(attempt or 0), int(seq or 0))
    spec = JobSpec.model_validate_json(spec_json)
    standing: dict[str, dict[str, Any]] = orjson.loads(sinks_json) if sinks_json else {}
    names = [n for n in spec.sinks if n in services.sinks and standing.get(n, {}).get("state") not in _THROUGH]
    info = job_info(ended.job_id, (tenant or b"default").decode(), spec)
    fanout = Fanout(services.runners(info, names, connections, lambda name: _start(standing.get(name, {}), last)))
    try:
        standing |= await fanout.settle(last, services.settings.sink_budget)
    finally:
        await fanout.aclose()
    await claims.acknowledge(ended.taken, ended.job_id, {"sinks": orjson.dumps(standing)} if standing else {})


def _start(standing: dict[str, Any], last: EventId) -> Start:
    known = standing.get("last_id")
    return Start(parse_event_id(known) if isinstance(known, str) else None, maybe_sent=last)
