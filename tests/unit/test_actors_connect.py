"""Which Ray cluster a process joins or starts, and what it says where that fails; Ray itself is replaced."""

from __future__ import annotations

from typing import Any

import pytest

from nightjar.config import RayConfig
from nightjar.engines import actors
from nightjar.errors import StageError

Calls = list[dict[str, Any]]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    """The arguments of every ray.init; no cluster is there and nothing starts."""
    found: Calls = []
    for name in ("RAY_ADDRESS", "RAY_JOB_CONFIG_JSON_ENV_VAR", "RAY_worker_niceness"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv(name, "")  # so that what connect sets is undone
        monkeypatch.delenv(name)
    monkeypatch.setattr(actors.ray, "is_initialized", lambda: False)
    monkeypatch.setattr(actors.ray, "shutdown", lambda: None)
    monkeypatch.setattr(actors.ray, "init", lambda **given: found.append(given))
    return found


def failing(monkeypatch: pytest.MonkeyPatch, calls: Calls, times: int) -> None:
    def init(**given: Any) -> None:
        calls.append(given)
        if len(calls) <= times:
            raise Exception("The current node timed out during startup.")  # noqa: TRY002 - as Ray does

    monkeypatch.setattr(actors.ray, "init", init)


def test_a_cluster_of_our_own_is_started_again_once(calls: Calls, monkeypatch: pytest.MonkeyPatch) -> None:
    failing(monkeypatch, calls, times=1)
    actors.connect(RayConfig(num_cpus=2))
    assert [call["num_cpus"] for call in calls] == [2, 2]
    calls.clear()
    failing(monkeypatch, calls, times=9)
    with pytest.raises(StageError, match=r"Ray on this machine cannot be .* timed out during startup"):
        actors.connect(RayConfig())
    assert len(calls) == actors.STARTS


def test_a_cluster_that_is_named_is_asked_once(calls: Calls, monkeypatch: pytest.MonkeyPatch) -> None:
    failing(monkeypatch, calls, times=9)
    monkeypatch.setenv("RAY_ADDRESS", "head:6379")
    with pytest.raises(StageError, match="Ray at head:6379 cannot be reached"):
        actors.connect(RayConfig())
    assert [call["address"] for call in calls] == ["head:6379"]


def test_the_configuration_wins_over_the_environment(calls: Calls, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "other:6379")
    actors.connect(RayConfig(address="head:6379"))
    assert [call["address"] for call in calls] == ["head:6379"]


def test_inside_a_job_its_own_cluster_wins(calls: Calls, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    actors.connect(RayConfig(address="head:6379"))
    assert [call["address"] for call in calls] == ["10.0.0.1:6379"]


@pytest.mark.parametrize("address", ["http://head:8265", "https://ray.example"])
def test_the_address_of_submissions_is_no_cluster_to_join(
    calls: Calls, monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(StageError, match=r"spark-submit.sh does; to join .* host:6379"):
        actors.connect(RayConfig())
    assert not calls
