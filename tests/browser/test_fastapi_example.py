"""The example of the README, as a user runs it: uvicorn, a browser, a reload in the middle."""

from __future__ import annotations

import asyncio
import importlib.util
import re
import shutil
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import ModuleType

import aiohttp
import pytest
import uvicorn
from fastapi import FastAPI, Header, HTTPException
from fastapi.responses import StreamingResponse
from playwright.async_api import Page, async_playwright, expect

from deltafan.devserver.provider import Script, Text, running
from tests.conftest import StartWorker

CHROMIUM = shutil.which("chromium-headless-shell")
ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "docs" / "examples" / "fastapi_app.py"

needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="needs chromium-headless-shell on the PATH")


def _example(monkeypatch: pytest.MonkeyPatch, redis_url: str) -> ModuleType:
    monkeypatch.setenv("REDIS_URL", redis_url)
    spec = importlib.util.spec_from_file_location("fastapi_app", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "fastapi_app", module)
    spec.loader.exec_module(module)
    return module


@asynccontextmanager
async def _served(app: ModuleType) -> AsyncIterator[str]:
    server = uvicorn.Server(uvicorn.Config(app.app, port=0, log_level="warning", timeout_graceful_shutdown=1))
    task = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        await task


@asynccontextmanager
async def _browser() -> AsyncIterator[Page]:
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield await browser.new_page()
        await browser.close()


@needs_browser
async def test_the_fastapi_example_streams_and_survives_a_reload(
    monkeypatch: pytest.MonkeyPatch, redis_url: str, start_worker: StartWorker
) -> None:
    text = "Rivers run to the sea. " * 20
    async with running(Script(source=Text(text), rate=60)) as paced:
        await start_worker(paced)
        async with _served(_example(monkeypatch, redis_url)) as url, _browser() as page:
            await page.goto(url)
            await page.fill("input", "Tell me")
            await page.click("button")
            await expect(page.locator("#answer")).to_contain_text("Rivers run")
            await page.reload()
            await expect(page.locator("#answer")).to_have_text(text, timeout=15_000)
            answer = await page.request.get(f"{url}/answers/0-nothing")
            assert answer.status == 404
            answer = await page.request.get(f"{url}{'/answers/'}{'x' * 300}")
            assert answer.status == 404


async def test_the_snippets_of_the_readme_stream_and_answer_404_for_an_unknown_job(
    monkeypatch: pytest.MonkeyPatch, redis_url: str, start_worker: StartWorker
) -> None:
    monkeypatch.setenv("REDIS_URL", redis_url)
    readme = ModuleType("readme")
    names = {
        "FastAPI": FastAPI,
        "Header": Header,
        "HTTPException": HTTPException,
        "StreamingResponse": StreamingResponse,
    }
    vars(readme).update(names, app=FastAPI())
    section = (ROOT / "README.md").read_text().partition("## In a web app")[2].partition("\n## ")[0]
    for block in re.findall(r"```python\n(.*?)```", section, re.DOTALL)[:2]:
        exec(block, vars(readme))
    await start_worker()
    async with _served(readme) as url, aiohttp.ClientSession(url) as http:
        async with http.post("/ask", params={"prompt": "Tell me"}) as asked:
            job = (await asked.json())["job"]
        async with http.get(f"/answers/{job}") as answer:
            assert "event: done" in await answer.text()
        for unknown in ("0-nothing", "x" * 300):
            async with http.get(f"/answers/{unknown}") as answer:
                assert answer.status == 404
        async with http.get(f"/answers/{job}", headers={"Last-Event-ID": "nonsense"}) as answer:
            assert answer.status == 404
    await readme.queue.aclose()
