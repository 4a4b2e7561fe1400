"""When an engine and a learner agree, by the precision of both."""

from __future__ import annotations

import numpy as np
import pytest

from rollcall.actors.engine.canary import bound_of, check_canary
from rollcall.cluster.errors import EngineMismatch
from rollcall.cluster.messages.arrays import Array
from rollcall.cluster.messages.weights import Canary

SAID = np.linspace(-8, -0.1, 20, dtype=np.float32)


def check(said: Array, *, learner: str = "float32", engine: str = "float32", on_gpu: bool = False) -> float:
    canary = Canary(np.arange(21, dtype=np.int32), SAID, learner)
    bound = bound_of(engine, learner, on_gpu=on_gpu)
    return check_canary(canary, said, bound=bound, version=3, model="models/x (XForCausalLM)", dtype=engine)


@pytest.mark.parametrize(
    ("learner", "engine", "on_gpu", "bound"),
    [
        ("float32", "float32", False, 1e-3),
        ("float32", "float32", True, 1e-2),  # its attention computes in TF32
        ("float32", "float16", True, 2e-2),
        ("float32", "bfloat16", False, 0.2),
        ("bfloat16", "float32", False, 0.2),  # the coarser of the two
    ],
)
def test_the_mean_difference_may_be_what_the_coarser_precision_explains(
    learner: str, engine: str, on_gpu: bool, bound: float
) -> None:
    settings = {"learner": learner, "engine": engine, "on_gpu": on_gpu}
    assert check(SAID + 0.9 * bound, **settings) == pytest.approx(0.9 * bound, rel=1e-2)  # type: ignore[arg-type]
    with pytest.raises(EngineMismatch):
        check(SAID + 1.1 * bound, **settings)  # type: ignore[arg-type]


def test_what_disagrees_is_told_in_one_line_with_model_version_and_both_numbers() -> None:
    said = SAID.copy()
    said[4] -= 2.0
    with pytest.raises(EngineMismatch) as caught:
        check(said)
    text = str(caught.value)
    for part in ("models/x (XForCausalLM)", "version 3", "0.1 nats on average", "2 at the most", "0.001", "float32"):
        assert part in text
    assert "\n" not in text


def test_what_is_no_number_is_never_within_the_bound() -> None:
    said = SAID.copy()
    said[0] = np.nan
    with pytest.raises(EngineMismatch):
        check(said, engine="bfloat16")
