"""`deltafan pusher-emulator` as a process."""

from __future__ import annotations

import asyncio
import signal
from asyncio.subprocess import Process

import pytest
from pusher import Pusher
from pusher.errors import PusherBadStatus

from tests.e2e.cli_kit import PATIENCE, cli, end_of, line, running_cli

COMMAND = "pusher-emulator"


async def read_line(process: Process) -> bytes:
    assert process.stdout is not None
    async with asyncio.timeout(PATIENCE):
        return await process.stdout.readline()


def library(variables: dict[str, str]) -> Pusher:
    return Pusher(
        app_id=variables["PUSHER_APP_ID"],
        key=variables["PUSHER_KEY"],
        secret=variables["PUSHER_SECRET"],
        host=variables["PUSHER_HOST"],
        port=int(variables["PUSHER_PORT"]),
        ssl=variables["PUSHER_TLS"] != "false",
    )


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)], ids=["SIGTERM", "SIGINT"])
async def test_the_printed_variables_lead_to_it_and_a_signal_ends_it_in_order(
    number: signal.Signals, code: int
) -> None:
    async with running_cli(COMMAND, "--port", "0", "--app-id", "7", "--key", "k", "--secret", "long enough") as process:
        lines = [(await read_line(process)).decode().strip() for _ in range(6)]
        variables = dict(one.split("=", 1) for one in lines)
        assert {name: variables[name] for name in ("PUSHER_APP_ID", "PUSHER_KEY", "PUSHER_SECRET")} == {
            "PUSHER_APP_ID": "7",
            "PUSHER_KEY": "k",
            "PUSHER_SECRET": "long enough",
        }
        assert await asyncio.to_thread(library(variables).trigger, "a", "e", "x") == {}
        process.send_signal(number)
        ended = await end_of(process)
    assert (ended.code, ended.out) == (code, "")
    assert "Traceback" not in ended.err
    assert "the Pusher emulator listens on http://127.0.0.1:" in ended.err


async def test_with_json_it_prints_one_line_when_ready_and_orders_faults() -> None:
    async with running_cli(COMMAND, "--port", "0", "--json", "--fault", "status=503*1", "--fault", "skew=1") as process:
        ready = await line(process)
        assert ready["ready"] is True
        assert ready["url"] == f"http://127.0.0.1:{ready['variables']['PUSHER_PORT']}"
        server = library(ready["variables"])
        with pytest.raises(PusherBadStatus, match="503"):
            await asyncio.to_thread(server.trigger, "a", "e", "x")
        assert await asyncio.to_thread(server.trigger, "a", "e", "x") == {}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--secret", "short"], "--secret: must be at least 8 printable characters"),
        (["--app-id", "one"], "--app-id: must be 1 to 20 digits"),
        (["--webhook-url", "localhost"], "--webhook-url: must be an http:// or https:// URL"),
        (["--fault", "explode"], "--fault: unknown fault 'explode'"),
        (["--host", "no.such.host.invalid"], "cannot listen on no.such.host.invalid:0"),
    ],
)
async def test_wrong_use_is_said_in_a_line(arguments: list[str], message: str) -> None:
    ended = await cli(COMMAND, "--port", "0", *arguments)
    assert (ended.code, ended.out) == (2, "")
    assert message in ended.err
