"""From the environment to settings."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from deltafan.errors import ConfigurationError
from deltafan.llm import PROVIDERS
from deltafan.wiring import COMPONENTS, Configuration, as_variables, known_variables, load, option_name, variable


def problems(env: dict[str, str], **overrides: object) -> list[str]:
    with pytest.raises(ConfigurationError) as caught:
        load(env, overrides)
    return str(caught.value).splitlines()


def test_an_empty_environment_gives_the_defaults() -> None:
    loaded = load({})
    assert loaded.redis.url == "redis://127.0.0.1:6379/0"
    assert loaded.chosen == frozenset()
    assert loaded.worker.queues == ("default",)
    assert loaded.llm.providers == {}


def test_an_override_wins_over_the_environment_and_that_over_the_default() -> None:
    env = {"DELTAFAN_CONCURRENCY": "7", "DELTAFAN_LEASE": "3"}
    loaded = load(env, {"concurrency": "9", "drain": 0, "processes": None})
    assert (loaded.worker.concurrency, loaded.worker.lease, loaded.worker.drain) == (9, 3.0, 0.0)
    assert loaded.worker.processes == 1


def test_every_field_is_a_variable_of_its_own() -> None:
    names = known_variables()
    assert len(names) == len(set(names))
    options = [option_name(f) for c in COMPONENTS for f in c.model_fields]
    assert len(options) == len(set(options))


def test_lists_are_separated_by_commas_and_empty_variables_are_not_set() -> None:
    env = {"DELTAFAN_QUEUES": " chat, batch ,", "DELTAFAN_API_KEYS": "", "REDIS_URL": " ", "DELTAFAN_PORT": " 81 "}
    loaded = load(env)
    assert loaded.worker.queues == ("chat", "batch")
    assert loaded.relay.api_keys == ()
    assert loaded.chosen == {"queues", "port"}
    assert loaded.relay.port == 81


@pytest.mark.parametrize(
    ("env", "told"),
    [
        ({"DELTAFAN_DRAIN": "x"}, "DELTAFAN_DRAIN: must be a valid number, unable to parse string as a number"),
        ({"DELTAFAN_DRAIN": "-1"}, "DELTAFAN_DRAIN: must be greater than or equal to 0"),
        ({"DELTAFAN_LEASE": "inf"}, "DELTAFAN_LEASE: must be a finite number"),
        ({"DELTAFAN_QUEUES": "a,B"}, "DELTAFAN_QUEUES, entry 2: may hold lower case letters"),
        ({"DELTAFAN_QUEUES": ","}, "DELTAFAN_QUEUES: must name at least one"),
        ({"DELTAFAN_QUEUS": "a"}, "DELTAFAN_QUEUS: is not a setting; did you mean DELTAFAN_QUEUES?"),
        ({"DELTAFAN_LOG": "info"}, "DELTAFAN_LOG: is not a setting; did you mean DELTAFAN_LOG_"),
        ({"DELTAFAN_XYZZY": "1"}, "DELTAFAN_XYZZY: is not a setting"),
        ({"OPENAI_BASE_URL": "api.example.com"}, "OPENAI_BASE_URL: must begin with http:// or https://"),
        ({"DELTAFAN_PROVIDERS": "acme"}, "ACME_BASE_URL: is required"),
        ({"DELTAFAN_PROVIDERS": "Acme"}, "DELTAFAN_PROVIDERS: a name is lower case"),
        ({"DELTAFAN_DEFAULT_PROVIDER": "acme"}, "DELTAFAN_DEFAULT_PROVIDER: must be one of anthropic, azure,"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_is_wrong_is_named_with_its_rule(env: dict[str, str], told: str) -> None:
    (problem,) = problems(env)
    assert problem.startswith(told)


def test_all_problems_are_told_at_once_and_overrides_by_their_own_name() -> None:
    found = problems({"DELTAFAN_PORT": "-1"}, concurrency=0, concurency=1)
    assert [problem.partition(":")[0] for problem in found] == ["concurency", "concurrency", "DELTAFAN_PORT"]
    assert "did you mean concurrency?" in found[0]


def test_no_message_and_no_repr_shows_a_secret() -> None:
    secret = "hunter2hunter2"
    env = {"REDIS_URL": f"redis://:{secret}@h", "OPENAI_API_KEY": secret, "DELTAFAN_API_KEYS": secret}
    assert secret not in repr(load(env))
    assert secret not in "".join(problems(env | {"DELTAFAN_API_KEYS": secret, "DELTAFAN_PORT": secret}))


def test_keys_and_addresses_of_providers_come_by_their_own_names() -> None:
    env = {
        "OPENAI_API_KEY": "k1",
        "GOOGLE_API_KEY": "k2",
        "VLLM_BASE_URL": "http://gpu:8000/v1",
        "DELTAFAN_PROVIDERS": "my-llm",
        "MY_LLM_BASE_URL": "https://llm.example.com/v1",
        "MY_LLM_API_KEY": "k3\n",
        "DELTAFAN_DEFAULT_PROVIDER": "my-llm",
    }
    llm = load(env).llm
    keys = {name: p.api_key.get_secret_value() if p.api_key else None for name, p in llm.providers.items()}
    assert keys == {"openai": "k1", "gemini": "k2", "vllm": None, "my-llm": "k3"}
    assert llm.providers["my-llm"].base_url == "https://llm.example.com/v1"
    assert llm.default_provider == "my-llm"


def test_overrides_as_variables_are_read_back_the_same() -> None:
    given = {"redis_url": "redis://h/1", "queues": "a,b", "lease": "3"}
    loaded = load(as_variables(given))
    assert (loaded.redis.url, loaded.worker.queues, loaded.worker.lease) == ("redis://h/1", ("a", "b"), 3.0)
    assert loaded == load({}, given)
    assert loaded.chosen == set(given)


ROOT = Path(__file__).parents[2]


def test_the_example_environment_names_only_settings() -> None:
    env: dict[str, str] = {}
    for line in (ROOT / ".env.example").read_text().splitlines():
        name, equals, value = line.removeprefix("#").partition("=")
        if equals and name.isupper() and " " not in name:
            env[name] = value
    assert "DELTAFAN_API_KEYS" in env
    assert isinstance(load(env), Configuration)


def test_the_compose_file_sets_only_settings_and_holds_no_secret() -> None:
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    services = compose["services"]
    assert set(services) == {"valkey", "worker", "relay"}
    for name in ("worker", "relay"):
        env = dict(services[name]["environment"])
        if name == "relay":
            assert env.pop("DELTAFAN_API_KEYS").startswith("${DELTAFAN_API_KEYS:?")
        load(env)
        assert services[name]["depends_on"] == {"valkey": {"condition": "service_healthy"}}
        assert (ROOT / services[name]["build"]["dockerfile"]).is_file()
    for service in services.values():
        assert service["healthcheck"]["test"][0] == "CMD"
        assert service["restart"] == "unless-stopped"
    assert "noeviction" in services["valkey"]["command"]
    worker = services["worker"]
    assert not {"container_name", "ports"} & set(worker)  # or it could not be scaled
    drain = float(worker["environment"]["DELTAFAN_DRAIN"])
    assert float(worker["stop_grace_period"].rstrip("s")) > drain + load({}).worker.lease


def test_variables_of_providers_do_not_clash_with_settings() -> None:
    names = {f"{name.upper()}_BASE_URL" for name in PROVIDERS} | {k for p in PROVIDERS.values() for k in p.key_names}
    assert not names & set(known_variables())
    assert variable("url") == "REDIS_URL"


PUSHER = {"PUSHER_APP_ID": "7", "PUSHER_KEY": "key", "PUSHER_SECRET": "s3cret-s3cret"}


@pytest.mark.parametrize(
    "env",
    [
        PUSHER | {"PUSHER_CLUSTER": "eu"},
        {"PUSHER_APP_ID": "7", "PUSHER_AUTH_KEY": "key", "PUSHER_AUTH_SECRET": "s3cret-s3cret"}
        | {"PUSHER_APP_CLUSTER": "eu", "PUSHER_AUTH_VERSION": "1.0"},
    ],
)
def test_pushers_credentials_come_by_their_names_and_by_the_older_ones(env: dict[str, str]) -> None:
    found = load(env).pusher
    assert found.configured
    assert (found.app_id, found.key, found.cluster, found.tls) == ("7", "key", "eu", True)
    assert found.secret.get_secret_value() == "s3cret-s3cret"
    assert "s3cret" not in repr(found)


@pytest.mark.parametrize(
    ("env", "told"),
    [
        ({"PUSHER_APP_ID": "7"}, "PUSHER_APP_ID, PUSHER_KEY and PUSHER_SECRET belong together"),
        (PUSHER | {"PUSHER_APP_ID": "x"}, "PUSHER_APP_ID: must be digits"),
        (PUSHER | {"PUSHER_HOST": "https://a"}, "PUSHER_HOST: must be a host name"),
        (PUSHER | {"PUSHER_PORT": "0"}, "PUSHER_PORT: must be greater than or equal to 1"),
        (PUSHER | {"PUSHER_AUTH_VERSION": "2.0"}, "PUSHER_AUTH_VERSION: must be 1.0"),
        (PUSHER | {"PUSHER_ENCRYPTION_MASTER_KEY": "AAAA"}, "PUSHER_ENCRYPTION_MASTER_KEY: must be 32 bytes in base64"),
    ],
)
def test_what_is_wrong_with_pushers_settings_is_named(env: dict[str, str], told: str) -> None:
    with pytest.raises(ConfigurationError) as error:
        load(env)
    assert told in str(error.value)
    assert "s3cret" not in str(error.value)
