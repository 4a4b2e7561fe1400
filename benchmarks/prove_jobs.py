"""The long proofs of Ray jobs: both halves on a real cluster of two nodes under a token, stopped, killed, resumed, side
by side, and refused. `python -m benchmarks.prove_jobs [--only NAME ...]`; some ten minutes on two cores."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from statistics import median
from typing import Any

from benchmarks.proofs import Row, parser, report
from rollcall.cluster.books.audit import audit_run
from tests.two_nodes import ROLLCALL, TwoNodes
from tests.waiting import eventually

ENV = "import gymnasium\n\n\ndef make():\n    return gymnasium.make('CartPole-v1')\n"
CONTROL = (
    *("train", "cartpole-ppo", "env=own_env:make", "actors.num=2", "actors.num_envs=8", "actors.num_shards=4"),
    *("actors.unroll_length=32", "algorithm.num_minibatches=2", "algorithm.epochs=2", "learner.compile=off"),
    *("eval.episodes=0", "metrics.enabled=false", "total_learner_steps=100"),
)
TINY = (
    *("train", "arithmetic-grpo", "policy.warm_start=null", "actors.prompts_per_batch=4", "task.num_train_rows=20"),
    "policy.tiny={hidden_size: 32, num_layers: 1, num_heads: 1, num_kv_heads: 1, intermediate_size: 64}",
    *("actors.samples_per_prompt=2", "actors.sampling.max_tokens=6", "actors.engine.enforce_eager=true"),
    *("eval.episodes=0", "metrics.enabled=false"),
)
# vLLM is hidden from a node: what an image without it is like.
WITHOUT_VLLM = """
import importlib.metadata as metadata
found = metadata.version
def version(name):
    if name.startswith("vllm"):
        raise metadata.PackageNotFoundError(name)
    return found(name)
metadata.version = version
"""


def cluster(**settings: Any) -> TwoNodes:
    nodes = TwoNodes(**settings)
    (nodes.work / "own_env.py").write_text(ENV)
    return nodes


def finished(nodes: TwoNodes, job: str, run: str, timeout_s: float = 300) -> dict[str, Any]:
    status = nodes.wait(job, timeout_s)
    assert status == "SUCCEEDED", nodes.logs(job)[-2000:]
    assert audit_run(nodes.runs / run) == [], f"{run}: the books do not balance"
    return nodes.summary(run)


def control(nodes: TwoNodes) -> Iterator[Row]:
    """The control job at the default lag: submitted, fetched, stopped five times, gone on with, and still learnt."""
    settings = ("train", "cartpole-ppo", "env=own_env:make", "actors.num=2", "name=learns")
    nodes.submit("learns-0", *settings)
    stops = []
    for part in range(1, 6):
        nodes.wait_for_step("learns", 10 * part)
        nodes.stop(f"learns-{part - 1}")
        eventually(lambda: (nodes.runs / "learns" / "summary.json").exists(), 15, "the stop's summary")
        nodes.wait(f"learns-{part - 1}", 30)
        events = (nodes.runs / "learns" / "events.jsonl").read_text().splitlines()
        stops.append(json.loads(events[-1]))
        nodes.submit(f"learns-{part}", *settings)
    summary = finished(nodes, "learns-5", "learns")
    mean = summary["final_eval"]["mean"]
    yield Row("control", f"cartpole-ppo at lag 1, stopped five times: final {mean:.0f} (475), audit clean", mean >= 475)


def stops(nodes: TwoNodes) -> Iterator[Row]:
    """Seconds from the first signal to the checkpoint and to the driver's end, over ten stops at both lags."""
    taken: dict[int, list[float]] = {0: [], 1: []}
    for number in range(10):
        lag, run = number % 2, f"stop-{number}"
        nodes.submit(run, *CONTROL, "total_learner_steps=100000", f"max_policy_lag={lag}", f"name={run}")
        nodes.wait_for_step(run, 20 + number)
        before = len(list((nodes.runs / run / "checkpoints").glob("step-*")))
        pid = int((nodes.runs / run / "lock").read_text().split()[0])
        began = time.time()
        os.kill(pid, 15)
        eventually(lambda run=run: (nodes.runs / run / "summary.json").exists(), 15, "the summary")  # type: ignore[misc]
        newest = max((nodes.runs / run / "checkpoints").glob("step-*"), key=lambda path: path.stat().st_mtime)
        assert before >= 1
        taken[lag].append((newest / "manifest.json").stat().st_mtime - began)
        nodes.wait(run, 30)
        assert nodes.info(run)["driver_exit_code"] == 130
        assert audit_run(nodes.runs / run) == []
    worst = max(max(found) for found in taken.values())
    text = ", ".join(f"lag {lag}: {median(found):.2f} s, at most {max(found):.2f}" for lag, found in taken.items())
    yield Row("stops", f"SIGTERM to checkpoint: {text} (2.5)", worst < 2.5)


