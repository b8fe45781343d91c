"""A web app that streams a model's answer: enqueue in one request, follow in another, reload at will.

pip install deltafan fastapi uvicorn
./run serve                                    # Redis, a provider, a worker and the relay
REDIS_URL=<as serve prints it> uvicorn fastapi_app:app
open http://127.0.0.1:8000
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated

from fastapi import Body, FastAPI, Header, HTTPException
from fastapi.responses import HTMLResponse, StreamingResponse

from deltafan import AsyncQueue, JobNotFound, ValidationError

queue = AsyncQueue()  # REDIS_URL says where


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    yield
    await queue.aclose()


app = FastAPI(lifespan=lifespan)


@app.post("/ask")
async def ask(prompt: Annotated[str, Body(embed=True)]) -> dict[str, str]:
    """Returns at once; a worker does the rest."""
    job = await queue.enqueue(model="gpt-5-mini", prompt=prompt, cancel_if_abandoned=300)
    return {"job": job.id}


@app.get("/answers/{job_id}")
async def answer(job_id: str, last_event_id: Annotated[str | None, Header()] = None) -> StreamingResponse:
    """Here goes your own check of who may see this answer. The browser resumes by itself, with Last-Event-ID."""
    try:
        job = queue.job(job_id)
        await job.status()
        frames = job.sse(last_event_id)
    except (JobNotFound, ValidationError):
        raise HTTPException(404) from None
    headers = {"Cache-Control": "no-cache, no-transform", "X-Accel-Buffering": "no"}
    return StreamingResponse(frames, media_type="text/event-stream", headers=headers)


@app.get("/")
async def page() -> HTMLResponse:
    return HTMLResponse(PAGE)


PAGE = """<!doctype html>
<meta charset="utf-8"><title>Ask</title>
<form><input name="prompt" placeholder="Ask something" required><button>Ask</button></form>
<p id="answer" style="white-space: pre-wrap"></p>
<script type="module">
  const answer = document.querySelector("#answer");
  function follow(job) {
    const source = new EventSource(`/answers/${job}`);
    source.addEventListener("meta", (e) => { if (!JSON.parse(e.data).continued) answer.textContent = ""; });
    source.addEventListener("text_delta", (e) => { answer.append(JSON.parse(e.data).text); });
    source.addEventListener("error", (e) => { if (e.data) answer.append(`\\n[${JSON.parse(e.data).message}]`); });
    source.addEventListener("done", () => source.close());
  }
  document.querySelector("form").addEventListener("submit", async (e) => {
    e.preventDefault();
    const prompt = new FormData(e.target).get("prompt");
    const reply = await fetch("/ask", {
      method: "POST", headers: {"Content-Type": "application/json"}, body: JSON.stringify({prompt}),
    });
    location.hash = (await reply.json()).job;  // so that a reload finds the answer again
    follow(location.hash.slice(1));
  });
  if (location.hash) follow(location.hash.slice(1));
</script>
"""
