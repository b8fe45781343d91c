"""A worker is killed: another one ends its jobs, and every follower's transcript is whole."""

from __future__ import annotations

from deltafan.chaos.rig import TEXT, Rig


async def test_killed_in_mid_stream_the_job_is_taken_over_and_every_follower_is_told(rig: Rig) -> None:
    first, relay = await rig.worker(), await rig.relay()
    job = await rig.enqueue(TEXT * 8, rate=30)
    await job.follow(relay)
    await job.begun()
    await rig.worker()
    first.kill()
    await rig.check()
    assert {seen.events[-1].id.attempt for seen in job.seen.values() if seen.events[-1].id} == {2}