def language(nodes: TwoNodes) -> Iterator[Row]:
    """The language job: finishes and is fetched; at lag 0 stopped and gone on with to the same bits."""
    nodes.submit("words", *TINY, "total_learner_steps=8", "name=words")
    summary = finished(nodes, "words", "words")
    policy = (nodes.runs / "words" / "policy" / "config.json").is_file()
    yield Row("language", f"arithmetic-grpo as a job: {summary['generated_tokens']} tokens, policy exported", policy)
    exact = (*TINY, "total_learner_steps=30", "max_policy_lag=0")
    nodes.submit("whole", *exact, "name=whole")
    reference = finished(nodes, "whole", "whole")["weights_hash"]
    nodes.submit("part-1", *exact, "name=part")
    nodes.wait_for_step("part", 8)
    nodes.stop("part-1")
    nodes.wait("part-1")
    stopped = nodes.summary("part")
    nodes.submit("part-2", *exact, "name=part")
    same = finished(nodes, "part-2", "part")["weights_hash"] == reference
    yield Row("language", f"stopped at step {stopped['learner_steps']} of 30, gone on with: the same weights", same)


def side_by_side(nodes: TwoNodes) -> Iterator[Row]:
    """Three runs at once on one cluster end as they do alone."""
    shares = ("cluster.actors.num_cpus=0.25", "cluster.learner.num_cpus=0.25", "max_policy_lag=0")
    for seed in range(3):
        nodes.submit(f"beside-{seed}", *CONTROL, *shares, f"seed={seed}", f"name=beside-{seed}")
    hashes = [finished(nodes, f"beside-{seed}", f"beside-{seed}")["weights_hash"] for seed in range(3)]
    alone = []
    for seed in range(3):
        done = nodes.rollcall(*CONTROL, "runtime=serial", "max_policy_lag=0", f"seed={seed}", f"name=alone-{seed}")
        assert done.returncode == 0, done.stderr
        alone.append(nodes.summary(f"alone-{seed}")["weights_hash"])
    yield Row(
        "side-by-side",
        "three jobs at once: each with the weights it has alone",
        hashes == alone and len(set(hashes)) == 3,
    )


def nodes_come_and_go(nodes: TwoNodes) -> Iterator[Row]:
    """The learner's node dies and comes back; then a run begins with one actor and the other joins with its node."""
    there = ("cluster.learner.label_selector={zone: b}", "cluster.actors.num_cpus=0.5", "cluster.placement=SPREAD")
    nodes.submit("moved", *CONTROL, *there, "total_learner_steps=300", "checkpoint.every_steps=20", "name=moved")
    nodes.wait_for_step("moved", 30)
    nodes.kill_worker()
    time.sleep(3)
    nodes.start_worker()
    summary = finished(nodes, "moved", "moved")
    rolled_back = summary["ledger"]["rolled_back"]
    text = f"the learner's node died: gone on with elsewhere, {rolled_back} rolled back"
    yield Row("nodes", text, summary["restarts"] >= 1)

    exact = (*CONTROL, "max_policy_lag=0", "total_learner_steps=400")
    done = nodes.rollcall(*exact, "runtime=serial", "name=serial")
    assert done.returncode == 0, done.stderr
    nodes.kill_worker()
    few = ("cluster.min_actors=1", "cluster.actors.num_cpus=0.5", "cluster.learner.num_cpus=0.5")
    nodes.submit("joined", *exact, *few, "name=joined")
    nodes.wait_for_step("joined", 20)
    nodes.start_worker()
    summary = finished(nodes, "joined", "joined")
    log = (nodes.runs / "joined" / "logs" / "driver.log").read_text()
    both = "gym-0 is up" in log and "gym-1 is up" in log
    same = summary["weights_hash"] == nodes.summary("serial")["weights_hash"]
    yield Row("nodes", "begun with one actor of two, the other joined with its node: the same weights", both and same)


