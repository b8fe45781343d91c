"""The same calls through litellm and through us. `./run peers` runs them; without litellm nothing here is collected."""

from __future__ import annotations

import os
import warnings
from importlib.util import find_spec

import pytest

from tests.unit.client.conftest import VARIABLES

if find_spec("litellm") is None:
    collect_ignore_glob = ["*"]
else:
    # Else it fetches its price list when it is imported.
    os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import litellm

    litellm.suppress_debug_info = True
    litellm.telemetry = False


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        # litellm's own: deprecated calls, and connections that nobody closed.
        item.add_marker(pytest.mark.filterwarnings("ignore"))


@pytest.fixture(autouse=True)
def nothing_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith(VARIABLES)]:
        monkeypatch.delenv(name)
