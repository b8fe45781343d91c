"""The page over Pusher and over SSE at once: a real worker, a Pusher emulator, and what a network can do to both."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pytest
from aiohttp import web
from playwright.async_api import Page, expect

from deltafan import tool
from deltafan.broker.queue import AsyncQueue
from deltafan.channels import job_channel
from deltafan.devserver.provider import Provider, Script, Text, parse_tool_calls, running
from deltafan.devserver.pusher import PusherEmulator
from deltafan.settings import PusherSettings, RedisSettings, TokenSettings
from deltafan.sinks.pusher.publisher import Publisher
from deltafan.sinks.pusher.sink import pusher_sinks
from tests.browser.kit import answer, events_shown, is_done, job_of, needs_browser, send, turns
from tests.conftest import StartWorker
from tests.e2e.js_client_kit import Publisher as HandPublisher
from tests.e2e.relay_kit import HandWorker, Relay, running_relay
from tests.js_kit import ensure_node_modules, needs_node
from tests.pusher_kit import settings_of

pytestmark = needs_browser

WORDS = "One two three, the quick brown fox jumps over the lazy dog; naïve 漢字 and back again. "
TEXT = WORDS * 12
SLOW = Script(source=Text(TEXT), chunk_size=6, rate=60)
TOKENS = TokenSettings(token_keys=("k1=" + "s" * 40,))


@dataclass
class Everything:
    relay: Relay
    provider: Provider
    pusher: PusherSettings


@pytest.fixture
async def stack(queue: AsyncQueue, emulator: PusherEmulator, start_worker: StartWorker) -> AsyncIterator[Any]:
    """Starts a provider, a worker with the Pusher sink, and a relay."""
    async with AsyncExitStack() as opened:

        async def start(script: Script = SLOW, tools: tuple[Any, ...] = (), **relay: Any) -> Everything:
            settings = settings_of(emulator)
            provider = await opened.enter_async_context(running(script))
            publisher = await opened.enter_async_context(Publisher(settings))
            named = {tool.name: tool for tool in tools}
            await start_worker(provider, {"sinks": {"pusher": pusher_sinks(publisher)}, "tools": named})
            return Everything(
                await opened.enter_async_context(running_relay(queue, pusher=settings, **relay)), provider, settings
            )

        yield start


async def both_are_equal(page: Page, text: str) -> None:
    await is_done(page)
    await expect(page.locator("#verdict")).to_have_attribute("data-equal", "true")
    await expect(page.locator("#verdict")).to_contain_text(f"{len(text):,} characters")
    assert (await turns(page))[-1]["text"] == text


async def test_the_same_job_comes_over_both_ways_at_once_and_both_show_equal_text(stack: Any, page: Page) -> None:
    everything = await stack()
    await page.goto(everything.relay.url)
    await send(page)
    await both_are_equal(page, TEXT)
    for lane in ("sse", "pusher"):
        await expect(page.locator(f"#{lane} .lane-state")).to_have_text("complete")
        assert (await events_shown(page, lane))[-1].startswith("1-")
        await expect(page.locator(f"#{lane} .rows .type").last).to_have_text("done")
    await expect(page.locator("#cost")).not_to_have_text("–")
    await expect(page.locator("#speed")).not_to_have_text("–")


async def test_the_chat_reads_from_pusher_and_a_reload_in_mid_stream_misses_nothing(stack: Any, page: Page) -> None:
    everything = await stack()
    await page.goto(everything.relay.url)
    await page.check("input[value=pusher]")
    await send(page)
    await expect(answer(page)).to_contain_text("quick brown fox")
    await page.reload()
    assert await page.is_checked("input[value=pusher]")
    await expect(page.locator("#state")).to_have_text("streaming")
    await both_are_equal(page, TEXT)


async def test_the_chat_can_change_its_source_in_mid_stream(stack: Any, page: Page) -> None:
    everything = await stack()
    await page.goto(everything.relay.url)
    await send(page)
    await expect(answer(page)).to_contain_text("quick brown fox")
    await page.check("input[value=pusher]")
    await both_are_equal(page, TEXT)
    assert await answer(page).inner_text() == TEXT.strip()


async def test_stop_ends_both_ways(stack: Any, page: Page) -> None:
    everything = await stack(Script(source=Text("word " * 50_000), rate=50))
    await page.goto(everything.relay.url)
    await send(page)
    await expect(answer(page)).to_contain_text("word word")
    await page.click("#stop")
    await is_done(page, "stopped")
    await expect(page.locator("#pusher .lane-state")).to_have_text("cancelled")
    await expect(page.locator("#verdict")).to_have_attribute("data-equal", "true")


async def test_ten_seconds_offline_lose_nothing(stack: Any, page: Page) -> None:
    everything = await stack()
    await page.goto(everything.relay.url)
    await send(page)
    await expect(answer(page)).to_contain_text("quick brown fox")
    await page.click("#cut")
    await expect(page.locator("#state")).to_have_text("offline")
    for lane in ("sse", "pusher"):
        await expect(page.locator(f"#{lane} .lane-state")).to_have_text("reconnecting")
    before = await answer(page).inner_text()
    await everything.provider.until(lambda requests: requests[-1].ended is not None)
    assert await answer(page).inner_text() == before
    await expect(page.locator("#cut")).to_have_text("Cut the network", timeout=20_000)
    await both_are_equal(page, TEXT)
    assert len(before) < len(await answer(page).inner_text())


async def test_reconnect_mends_a_cut_network_at_once_and_renews_sound_connections(
    stack: Any, page: Page, emulator: PusherEmulator
) -> None:
    everything = await stack(Script(source=Text(TEXT), chunk_size=6, rate=12))  # time for all that is done to it
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url) if request.url.endswith("/events") else None)
    await page.goto(everything.relay.url)
    await send(page)
    await expect(answer(page)).to_contain_text("One two")
    await page.click("#cut")
    await expect(page.locator("#state")).to_have_text("offline")
    await page.click("#reconnect")
    await expect(page.locator("#state")).to_have_text("streaming")
    async with page.expect_request("**/events"), page.expect_websocket():
        await page.click("#reconnect")
    await both_are_equal(page, TEXT)
    assert len(asked) >= 3


CUT = """async ([url, path]) => {
  const { Network } = await import("/static/network.js");
  const network = new Network();
  const socket = new network.WebSocket(url);
  await new Promise((resolve) => (socket.onmessage = resolve));
  const closed = new Promise((resolve) => (socket.onclose = resolve));
  const reader = (await network.fetch(path, { headers: { Accept: "text/event-stream" } })).body.getReader();
  await reader.read();
  const broken = (async () => { for (;;) await reader.read(); })().catch((error) => error.constructor.name);
  network.cut();
  const late = new network.WebSocket(url);
  const refused = new Promise((resolve) => (late.onclose = resolve));
  const found = [(await closed).code, await broken, (await refused).code, socket.readyState];
  found.push(await network.fetch(path).catch((error) => error.constructor.name));
  network.mend();
  found.push((await network.fetch(path)).status);
  return found;
}"""


async def test_a_cut_network_breaks_what_is_open_and_lets_nothing_new_through(
    queue: AsyncQueue, emulator: PusherEmulator, page: Page
) -> None:
    async with running_relay(queue, pusher=settings_of(emulator)) as relay:
        await page.goto(relay.url)
        socket = f"ws://{emulator.host}:{emulator.port}/app/{emulator.key}?protocol=7"
        found = await page.evaluate(CUT, [socket, "/v1/stats"])
        assert found == [1006, "TypeError", 1006, 3, "TypeError", 200]
        await emulator.until(lambda emulator: emulator.connection_count == 0)


async def test_events_longer_than_pusher_takes_arrive_whole(stack: Any, page: Page) -> None:
    def library(name: str) -> str:
        """Find a text."""
        return f"{name}: " + "long résumé; " * 3000

    script = Script(
        source=Text(WORDS * 600),
        chunk_size=40_000,
        reasoning="Hm, " * 8000,
        tool_calls=parse_tool_calls('[{"name":"library","arguments":{"name":"' + "x" * 12_000 + '"}}]'),
    )
    everything = await stack(script, (tool(library),))
    await page.goto(everything.relay.url)
    found = await page.evaluate(
        """async () => {
          const body = JSON.stringify({model: "scripted", prompt: "x", tools: ["library"], sinks: ["pusher"]});
          const headers = {"Content-Type": "application/json"};
          return (await fetch("v1/jobs", {method: "POST", headers, body})).json();
        }"""
    )
    await page.goto(f"{everything.relay.url}/#job={found['id']}")
    await is_done(page)
    await expect(page.locator("#verdict")).to_have_attribute("data-equal", "true")
    shown = await page.text_content(".tools .result")
    assert shown == library("x" * 12_000)
    rows = page.locator('#pusher .rows [data-type="tool_result"] .size')
    await expect(rows).to_contain_text("KB")


async def test_a_token_that_expires_in_mid_stream_is_renewed_and_both_ways_go_on(
    redis_settings: RedisSettings, emulator: PusherEmulator, worker: HandWorker, page: Page
) -> None:
    refused: list[tuple[int, str]] = []
    page.on("response", lambda r: refused.append((r.status, r.url)) if r.status == 401 else None)
    tokens = TokenSettings(token_keys=TOKENS.token_keys, token_ttl=2)
    async with (
        AsyncQueue(redis_settings, tokens=tokens) as queue,
        running_relay(
            queue, tokens=tokens, pusher=settings_of(emulator), api_keys=("page-key-123",), reconnect=0.1
        ) as relay,
    ):
        await page.goto(relay.url)
        await page.fill("#key", "page-key-123")
        await send(page)
        work = await worker.take()
        publisher = HandPublisher(emulator, job_channel(work.id))
        await publisher.subscribed()
        await publisher.send(work.claim.meta, *await work.say("before "))
        await expect(answer(page)).to_have_text("before")
        async with page.expect_response(lambda response: response.status == 401):
            pass
        await expect(page.locator("#state")).to_have_text("streaming")
        await publisher.send(*await work.say("after"))
        await expect(answer(page)).to_have_text("before after")
        await publisher.send(await work.finish())
        await both_are_equal(page, "before after")
        assert refused


FOLLOW = """async ([job, token, pusher]) => {
  const { follow } = await import("/client.js");
  const stream = follow(job, { token, pusher });
  try {
    return { text: (await stream.done).text };
  } catch (error) {
    return { code: error.code, status: error.status };
  }
}"""


async def test_a_token_of_another_tenant_or_another_job_opens_neither_way(
    redis_settings: RedisSettings, emulator: PusherEmulator, page: Page
) -> None:
    async with (
        AsyncQueue(redis_settings, tokens=TOKENS) as mine,
        AsyncQueue(redis_settings, tenant="other", tokens=TOKENS) as others,
        running_relay(
            mine,
            tokens=TOKENS,
            pusher=settings_of(emulator),
            api_keys=("default=my-key-0123", "other=their-key-0"),
        ) as relay,
    ):
        job, own = [await mine.enqueue(model="m", prompt="p", sinks=["pusher"]) for _ in range(2)]
        theirs = await others.enqueue(model="m", prompt="p", sinks=["pusher"])
        await page.goto(relay.url)
        for token in (others.token(theirs), mine.token(own), others.token(job.id, subject="*")):
            for pusher in (None, True):
                found = await page.evaluate(FOLLOW, [job.id, token, pusher])
                assert found == {"code": "not_found", "status": 404}
            signed = await page.evaluate(
                """async ([token, channel]) => {
                  const body = new URLSearchParams({ socket_id: "1.2", channel_name: channel });
                  const headers = { Authorization: `Bearer ${token}` };
                  return (await fetch("/pusher/auth", { method: "POST", headers, body })).status;
                }""",
                [token, job_channel(job.id)],
            )
            assert signed == 403
        assert emulator.subscription_count(job_channel(job.id)) == 0


ENCRYPTED = """
const pusher = new Pusher(KEY, {
  wsHost: HOST, wsPort: PORT, forceTLS: false, enabledTransports: ["ws"], cluster: "none", disableStats: true,
  channelAuthorization: { endpoint: `${RELAY}/pusher/auth`, headers: { Authorization: `Bearer ${TOKEN}` } },
});
const channel = pusher.subscribe(CHANNEL);
window.plain = "";
channel.bind("text_delta", (event) => (window.plain += event.text));
channel.bind("pusher:subscription_succeeded", () => (window.subscribed = true));
import(`${RELAY}/client.js`).then(({ follow }) => {
  window.stream = follow(JOB, { relay: RELAY, token: TOKEN, pusher: { client: pusher, channel: CHANNEL } });
});
"""


@asynccontextmanager
async def serving(files: dict[str, str]) -> AsyncIterator[str]:
    """A web app of somebody's own, at an origin of its own, which is given."""

    async def serve(request: web.Request) -> web.Response:
        name = request.match_info["name"]
        return web.Response(text=files[name], content_type="text/html" if name == "page" else "text/javascript")

    app = web.Application()
    app.router.add_get("/{name}", serve)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


