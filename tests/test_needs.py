"""A skip that nobody allowed fails where CI is set; one that is listed, and everything elsewhere, stays a skip."""

from __future__ import annotations

import pytest

from tests.needs import MAY_LACK_IN_CI, NEEDS, lack, needs, refuse_unlisted_skip, require


def skipped(reason: str) -> pytest.TestReport:
    return pytest.TestReport("t", ("t.py", 1, "t"), {}, "skipped", ("t.py", 1, f"Skipped: {reason}"), "call")


def reason_of_lack(name: str) -> str:
    with pytest.raises(pytest.skip.Exception) as found:
        lack(name, "why")
    return str(found.value)


def test_with_ci_set_only_a_listed_skip_stays_one(monkeypatch: pytest.MonkeyPatch) -> None:
    unlisted, listed, other = reason_of_lack("vllm"), reason_of_lack("chromium"), "not today"
    monkeypatch.delenv("CI", raising=False)
    assert refuse_unlisted_skip(skipped(unlisted)).skipped
    monkeypatch.setenv("CI", "1")
    assert refuse_unlisted_skip(skipped(listed)).skipped
    for reason in (unlisted, other):
        refused = refuse_unlisted_skip(skipped(reason))
        assert refused.failed and reason in str(refused.longrepr)


def test_the_mark_names_what_is_missing_and_how_to_come_by_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.needs.find_spec", lambda name: None)
    mark = needs("mujoco").mark
    assert mark.args == (True,) and mark.kwargs["reason"] == "needs mujoco: the extra mujoco"
    with pytest.raises(pytest.skip.Exception, match="needs vllm: the extra lm-cpu or lm-gpu"):
        require("linux", "vllm")


def test_no_package_that_setup_installs_is_allowed_to_be_missing() -> None:
    assert MAY_LACK_IN_CI.keys() - NEEDS.keys() == {"containment"}
    assert not MAY_LACK_IN_CI.keys() & {"vllm", "transformers", "peft", "mujoco", "ale_py", "math_verify", "playwright"}
