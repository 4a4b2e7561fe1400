"""`rollcall bench gym`: the parts alone, the bound that follows from them, the whole system, and a peer, interleaved
so that a noisy machine disturbs all of them alike. Measures the production code paths; it has none of its own."""

from __future__ import annotations

import argparse
import math
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rollcall.cluster.cores import usable_cores
from rollcall.cluster.errors import BadInput
from rollcall.cluster.messages.attempt import Produced, ShardPayload
from rollcall.cluster.messages.experience import GymExperience
from rollcall.cluster.parameter_server import ParameterServer
from rollcall.deploy.config.recipe.run_config import RunConfig, cpp_compiler
from rollcall.deploy.kinds.control.factory import ControlFactory
from rollcall.deploy.kinds.recipes import load_config
from rollcall.deploy.tools.bench import learnt_alike
from rollcall.deploy.tools.bench.parts import Learning, make_ticket
from rollcall.deploy.tools.bench.peer_work import Rival, rivals
from rollcall.deploy.tools.bench.result import achieved_line, bound_line, compared, last_lines, say, tell, whole_run

PART_S = 1.0  # how long each part is measured per repeat
WHOLE_S = 5.0  # and the whole system
LEAST_LEARNER_STEPS = 5  # of a whole run, however slow the machine or large the batch
WARM_UP = 0.3  # the first share of a whole run's steps is not counted: processes start, code is compiled
# The setting every PPO implementation is timed at on CartPole.
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
        self._config = config
        server = ParameterServer()
        self._actor = parts.actor("bench", server)
        self._learning = Learning(parts, lambda trajectory: trajectory.num_steps)
        server.publish(self._learning.initial)
        self._next = 0
        self._learning.batch = [self._produce()[1] for _ in range(config.tickets_per_step)]
        for _ in range(3):
            self._learning(0.0)

    @property
    def whole_steps(self) -> int:
        """Env steps of a whole run that is worth measuring."""
        batch = sum(experience.num_steps for experience in self._learning.batch)
        return int(max(self.measure().bound * WHOLE_S, LEAST_LEARNER_STEPS * batch))

    def measure(self) -> Parts:
        num_steps, env_s, inference_s, act_s = 0, 0.0, 0.0, 0.0
        until = time.perf_counter() + PART_S
        while time.perf_counter() < until:
            began = time.perf_counter()
            produced, _ = self._produce()
            act_s += time.perf_counter() - began
            num_steps += produced.num_steps
            env_s += produced.timing.env_s
            inference_s += produced.timing.inference_s
        per_act = 1e6 / num_steps / self._config.actors.num
        return Parts(env_s * per_act, inference_s * per_act, act_s * per_act, 1e6 / self._learning(PART_S))

    def _produce(self) -> tuple[Produced, GymExperience]:
        shard = self._next % self._config.actors.num_shards
        payload = ShardPayload(shard, 0, self._config.algorithm_class.unit)
        ticket = make_ticket(self._next, self._config.seed, self._learning.initial.epoch, shard, payload)
        self._next += 1
        return self._actor.produce(ticket)


def measure_whole(config: RunConfig, directory: Path) -> float:
    """Env steps per second of one complete run."""
    records = whole_run(config, directory)
    first = int(len(records) * WARM_UP)
    steps = records[-1]["env_steps"] - records[first]["env_steps"]
    return float(steps / sum(record["step_s"] for record in records[first + 1 :]))


def main(args: argparse.Namespace) -> int:
    """Runs the benchmark and prints its result. `args`: recipe, overrides, peer, learn, repeats, json."""
    overrides = [*(CARTPOLE if args.recipe == "cartpole-ppo" else ()), *args.overrides]
    _control(args.recipe, overrides)  # before settings are added that other kinds of run do not know
    with tempfile.TemporaryDirectory(prefix="rollcall-bench-") as folder:
        if args.learn is not None:
            more = ["eval.episodes=0", f"total_env_steps={args.learn}"]
            config = _control(args.recipe, [*overrides, *more])
            result = learnt_alike.compare(config, rivals(config, args.peer, say), args.repeats, Path(folder))
            return tell(result, learnt_alike.table, args)
        against = rivals(_config(args.recipe, overrides, "off", total_env_steps=None), args.peer, say)
        result = _measure(args.recipe, overrides, args.repeats, against, Path(folder))
    return tell(result, _table, args)


