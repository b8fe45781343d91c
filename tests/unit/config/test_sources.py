"""Where settings come from, and which place wins."""

from __future__ import annotations

import os
import pickle
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from deltafan.config import process
from deltafan.errors import ConfigurationError
from deltafan.wiring import configure, load

SECRET = "sk-Hunter2Hunter2Hunter2"


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working directory and a home of the test's own, and none of the machine's variables."""
    for name in list(os.environ):
        if name.endswith(("_API_KEY", "_BASE_URL", "_TOKEN")) or name.startswith(("DELTAFAN_", "REDIS_", "PUSHER_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    yield tmp_path
    process._process.configured = process.Configured()


def user_file(place: Path, text: str) -> Path:
    path = place / "home" / ".config" / "deltafan" / "config.toml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def dotenv(place: Path, text: str) -> Path:
    path = place / "work" / ".env"
    path.write_text(text)
    return path


def key(name: str = "openai", **overrides: Any) -> str | None:
    provider = load(overrides=overrides).llm.providers.get(name)
    return provider.api_key.get_secret_value() if provider and provider.api_key else None


def problems() -> list[str]:
    with pytest.raises(ConfigurationError) as caught:
        load()
    return str(caught.value).splitlines()


def test_each_place_wins_over_those_after_it(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert key() is None
    user_file(place, '[providers.openai]\napi_key = "file"')
    assert key() == "file"
    dotenv(place, "OPENAI_API_KEY=dotenv")
    assert key() == "dotenv"
    monkeypatch.setenv("OPENAI_API_KEY", "environment")
    assert key() == "environment"
    configure(api_keys={"openai": "configured"})
    assert key() == "configured"
    configure(api_keys={"openai": None})
    assert key() == "environment"


def test_so_do_settings_and_an_argument_wins_over_all(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def concurrency(**overrides: object) -> int:
        return load(overrides=overrides).worker.concurrency

    user_file(place, "concurrency = 1\n")
    assert concurrency() == 1
    dotenv(place, "DELTAFAN_CONCURRENCY=2")
    assert concurrency() == 2
    monkeypatch.setenv("DELTAFAN_CONCURRENCY", "3")
    assert concurrency() == 3
    configure(concurrency=4)
    assert concurrency() == 4
    assert concurrency(concurrency=5) == 5
    configure(concurrency=None)
    assert concurrency() == 3


def test_key_and_address_of_one_provider_may_come_from_different_places(place: Path) -> None:
    user_file(place, '[providers.mine]\nbase_url = "http://gpu/v1"\n[providers.together_ai]\napi_key = "k"')
    dotenv(place, "DELTAFAN_PROVIDERS=mine\nMINE_API_KEY=k2")
    configure(base_urls={"together_ai": "https://proxy/v1"})
    llm = load().llm
    assert (llm.providers["mine"].base_url, key("mine")) == ("http://gpu/v1", "k2")
    assert (llm.providers["together"].base_url, key("together")) == ("https://proxy/v1", "k")


def test_addresses_are_taken_in_the_same_order(place: Path) -> None:
    user_file(place, '[providers.openai]\nbase_url = "http://file"\n[providers.groq]\nbase_url = "http://file"')
    dotenv(place, "OPENAI_BASE_URL=http://dotenv")
    assert [load().llm.providers[name].base_url for name in ("openai", "groq")] == ["http://dotenv", "http://file"]
    configure(base_urls={"openai": "http://configured"})
    assert load().llm.providers["openai"].base_url == "http://configured"


def test_a_provider_needs_no_variable_to_be_one(place: Path) -> None:
    user_file(place, 'default_provider = "mine"\n[providers.mine]\nbase_url = "http://gpu/v1"')
    assert load().llm.default_provider == "mine"
    configure(base_urls={"other": "http://other/v1"}, default_provider="other")
    assert load().llm.default_provider == "other"


def test_dotenv_is_read_without_changing_the_environment(place: Path) -> None:
    dotenv(place, "OPENAI_API_KEY=dotenv\nREDIS_URL=redis://h/1")
    before = dict(os.environ)
    loaded = load()
    assert loaded.redis.url == "redis://h/1"
    assert "redis_url" in loaded.chosen
    assert dict(os.environ) == before


def test_an_empty_variable_switches_off_that_of_the_file(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dotenv(place, "OPENAI_API_KEY=dotenv")
    monkeypatch.setenv("OPENAI_API_KEY", "")
    assert key() is None


def test_an_environment_that_is_given_is_all_there_is(place: Path) -> None:
    user_file(place, "nonsense")
    dotenv(place, "nonsense")
    configure(api_keys={"openai": "configured"})
    assert load({}).llm.providers == {}


def test_the_xdg_directory_is_honoured_and_a_relative_one_is_none(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    user_file(place, "concurrency = 1")
    folder = place / "xdg" / "deltafan"
    folder.mkdir(parents=True)
    (folder / "config.toml").write_text("concurrency = 2")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(place / "xdg"))
    assert load().worker.concurrency == 2
    monkeypatch.setenv("XDG_CONFIG_HOME", "xdg")
    assert load().worker.concurrency == 1
    monkeypatch.delenv("HOME")
    assert load().worker.concurrency == 256


def test_a_working_directory_that_is_gone_is_no_failure(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = place / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert load().worker.concurrency == 256


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("x = ", "{}: is not TOML: "),
        ("concurency = 1", "{}: concurency: is not a setting; did you mean {}: concurrency?"),
        ('concurrency = "x"', "{}: concurrency: must be a valid integer"),
        ("drain = -0.5", "{}: drain: must be greater than or equal to 0"),
        ("providers = 1", "{}: providers: must be tables, [providers.NAME]"),
        ("[providers]\nopenai = 'sk-Hunter2'", "{}: [providers.openai]: must be a table"),
        ("[providers.openai]\nkey = 'sk-Hunter2'", "{}: [providers.openai] key: is not a setting; there are base_url"),
        ("[providers.openai]\napi_key = 1", "{}: [providers.openai] api_key: must be a valid string"),
        ("[providers.openai]\nbase_url = 'api.openai.com'", "{}: [providers.openai] base_url: must begin with http"),
        ("[providers.mine]\napi_key = 'sk-Hunter2'", "MINE_BASE_URL: is required for a provider that {} names"),
        ("[providers.Mine]\nbase_url = 'http://a'", "{}: providers: a name is lower case letters"),
        ("[models.gpt-5]\ncontext_window = 0", "{}: [models.gpt-5] context_window: must be greater than or equal to 1"),
        ('[models."a/b"]\ninput_price = -1', '{}: [models."a/b"] input_price: must be greater than or equal to 0'),
        ("[models.m]\nprice = 1", "{}: [models.m] price: is not a setting; there are context_window, max_input"),
        ("default_provider = 'nobody'", "{}: default_provider: must be one of anthropic"),
    ],
)
def test_what_is_wrong_in_the_users_file_is_named_by_file_table_and_key(place: Path, text: str, told: str) -> None:
    path = user_file(place, text)
    (problem,) = problems()
    assert problem.startswith(told.replace("{}", str(path)))
    assert "Hunter2" not in problem


def test_what_is_wrong_in_dotenv_is_named_by_its_file(place: Path) -> None:
    path = dotenv(place, f"DELTAFAN_DRAIN={SECRET}\nDELTAFAN_DRAN=1\nOPENAI_BASE_URL={SECRET}")
    assert problems() == [
        f"{path}: DELTAFAN_DRAN: is not a setting; did you mean DELTAFAN_DRAIN?",
        f"{path}: DELTAFAN_DRAIN: must be a valid number, unable to parse string as a number",
        f"{path}: OPENAI_BASE_URL: must begin with http:// or https://",
    ]


def test_all_problems_of_all_places_are_told_at_once(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dotenv(place, "nonsense")
    user_file(place, "nonsense")
    monkeypatch.setenv("DELTAFAN_DRAIN", "x")
    assert [line.split(":")[0].rsplit("/", 1)[-1] for line in problems()] == [
        ".env, line 1",
        "config.toml",
        "DELTAFAN_DRAIN",
    ]


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"concurency": 1}, "concurency: is not a setting; did you mean concurrency?"),
        ({"concurrency": 0}, "concurrency: must be greater than or equal to 1"),
        ({"api_keys": {"openai": 5}}, "api_keys['openai']: must be text, or None"),
        ({"base_urls": {"mine": "gpu:8000"}}, "base_urls['mine']: must begin with http:// or https://"),
        ({"api_keys": {SECRET: "openai"}}, "api_keys: a name is lower case letters, digits, - and _"),
    ],
)
def test_configure_refuses_what_is_wrong_and_then_sets_nothing(given: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        configure(**{"lease": 1, **given})
    assert str(caught.value) == told
    assert process.configured() == process.Configured()


def test_configure_adds_up_from_any_thread() -> None:
    names = [f"p{n}" for n in range(50)]
    threads = [
        threading.Thread(target=configure, kwargs={"base_urls": {name: f"http://{name}/v1"}, "api_keys": {name: name}})
        for name in names
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = load().llm.providers
    assert {name: (found[name].base_url, key(name)) for name in names} == {
        name: (f"http://{name}/v1", name) for name in names
    }


def test_models_in_the_users_file_are_settings_of_the_client(place: Path) -> None:
    user_file(place, '[models."openai/gpt-5"]\ninput_price = 1.1\ntokens_per_minute = 2_000_000')
    said = load().llm.models["openai/gpt-5"]
    assert (str(said.input_price), said.tokens_per_minute, said.output_price) == ("1.1", 2_000_000, None)


def test_no_key_is_in_any_repr_or_pickled_by_chance(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    user_file(place, f'redis_url = "redis://:{SECRET}@h"\n[providers.groq]\napi_key = "{SECRET}"')
    dotenv(place, f"MISTRAL_API_KEY={SECRET}")
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    configure(api_keys={"anthropic": SECRET}, redis_url=f"redis://:{SECRET}@h")
    loaded = load()
    assert len(loaded.llm.providers) == 4
    for shown in (repr(loaded), str(loaded.llm), loaded.llm.model_dump_json(), repr(process.configured())):
        assert SECRET not in shown
    assert pickle.loads(pickle.dumps(loaded.llm)) == loaded.llm
