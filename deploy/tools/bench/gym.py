"""`rollcall bench gym`: the parts alone, the bound that follows from them, the whole system, and a peer, interleaved
so that a noisy machine disturbs all of them alike. Measures the production code paths; it has none of its own."""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from rollcall.cluster.errors import BadInput
from rollcall.cluster.messages.records import GymTrajectory, Header, ShardPayload, Ticket
from rollcall.cluster.messages.reports import StepOrder
from rollcall.cluster.parameter_server import ParameterServer
from rollcall.cluster.seeds import derive_seed
from rollcall.deploy.config.run_config import RunConfig
from rollcall.deploy.drive.lifecycle import drive_alone
from rollcall.deploy.kinds.control.factory import ControlFactory
from rollcall.deploy.kinds.recipes import load_config
from rollcall.deploy.report.recorders import read_jsonl
from rollcall.deploy.tools.bench import peers
from rollcall.learners.loop.collective import Collective

PART_S = 1.0  # how long each part is measured per repeat
WHOLE_S = 5.0  # and the whole system
WARM_UP = 0.3  # the first share of a whole run's steps is not counted: processes start, code is compiled
# DESIGN: the setting every PPO implementation is timed at on CartPole.
CARTPOLE = (
    "env=CartPole-v1",
    "actors.num=1",
    "actors.num_envs=16",
    "actors.num_shards=1",
    "actors.unroll_length=128",
    "algorithm.num_minibatches=8",
    "algorithm.epochs=4",
    "policy.hidden_sizes=[64,64]",
    "policy.activation=tanh",
    "max_policy_lag=1",
)


@dataclass(frozen=True)
class Parts:
    """Microseconds per env step, one core each."""

    env_us: float
    inference_us: float
    act_us: float  # the whole unit: env, inference, and writing the trajectory
    learn_us: float

    @property
    def bound(self) -> float:
        """Env steps per second if acting and learning overlapped perfectly and nothing else cost anything."""
        return 1e6 / max(self.act_us, self.learn_us)


class PartsBench:
    """Actor and learner of one config, in this process, each alone."""

    def __init__(self, config: RunConfig, scratch: Path) -> None:
        parts = ControlFactory(config, scratch)
        self._server = ParameterServer()
        self._actor = parts.actor("bench", self._server)
        self._learner = parts.learner(Collective())
        self._config = config
        self._server.publish(self._learner.weights(epoch=1, version=0))
        self._unit = config.algorithm_class.unit
        self._next = 0
        self._batch = [self._produce() for _ in range(config.tickets_per_step)]
        self._steps = 0
        for _ in range(3):
            self._learn()

    def measure(self) -> Parts:
        num_steps, env_s, inference_s, act_s = 0, 0.0, 0.0, 0.0
        until = time.perf_counter() + PART_S
        while time.perf_counter() < until:
            began = time.perf_counter()
            trajectory = self._produce()
            act_s += time.perf_counter() - began
            num_steps += trajectory.num_steps
            env_s += trajectory.timing.env_s
            inference_s += trajectory.timing.inference_s
        learned, learn_s = 0, 0.0
        batch_steps = sum(item.num_steps for item in self._batch)
        until = time.perf_counter() + PART_S
        while time.perf_counter() < until:
            began = time.perf_counter()
            self._learn()
            learn_s += time.perf_counter() - began
            learned += batch_steps
        per_act = 1e6 / num_steps / self._config.actors.num
        return Parts(env_s * per_act, inference_s * per_act, act_s * per_act, learn_s * 1e6 / learned)

    def _produce(self) -> GymTrajectory:
        shard = self._next % self._config.actors.num_shards
        ticket = Ticket(
            header=Header(ticket_id=self._next, attempt=1, epoch=1),
            seed=derive_seed(self._config.seed, "ticket", self._next),
            min_policy_version=0,
            lane=shard,
            payload=ShardPayload(shard, 0, self._unit),
            deadline_s=600.0,
        )
        self._next += 1
        return self._actor.produce(ticket)[1]

    def _learn(self) -> None:
        self._learner.update(self._batch, StepOrder(self._steps, 1, 0.0))
        self._steps += 1


def measure_whole(config: RunConfig, directory: Path) -> float:
    """Env steps per second of one complete run, with its books, its parameter server and its metrics."""
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    from rollcall.deploy.report.recorders import JsonLines

    recorder = JsonLines(directory)
    drive_alone(config, directory, recorder)
    records = read_jsonl(directory / "metrics.jsonl")
    first = int(len(records) * WARM_UP)
    steps = records[-1]["env_steps"] - records[first]["env_steps"]
    return float(steps / sum(record["step_s"] for record in records[first + 1 :]))


def main(args: argparse.Namespace) -> int:
    """Runs the benchmark and prints its result. `args`: recipe, overrides, peer, repeats, json."""
    overrides = [*(CARTPOLE if args.recipe == "cartpole-ppo" else ()), *args.overrides]
    say = partial(print, file=sys.stderr, flush=True)
    peer = peers.prepare(args.peer, say) if args.peer else None
    with tempfile.TemporaryDirectory(prefix="rollcall-bench-") as folder:
        result = _measure(args.recipe, overrides, args.repeats, peer, Path(folder), say)
    print(json.dumps(result) if args.json else _table(result))
    return 0


