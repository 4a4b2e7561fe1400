"""`rollcall bench lm`: what is counted of a run, the work that is measured, and the processes it happens in."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import partial
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest

from rollcall.cluster.errors import BadInput, RollcallError
from rollcall.cluster.messages.attempt import Header
from rollcall.cluster.messages.experience import LMTrajectory
from rollcall.cluster.messages.steps import SampledTokens
from rollcall.deploy.tools.bench import lm as bench_lm
from rollcall.deploy.tools.bench import peers as bench_peers
from rollcall.deploy.tools.bench.aside import Aside
from rollcall.learners.models.language.tiny_model import write_tiny_model
from tests.runs import BENCH_KEYS


def step(number: int, *, tokens: int, elapsed_s: float, update_s: float = 1.0) -> dict[str, float]:
    line = {"step": number, "tokens": tokens, "elapsed_s": elapsed_s, "update_s": update_s, "step_s": 2.0}
    return {**line, "act_s": 1.5, "apply_s": 0.125, "wait_batch_s": 0.25, "publish_s": 0.0625}


def test_speed_is_that_of_the_steps_after_the_second_and_before_the_last() -> None:
    records = [
        step(0, tokens=50, elapsed_s=90.0, update_s=9.0),
        step(1, tokens=100, elapsed_s=100.0, update_s=9.0),
        step(2, tokens=160, elapsed_s=102.0, update_s=1.0),
        step(3, tokens=200, elapsed_s=105.0, update_s=2.0),
        step(4, tokens=999, elapsed_s=400.0, update_s=9.0),
    ]
    whole = bench_lm.counted(records)
    assert whole.tokens_per_s == (200 - 100) / (105.0 - 100.0)
    assert whole.step_s == {
        **{"step": 2.0, "generate": 1.5, "apply": 0.125},
        **{"update": 1.5, "wait": 0.25, "publish": 0.0625},
    }


def test_the_limiter_is_the_part_that_is_slower_alone() -> None:
    step_s = {"step": 2.0, "generate": 1.5, "apply": 0.125, "update": 1.75, "wait": 0.25, "publish": 0.0625}
    learning = bench_lm.limiter(generate=13000, learn=12000, step_s=step_s)
    assert learning.startswith("learning (12,000 tokens/s on one core; the other part alone 13,000)")
    assert "works 1.750; the learner waits for its batch 0.250" in learning
    generation = bench_lm.limiter(generate=11000, learn=12000, step_s=step_s)
    assert generation.startswith("generation (11,000") and "works 1.500" in generation


def test_completions_are_counted_by_the_tokens_that_the_policy_sampled() -> None:
    sampled = np.array([0, 0, 1, 1, 1, 0, 0, 1, 0, 1], bool)  # prompts of 2; the second is a conversation
    nothing = np.zeros(0)
    item = LMTrajectory(
        Header(0, 1, 1, "policy", "bench"),
        row=0,
        sample_offsets=np.array([0, 5, 10]),
        token_ids=nothing,
        loss_mask=sampled,
        tokens=SampledTokens(nothing),
        version_spans=nothing,
        rewards=nothing,
        finish_reasons=("stop", "stop"),
    )
    assert bench_lm._lengths(item) == [3, 2]


@pytest.mark.parametrize(("workload", "completions", "tokens"), [("small", 512, 32), ("large", 128, 64)])
def test_a_workload_is_of_the_promised_size(workload: str, completions: int, tokens: int, tmp_path: Path) -> None:
    config = bench_lm._config("arithmetic-grpo", bench_lm.WORKLOADS[workload])
    actors = config.actors
    assert actors.prompts_per_batch * actors.samples_per_prompt == completions
    assert actors.sampling.max_tokens == tokens and actors.sampling.ignore_eos
    assert actors.engine.max_num_seqs >= completions  # no completion waits for another
    assert config.max_policy_lag == 1 and config.policy.warm_start is None and config.eval.num_rows == 0
    write_tiny_model(tmp_path, alphabet="0123456789+=", seed=0, **config.policy.tiny)
    num_parameters = (tmp_path / "model.safetensors").stat().st_size / 4
    assert 0.75e6 < num_parameters < 0.85e6 if workload == "small" else 9e6 < num_parameters < 10e6


def test_what_is_measured_can_be_overridden_but_only_for_language() -> None:
    config = bench_lm._config("arithmetic-grpo", [*bench_lm.WORKLOADS["small"], "actors.prompts_per_batch=2"])
    assert config.tickets_per_step == 2
    with pytest.raises(BadInput, match="for control: rollcall bench gym cartpole-ppo"):
        bench_lm._config("cartpole-ppo", [])


@pytest.mark.timeout(240)
def test_a_callable_in_a_process_of_its_own_answers_tells_what_goes_wrong_and_may_die() -> None:
    aside = Aside("division", partial, divmod)
    assert aside(7, 2) == (3, 1)
    with pytest.raises(RollcallError, match="division: ZeroDivisionError"):
        aside(1, 0)
    dying = Aside("an end", partial, os._exit)
    with pytest.raises(RollcallError, match="an end: its process ended before it answered"):
        dying(3)
    dying.close()


def peer(folder: Path, program: str) -> bench_peers.Peer:
    path = folder / "program.py"
    path.write_text(program)
    return bench_peers.Peer("peer", Path(sys.executable), path)


TELLS = """
import json, os, sys
print('a log line')
print(json.dumps({"per_second": 2 * json.loads(sys.argv[1])["steps"], "returns": [1, 2.5], "else": None}))
assert "PYTHONPATH" not in os.environ
open("left-behind", "w").close()
"""


def test_a_peer_gets_its_work_and_its_last_line_is_the_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert peer(tmp_path, TELLS).measure({"steps": 3}) == bench_peers.Measured(6.0, (1, 2.5))
    assert [path.name for path in tmp_path.iterdir()] == ["program.py"], "the user's directory is left alone"


@pytest.mark.parametrize(
    ("program", "told"),
    [
        ("raise SystemExit('no such model')", "peer failed: no such model"),
        (
            "import sys; print('ValueError: no\\nbut see the manual', file=sys.stderr); sys.exit(1)",
            "peer failed: ValueError: no",
        ),
        ("import os; os._exit(3)", "peer failed: exit code 3"),
        ("", "peer told no result: its last line is ''"),
        ("print('17.5')", "peer told no result: its last line is '17.5'"),
        ("import json; print(json.dumps({'per_second': 'fast'}))", "peer told no result: its last line is "),
        ("import time; time.sleep(60)", "peer gave no result within 1 s"),
    ],
)
def test_a_peer_that_fails_says_nothing_or_never_ends_is_told_in_one_line(
    program: str, told: str, tmp_path: Path
) -> None:
    with pytest.raises(RollcallError) as caught:
        peer(tmp_path, program).measure({}, timeout_s=1.0 if "sleep" in program else 60.0)
    assert str(caught.value).startswith(told) and len(str(caught.value).splitlines()) == 1


def test_a_peer_is_compared_at_our_versions_of_what_is_shared() -> None:
    assert bench_peers._as_ours("numpy") == f"numpy=={version('numpy').partition('+')[0]}"
    with pytest.raises(BadInput, match="nosuchpackage, which is not installed"):
        bench_peers._as_ours("nosuchpackage")


@pytest.mark.prove
@pytest.mark.timeout(600)
def test_the_benchmark_measures_parts_and_whole_and_prints_one_object(tmp_path: Path) -> None:
    program = """
from rollcall.deploy import cli
from rollcall.deploy.tools.bench import lm as bench_lm
if __name__ == "__main__":
    bench_lm.PART_S = bench_lm.WHOLE_S = 0.1
    cli.console()
"""
    (tmp_path / "program.py").write_text(program)
    model = [f"policy.tiny.{name}=1" for name in ("num_layers", "num_heads", "num_kv_heads")]
    sizes = [
        "policy.tiny.hidden_size=32",
        "actors.prompts_per_batch=2",
        "actors.sampling.max_tokens=8",
        "actors.engine.enforce_eager=true",
    ]
    command = [
        sys.executable,
        "program.py",
        "bench",
        "lm",
        "arithmetic-grpo",
        *model,
        *sizes,
        "--repeats",
        "1",
        "--json",
    ]
    done = subprocess.run(
        command,
        cwd=tmp_path,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=580,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)  # nothing else is printed
    assert result.keys() >= BENCH_KEYS
    parts = result["parts_tokens_per_s"]
    assert result["bound"] == min(parts.values()) and result["achieved"] > 0
    assert result["settings"]["completions"] == 16 and result["settings"]["tokens_per_completion"] == 8