def _measure(
    recipe: str, overrides: Sequence[str], repeats: int, against: Sequence[Rival], scratch: Path
) -> dict[str, Any]:
    benches, fastest = _candidates(recipe, overrides, scratch)
    bench = benches[fastest]
    config = _config(recipe, overrides, fastest, total_env_steps=bench.whole_steps)
    parts: list[Parts] = []
    whole: list[float] = []
    peer_speeds: dict[str, list[float]] = {rival.peer.name: [] for rival in against}
    for repeat in range(repeats):
        parts.append(bench.measure())
        whole.append(measure_whole(config, scratch / "run"))
        parts.append(bench.measure())
        line = f"repeat {repeat + 1}/{repeats}: bound {parts[-1].bound:,.0f}, whole {whole[-1]:,.0f} env steps/s"
        for rival in against:
            speed = rival.peer.measure(rival.work | {"seconds": WHOLE_S, "learn_steps": None}).per_second
            peer_speeds[rival.peer.name].append(speed)
            line += f", {rival.peer.name} {speed:,.0f}"
        say(line)
    typical = Parts(**{name: statistics.median(asdict(part)[name] for part in parts) for name in asdict(parts[0])})
    bounds = [round(part.bound) for part in parts]
    return {
        **compared(typical.bound, whole, peer_speeds),
        "unit": "env steps/s",
        "limiter": _limiter(typical),
        "plan": plan(typical, config, usable_cores()),
        "parts_us_per_env_step": {name: round(value, 3) for name, value in asdict(typical).items()},
        "all": {"whole": [round(x) for x in whole], "bound": bounds, "peers": peer_speeds},
        "settings": {"recipe": recipe, "overrides": list(overrides), "compile": fastest, "repeats": repeats},
    }


def _candidates(recipe: str, overrides: Sequence[str], scratch: Path) -> tuple[dict[str, PartsBench], str]:
    """The parts with and without compilation; the faster learner is measured further."""
    benches: dict[str, PartsBench] = {}
    for choice in ("off", "on"):
        say(f"preparing the parts, compile {choice} ...")
        try:
            config = _config(recipe, overrides, choice, total_env_steps=None)
        except BadInput as refused:
            if choice == "off":
                raise
            say(f"left out: {refused}")
            break
        benches[choice] = PartsBench(config, scratch)
        if choice == "off" and cpp_compiler() is None:
            say("no C++ compiler: compiled updates are left out")
            break
    speeds = {choice: bench.measure().learn_us for choice, bench in benches.items()}
    return benches, min(speeds, key=speeds.__getitem__)


def _config(recipe: str, overrides: Sequence[str], compiled: str, *, total_env_steps: int | None) -> RunConfig:
    more = [f"learner.compile={compiled}", "eval.episodes=0", "metrics.enabled=true", "name=bench"]
    if _control(recipe, [*overrides, *more]).replay is not None:
        more.append("replay.learning_starts=0")  # learning is timed, and not the wait for it
    if total_env_steps is not None:
        more.append(f"total_env_steps={total_env_steps}")
    return _control(recipe, [*overrides, *more])


def _control(recipe: str, overrides: Sequence[str]) -> RunConfig:
    config = load_config(recipe, overrides)
    if not isinstance(config, RunConfig):
        raise BadInput(
            f"{recipe}: bench gym measures recipes of control whose actors step envs; for language: rollcall bench lm "
            f"{recipe}"
        )
    if config.expert is not None:
        raise BadInput(f"{recipe}: bench gym has no expert to teach the run: choose a recipe without one")
    return config


def _limiter(parts: Parts) -> str:
    if parts.learn_us >= parts.act_us:
        return f"learning ({parts.learn_us:.2f} us per env step on one core; acting takes {parts.act_us:.2f})"
    return (
        f"acting ({parts.act_us:.2f} us per env step: env {parts.env_us:.2f}, inference {parts.inference_us:.2f}; "
        f"learning takes {parts.learn_us:.2f})"
    )


def plan(parts: Parts, config: RunConfig, num_cores: int) -> str:
    """In words: how many actors the machine's cores are enough for, what that makes, and what a core more would."""
    alone_us, shards = parts.act_us * config.actors.num, config.actors.num_shards

    def speed(actors: int) -> float:
        return 1e6 / max(alone_us / actors, parts.learn_us)

    actors = max(1, min(shards, num_cores - 1, math.ceil(alone_us / parts.learn_us)))
    text = f"actors.num={actors} beside the learner: {speed(actors):,.0f} env steps/s at best"
    if alone_us / actors <= parts.learn_us:
        return f"{text}; more actors gain nothing, since learning limits"
    if actors == shards:
        return f"{text}; more take more env shards (actors.num_shards={shards})"
    return f"{text}; a core more for an actor: {speed(actors + 1) / speed(actors) - 1:+.0%}"


def _table(result: Mapping[str, Any]) -> list[str]:
    parts, settings = result["parts_us_per_env_step"], result["settings"]
    return [
        f"settings    {settings['recipe']} {' '.join(settings['overrides'])}",
        f"            compile {settings['compile']}, median of {settings['repeats']} repeats",
        f"env step    {parts['env_us']:8.2f} us per env step",
        f"inference   {parts['inference_us']:8.2f} us",
        f"acting      {parts['act_us']:8.2f} us (both, and writing the trajectory)",
        f"learning    {parts['learn_us']:8.2f} us",
        bound_line(result, "1 / max(acting, learning), one core each"),
        achieved_line(result),
        f"plan        {result['plan']}",
        *last_lines(result),
    ]
