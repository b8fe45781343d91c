"""`./run bench [worker] [first_token] [takeover] [cancel]`: all of them by default."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable

from rich.console import Console
from rich.table import Table

from tests.bench import cancel, first_token, takeover, worker_cpu
from tests.bench.report import Row

BENCHES: dict[str, Callable[[], Awaitable[list[Row]]]] = {
    "worker": worker_cpu.measure,
    "first_token": first_token.measure,
    "takeover": takeover.measure,
    "cancel": cancel.measure,
}


async def main(names: list[str]) -> None:
    console = Console(width=120)
    table = Table("what", "deltafan", "peer", "ratio", "how", title="medians of one run")
    for name in names or BENCHES:
        console.print(f"[dim]{name} …[/dim]")
        for row in await BENCHES[name]():
            table.add_row(*row.cells())
    console.print(table)


if __name__ == "__main__":
    unknown = set(sys.argv[1:]) - set(BENCHES)
    if unknown:
        sys.exit(f"bench: no {', '.join(sorted(unknown))}; there are {', '.join(BENCHES)}")
    asyncio.run(main(sys.argv[1:]))
