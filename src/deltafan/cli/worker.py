"""`deltafan worker`."""

from __future__ import annotations

import sys

from deltafan.cli.base import ReadyJson, new_app
from deltafan.cli.flags import Given, takes_settings
from deltafan.cli.output import errors_shown, print_json
from deltafan.llm import LLMSettings
from deltafan.llm.cache.settings import CacheSettings
from deltafan.llm.limits.settings import LimitSettings
from deltafan.settings import JobLimits, LogSettings, RedisSettings, Retention, WorkerSettings
from deltafan.worker import run_worker

app = new_app()
COMMANDS = {"worker": app}


@app.command(
    epilog=(
        "Examples: `deltafan worker --concurrency 512`, `deltafan worker --processes 4 --drain 60`, "
        "`deltafan worker --queues chat,batch`. Keys of providers are variables, not flags: `OPENAI_API_KEY`, "
        "`ANTHROPIC_API_KEY`, …, and so are their addresses: `OPENAI_BASE_URL`, … To give jobs tools, sinks or routes, "
        "start your own program with `deltafan.run_worker`."
    )
)
@takes_settings(
    WorkerSettings, RedisSettings, LLMSettings, CacheSettings, LimitSettings, Retention, JobLimits, LogSettings
)
def worker(
    given: Given,
    *,
    json: ReadyJson = False,
) -> None:
    """Take jobs from the queues and stream their completions, until SIGTERM or Ctrl-C.

    It then takes no more jobs, lets streams end within the drain time, and hands the rest to other workers; a second
    signal hands them over at once.
    """

    def ready(name: str) -> None:
        if json:
            print_json({"ready": True, "worker": name})

    with errors_shown():
        configuration = given.load()
    sys.exit(run_worker(configuration=configuration, ready=ready))
