"""Case 18: entries XADDed by hand, by whoever can reach Redis. What is no job becomes a dead letter with the reason;
the worker is unharmed, and the good jobs beside it go on.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson
import pytest

from deltafan.broker.dead import list_dead
from deltafan.broker.queue import AsyncQueue
from deltafan.chaos.rig import TEXT, Rig, eventually
from deltafan.errors import JobFailed
from tests.conftest import StartWorker
from tests.oracle import check_whole

STREAM = "deltafan:{0}:queue:default:normal"
GOOD = {"model": "m", "prompt": "x"}
DEEP = 1_000_000
HUGE = 20 << 20


def _spec(**fields: Any) -> bytes:
    return orjson.dumps(GOOD | fields)


ENTRIES: dict[str, tuple[dict[bytes, bytes], str]] = {
    "malformed": ({b"job": b'{"model":"m","prompt":'}, "job: is not JSON"),
    "empty": ({b"job": b""}, "job: is not JSON"),
    "not_an_object": ({b"job": b'["m","x"]'}, "job: must be a JSON object"),
    "null": ({b"job": b"null"}, "job: must be a JSON object"),
    "two_values": ({b"job": _spec() + _spec()}, "job: is not JSON"),
    "deep_brackets": ({b"job": b"[" * 900_000}, "job: is not JSON"),
    "deep_params": ({b"job": _spec()[:-1] + b',"params":{"a":' + b"[" * 500 + b"]" * 500 + b"}}"}, "nested"),
    "deep_metadata": ({b"job": _spec()[:-1] + b',"metadata":' + b'{"a":' * 900 + b"1" + b"}" * 901}, "nested"),
    "deep_and_too_long": ({b"job": b"[" * DEEP * 2}, f"job: is {2 * DEEP:,} bytes; at most 1,048,576 are taken"),
    "huge": ({b"job": _spec(prompt="x" * HUGE)}, "bytes; at most 1,048,576 are taken"),
    "unknown_version": ({b"job": _spec(v=99)}, "v"),
    "unknown_field": ({b"job": _spec(modell="m")}, "modell"),
    "wrong_types": ({b"job": b'{"model":5,"prompt":["x"],"params":7}'}, "model"),
    "a_text_for_a_number": ({b"job": _spec(max_attempts="many")}, "max_attempts"),
    "not_a_number": ({b"job": _spec()[:-1] + b',"timeout":NaN}'}, "job: is not JSON"),
    "infinite": ({b"job": _spec()[:-1] + b',"timeout":1e999}'}, "job: is not JSON"),
    "another_queue": ({b"job": _spec(queue="other")}, "queue: must be 'default', like the stream's, or left out"),
    "no_queue_name": ({b"job": _spec(queue="{1}:no such\n")}, "queue: must be 'default'"),
    "another_priority": ({b"job": _spec(priority="high")}, "priority: must be 'normal'"),
    "not_utf8": ({b"job": b'{"model":"\xff\xfe","prompt":"x"}'}, "job: is not JSON"),
    "latin1": ({b"job": '{"model":"m","prompt":"naïve"}'.encode("latin-1")}, "job: is not JSON"),
    "utf16": ({b"job": '{"model":"m","prompt":"x"}'.encode("utf-16")}, "job: is not JSON"),
    "nul_bytes": ({b"job": b"\0" * 1000}, "job: is not JSON"),
    "nul_after": ({b"job": _spec() + b"\0"}, "job: is not JSON"),
    "lone_surrogate": ({b"job": b'{"model":"m","prompt":"\\ud800"}'}, "job: is not JSON"),
    "id_of_another_partition": ({b"job": _spec(id="7-mine")}, "id: must be a string: 0- and then 1 to 150"),
    "id_that_is_a_key": ({b"job": _spec(id="0-a}:job:b")}, "id: must be a string: 0-"),
    "id_that_is_too_long": ({b"job": _spec(id="0-" + "x" * 200)}, "id: must be a string: 0-"),
    "id_of_a_wrong_type": ({b"job": _spec(id={"a": 1})}, "id: must be a string: 0-"),
    "our_own_channel": ({b"job": _spec(channel="deltafan:{0}:live:0-a")}, "channel"),
    "no_field_of_ours": ({b"jobs": _spec()}, "job: is required: XADD the job as JSON"),
    "many_fields": ({b"f%d" % n: b"x" for n in range(20_000)}, "job: is required: XADD the job as JSON"),
    "names_that_are_no_text": ({b"\xff\0": b"\xff\0"}, "job: is required: XADD the job as JSON"),
}
"""What is added, and what its dead letter must say."""

IGNORED: dict[str, dict[bytes, bytes]] = {
    "an_id_without_a_record": {b"id": b"0-nobody", b"model": b"m"},
    "an_id_that_is_no_text": {b"id": b"\xff\xfe\0", b"model": b"\xff"},
    "an_id_of_another_partition": {b"id": b"7-nobody", b"model": b"m"},
}
"""Entries as our own enqueue adds them, of jobs that are not there: nothing to run, and nobody to tell."""


async def _add(queue: AsyncQueue, fields: dict[bytes, bytes]) -> str:
    return f"0-default-normal-{(await queue.connections.commands.xadd(STREAM, fields)).decode()}"  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ENTRIES)
async def test_an_entry_that_is_no_job_becomes_a_dead_letter_with_the_reason(
    queue: AsyncQueue, start_worker: StartWorker, name: str
) -> None:
    fields, reason = ENTRIES[name]
    before = await queue.enqueue(GOOD)
    job_id = await _add(queue, fields)
    after = await queue.enqueue(GOOD)
    worker = await start_worker()
    for good in (before, after):
        assert (await good.result(timeout=20)).text
    with pytest.raises(JobFailed) as failed:
        await queue.job(job_id).result(timeout=20)
    assert reason in str(failed.value)
    check_whole([event async for event in queue.job(job_id).events()])
    [letter] = await list_dead(queue.connections.commands, 1, "default")
    assert (letter.job_id, letter.reason) == (job_id, "bad_request")
    assert reason in letter.errors[0]["message"]
    assert len(letter.job) <= 4096
    assert await queue.connections.commands.xlen(STREAM) == 0
    assert not worker.task.done()


@pytest.mark.parametrize("name", IGNORED)
async def test_an_entry_that_names_no_job_there_is_goes_and_leaves_nothing_behind(
    queue: AsyncQueue, start_worker: StartWorker, name: str
) -> None:
    redis = queue.connections.commands
    await _add(queue, IGNORED[name])
    worker = await start_worker()
    assert (await (await queue.enqueue(GOOD)).result(timeout=20)).text

    async def gone() -> bool:
        return await redis.xlen(STREAM) == 0

    await eventually(gone)
    assert not [key async for key in redis.scan_iter(match="*nobody*")]
    assert not worker.task.done()


@pytest.mark.topologies("valkey", "cluster", "sentinel")
@pytest.mark.parametrize("fields", [{b"job": _spec(), b"more": b"x" * 100_000}, {b"more": b"", b"job": _spec()}])
async def test_fields_beside_the_job_do_not_matter(
    queue: AsyncQueue, start_worker: StartWorker, fields: dict[bytes, bytes]
) -> None:
    await start_worker()
    job = queue.job(await _add(queue, fields))

    async def ended() -> bool:
        return bool(await queue.connections.commands.exists(f"deltafan:{{0}}:job:{job.id}"))

    await eventually(ended)
    assert (await job.result(timeout=20)).text


@pytest.mark.topologies("valkey", "cluster")
async def test_every_entry_at_once_harms_no_worker_and_its_memory_stays_bounded(rig: Rig) -> None:
    """Nine of 20 MB and a few of every other kind, all read by one process with good jobs among them."""
    redis = rig.queue.connections.commands
    for _ in range(3):
        await rig.enqueue(TEXT)
    for fields, _ in ENTRIES.values():
        await _add(rig.queue, fields)
    for fields in IGNORED.values():
        await _add(rig.queue, fields)
    for _ in range(8):
        await _add(rig.queue, {b"job": _spec(prompt="x" * HUGE)})
        await rig.enqueue(TEXT)
    worker = await rig.worker()
    await rig.enqueue(TEXT)
    await rig.check()
    letters = await list_dead(redis, rig.settings.partitions, "default")
    assert len(letters) == len(ENTRIES) + 8
    assert worker.child.alive
    assert _peak(worker.pid) < 200 << 20
    log = worker.logged()
    assert "Traceback" not in log
    assert "crashed" not in log


def _peak(pid: int) -> int:
    """The most memory that a process has ever had, in bytes."""
    status = Path(f"/proc/{pid}/status").read_text()
    [line] = [line for line in status.splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) * 1024
