"""Keys: what two requests may differ in and still have one answer."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deltafan.llm import LLMSettings, ProviderSettings, Request
from deltafan.llm.cache import cache_key, embedding_keys
from deltafan.llm.cache.key import IGNORED_PARAMS
from deltafan.llm.embeddings import EmbeddingRequest

REQUEST = Request(model="openai/gpt-5-mini", messages=[{"role": "user", "content": "Hi"}], params={"temperature": 1})


def test_a_key_is_the_same_in_every_process_and_release() -> None:
    assert cache_key(REQUEST) == "a1f8b714d34fbc7de7a8b2572d1eb0eb87dc01707add90f12e7dba578eb46868"


def test_an_address_is_the_same_with_a_slash_at_its_end() -> None:
    def key(url: str) -> str | None:
        return cache_key(REQUEST, settings=LLMSettings(providers={"openai": ProviderSettings(base_url=url)}))

    assert key("http://gpu/v1") == key("http://gpu/v1/") != key("http://gpu/v2")


@pytest.mark.parametrize(
    "same",
    [
        replace(REQUEST, model="gpt-5-mini"),
        replace(REQUEST, messages=[{"content": "Hi", "role": "user"}]),
        replace(REQUEST, messages=({"role": "user", "content": "Hi"},)),
        replace(REQUEST, params={"temperature": 1.0}),
        replace(REQUEST, params={"temperature": 1, **dict.fromkeys(IGNORED_PARAMS, "x")}),
        replace(REQUEST, timeout=1.0, first_token_timeout=2.0, stall_timeout=3.0),
        replace(REQUEST, streaming=False, prompt_tokens=7, options={"ttl": 5, "identifier": "the ring's to read"}),
    ],
)
def test_what_does_not_matter_does_not_change_the_key(same: Request) -> None:
    assert cache_key(same) == cache_key(REQUEST)


OTHERS = [
    replace(REQUEST, model="openai/gpt-5"),
    replace(REQUEST, model="groq/gpt-5-mini"),
    replace(REQUEST, api="responses"),
    replace(REQUEST, prefix="He"),
    replace(REQUEST, messages=[{"role": "user", "content": "Hi "}]),
    replace(REQUEST, messages=[{"role": "user", "content": "H\u0131"}]),
    replace(REQUEST, messages=[{"role": "user", "content": "\ud800"}]),
    replace(REQUEST, messages=[{"role": "user", "content": "\ufffd"}]),
    replace(REQUEST, messages=[*REQUEST.messages, *REQUEST.messages]),
    replace(REQUEST, params={}),
    replace(REQUEST, params={"temperature": None}),
    replace(REQUEST, params={"temperature": 1, "n": 1}),
    replace(REQUEST, params={"temperature": True}),
    replace(REQUEST, params={"temperature": "1"}),
    replace(REQUEST, params={"temperature": 1, "seed": 2**70}),
    replace(REQUEST, params={"temperature": 1, "tools": [{"a": 1}, {"b": 2}]}),
    replace(REQUEST, params={"temperature": 1, "tools": [{"b": 2}, {"a": 1}]}),
]


def test_what_matters_changes_the_key() -> None:
    keys = [cache_key(request) for request in (REQUEST, *OTHERS)]
    keys += [cache_key(REQUEST, namespace="x"), cache_key(REQUEST, tenant="x"), cache_key(REQUEST, identifier="x")]
    elsewhere = LLMSettings(providers={"openai": ProviderSettings(base_url="http://127.0.0.1:1/v1")})
    keys.append(cache_key(REQUEST, settings=elsewhere))
    assert len(set(keys)) == len(keys)
    assert all(key is not None and re.fullmatch("[0-9a-f]{64}", key) for key in keys)


json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(st.characters()),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=12,
)


@given(st.dictionaries(st.text(min_size=1, max_size=5), json, min_size=2, max_size=5))
def test_the_order_of_parameters_does_not_count(params: dict[str, Any]) -> None:
    backwards = dict(reversed(params.items()))
    assert cache_key(replace(REQUEST, params=params)) == cache_key(replace(REQUEST, params=backwards))


@pytest.mark.parametrize("params", [{"conversation": "conv_1"}, {"background": True}, {"tools": [object()]}])
def test_what_is_stateful_or_no_json_has_no_key(params: dict[str, Any]) -> None:
    assert cache_key(replace(REQUEST, params=params)) is None


def test_each_input_of_an_embedding_has_a_key_of_its_own() -> None:
    request = EmbeddingRequest("text-embedding-3-small", ["a", "b", [1, 2]])
    keys = embedding_keys(request)
    assert keys is not None
    assert len(set(keys)) == 3
    assert embedding_keys(replace(request, inputs=["b"], params={"user": "me"}, timeout=1.0)) == keys[1:2]
    for other in (replace(request, dimensions=8), replace(request, model="x"), replace(request, params={"p": 1})):
        assert not set(embedding_keys(other) or ()) & set(keys)
    assert not set(embedding_keys(request, tenant="x") or ()) & set(keys)
