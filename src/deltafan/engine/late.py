"""A job whose log had ended when its entry was taken: its worker died before the sinks had everything."""

from __future__ import annotations

from typing import Any

import orjson

from deltafan.broker.claims import Claims, Ended
from deltafan.broker.connections import Connections, redis_errors
from deltafan.broker.keys import partition
from deltafan.engine.services import Services
from deltafan.events import EventId
from deltafan.job import JobSpec
from deltafan.sinks.base import JobInfo
from deltafan.sinks.fanout import Fanout
from deltafan.wire import parse_event_id


async def deliver_late(services: Services, connections: Connections, claims: Claims, ended: Ended) -> None:
    """Give each sink what it misses, and acknowledge. The model is not asked again.

    How far a sink had got is known only when its worker could still say so; else everything is sent again, and
    receivers drop the ids they have.
    """
    with redis_errors():
        record: Any = await connections.commands.hmget(
            partition(ended.job_id).job(ended.job_id), ["spec", "sinks", "tenant"]
        )
    spec_json, sinks_json, tenant = record
    if not spec_json:
        await claims.acknowledge(ended.taken, ended.job_id, {})
        return
    spec = JobSpec.model_validate_json(spec_json)
    standing: dict[str, dict[str, Any]] = orjson.loads(sinks_json) if sinks_json else {}
    names = [n for n in spec.sinks if n in services.sinks and standing.get(n, {}).get("state") != "delivered"]
    info = JobInfo(ended.job_id, (tenant or b"default").decode(), spec.channel, spec.metadata)
    fanout = Fanout(services.runners(info, names, connections, {n: _cursor(standing.get(n, {})) for n in names}))
    try:
        standing |= await fanout.settle(services.settings.sink_budget)
    finally:
        await fanout.aclose()
    await claims.acknowledge(ended.taken, ended.job_id, {"sinks": orjson.dumps(standing)} if standing else {})


def _cursor(standing: dict[str, Any]) -> EventId | None:
    last = standing.get("last_id")
    return parse_event_id(last) if isinstance(last, str) else None
