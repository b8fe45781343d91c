"""Stream tokens where web apps make them: `Queue.token`, the command line, and the examples of the documentation."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from pathlib import Path
from types import ModuleType
from typing import Any

import aiohttp
import orjson
import pytest
import uvicorn
from typer.testing import CliRunner

from deltafan import AsyncQueue, ConfigurationError, Queue, ValidationError
from deltafan.broker import queue as broker
from deltafan.cli.keys import app as keys_app
from deltafan.cli.token import app as token_app
from deltafan.errors import TokenInvalid
from deltafan.relay.keys import parse_keys
from deltafan.settings import RedisSettings, TokenSettings
from deltafan.tokens import TokenKeys
from tests.e2e.cli_kit import end_of, line, running_cli
from tests.e2e.relay_kit import hand_worker, running_relay, streaming, text_of

NOWHERE = "redis://127.0.0.1:1/0"
ENTRY = f"k1=token-secret-{'x' * 32}"
TOKENS = TokenSettings(token_keys=(ENTRY,))
JOB = "0-01a1f8c1413c5455812d9406fafa"
ACCESS = Path(__file__).parents[2] / "docs" / "access.md"


def verified(token: str) -> Any:
    keys = TokenKeys.of(TOKENS)
    assert keys is not None
    return keys.verify(token)


async def test_a_token_is_made_without_asking_anybody() -> None:
    async with AsyncQueue(NOWHERE, tokens=TOKENS) as queue:
        assert verified(queue.token(JOB)).jobs == {JOB}
        assert verified(queue.job(JOB).token(cancel=True, hide=["reasoning"])).rights == {"read", "cancel"}

    def work() -> None:
        with Queue(NOWHERE, tokens=TOKENS) as blocking:
            assert verified(blocking.token([blocking.job(JOB), "0-b"], ttl=5)).jobs == {JOB, "0-b"}
            assert verified(blocking.job(JOB).token()).jobs == {JOB}
            assert verified(blocking.token(subject="ann", channels=["a*"])).subject == "ann"

    await asyncio.to_thread(work)


async def test_a_token_is_of_the_queues_tenant() -> None:
    async with AsyncQueue(NOWHERE, tenant="acme", tokens=TOKENS) as queue:
        assert verified(queue.token(JOB)).tenant == "acme"
        assert verified(queue.for_tenant("beta").token(JOB)).tenant == "beta"


@pytest.mark.parametrize("url", [None, NOWHERE])
async def test_the_keys_are_those_of_the_environment(monkeypatch: pytest.MonkeyPatch, url: str | None) -> None:
    async with AsyncQueue(url) as queue:
        with pytest.raises(ConfigurationError, match="set DELTAFAN_TOKEN_KEYS"):
            queue.token(JOB)
    monkeypatch.setenv("DELTAFAN_TOKEN_KEYS", ENTRY)
    monkeypatch.setenv("DELTAFAN_TOKEN_TTL", "7")
    async with AsyncQueue(url) as queue:
        assert verified(queue.token(JOB)).jobs == {JOB}
        assert verified(queue.for_tenant("acme").token(JOB)).tenant == "acme"
    async with AsyncQueue(url, tokens=TokenSettings(token_keys=(f"k2=another-{'y' * 32}",))) as queue:
        with pytest.raises(TokenInvalid):
            verified(queue.token(JOB))


def test_a_wrong_key_is_told_where_the_queue_is_made() -> None:
    with pytest.raises(ConfigurationError, match="DELTAFAN_TOKEN_KEYS, entry 1"):
        broker.AsyncQueue(NOWHERE, tokens=TokenSettings(token_keys=("short",)))


async def test_a_scope_is_needed_and_nothing_is_taken_for_one() -> None:
    async with AsyncQueue(NOWHERE, tokens=TOKENS) as queue:
        for wrong in (None, [], "", "not an id", [None], 7.5):
            with pytest.raises(ValidationError):
                queue.token(wrong)  # type: ignore[arg-type]
        with pytest.raises(ValidationError, match="hide"):
            queue.token(JOB, hide=["everything"])  # type: ignore[list-item]


def test_the_command_line_makes_tokens_and_names_flags_that_are_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DELTAFAN_TOKEN_KEYS", raising=False)
    run = CliRunner().invoke
    without = run(token_app, ["--job", JOB])
    assert (without.exit_code, without.stdout) == (2, "")
    assert "DELTAFAN_TOKEN_KEYS" in without.stderr
    scope = ["--job", JOB, "--job", "0-b", "--channel", "a-*", "--subject", "ann", "--hide", "reasoning", "--cancel"]
    made = run(token_app, [*scope, "--ttl", "9", "--tenant", "acme", "--token-keys", ENTRY])
    assert (made.exit_code, made.stdout.count("\n")) == (0, 1)
    grant = verified(made.stdout.strip())
    assert (grant.tenant, grant.jobs, grant.channels) == ("acme", {JOB, "0-b"}, ("a-*",))
    assert (grant.subject, grant.rights, grant.hide) == ("ann", {"read", "cancel"}, {"reasoning"})
    for flags, named in (
        ([], "a token needs a scope"),
        (["--job", "x"], "--job: "),
        (["--channel", "a b"], "--channel: "),
        (["--subject", ""], "--subject: "),
        (["--job", JOB, "--ttl", "-1"], "--ttl: "),
        (["--job", JOB, "--hide", "x"], "--hide: "),
    ):
        wrong = run(token_app, [*flags, "--token-keys", ENTRY])
        assert (wrong.exit_code, wrong.stdout) == (2, "")
        assert named in wrong.stderr


def test_a_new_key_is_shown_once_and_its_entry_takes_it() -> None:
    run = CliRunner().invoke
    made = run(keys_app, ["new", "--tenant", "acme", "--rights", "read+enqueue", "--json"])
    said = orjson.loads(made.stdout)
    found = parse_keys([said["entry"]]).find(said["key"])
    assert found is not None
    assert (found.tenant, found.rights) == ("acme", {"enqueue", "read"})
    assert said["key"] not in said["entry"]
    plain = run(keys_app, ["new"])
    key, entry = plain.stdout.split()
    assert parse_keys([entry.removeprefix("DELTAFAN_API_KEYS=")]).find(key) is not None
    assert key != said["key"]
    for flags, named in ((["--tenant", "a b"], "--tenant: "), (["--rights", "all"], "--rights: ")):
        wrong = run(keys_app, ["new", *flags])
        assert (wrong.exit_code, wrong.stdout) == (2, "")
        assert named in wrong.stderr


async def test_a_relay_as_a_process_takes_tokens_and_knows_pusher_from_its_environment(redis_url: str) -> None:
    env = {
        "REDIS_URL": redis_url,
        "DELTAFAN_TOKEN_KEYS": ENTRY,
        "PUSHER_APP_ID": "1",
        "PUSHER_KEY": "the-key",
        "PUSHER_SECRET": "the-secret",
        "PUSHER_CLUSTER": "eu",
    }
    async with running_cli("relay", "--port", "0", "--json", **env) as process, aiohttp.ClientSession() as http:
        url = (await line(process))["url"]
        spec = {"model": "m", "prompt": "p", "sinks": ["pusher"]}
        async with http.post(f"{url}/v1/jobs", json=spec) as response:
            job = await response.json()
        assert verified(job["token"]).jobs == {job["id"]}
        assert job["pusher"]["cluster"] == "eu"
        form = {"socket_id": "1.2", "channel_name": job["pusher"]["channels"][0]}
        bearer = {"Authorization": f"Bearer {job['token']}"}
        async with http.post(url + job["pusher"]["auth_url"], data=form, headers=bearer) as response:
            assert (await response.json())["auth"].startswith("the-key:")
        process.terminate()
        ended = await end_of(process)
    assert ended.code == 0, ended.err
    assert "the-secret" not in ended.err


async def test_an_open_relay_says_that_it_is(redis_url: str) -> None:
    for keys, said in (("", True), ("acme=acme-key-22", False)):
        async with running_cli("relay", "--port", "0", REDIS_URL=redis_url, DELTAFAN_API_KEYS=keys) as process:
            assert process.stderr is not None
            async with asyncio.timeout(30):
                text = ""
                while "the relay listens" not in text:
                    text = (await process.stderr.readline()).decode()
        assert ("open to whoever is on this machine" in text) is said


@pytest.fixture
async def fastapi_example(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[str]:
    """The example of the documentation, as it stands there, on a port of its own."""
    monkeypatch.setenv("REDIS_URL", redis_url)
    monkeypatch.setenv("DELTAFAN_TOKEN_KEYS", ENTRY)
    (code,) = re.findall(r"```python\n(from typing[^`]*FastAPI[^`]*)```", ACCESS.read_text())
    module = ModuleType("example")
    exec(code, module.__dict__)
    server = uvicorn.Server(uvicorn.Config(module.__dict__["app"], port=0, log_level="warning", lifespan="on"))
    task = asyncio.create_task(server.serve())
    async with asyncio.timeout(20):
        while not server.started:
            await asyncio.sleep(0.01)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    await task


async def test_the_fastapi_example_lets_each_user_follow_their_own_jobs(
    fastapi_example: str, redis_settings: RedisSettings
) -> None:
    async with (
        broker.AsyncQueue(redis_settings) as queue,
        running_relay(queue, tokens=TOKENS, api_keys=("default-key-1",)) as relay,
        hand_worker(redis_settings) as worker,
        aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar()) as http,
    ):
        ann, bob = {"Cookie": "session=session-of-ann"}, {"Cookie": "session=session-of-bob"}
        async with http.post(f"{fastapi_example}/ask", json={"prompt": "Hello"}) as response:
            assert response.status == 401
        async with http.post(f"{fastapi_example}/ask", json={"prompt": "Hello"}, headers=ann) as response:
            asked = await response.json()
        work = await worker.take()
        await work.say("Hello")
        await work.finish()
        async with http.post(f"{fastapi_example}/stream-token", headers=bob) as response:
            other = (await response.json())["token"]
        async with http.post(f"{fastapi_example}/stream-token", headers=ann) as response:
            mine = (await response.json())["token"]
        for token in (asked["token"], mine):
            async with streaming(http, relay.url, asked["job"], Authorization=f"Bearer {token}") as stream:
                assert text_of(await stream.rest()) == "Hello"
        async with http.get(
            f"{relay.url}/v1/jobs/{asked['job']}/events", headers={"Authorization": f"Bearer {other}"}
        ) as response:
            assert response.status == 404