def _measure(
    recipe: str, overrides: Sequence[str], repeats: int, peer: peers.Peer | None, scratch: Path, say: Any
) -> dict[str, Any]:
    benches, fastest = _candidates(recipe, overrides, scratch, say)
    bench = benches[fastest]
    guess = bench.measure()
    config = _config(recipe, overrides, fastest, total_env_steps=int(guess.bound * WHOLE_S))
    parts: list[Parts] = []
    whole: list[float] = []
    peers: list[float] = []
    for repeat in range(repeats):
        parts.append(bench.measure())
        whole.append(measure_whole(config, scratch / "run"))
        parts.append(bench.measure())
        line = f"repeat {repeat + 1}/{repeats}: bound {parts[-1].bound:,.0f}, whole {whole[-1]:,.0f} env steps/s"
        if peer is not None:
            peers.append(peer.measure())
            line += f", {peer.name} {peers[-1]:,.0f}"
        say(line)
    typical = Parts(**{name: statistics.median(asdict(part)[name] for part in parts) for name in asdict(parts[0])})
    achieved = statistics.median(whole)
    peer_speed = statistics.median(peers) if peers else None
    learn_limits = typical.learn_us >= typical.act_us
    return {
        "bound": round(typical.bound),
        "achieved": round(achieved),
        "ratio_to_bound": round(achieved / typical.bound, 3),
        "peer": peer.name if peer else None,
        "peer_achieved": None if peer_speed is None else round(peer_speed),
        "ratio_to_peer": None if peer_speed is None else round(achieved / peer_speed, 2),
        "unit": "env steps/s",
        "limiter": _limiter(typical, learn_limits),
        "parts_us_per_env_step": {name: round(value, 3) for name, value in asdict(typical).items()},
        "all": {"whole": [round(x) for x in whole], "bound": [round(p.bound) for p in parts], "peer": peers},
        "settings": {"recipe": recipe, "overrides": list(overrides), "compile": fastest, "repeats": repeats},
    }


def _candidates(recipe: str, overrides: Sequence[str], scratch: Path, say: Any) -> tuple[dict[str, PartsBench], str]:
    """The parts with and without compilation; the faster learner is measured further."""
    benches: dict[str, PartsBench] = {}
    for choice in ("off", "on"):
        say(f"preparing the parts, compile {choice} ...")
        benches[choice] = PartsBench(_config(recipe, overrides, choice, total_env_steps=None), scratch)
        if choice == "off" and not shutil.which("g++") and not shutil.which("c++"):
            say("no C++ compiler: compiled updates are left out")
            break
    speeds = {choice: bench.measure().learn_us for choice, bench in benches.items()}
    return benches, min(speeds, key=speeds.__getitem__)


def _config(recipe: str, overrides: Sequence[str], compiled: str, *, total_env_steps: int | None) -> RunConfig:
    more = [f"learner.compile={compiled}", "eval.episodes=0", "metrics.enabled=true", "name=bench"]
    if total_env_steps is not None:
        more.append(f"total_env_steps={total_env_steps}")
    config = load_config(recipe, [*overrides, *more])
    if not isinstance(config, RunConfig):
        raise BadInput(f"{recipe}: bench gym measures control recipes; for language: rollcall bench lm {recipe}")
    return config


def _limiter(parts: Parts, learn_limits: bool) -> str:
    if learn_limits:
        return f"learning ({parts.learn_us:.2f} us per env step on one core; acting takes {parts.act_us:.2f})"
    return (
        f"acting ({parts.act_us:.2f} us per env step: env {parts.env_us:.2f}, inference {parts.inference_us:.2f}; "
        f"learning takes {parts.learn_us:.2f})"
    )


def _table(result: dict[str, Any]) -> str:
    parts = result["parts_us_per_env_step"]
    lines = [
        f"settings    {result['settings']['recipe']} {' '.join(result['settings']['overrides'])}",
        f"            compile {result['settings']['compile']}, median of {result['settings']['repeats']} repeats",
        f"env step    {parts['env_us']:8.2f} us per env step",
        f"inference   {parts['inference_us']:8.2f} us",
        f"acting      {parts['act_us']:8.2f} us (both, and writing the trajectory)",
        f"learning    {parts['learn_us']:8.2f} us",
        f"bound       {result['bound']:8,d} {result['unit']} = 1 / max(acting, learning), one core each",
        f"achieved    {result['achieved']:8,d} {result['unit']}: {result['ratio_to_bound']:.2f} of the bound",
        f"limiter     {result['limiter']}",
    ]
    if result["peer"]:
        lines.append(
            f"{result['peer']:<11} {result['peer_achieved']:8,d} {result['unit']}: Rollcall is "
            f"{result['ratio_to_peer']:.2f} times as fast"
        )
    return "\n".join(lines)
