"""PPO-ptx through the command line: what is imitated beside follows from seed and step, wherever the learner is."""

from __future__ import annotations

import pytest

from tests.end_to_end.test_language import LAG_0, TINY, finished
from tests.needs import require
from tests.runs import Bench

require("vllm")

MIXED = (
    *(setting for setting in TINY if not setting.startswith("task.name")),
    *LAG_0,
    "algorithm.ptx_coef=0.5",
    "algorithm.ptx_batch_size=6",
    "algorithm.num_minibatches=2",
)


@pytest.mark.long
def test_a_run_that_is_killed_and_goes_on_and_one_on_ray_mix_in_the_same_and_end_with_the_same_bits(
    bench: Bench,
) -> None:
    whole = bench.start("train", "arithmetic-ppo", *MIXED, "runtime=serial", "name=whole", name="whole")
    expected = finished(whole)["weights_hash"]
    mixed_in = [record["ptx_loss"] for record in whole.steps()]
    assert len(mixed_in) == 6 and all(loss > 0 for loss in mixed_in)
    killed = bench.start(
        "train", "arithmetic-ppo", *MIXED, "runtime=serial", "checkpoint.every_steps=1", "name=killed", name="killed"
    )
    killed.wait_for_step(1)
    killed.process.kill()
    killed.wait()
    assert not (killed.directory / "summary.json").exists(), "it was over before it was killed"
    assert finished(bench.start("resume", "killed", name="killed"))["weights_hash"] == expected
    on_ray = bench.start("train", "arithmetic-ppo", *MIXED, "name=ray", name="ray")
    assert finished(on_ray)["weights_hash"] == expected
    assert [record["ptx_loss"] for record in on_ray.steps()] == mixed_in
