"""`deltafan tail`."""

from __future__ import annotations

from typing import Annotated

import typer

from deltafan.cli.base import JobId, Json, new_app
from deltafan.cli.flags import Given, takes_settings
from deltafan.cli.following import follow_job, open_queue
from deltafan.cli.output import fields_as_flags, run
from deltafan.settings import ClientSettings, RedisSettings
from deltafan.wire import parse_event_id

app = new_app()
COMMANDS = {"tail": app}


@app.command(
    epilog="Examples: `deltafan tail JOB`, `deltafan tail JOB --after 1-42`, `deltafan tail JOB --json | jq .text`."
)
@takes_settings(ClientSettings, RedisSettings)
def tail(
    given: Given,
    job: JobId,
    *,
    after: Annotated[str | None, typer.Option(metavar="ID", help="Only what follows this event, such as 1-42.")] = None,
    json: Json = False,
) -> None:
    """Show a job's output, from its beginning or from an event on, live until it ends.

    The exit code tells how the job ended: 0 done, 1 failed, cancelled or expired.
    """
    run(_tail(given, job, after, json))


async def _tail(given: Given, job: str, after: str | None, json: bool) -> None:
    configuration = given.load()
    with fields_as_flags("job"):
        cursor = parse_event_id(after) if after is not None else None
        async with open_queue(configuration) as queue:
            await follow_job(queue.job(job), cursor, json=json)