def refused(nodes: TwoNodes) -> Iterator[Row]:
    """What only a fixed or broken cluster can show: other versions, an image without vLLM, a full disk."""
    change = (
        "import json, ray; ray.init(); from ray._private import worker; client = worker.global_worker.gcs_client;"
        "key = b'CLUSTER_METADATA'; found = json.loads(client.internal_kv_get(key, b'cluster'));"
        "found['ray_version'] = {version!r}; client.internal_kv_put(key, json.dumps(found).encode(), True, b'cluster')"
    )

    def set_version(version: str) -> None:
        code = change.replace("{version!r}", repr(version)).replace("ray.init()", "ray.init(log_to_driver=False)")
        environment = nodes.environment(RAY_ADDRESS=nodes.address)
        subprocess.run([sys.executable, "-c", code], env=environment, check=True, capture_output=True, timeout=60)

    import ray

    set_version("2.59.0")
    done = nodes.rollcall(*CONTROL, "name=mismatch")
    yield Row("refused", *one_line("Ray of another version", done, "2.59.0", ray.__version__))
    # No client can connect any more: the versions are looked at before anything else.


def one_line(what: str, done: subprocess.CompletedProcess[str], *words: str, code: int = 2) -> tuple[str, bool]:
    said = [line for line in done.stderr.splitlines() if line.startswith("rollcall: error:")]
    met = done.returncode == code and len(said) == 1 and all(word in said[0] for word in words)
    found = said[0] if said else f"exit code {done.returncode}: {(done.stderr or done.stdout)[-300:]}"
    return f"{what}: {found}", met


def without_vllm(nodes: TwoNodes) -> Iterator[Row]:
    """A node whose image has no vLLM, and a disk that is full, each in one line."""
    nodes.kill_worker()
    hidden = nodes.folder / "hidden"
    hidden.mkdir()
    (hidden / "sitecustomize.py").write_text(WITHOUT_VLLM)
    nodes.start_worker(PYTHONPATH=str(hidden))
    eventually(lambda: nodes.alive() == 2, 60, "the node without vLLM")
    done = nodes.rollcall(*TINY, "total_learner_steps=2", "name=blind", "cluster.placement=STRICT_SPREAD")
    yield Row("without", *one_line("image without vLLM", done, "node 127.0.0.2", "cannot generate"))
    done = nodes.rollcall(*CONTROL, "name=elsewhere", ROLLCALL_RUNS="/dev/shm/../../dev/null")
    yield Row("without", *one_line("runs in no directory", done, "/dev/null"))
    run = nodes.runs / "full"
    nodes.submit("full-1", *CONTROL, "total_learner_steps=200", "name=full")
    nodes.wait_for_step("full", 5)
    nodes.job("stop", "full-1")
    (run / "summary.json.new").symlink_to("/dev/full")  # on which every write is refused as on a full disk
    done = nodes.rollcall("resume", "full")
    yield Row("without", *one_line("full disk", done, "No space left on device", code=1))


def token_cost(nodes: TwoNodes) -> Iterator[Row]:
    """What a token costs a private cluster: the same short run with and without, three times each."""
    taken: dict[str, list[float]] = {"token": [], "disabled": []}
    for number in range(3):
        for mode, times in taken.items():
            environment = nodes.environment(RAY_AUTH_MODE=mode)
            for name in ("RAY_AUTH_TOKEN_PATH", "RAY_ADDRESS"):
                environment.pop(name, None)
            command = [*ROLLCALL, *CONTROL, f"name={mode}-{number}"]
            began = time.monotonic()
            subprocess.run(command, cwd=nodes.work, env=environment, check=True, capture_output=True, timeout=120)
            times.append(time.monotonic() - began)
    unwritten = not (nodes.folder / "home" / ".ray" / "auth_token").exists()
    token, none = median(taken["token"]), median(taken["disabled"])
    yield Row("token", f"a private cluster: {token:.2f} s with a token, {none:.2f} s without; none is saved", unwritten)


PROOFS: dict[str, Callable[[TwoNodes], Iterator[Row]]] = {
    "control": control,
    "stops": stops,
    "language": language,
    "side-by-side": side_by_side,
    "nodes": nodes_come_and_go,
    "without": without_vllm,
    "refused": refused,
    "token": token_cost,
}


def prove(names: Iterable[str]) -> Iterator[Row]:
    """Each on a cluster of its own. What one raises is a row, and the others go on."""
    for name in names:
        began, nodes = time.monotonic(), cluster()
        try:
            yield from PROOFS[name](nodes)
        except Exception as error:
            yield Row(name, f"{type(error).__name__}: {error}", False)
        finally:
            nodes.close()
        print(f"{name}: {time.monotonic() - began:.0f} s", flush=True)


def main() -> int:
    args = parser(__doc__, PROOFS).parse_args()
    return report(prove(args.only or PROOFS), args.append)


if __name__ == "__main__":
    sys.exit(main())
