"""What is wrong is told in a line or two that name the flag or the variable, and the rule; never a traceback."""

from __future__ import annotations

import asyncio

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from deltafan.cli.app import app
from deltafan.devserver.cluster import EmbeddedCluster
from deltafan.devserver.sentinel import EmbeddedSentinel
from tests.e2e.cli_kit import cli, environment

AWAY = "redis://127.0.0.1:1/0"


@pytest.fixture
def clean(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """This process with a user's environment."""
    for name in list(environment()):
        monkeypatch.setenv(name, environment()[name])
    for name in ("REDIS_URL", "OPENAI_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


WRONG = [
    (["enqueue"], "give either `prompt` or `messages`"),
    (["enqueue", ""], "prompt: "),
    (["enqueue", "x", "--param", "temperature"], "--param: must be KEY=JSON"),
    (["enqueue", "x", "--param", "effort=low"], "must be JSON; a text is written in quotes"),
    (["enqueue", "x", "--param", "stream=true"], "--params: stream is not allowed"),
    (["enqueue", "x", "--metadata", "=1"], "--metadata: must be KEY=VALUE"),
    (["enqueue", "x", "--messages", "/nowhere.json"], "--messages: /nowhere.json cannot be read"),
    (["enqueue", "x", "--queue", "A B"], "--queue: "),
    (["enqueue", "x", "--priority", "urgent"], "'--priority'"),
    (["enqueue", "x", "--delay", "soon"], "'--delay'"),
    (["enqueue", "x", "--delay", "-1"], "--delay: "),
    (["enqueue", "x", "--delay", "1", "--run-at", "2030-01-31T09:00:00Z"], "`delay` or `run_at`"),
    (["enqueue", "x", "--run-at", "tomorrow"], "--run-at: must be a time"),
    (["enqueue", "x", "--run-at", "2030-01-31T09:00:00"], "--run-at: must have a UTC offset"),
    (["enqueue", "x", "--expires-in", "0"], "--expires-in: "),
    (["enqueue", "x", "--timeout", "nan"], "--timeout: "),
    (["enqueue", "x", "--max-attempts", "0"], "--max-attempts: "),
    (["enqueue", "x", "--on-takeover", "panic"], "'--on-takeover'"),
    (["enqueue", "x", "--cancel-if-abandoned", "0"], "--cancel-if-abandoned: "),
    (["enqueue", "x", "--retention", "0"], "--retention: "),
    (["enqueue", "x", "--channel", "deltafan:x"], "--channel: is reserved"),
    (["enqueue", "x", "--sink", "A"], "--sinks"),
    (["enqueue", "x", "--idempotency-key", ""], "--idempotency-key: "),
    (["enqueue", "x", "--model", ""], "--model: "),
    (["tail", "no such id"], "job: must be a job id"),
    (["tail", "0-a", "--after", "x"], "--after: must be an event id"),
    (["show", "x"], "must be a job id"),
    (["cancel", "x"], "must be a job id"),
    (["jobs", "--state", "odd"], "'--state'"),
    (["jobs", "--limit", "0"], "'--limit'"),
    (["jobs", "--cursor", "x"], "--cursor: must be the cursor"),
    (["dead", "retry"], "give either a job's id or --all"),
    (["dead", "drop", "0-a", "--all"], "give either a job's id or --all"),
    (["worker", "--concurrency", "0"], "--concurrency: must be greater than or equal to 1"),
    (["worker", "--queues", "ok,Not Ok"], "--queues, entry 2: "),
    (["worker", "--queues", ","], "--queues: must name at least one"),
    (["worker", "--drain", "-1"], "--drain: "),
    (["worker", "--default-provider", "nobody"], "--default-provider: must be one of"),
    (["worker", "--log-level", "loud"], "--log-level: must be 'debug'"),
    (["relay", "--port", "70000"], "--port: "),
    (["relay", "--host", "0.0.0.0"], "set DELTAFAN_API_KEYS or bind to 127.0.0.1"),
    (["relay", "--api-keys", "short"], "DELTAFAN_API_KEYS, entry 1: the key must be 8 or more"),
    (["relay", "--redis-url", "http://u:hunter2@h"], "REDIS_URL 'http://u:***@h' is not usable"),
    (["provider", "--text", "a", "--echo"], "--echo: cannot be combined with text"),
    (["provider", "--text-file", "/nowhere"], "--text-file: /nowhere cannot be read"),
    (["provider", "--rate", "-1"], "--rate: must be"),
    (["provider", "--chunk-size", "0"], "--chunk-size: must be"),
    (["provider", "--fault", "gremlins"], "--fault: unknown fault 'gremlins'"),
    (["provider", "--tool-calls", "{"], "--tool-calls: is not JSON"),
    (["provider", "--port", "x"], "'--port'"),
    (["tail"], "Missing argument 'JOB'"),
    (["nonsense"], "No such command 'nonsense'"),
    (["worker", "--nonsense"], "No such option"),
]


@pytest.mark.parametrize(
    ("arguments", "message"), WRONG, ids=lambda value: " ".join(value) if isinstance(value, list) else ""
)
def test_bad_input_is_named_and_ends_with_2(clean: pytest.MonkeyPatch, arguments: list[str], message: str) -> None:
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2, result.output
    assert message in " ".join(result.stderr.split())
    assert "hunter2" not in result.output
    assert result.stdout == ""


@pytest.mark.parametrize(
    "arguments",
    [["enqueue", "x"], ["tail", "0-a"], ["show", "0-a"], ["cancel", "0-a"], ["jobs"], ["dead", "list"]],
    ids=" ".join,
)
def test_redis_away_is_told_and_ends_with_1(clean: pytest.MonkeyPatch, arguments: list[str]) -> None:
    result = CliRunner().invoke(app, [*arguments, "--redis-url", AWAY])
    assert result.exit_code == 1, result.output
    assert "deltafan: Redis cannot be reached" in result.stderr


async def test_an_unknown_job_ends_with_1(redis_url: str) -> None:
    ended = await cli("show", "0-nobody", REDIS_URL=redis_url)
    assert ended.code == 1
    assert ended.err == "deltafan: no job '0-nobody': it never was, or its record has expired\n"


async def test_a_wrong_password_is_told_without_it(redis_url: str) -> None:
    ended = await cli("jobs", REDIS_URL=redis_url.replace("//", "//nobody:hunter2@"))
    assert ended.code == 2
    assert "Redis refused us" in ended.err
    assert "hunter2" not in ended.err


async def refused_by_all(url: str, rule: str) -> None:
    """Each command that asks Redis ends with 2 and one line; the doctor tells the same as a finding."""
    commands = (["enqueue", "x"], ["jobs"], ["worker"], ["relay", "--port", "0"])
    ended = await asyncio.gather(*(cli(*command, REDIS_URL=url) for command in commands))
    for command, end in zip(commands, ended, strict=True):
        told = end.err.splitlines()
        assert (command, end.code, len(told)) == (command, 2, 1), end.err
        assert rule in told[0]
    found = await cli("doctor", "--no-provider", "--json", REDIS_URL=url)
    assert found.code == 1
    [fail] = [finding for finding in found.json() if finding["level"] == "fail"]
    assert (fail["check"], rule in fail["seen"]) == ("redis", True), fail


async def test_a_database_that_is_not_there_is_told(redis_url: str) -> None:
    await refused_by_all(redis_url.rpartition("/")[0] + "/99", "no such database")


async def test_a_plain_server_in_place_of_a_cluster_is_told(redis_url: str) -> None:
    address = redis_url.partition("://")[2].partition("/")[0]
    await refused_by_all(f"redis+cluster://{address}", "this server is no cluster: write redis://")


async def test_a_node_of_a_cluster_in_place_of_a_single_server_is_told() -> None:
    async with EmbeddedCluster() as cluster:
        other = cluster.nodes[(await cluster.owner_of(0) + 1) % 3]
        await refused_by_all(other.url, "this is a node of a cluster: write redis+cluster://")


async def test_a_sentinel_in_place_of_a_server_is_told() -> None:
    async with EmbeddedSentinel() as behind:
        address = f"127.0.0.1:{behind.sentinels[0].port}"
        for url in (f"redis://{address}", f"redis+cluster://{address}"):
            await refused_by_all(url, "write redis+sentinel://host:port/name")


async def test_tls_to_a_server_without_it_is_told(redis_url: str) -> None:
    url = redis_url.replace("redis://", "rediss://")
    ended = await cli("jobs", REDIS_URL=url, DELTAFAN_COMMAND_TIMEOUT="1")
    assert ended.code == 1
    assert "does it speak TLS?" in ended.err


async def test_a_misspelt_variable_is_named_with_the_one_that_was_meant() -> None:
    ended = await cli("jobs", DELTAFAN_CONCURENCY="8")
    assert ended.code == 2
    assert ended.err == "deltafan: DELTAFAN_CONCURENCY: is not a setting; did you mean DELTAFAN_CONCURRENCY?\n"


async def test_every_command_has_help_with_an_example(clean: pytest.MonkeyPatch) -> None:
    names = get_command(app).list_commands(None)  # type: ignore[attr-defined]
    for name in (
        *([n] for n in names if n not in ("dead", "keys", "version")),
        ["keys", "new"],
        ["dead", "list"],
        ["dead", "retry"],
        ["dead", "drop"],
    ):
        result = CliRunner().invoke(app, [*name, "--help"])
        assert result.exit_code == 0
        assert f"deltafan {' '.join(name)}" in result.stdout
        assert "Example" in result.stdout


async def test_the_version_is_printed() -> None:
    assert (await cli("--version")).out == (await cli("version")).out
