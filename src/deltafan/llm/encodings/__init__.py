"""OpenAI's tokenizers, from vocabularies that ship with the package: no network, no temporary files."""

from __future__ import annotations

import lzma
import re
from functools import cache
from itertools import accumulate
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import tiktoken

O200K: Final = "o200k_base"
CL100K: Final = "cl100k_base"

_LETTERS: Final = r"\p{Lm}\p{Lo}\p{M}"
_CONTRACTION: Final = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
_PATTERNS: Final = {
    O200K: "|".join(
        (
            rf"[^\r\n\p{{L}}\p{{N}}]?[\p{{Lu}}\p{{Lt}}{_LETTERS}]*[\p{{Ll}}{_LETTERS}]+{_CONTRACTION}",
            rf"[^\r\n\p{{L}}\p{{N}}]?[\p{{Lu}}\p{{Lt}}{_LETTERS}]+[\p{{Ll}}{_LETTERS}]*{_CONTRACTION}",
            r"\p{N}{1,3}",
            r" ?[^\s\p{L}\p{N}]+[\r\n/]*",
            r"\s*[\r\n]+",
            r"\s+(?!\S)",
            r"\s+",
        )
    ),
    CL100K: "|".join(
        (
            r"'(?i:[sdmt]|ll|ve|re)",
            r"[^\r\n\p{L}\p{N}]?+\p{L}++",
            r"\p{N}{1,3}+",
            r" ?[^\s\p{L}\p{N}]++[\r\n]*+",
            r"\s++$",
            r"\s*[\r\n]",
            r"\s+(?!\S)",
            r"\s",
        )
    ),
}
"""How text is cut before its pieces are encoded: the patterns of tiktoken's `openai_public`."""

_LONGEST_SPACE: Final = 250_000
"""Characters. On a million of whitespace in a row the tokenizer panics, with what is not even an `Exception`."""
_loading: Final = Lock()
_LONG_SPACES: Final = re.compile(rf"\s{{{_LONGEST_SPACE}}}")


def encoding_of(model: str) -> str | None:
    """The encoding of an OpenAI model, by tiktoken's own table. `None`: not one of theirs, or one that is not here."""
    import tiktoken.model

    try:
        name = tiktoken.model.encoding_name_for_model(model)
    except KeyError:
        return None
    # Harmony, of the open models, differs in its special tokens only, which are never made from text.
    name = O200K if name == "o200k_harmony" else name
    return name if name in _PATTERNS else None


def count(text: str, encoding: str) -> int:
    """Tokens of a text. What looks like a special token in it is text.

    A run of more than 250,000 whitespace characters is counted in parts, which may make it a few tokens more.
    """
    tokenizer = _tokenizer(encoding)
    if len(text) < _LONGEST_SPACE:
        return len(tokenizer.encode_ordinary(text))
    total = start = 0
    for space in _LONG_SPACES.finditer(text):
        total += len(tokenizer.encode_ordinary(text[start : space.end()]))
        start = space.end()
    return total + len(tokenizer.encode_ordinary(text[start:]))


def _tokenizer(encoding: str) -> tiktoken.Encoding:
    with _loading:  # not once in every thread that counts
        return _load(encoding)


@cache
def _load(encoding: str) -> tiktoken.Encoding:
    import tiktoken

    return tiktoken.Encoding(encoding, pat_str=_PATTERNS[encoding], mergeable_ranks=ranks(encoding), special_tokens={})


def ranks(encoding: str) -> dict[bytes, int]:
    """The vocabulary: each token's bytes and its rank."""
    data = lzma.decompress((Path(__file__).parent / f"{encoding}.xz").read_bytes())
    first = 4 + int.from_bytes(data[:4], "big")
    ends = list(accumulate(data[4:first], initial=first))
    return {data[ends[rank] : ends[rank + 1]]: rank for rank in range(first - 4)}
