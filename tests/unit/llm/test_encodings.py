"""The tokenizers that ship with the package are tiktoken's own."""

from __future__ import annotations

import base64
import hashlib
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiktoken_ext import openai_public

from deltafan.llm import encodings

ENCODINGS = ("o200k_base", "cl100k_base")


def definition(name: str, monkeypatch: pytest.MonkeyPatch) -> tuple[dict[str, object], str]:
    """tiktoken's own definition, with our vocabulary instead of its download, and the checksum of that."""
    hashes = []

    def vocabulary(_url: str, expected_hash: str) -> dict[bytes, int]:
        hashes.append(expected_hash)
        return encodings.ranks(name)

    monkeypatch.setattr(openai_public, "load_tiktoken_bpe", vocabulary)
    return getattr(openai_public, name)(), hashes[0]


@pytest.mark.parametrize("name", ENCODINGS)
def test_the_vocabulary_is_byte_for_byte_what_tiktoken_would_download(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, checksum = definition(name, monkeypatch)
    lines = (b"%s %d\n" % (base64.b64encode(token), rank) for token, rank in encodings.ranks(name).items())
    assert hashlib.sha256(b"".join(lines)).hexdigest() == checksum


@pytest.mark.parametrize("name", ENCODINGS)
def test_text_is_cut_by_tiktokens_own_pattern(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs, _ = definition(name, monkeypatch)
    assert encodings._PATTERNS[name] == theirs["pat_str"]


@given(st.text(st.characters(codec="utf-8")))
def test_tokens_put_together_are_the_text_again(text: str) -> None:
    for name in ENCODINGS:
        tokenizer = encodings._tokenizer(name)
        tokens = tokenizer.encode_ordinary(text)
        assert tokenizer.decode(tokens) == text
        assert encodings.count(text, name) == len(tokens) <= len(text.encode())


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        # Of OpenAI's cookbook, "How to count tokens with tiktoken": o200k_base and cl100k_base.
        ("antidisestablishmentarianism", (6, 6)),
        ("2 + 2 = 4", (7, 7)),
        ("お誕生日おめでとう", (8, 9)),
        ("tiktoken is great!", (6, 6)),
        ("", (0, 0)),
        ("<|endoftext|>", (7, 7)),
    ],
)
def test_known_texts(text: str, tokens: tuple[int, int]) -> None:
    assert tuple(encodings.count(text, name) for name in ENCODINGS) == tokens


@pytest.mark.parametrize("name", ENCODINGS)
@pytest.mark.parametrize("text", [" " * 1_100_000, "x" + " \u3000" * 550_000])
def test_no_text_makes_the_tokenizer_panic(name: str, text: str) -> None:
    assert 0 < encodings.count(text, name) <= len(text.encode())


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("gpt-5", "o200k_base"),
        ("gpt-5.2-2025-12-11", "o200k_base"),
        ("o3-mini", "o200k_base"),
        ("gpt-4o-mini", "o200k_base"),
        ("gpt-oss-120b", "o200k_base"),
        ("gpt-4", "cl100k_base"),
        ("gpt-4-0613", "cl100k_base"),
        ("gpt-3.5-turbo", "cl100k_base"),
        ("text-embedding-3-small", "cl100k_base"),
        ("text-davinci-003", None),
        ("gpt-99", None),
        ("", None),
    ],
)
def test_models_have_the_encoding_that_tiktoken_says(model: str, name: str | None) -> None:
    assert encodings.encoding_of(model) == name


def test_nothing_is_fetched_and_no_file_written() -> None:
    code = """import builtins, socket, sys
def refuse(*_args, **_more): raise AssertionError("network")
socket.socket.connect = socket.getaddrinfo = refuse
written = []
sys.addaudithook(lambda event, args: written.append(args) if event == "open" and "w" in str(args[1]) else None)
from deltafan.llm.tokens import count_tokens
print(count_tokens("hello world", "gpt-5"), written)"""
    ended = subprocess.run([sys.executable, "-B", "-c", code], capture_output=True, text=True, timeout=30, check=True)
    assert ended.stdout.split() == ["2", "[]"]