@needs_node
async def test_an_encrypted_channel_is_read_by_pusher_js_and_by_the_client_on_top_of_it(
    redis_settings: RedisSettings, emulator: PusherEmulator, start_worker: StartWorker, page: Page
) -> None:
    library = await asyncio.to_thread(
        lambda: (ensure_node_modules() / "node_modules/pusher-js/dist/web/pusher-with-encryption.js").read_text()
    )
    channel = "private-encrypted-chat"
    settings = settings_of(emulator)
    files = {"pusher": library}
    async with (
        AsyncQueue(redis_settings, tokens=TOKENS) as queue,
        running(Script(source=Text(WORDS * 300), chunk_size=9000, rate=20)) as provider,
        Publisher(settings) as publisher,
        serving(files) as origin,
        running_relay(
            queue, tokens=TOKENS, pusher=settings, api_keys=("page-key-123",), cors_origins=(origin,)
        ) as relay,
    ):
        job = await queue.enqueue(model="m", prompt="p", sinks=["pusher"], pusher_channels=[channel])
        known = {"KEY": emulator.key, "HOST": emulator.host, "PORT": emulator.port, "CHANNEL": channel}
        known |= {"JOB": job.id, "TOKEN": queue.token(job), "RELAY": relay.url}
        files["own"] = "".join(f"const {name} = {value!r};\n" for name, value in known.items()) + ENCRYPTED
        files["page"] = (
            "<!doctype html><link rel=icon href=data:,><script src=pusher></script><script src=own></script>"
        )
        await page.goto(f"{origin}/page")
        await page.wait_for_function("window.subscribed && window.stream?.connected")
        await start_worker(provider, {"sinks": {"pusher": pusher_sinks(publisher)}})
        result = await page.evaluate("window.stream.done.then(({ text, gaps }) => ({ text, gaps }))")
        assert result == {"text": WORDS * 300, "gaps": []}
        await page.wait_for_function("length => window.plain.length === length", arg=len(WORDS * 300))
        assert await page.evaluate("window.plain") == WORDS * 300
        assert all(WORDS[:20] not in message.data for message in emulator.on(channel))


async def test_without_pusher_its_lane_says_how_to_switch_it_on(
    queue: AsyncQueue, worker: HandWorker, page: Page
) -> None:
    async with running_relay(queue) as relay:
        await page.goto(relay.url)
        await expect(page.locator("#pusher .lane-off")).to_contain_text("deltafan pusher-emulator")
        await expect(page.locator("input[value=pusher]")).to_be_disabled()
        await send(page)
        work = await worker.take()
        await work.say("Hi")
        await work.finish()
        await is_done(page)
        assert await job_of(page) == work.id
        await expect(page.locator("#verdict")).to_be_hidden()
