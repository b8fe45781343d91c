"""deltafan.js and the relay's access: tokens that expire, channels that need a signature or are encrypted."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator

import pytest

from deltafan.broker.queue import AsyncQueue
from deltafan.devserver.pusher import PusherEmulator
from deltafan.settings import PusherSettings, RedisSettings, TokenSettings
from tests.e2e.js_client_kit import Publisher, following
from tests.e2e.relay_kit import SPEC, HandWorker, running_relay
from tests.js_kit import needs_node

pytestmark = needs_node

TOKENS = TokenSettings(token_keys=("k1=" + "s" * 40,))
KEYS = ("default-key-1",)
MASTER = base64.b64encode(bytes(range(32))).decode()
QUICK = {"heartbeat": 0.1, "reconnect": 0.05, "api_keys": KEYS}


@pytest.fixture
async def queue(redis_settings: RedisSettings) -> AsyncIterator[AsyncQueue]:
    async with AsyncQueue(redis_settings, tokens=TOKENS) as opened:
        yield opened


@pytest.fixture
def pusher_settings(emulator: PusherEmulator) -> PusherSettings:
    return PusherSettings(
        app_id=emulator.app_id,
        key=emulator.key,
        secret=emulator.secret,
        host=emulator.host,
        port=emulator.port,
        tls=False,
        encryption_master_key=MASTER,
    )


async def test_a_token_that_expires_mid_stream_is_renewed_and_the_stream_goes_on_from_its_cursor(
    queue: AsyncQueue, worker: HandWorker
) -> None:
    job = await queue.enqueue(SPEC)
    tokens = {"function": [queue.token(job, ttl=2), queue.token(job, ttl=60)]}
    async with (
        running_relay(queue, tokens=TOKENS, **QUICK) as relay,
        following(job.id, relay=relay.url, token=tokens) as follower,
    ):
        assert (await follower.until("asked_token"))["reason"] == "initial"
        work = await worker.take()
        await work.say("before ")
        await follower.until_event("1-1")
        assert await follower.until("asked_token") == {"jobId": job.id, "reason": "token_expired"}
        await work.say("after")
        await work.finish()
        await follower.whole("before after")


async def test_an_expired_token_without_a_function_ends_the_following_and_says_so(queue: AsyncQueue) -> None:
    job = await queue.enqueue(SPEC)
    async with (
        running_relay(queue, tokens=TOKENS, **QUICK) as relay,
        following(job.id, relay=relay.url, token=queue.token(job, ttl=2)) as follower,
    ):
        error = await follower.ended_by()
    assert (error["code"], error["status"], error["fatal"]) == ("token_expired", 401, True)


async def test_a_function_that_gives_refused_tokens_is_not_asked_for_ever(queue: AsyncQueue) -> None:
    job = await queue.enqueue(SPEC)
    async with (
        running_relay(queue, tokens=TOKENS, **QUICK) as relay,
        following(job.id, relay=relay.url, token={"function": ["bad", "worse", "worst"]}) as follower,
    ):
        error = await follower.ended_by()
    assert error["status"] == 401
    assert len([m for m in follower.script.said if "asked_token" in m]) == 2


async def test_a_token_of_another_job_sees_nothing_and_one_that_reads_may_not_cancel(queue: AsyncQueue) -> None:
    job, other = await queue.enqueue(SPEC), await queue.enqueue(SPEC)
    async with running_relay(queue, tokens=TOKENS, **QUICK) as relay:
        async with following(job.id, relay=relay.url, token=queue.token(other)) as follower:
            assert (await follower.ended_by())["status"] == 404
        async with following(job.id, relay=relay.url, token=queue.token(job)) as follower:
            await follower.until_joined()
            await follower.do("cancel")
            assert (await follower.until("cancel"))["status"] == 403
            await follower.do("close")
            await follower.ended_by()


async def test_pusher_true_asks_the_relay_where_to_listen_and_for_the_signature(
    queue: AsyncQueue, worker: HandWorker, emulator: PusherEmulator, pusher_settings: PusherSettings
) -> None:
    job = await queue.enqueue(SPEC, sinks=["pusher"])
    publisher = Publisher(emulator, f"private-job-{job.id}")
    async with (
        running_relay(queue, tokens=TOKENS, pusher=pusher_settings, **QUICK) as relay,
        following(job.id, relay=relay.url, token=queue.token(job), pusher=True, silence=600_000) as follower,
    ):
        await follower.until_joined()
        work = await worker.take()
        await publisher.send(work.claim.meta, *await work.say("signed"))
        await follower.until_event("1-1")
        await publisher.send(await work.finish())
        await follower.whole("signed")


@pytest.mark.parametrize("own", [False, True], ids=["built in", "pusher-js"])
async def test_a_subscription_that_is_refused_is_told_and_the_relays_own_stream_stands_in(
    queue: AsyncQueue, worker: HandWorker, emulator: PusherEmulator, pusher_settings: PusherSettings, own: bool
) -> None:
    job = await queue.enqueue(SPEC, sinks=["pusher"])
    token = queue.token(job)
    async with running_relay(queue, tokens=TOKENS, pusher=pusher_settings, **QUICK) as relay:
        authorization = {"endpoint": f"{relay.url}/pusher/auth", "headers": {"Authorization": f"Bearer {token}"}}
        place = {"wsHost": emulator.host, "wsPort": emulator.port, "forceTLS": False, "enabledTransports": ["ws"]}
        client = {"key": emulator.key, "options": place | {"cluster": "", "channelAuthorization": authorization}}
        pusher = {"channel": "private-of-others"} | ({"client": client} if own else {})
        async with following(job.id, patience=4_000, relay=relay.url, token=token, pusher=pusher) as follower:
            error = await follower.until("error")
            assert (error["code"], error["status"], error["fatal"]) == ("pusher" if own else "forbidden", 403, False)
            await follower.until_connected()
            work = await worker.take()
            await work.say("over ")
            await follower.until_event("1-1")
            await work.say("the relay")
            await work.finish()
            await follower.whole("over the relay")
    assert len([m for m in follower.script.said if "error" in m]) == 1


async def test_an_encrypted_channel_is_followed_with_the_pages_own_pusher_js(
    queue: AsyncQueue, worker: HandWorker, emulator: PusherEmulator, pusher_settings: PusherSettings
) -> None:
    channel = "private-encrypted-answers"
    job = await queue.enqueue(SPEC, sinks=["pusher"], pusher_channels=[channel])
    token = queue.token(job)
    publisher = Publisher(emulator, channel, MASTER)
    async with running_relay(queue, tokens=TOKENS, pusher=pusher_settings, **QUICK) as relay:
        async with following(job.id, relay=relay.url, token=token, pusher=True) as follower:
            assert (await follower.ended_by())["code"] == "encrypted_channel"
        authorization = {"endpoint": f"{relay.url}/pusher/auth", "headers": {"Authorization": f"Bearer {token}"}}
        place = {"wsHost": emulator.host, "wsPort": emulator.port, "forceTLS": False, "enabledTransports": ["ws"]}
        client = {"key": emulator.key, "options": place | {"cluster": "", "channelAuthorization": authorization}}
        async with following(
            job.id, relay=relay.url, token=token, pusher={"client": client}, silence=600_000
        ) as follower:
            await follower.until_joined()
            work = await worker.take()
            await publisher.send(work.claim.meta, *await work.say("sealed"))
            await follower.until_event("1-1")
            await publisher.send(await work.finish())
            await follower.whole("sealed")
