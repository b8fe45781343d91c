from __future__ import annotations

import pytest

from deltafan.devserver.provider.text import split_text, written_text


def test_the_written_text_is_a_few_hundred_words_in_paragraphs_with_more_than_ascii() -> None:
    text = written_text("Tell me about rivers.")
    assert 150 <= len(text.split()) <= 500
    assert text.count("\n\n") >= 4
    assert any(ord(char) > 0xFFFF for char in text)
    assert "Tell me about rivers." in text


def test_the_same_prompt_gets_the_same_text_and_another_one_another() -> None:
    assert written_text("a") == written_text("a")
    assert written_text("a") != written_text("b")
    assert written_text("a", 0) != written_text("a", 1)
    assert written_text("")


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_chunks_join_to_the_text(size: int) -> None:
    text = written_text("x")
    assert "".join(split_text(text, size)) == text


def test_chunks_have_the_size_asked_for() -> None:
    assert split_text("abcdefg", 3) == ["abc", "def", "g"]
    assert split_text("äbcdefg", 3) == ["äbc", "def", "g"]
    assert split_text("", 3) == []


def test_what_looks_like_one_character_is_not_torn() -> None:
    keeper, flag, accent, thumb = "👩\u200d🔧", "🏳\ufe0f\u200d🌈", "e\u0301", "👍🏽"
    assert split_text(keeper + flag + accent + thumb, 1) == [keeper, flag, accent, thumb]
