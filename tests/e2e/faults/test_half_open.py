"""Case 9: a subscription that looks healthy and brings nothing, and one that the server gives up on.

How soon it is found (one PING without an answer) is counted in tests/unit/broker/test_subscriber.py.
"""

from __future__ import annotations

from typing import Any

import pytest

from deltafan.broker.hub import AUDIT_INTERVAL
from deltafan.broker.keys import partition
from deltafan.chaos.program import Program
from deltafan.chaos.rig import QUICK, TEXT, Job, Rig, eventually
from deltafan.devserver.proxy import Proxy
from deltafan.events import Done

PAD = b'{"v":1,"type":"padding","pad":"%b"}' % (b"x" * 16_000)
"""What a stranger publishes to fill a buffer: no event of the job."""


def proxy_of(program: Program) -> Proxy:
    assert program.redis is not None
    return program.redis


async def _subscriptions(rig: Rig) -> set[int]:
    """The ports by which the server knows the connections that have subscribed to something."""
    assert rig.redis is not None
    clients: Any = await rig.redis.client_list(_type="pubsub")
    return {int(client["addr"].rpartition(":")[2]) for client in clients}


async def _streaming(rig: Rig, worker: Program, relay: Program) -> Job:
    """A job in the middle of its stream, whose provider says no more until it is let."""
    job = await rig.enqueue(TEXT * 8, rate=60)
    await job.follow(relay)
    await job.begun()
    assert worker.provider is not None
    worker.provider.down.hold()
    return job


@pytest.mark.parametrize("half_open", ["the subscription", "every connection"])
async def test_a_follower_at_a_relay_whose_connection_is_half_open_gets_the_rest(rig: Rig, half_open: str) -> None:
    """Nothing else could have told the relay: what it is not sent has no successor, and it looks at the job's record
    of its own accord only long after two probe intervals."""
    probes = 2 * float(str(QUICK["probe_interval"]))
    assert probes * 5 <= AUDIT_INTERVAL
    worker, relay = await rig.worker(), await rig.relay()
    job = await _streaming(rig, worker, relay)
    proxy = proxy_of(relay)
    before = proxy.accepted
    proxy.silence(await _subscriptions(rig) if half_open == "the subscription" else None)
    assert worker.provider is not None
    worker.provider.down.flow()
    await rig.check()
    assert proxy.accepted > before, "the connection was replaced"
    assert job.seen["sse"].connections == 1, "its client was not sent away for it"


async def test_a_job_is_cancelled_though_its_workers_subscription_is_half_open(rig: Rig) -> None:
    worker, relay = await rig.worker(), await rig.relay()
    job = await _streaming(rig, worker, relay)  # it appends nothing, so no answer tells it either
    proxy = proxy_of(worker)
    before = proxy.accepted
    proxy.silence(await _subscriptions(rig))
    await job.handle.cancel()
    await rig.check(whole=False)
    [done] = [event for event in job.seen["sse"].events if isinstance(event, Done)]
    assert done.finish_reason == "cancelled"

    async def replaced() -> bool:
        return proxy.accepted > before

    await eventually(replaced)


async def test_a_relay_whose_output_buffer_overran_at_the_server_loses_nothing(rig: Rig) -> None:
    worker, relay = await rig.worker(), await rig.relay()
    assert rig.redis is not None
    await rig.redis.config_set("client-output-buffer-limit", "pubsub 1048576 0 0")
    job = await _streaming(rig, worker, relay)
    proxy = proxy_of(relay)
    ports = proxy.ports & await _subscriptions(rig)
    assert ports
    relay.freeze()
    proxy.down.hold()
    assert worker.provider is not None
    worker.provider.down.flow()
    channel = partition(job.id).live(job.id)
    while ports & await _subscriptions(rig):
        pipeline = rig.redis.pipeline(transaction=False)
        for _ in range(64):
            pipeline.publish(channel, PAD)
        await pipeline.execute()
    await job.seen["client"].until(lambda seen: seen.ended)  # all of it was said while nobody told the relay
    relay.thaw()
    proxy.down.flow()
    await rig.check()
    assert job.seen["sse"].connections == 1
