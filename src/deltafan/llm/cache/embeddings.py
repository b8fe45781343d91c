"""The ring that answers embeddings from a cache: one entry an input."""

from __future__ import annotations

import asyncio
import base64
import binascii
import sys
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import orjson

from deltafan.errors import CompletionError
from deltafan.events import Usage
from deltafan.llm.cache.guard import MAX_BYTES, Guard
from deltafan.llm.cache.key import embedding_keys
from deltafan.llm.cache.options import CacheOptions
from deltafan.llm.cache.protocol import Cache, CorruptEntry
from deltafan.llm.embeddings import Embedder, EmbeddingRequest, EmbeddingResult
from deltafan.llm.settings import LLMSettings
from deltafan.telemetry.hooks import Hook, silent

VERSION: Final = 1
_AT_ONCE: Final = 32  # reads, or writes, under way
_NOTHING_ASKED: Final = Usage(prompt_tokens=0, completion_tokens=0, total_tokens=0, cost_usd=0.0, source="reported")


@dataclass(frozen=True, slots=True)
class Vector:
    """What is stored of one input."""

    values: list[float]
    provider: str
    model: str


class CachedEmbedder:
    """Implements `Embedder`: stored vectors as they were, to the last bit; the missing ones are asked for together,
    each once, and stored. `EmbeddingRequest.options` are those of `CacheOptions`; `regen_cache` is `rewrite_cache`
    here, because a vector has no second answer, and failures are not stored.

    The usage is of what was asked for: no tokens and a cost of 0.0, where everything was stored.

    A cache that fails costs a warning (see `Guard`). The cache itself stays its owner's to close. For the parameters
    see `Cached`.
    """

    def __init__(
        self,
        inner: Embedder,
        cache: Cache,
        *,
        settings: LLMSettings | None = None,
        namespace: str = "default",
        ttl: float | None = None,
        timeout: float = 0.5,
        max_bytes: int = MAX_BYTES,
        hook: Hook = silent,
    ) -> None:
        self._inner = inner
        self._guard = Guard(cache, timeout=timeout, max_bytes=max_bytes, hook=hook)
        self._settings = settings
        self._namespace = namespace
        self._ttl = ttl

    async def embed(self, request: EmbeddingRequest) -> EmbeddingResult:
        """See `Embedder.embed`."""
        options = CacheOptions.of(request.options)
        keys = embedding_keys(
            request,
            namespace=self._namespace,
            tenant=options.tenant,
            identifier=options.identifier,
            settings=self._settings,
        )
        if keys is None:
            return await self._inner.embed(request)
        found = await self._stored(set(keys)) if options.reads else {}
        asked = {key: text for key, text in zip(keys, request.inputs, strict=True) if key not in found}
        result = EmbeddingResult([], _NOTHING_ASKED)
        if asked:
            result = await self._inner.embed(replace(request, inputs=list(asked.values())))
            if len(result.vectors) != len(asked):
                raise CompletionError("malformed_stream", f"{len(result.vectors)} vectors for {len(asked)} inputs")
            made = {
                key: Vector(values, result.provider, result.model)
                for key, values in zip(asked, result.vectors, strict=True)
            }
            if options.cache_response:
                await self._store(made, options.ttl or self._ttl)
            found |= made
        first = found[keys[0]] if keys else Vector([], "", "")
        return replace(
            result,
            vectors=[found[key].values for key in keys],
            provider=result.provider or first.provider,
            model=result.model or first.model,
        )

    async def _stored(self, keys: set[str]) -> dict[str, Vector]:
        slots = asyncio.Semaphore(_AT_ONCE)

        async def read(key: str) -> Vector | None:
            async with slots:
                data = await self._guard.get(key)
            try:
                return None if data is None else decode(data)
            except CorruptEntry as error:
                self._guard.corrupt(key, error.message)
                return None

        ordered = sorted(keys)
        vectors = await asyncio.gather(*map(read, ordered))
        return {key: vector for key, vector in zip(ordered, vectors, strict=True) if vector is not None}

    async def _store(self, vectors: dict[str, Vector], ttl: float | None) -> None:
        slots = asyncio.Semaphore(_AT_ONCE)

        async def write(key: str, vector: Vector) -> None:
            async with slots:
                await self._guard.set(key, encode(vector), ttl)

        await asyncio.gather(*(write(key, vector) for key, vector in vectors.items()))


def encode(vector: Vector) -> bytes:
    """In single precision where that loses nothing, which is what providers send; else in double."""
    packed = _packed(vector.values)
    data = base64.b64encode(_little_endian(packed).tobytes()).decode()
    return orjson.dumps(
        {"v": VERSION, "provider": vector.provider, "model": vector.model, "type": packed.typecode, "vector": data}
    )


def decode(data: bytes) -> Vector:
    """:raises CorruptEntry: it is nothing that `encode` makes."""
    try:
        raw = orjson.loads(data)
        if raw["v"] != VERSION or raw["type"] not in ("f", "d"):
            raise CorruptEntry("not a vector of this version")
        packed: array[float] = array(raw["type"])
        packed.frombytes(base64.b64decode(raw["vector"], validate=True))
        return Vector(_little_endian(packed).tolist(), str(raw["provider"]), str(raw["model"]))
    except (KeyError, TypeError, ValueError, binascii.Error) as error:
        raise CorruptEntry(f"not a vector: {type(error).__name__}") from None


def _packed(values: Sequence[float]) -> array[float]:
    try:
        single = array("f", values)
    except OverflowError:
        return array("d", values)
    return single if single.tolist() == list(values) else array("d", values)


def _little_endian(packed: array[float]) -> array[float]:
    """To it, and from it."""
    if sys.byteorder == "big":
        packed.byteswap()
    return packed
