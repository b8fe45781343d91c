"""deltafan.js as an npm package: what `npm pack` makes can be imported, type-checked and used from React."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

from deltafan.broker.queue import AsyncQueue
from tests.e2e.relay_kit import SPEC, HandWorker, running_relay
from tests.js_kit import JS, NODE, NPM, ensure_node_modules, needs_node, script

pytestmark = needs_node

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "src/deltafan/relay/js"


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project that has installed the packed package, React and TypeScript."""
    modules = ensure_node_modules() / "node_modules"
    folder = tmp_path_factory.mktemp("project")
    subprocess.run(
        [NPM or "npm", "pack", "--silent", "--pack-destination", folder, PACKAGE], check=True, capture_output=True
    )
    [tarball] = folder.glob("deltafan-*.tgz")
    shutil.unpack_archive(tarball, folder / "unpacked", filter="data")
    (folder / "node_modules").mkdir()
    (folder / "unpacked/package").rename(folder / "node_modules/deltafan")
    for name in ("react", "react-test-renderer", "typescript"):
        (folder / "node_modules" / name).symlink_to(modules / name)
    for name in ("react.mjs", "example.ts"):
        shutil.copy(JS / "client" / name, folder / name)
    return folder


def test_the_packages_have_one_version() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert json.loads((PACKAGE / "package.json").read_text())["version"] == version
    assert f'export const VERSION = "{version}";' in (PACKAGE / "deltafan.js").read_text()


def test_npm_pack_takes_what_users_need_and_nothing_else(project: Path) -> None:
    package = project / "node_modules/deltafan"
    assert sorted(str(path.relative_to(package)) for path in package.rglob("*")) == [
        "LICENSE",
        "README.md",
        "deltafan.d.ts",
        "deltafan.js",
        "package.json",
        "react.d.ts",
        "react.js",
    ]
    assert (package / "LICENSE").read_text() == (ROOT / "LICENSE").read_text()
    manifest = json.loads((package / "package.json").read_text())
    assert "dependencies" not in manifest
    named = [
        path
        for entry in manifest["exports"].values()
        for path in ([entry] if isinstance(entry, str) else entry.values())
    ]
    assert all((package / path).is_file() for path in named)


def test_the_types_hold_for_what_users_write(project: Path) -> None:
    options = ["--strict", "--noEmit", "--module", "nodenext", "--target", "es2022", "--lib", "es2022,dom,dom.iterable"]
    tsc = project / "node_modules/typescript/bin/tsc"
    done = subprocess.run([NODE or "node", tsc, *options, "example.ts"], cwd=project, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


async def test_use_stream_renders_what_the_stream_is_and_far_less_often_than_events_come(
    project: Path, queue: AsyncQueue, worker: HandWorker
) -> None:
    job = await queue.enqueue(SPEC)
    async with running_relay(queue) as relay:
        argument = json.dumps({"job": job.id, "relay": relay.url})
        async with script(str(project / "react.mjs"), argument) as running:
            await running.until(lambda m: m.get("state") == "queued" and m["connected"])
            work = await worker.take()
            for n in range(300):
                await work.say(f"{n} ")
            await work.finish()
            last = await running.until(lambda m: m.get("state") == "done")
            assert last["text"] == work.text
            assert last["told"] == 302
            assert len(running.said) < 200
            await running.tell({"do": "unmount"})
            await running.ended()


async def test_use_stream_follows_another_job_when_it_is_given_one_and_none_is_idle(
    project: Path, queue: AsyncQueue, worker: HandWorker
) -> None:
    first, second = await queue.enqueue(SPEC), await queue.enqueue(SPEC)
    async with running_relay(queue) as relay:
        argument = json.dumps({"job": None, "relay": relay.url})
        async with script(str(project / "react.mjs"), argument) as running:
            await running.until(lambda m: m.get("state") == "idle")
            await running.tell({"job": first.id})
            work = await worker.take()
            await work.say("first")
            await running.until(lambda m: m.get("text") == "first")
            await running.tell({"job": second.id})
            await running.until(lambda m: m.get("text") == "" and m["state"] == "queued")
            await running.tell({"do": "cancel"})
            assert (await running.until(lambda m: "cancel" in m))["cancel"]["id"] == second.id
            await running.until(lambda m: m.get("state") == "cancelled")
            await running.tell({"do": "unmount"})
            await asyncio.wait_for(running.ended(), 10)


async def test_use_stream_shows_that_redis_has_lost_the_job(
    project: Path, queue: AsyncQueue, worker: HandWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deltafan.broker.hub.AUDIT_INTERVAL", 0.1)
    job = await queue.enqueue(SPEC)
    async with running_relay(queue) as relay:
        argument = json.dumps({"job": job.id, "relay": relay.url})
        async with script(str(project / "react.mjs"), argument) as running:
            await (await worker.take()).say("so far")
            await running.until(lambda m: m.get("text") == "so far")
            await queue.connections.commands.flushall()
            last = await running.until(lambda m: m.get("state") == "closed")
            assert (last["error"], last["text"], last["connected"]) == ("job_gone", "so far", False)
            await running.tell({"do": "unmount"})
            await running.ended()
