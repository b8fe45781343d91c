"""Caches of completions and vectors: the protocol, four stores, and the ring that uses them.

`backends`, which loads redis-py, is not imported here: a program without a cache, or with one of its own, need not.
"""

from deltafan.llm.cache.embeddings import CachedEmbedder
from deltafan.llm.cache.entry import Entry
from deltafan.llm.cache.guard import Guard
from deltafan.llm.cache.key import cache_key, embedding_keys
from deltafan.llm.cache.options import CacheOptions
from deltafan.llm.cache.protocol import Cache, CacheError, CorruptEntry
from deltafan.llm.cache.ring import Cached
from deltafan.llm.cache.warm import Warmed, warm_cache

__all__ = [
    "Cache",
    "CacheError",
    "CacheOptions",
    "Cached",
    "CachedEmbedder",
    "CorruptEntry",
    "Entry",
    "Guard",
    "Warmed",
    "cache_key",
    "embedding_keys",
    "warm_cache",
]
