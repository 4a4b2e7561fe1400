"""How often a language run is evaluated on its way."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from rollcall.cluster.errors import BadInput
from rollcall.deploy.kinds.recipes import load_config, load_run
from tests import EARLIER
from tests.needs import needs

pytestmark = needs("transformers")


def steps_between(*overrides: str) -> int | None:
    config = load_config("arithmetic-grpo", overrides)
    found: int | None = config.eval_every_steps  # type: ignore[attr-defined]
    return found


@pytest.mark.parametrize(("total", "steps"), [(49, None), (50, 10), (54, 11), (150, 30), (151, 31), (100_000, 20_000)])
def test_by_default_a_run_that_is_long_enough_is_evaluated_four_times_on_its_way(total: int, steps: int | None) -> None:
    assert steps_between(f"total_learner_steps={total}") == steps
    if steps is not None:
        assert len([step for step in range(1, total) if step % steps == 0]) == 4


def test_somebody_may_say_how_often_or_that_it_is_not() -> None:
    assert steps_between("eval.every_steps=7", "total_learner_steps=20") == 7
    assert steps_between("eval.every_steps=null") is None
    assert steps_between("eval.every_steps=auto") == 30


@pytest.mark.parametrize("value", ["0", "-1", "often", "1.5"])
def test_anything_else_is_refused_in_a_line(value: str) -> None:
    with pytest.raises(BadInput, match=r"eval\.every_steps"):
        steps_between(f"eval.every_steps={value}")


@pytest.mark.parametrize("line", ["  every_steps: null\n", ""])
def test_a_run_of_an_earlier_release_is_evaluated_as_it_was(tmp_path: Path, line: str) -> None:
    run = tmp_path / "language"
    shutil.copytree(EARLIER / "language", run)
    before, section, after = (run / "config.yaml").read_text().partition("\neval:\n")
    assert "  every_steps: 1\n" in after
    after = after.replace("  every_steps: 1\n", line, 1)
    before = before.replace("total_learner_steps: 3", "total_learner_steps: 300")
    (run / "config.yaml").write_text(before + section + after)
    config = load_run(run).config
    assert (config.total_learner_steps, config.eval_every_steps) == (300, None)  # type: ignore[attr-defined]
