"""The worker that an operator owns: change it freely.

It registers the tools that jobs may name, chooses sinks, routes and settings, and starts the engine. Everything else
comes from the environment: `REDIS_URL`, `OPENAI_API_KEY`, `DELTAFAN_*` (see `deltafan worker --help`).

    python worker/main.py
"""

from __future__ import annotations

import sys
from datetime import datetime
from zoneinfo import ZoneInfo

from deltafan import Deployment, SinkFactory, run_worker, tool
from deltafan.llm import Completions
from deltafan.llm.router import Router


def current_time(timezone: str) -> str:
    """The current date and time in a time zone of the IANA database, such as Europe/Paris."""
    return datetime.now(ZoneInfo(timezone)).isoformat(timespec="seconds")


# A job names its tools: {"model": "gpt-5-mini", "prompt": "What time is it in Paris?", "tools": ["current_time"]}
TOOLS = [tool(current_time)]

# A job uses a sink by its name, too. The log and the job's Redis channel always serve; these come on top. A sink is
# made for each job by an async function that takes a `JobInfo` and gives an object with `emit(batch)` and `aclose()`.
SINKS: dict[str, SinkFactory] = {}

# Names of your own that jobs may use beside every provider/model, with several deployments and fallbacks behind each:
#     [Deployment("openai/gpt-5-mini", "fast", weight=3), Deployment("groq/openai/gpt-oss-20b", "fast")]
DEPLOYMENTS: list[Deployment] = []


def routes(models: Completions) -> Router:
    return Router(DEPLOYMENTS, completions=models, unlisted=True)


if __name__ == "__main__":
    # Settings given here win over the environment, such as `concurrency=64`.
    sys.exit(run_worker(tools=TOOLS, sinks=SINKS, routes=routes))
