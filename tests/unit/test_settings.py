"""Bounds of settings that would quietly cost jobs."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from deltafan.settings import WorkerSettings


@pytest.mark.parametrize(("name", "wrong"), [("lease", 0.1), ("lease", 86_400), ("reap_interval", 0.001)])
def test_a_lease_that_no_heartbeat_can_keep_is_refused(name: str, wrong: float) -> None:
    with pytest.raises(ValidationError, match=name):
        WorkerSettings.model_validate({name: wrong})


def test_the_quickest_settings_are_taken() -> None:
    assert WorkerSettings(lease=1, reap_interval=0.05).lease == 1
