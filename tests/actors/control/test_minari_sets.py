"""Minari's data sets: there and back, where the package is; one clear line where it is not."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from rollcall.actors.control.recording import check_target, read_recorded, write_recorded
from rollcall.actors.envs.plain_spaces import space_of
from rollcall.cluster.errors import BadInput
from tests.experts import balances, recorded, swings
from tests.needs import require


def test_without_the_package_a_minari_set_is_refused_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "minari", None)
    for asked in (read_recorded, check_target):
        with pytest.raises(BadInput) as refused:
            asked("minari:cartpole/expert-v0")
        assert "minari:cartpole/expert-v0: needs the package minari: pip install 'rollcall-rl[minari]'" in str(
            refused.value
        )
        assert "\n" not in str(refused.value)


@pytest.mark.parametrize(("env", "expert"), [("CartPole-v1", balances), ("Pendulum-v1", swings)])
def test_a_minari_set_holds_what_was_written(
    env: str, expert: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    require("minari")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    before = recorded(env, expert, episodes=3, steps=40)  # type: ignore[arg-type]
    target = "minari:test/expert-v0"
    check_target(target)
    write_recorded(target, before)
    after = read_recorded(target)
    assert (after.env, after.fault()) == (env, "")
    assert space_of(after.observation_space) == space_of(before.observation_space)
    for name in ("actions", "rewards", "terminated", "truncated", "episode_ends"):
        assert np.array_equal(getattr(after, name), getattr(before, name)), name
    for name in ("observations", "last_observations"):
        assert np.array_equal(getattr(after, name)["observation"], getattr(before, name)["observation"])
    with pytest.raises(BadInput, match="there is such a data set"):
        check_target(target)
    with pytest.raises(BadInput, match="not on this machine: minari download test/other-v0"):
        read_recorded("minari:test/other-v0")
