"""`.env` files."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deltafan.config.dotenv import nearest, parse, read
from deltafan.errors import ConfigurationError


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A=1\nB=2", {"A": "1", "B": "2"}),
        ("\n# comment\n  # another\nA=1\r\nB=2\r\n", {"A": "1", "B": "2"}),
        ("export A=1\n  B = two words  ", {"A": "1", "B": "two words"}),
        ("A=\nB=''\nC=\"\"", {"A": "", "B": "", "C": ""}),
        ("A=x # a comment\nB=x#y\nC=#all", {"A": "x", "B": "x#y", "C": ""}),
        ("A='x # y' # z\nB='a\\nb'", {"A": "x # y", "B": "a\\nb"}),
        ('A="a\\nb \\"c\\" \\\\" # z', {"A": 'a\nb "c" \\'}),
        ("A='two\nlines'\nB=1", {"A": "two\nlines", "B": "1"}),
        ("A=don't\nB=$HOME=x", {"A": "don't", "B": "$HOME=x"}),
        ("A=1\nA=2", {"A": "2"}),
    ],
)
def test_lines_are_read_as_docker_compose_reads_them(text: str, expected: dict[str, str]) -> None:
    assert parse(text, ".env") == expected


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("A=1\nsk-secret-value", r"\.env, line 2: must be NAME=value"),
        ("1A=sk-secret-value", r"\.env, line 1: must be NAME=value"),
        ("A=1\nB='sk-secret-value\nC=1", r"\.env, line 2: the quote is not closed"),
        ("A='x' sk-secret-value", r"\.env, line 1: there is more after the closing quote"),
    ],
)
def test_what_is_no_assignment_is_named_by_its_line_and_not_shown(text: str, told: str) -> None:
    with pytest.raises(ConfigurationError, match=told) as caught:
        parse(text, ".env")
    assert "secret" not in str(caught.value)


@given(st.dictionaries(st.from_regex(r"[A-Z_][A-Z0-9_]{0,8}", fullmatch=True), st.text(st.characters(codec="utf-8"))))
def test_any_text_in_double_quotes_comes_back(variables: dict[str, str]) -> None:
    def quoted(value: str) -> str:
        return value.replace("\\", "\\\\").replace('"', '\\"').replace("\r", "\\r")

    text = "\n".join(f'{name}="{quoted(value)}"' for name, value in variables.items())
    assert parse(text, ".env") == variables


@given(st.text())
def test_no_text_is_more_than_an_error(text: str) -> None:
    with suppress(ConfigurationError):
        parse(text, ".env")


def test_the_nearest_file_is_that_of_the_folder_or_of_the_first_above(tmp_path: Path) -> None:
    inner = tmp_path / "a" / "b"
    inner.mkdir(parents=True)
    (tmp_path / ".env").write_text("A=1")
    assert nearest(inner) == tmp_path / ".env"
    (inner / ".env").mkdir()  # a folder of that name is no file
    assert nearest(inner) == tmp_path / ".env"
    (tmp_path / "a" / ".env").write_text("A=2")
    assert nearest(inner) == tmp_path / "a" / ".env"


def test_a_file_that_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / ".env"
    path.write_bytes(b"A=\xff")
    with pytest.raises(ConfigurationError, match=r"\.env: cannot be read: it is not UTF-8"):
        read(path)
    with pytest.raises(ConfigurationError, match=r"cannot be read: Is a directory"):
        read(tmp_path)
    path.write_bytes(b"\xef\xbb\xbfA=1")
    assert read(path) == {"A": "1"}
