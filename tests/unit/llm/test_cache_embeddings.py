"""Vectors from the cache."""

from __future__ import annotations

import hashlib
import struct
from pathlib import Path

import pytest

from deltafan.errors import CompletionError
from deltafan.events import Usage
from deltafan.llm.cache import CachedEmbedder, CorruptEntry, embedding_keys
from deltafan.llm.cache.embeddings import Vector, decode, encode
from deltafan.llm.cache.fs import FsCache
from deltafan.llm.embeddings import EmbeddingRequest, EmbeddingResult
from deltafan.telemetry.hooks import Signal

REQUEST = EmbeddingRequest("text-embedding-3-small", ["one", "two", "one", "three"])


def vector(text: object) -> list[float]:
    """In single precision, as providers send it."""
    return list(
        struct.unpack("<4f", struct.pack("<4f", *(b / 7 for b in hashlib.sha256(str(text).encode()).digest()[:4])))
    )


class Hashes:
    """Embeds a text as its hash, a token a text."""

    def __init__(self) -> None:
        self.asked: list[list[object]] = []

    async def embed(self, request: EmbeddingRequest) -> EmbeddingResult:
        self.asked.append(list(request.inputs))
        count = len(request.inputs)
        usage = Usage(count, 0, count, cost_usd=count / 8, source="reported")
        return EmbeddingResult([vector(text) for text in request.inputs], usage, "openai", "small-1", "r1")


async def test_each_missing_text_is_asked_for_once_and_the_order_kept(tmp_path: Path) -> None:
    inner = Hashes()
    ring = CachedEmbedder(inner, FsCache(tmp_path))
    first = await ring.embed(REQUEST)
    assert first.vectors == [vector(text) for text in REQUEST.inputs]
    assert first.usage.prompt_tokens == 3
    more = await ring.embed(EmbeddingRequest(REQUEST.model, ["four", "two"]))
    assert more.vectors == [vector("four"), vector("two")]
    assert (more.usage.prompt_tokens, more.usage.cost_usd) == (1, 0.125), "of what was asked"
    again = await ring.embed(REQUEST)
    assert again.vectors == first.vectors, "to the last bit"
    assert (again.usage.total_tokens, again.usage.cost_usd) == (0, 0.0)
    assert (again.provider, again.model) == ("openai", "small-1")
    assert inner.asked == [["one", "two", "three"], ["four"]]


async def test_the_options_hold_for_vectors_too(tmp_path: Path) -> None:
    inner = Hashes()
    ring = CachedEmbedder(inner, FsCache(tmp_path))

    async def embed(**options: object) -> None:
        await ring.embed(EmbeddingRequest(REQUEST.model, ["one"], options=options))

    await embed(cache_response=False)
    await embed()
    await embed(tenant="other")
    await embed(rewrite_cache=True)
    assert len(inner.asked) == 4
    await embed()
    assert len(inner.asked) == 4
    with pytest.raises(CompletionError, match="ttl"):
        await embed(ttl=-1)


async def test_a_spoiled_vector_is_asked_for_again_with_a_warning(tmp_path: Path) -> None:
    inner, cache, signals = Hashes(), FsCache(tmp_path), list[Signal]()
    ring = CachedEmbedder(inner, cache, hook=signals.append)
    await ring.embed(REQUEST)
    keys = embedding_keys(REQUEST)
    assert keys is not None
    await cache.set(keys[1], b'{"v":1,"type":"f","provider":"","model":"","vector":"!"}')
    assert (await ring.embed(REQUEST)).vectors == [vector(text) for text in REQUEST.inputs]
    assert inner.asked[1:] == [["two"]]
    assert [signal.name for signal in signals] == ["cache.corrupt"]


async def test_no_inputs_are_no_request(tmp_path: Path) -> None:
    inner = Hashes()
    result = await CachedEmbedder(inner, FsCache(tmp_path)).embed(EmbeddingRequest(REQUEST.model, []))
    assert (result.vectors, inner.asked) == ([], [])


@pytest.mark.parametrize("values", [[], [0.5, -1.0], [0.1], [1e300, 1e-300], [float("inf")]])
def test_vectors_come_back_to_the_last_bit(values: list[float]) -> None:
    assert decode(encode(Vector(values, "p", "m"))) == Vector(values, "p", "m")


@pytest.mark.parametrize(
    "data", [b"", b"[]", b'{"v":2}', b'{"v":1,"type":"f","provider":"","model":"","vector":"AAA="}']
)
def test_what_is_no_vector_is_corrupt(data: bytes) -> None:
    with pytest.raises(CorruptEntry):
        decode(data)
