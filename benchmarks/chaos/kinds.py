"""The kinds of runs that chaos strikes: how each is started, whom it has to strike, how often whom, and whether its
result must be that of an undisturbed run. A strike's weight is its share among those that are possible."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

CONTROL = (
    *("env=CartPole-v1", "actors.num_envs=8", "actors.num_shards=4", "actors.unroll_length=32"),
    *("algorithm.num_minibatches=2", "algorithm.epochs=2", "learner.compile=off"),
)
SCORED = ("reward=scoring:score",)
LANGUAGE = (
    "policy.warm_start=null",
    "policy.tiny={hidden_size: 32, num_layers: 1, num_heads: 1, num_kv_heads: 1, intermediate_size: 64}",
    *("actors.prompts_per_batch=4", "actors.samples_per_prompt=2", "actors.sampling.max_tokens=6"),
    *("actors.engine.enforce_eager=true", "task.num_train_rows=200", "eval.episodes=0"),
)
SMALL_MODEL = "{vocab_size: 300, hidden_size: 32, num_layers: 1, num_heads: 1, num_kv_heads: 1, intermediate_size: 64}"
OFTEN = ("checkpoint.every_steps=5", "metrics.enabled=false")
FOR_EVER = ("total_learner_steps=1000000", *OFTEN)
QUIET = ("eval.episodes=0",)
# A budget of restarts is for faults by themselves: here hundreds are made within minutes.
PATIENT = ("supervision.max_restarts=1000", "supervision.restart_window_s=2", "supervision.max_failures=10000")
JUDGED = (
    *("env.fixed_episode_steps=50", "preferences.rater=synthetic", "preferences.segment_steps=8"),
    "preferences.true_reward=rollcall.reward_service.raters.true_rewards:upright_and_centred",
    *("preferences.total_labels=600", "preferences.initial_labels=8", "preferences.rounds=150"),
    *("preferences.epochs=2", "total_learner_steps=300", *OFTEN),
)

FAULTS = ("cut", "hold", "slow", "clock", "full_disk", "slow_disk", "full_redis")  # that are no kill or stop of anybody
DRIVER_SEAMS = ("issue", "commit", "checkpoint", "rename", "replace", "seal", "index", "trim", "restore")
LEARNER_SEAMS = ("optimise", "log", "fold", "save")


@dataclass(frozen=True)
class Kind:
    """`strikes`: on whom or what -> weight. Names of seams have their colon: `seam:commit`."""

    command: tuple[str, ...]
    strikes: Mapping[str, float]
    kills: int  # of one round
    hashed: bool = False  # must end as an undisturbed run
    offline: bool = False  # no ledger
    reference: tuple[str, ...] = ()  # of the undisturbed run, beside the command; for those that are hashed
    stops: float = 0.08  # of strikes on processes, the share that only stops for seconds
    pause_s: float = 0.4  # at most, of quiet between recovery and the next strike
    surroundings: frozenset[str] = field(default_factory=frozenset)  # proxy, disk, clock

    @property
    def endless(self) -> bool:
        """It ends when it is stopped."""
        return FOR_EVER[0] in self.command


def _seams(names: tuple[str, ...], weight: float) -> dict[str, float]:
    return {f"seam:{name}": weight / len(names) for name in names}


def _train(recipe: str, *settings: str) -> tuple[str, ...]:
    return ("train", recipe, *settings)


KINDS: dict[str, Kind] = {
    "control": Kind(
        _train("cartpole-ppo", *CONTROL, *FOR_EVER, *PATIENT, "actors.num=4", "eval.episodes=1", "eval.every_steps=4"),
        {
            "actor": 26,
            "redis": 45,
            "learner": 7,
            "parameter_server": 9,
            "evaluator": 13,
            "driver": 2,
            "gcs": 3,
            "raylet": 3,
        }
        | _seams(DRIVER_SEAMS, 6)
        | _seams(LEARNER_SEAMS, 6)
        | _seams(("produce", "publish"), 8),
        kills=60,
    ),
    "control at lag 0": Kind(
        _train(
            "cartpole-ppo",
            *CONTROL,
            *OFTEN,
            *PATIENT,
            *QUIET,
            "max_policy_lag=0",
            "total_learner_steps=800",
            "actors.num=2",
        ),
        {"redis": 60, "driver": 8, "gcs": 4, "raylet": 4, "stop:actor": 5, "stop:learner": 4} | _seams(DRIVER_SEAMS, 9),
        kills=50,
        hashed=True,
        reference=("runtime=serial", "actors.num=1"),
    ),
    "control in one process": Kind(
        _train("cartpole-ppo", *CONTROL, *OFTEN, *PATIENT, *QUIET, "runtime=serial", "total_learner_steps=1200"),
        {"driver": 9, "redis": 50} | _seams((*DRIVER_SEAMS, *LEARNER_SEAMS, "produce", "publish"), 20),
        kills=60,
        hashed=True,
    ),
    "scored": Kind(
        _train("cartpole-ppo", *CONTROL, *FOR_EVER, *PATIENT, *QUIET, *SCORED, "actors.num=3"),
        {"reward_service": 25, "scoring": 20, "redis": 15, "actor": 12, "learner": 4, "parameter_server": 3}
        | _seams(("score",), 10)
        | _seams(LEARNER_SEAMS, 3),
        kills=45,
    ),
    "scored in one process": Kind(
        _train(
            "cartpole-ppo", *CONTROL, *OFTEN, *PATIENT, *QUIET, *SCORED, "runtime=serial", "total_learner_steps=700"
        ),
        {"reward_service": 20, "redis": 40, "driver": 4} | _seams(("score", "commit", "seal", "rename"), 6),
        kills=45,
        hashed=True,
    ),
    "preferences": Kind(
        _train("cartpole-preferences", *CONTROL[1:], *PATIENT, *QUIET, *JUDGED, "actors.num=2", "max_policy_lag=1"),
        {
            "preference_trainer": 40,
            "reward_service": 15,
            "redis": 15,
            "actor": 8,
            "learner": 4,
            "scoring": 6,
            "driver": 1,
        },
        kills=36,
    ),
    "several learners": Kind(
        _train("cartpole-ppo", *CONTROL, *FOR_EVER, *PATIENT, *QUIET, "learner.num_processes=2", "actors.num=2"),
        {"learner": 25, "actor": 8, "redis": 14, "parameter_server": 3} | _seams(LEARNER_SEAMS, 10),
        kills=24,
    ),
    "language": Kind(
        _train("arithmetic-grpo", *LANGUAGE, *FOR_EVER, *PATIENT, "max_policy_lag=1"),
        {"actor": 16, "redis": 30, "learner": 8, "parameter_server": 3, "driver": 2, "gcs": 1, "raylet": 1}
        | _seams(("produce",), 4)
        | _seams(LEARNER_SEAMS, 4),
        kills=20,
    ),
    "language in one process": Kind(
        _train(
            "arithmetic-grpo",
            *LANGUAGE,
            *OFTEN,
            *PATIENT,
            "max_policy_lag=0",
            "runtime=serial",
            "total_learner_steps=120",
        ),
        {"driver": 6, "redis": 20} | _seams(("produce", "optimise", "commit", "seal", "checkpoint", "log"), 8),
        kills=12,
        hashed=True,
    ),
    "imitation": Kind(
        (
            *("sft", "arithmetic-grpo", f"policy.tiny={SMALL_MODEL}", "checkpoint.every_steps=10", "eval.num_rows=0"),
            "policy.warm_start={steps: 300, batch_size: 16, learning_rate: 1e-3, threads: 1}",
        ),
        {"driver": 10, "stop:driver": 2} | _seams(("optimise", "save", "checkpoint", "rename", "replace"), 10),
        kills=10,
        hashed=True,
        offline=True,
    ),
    "reward model": Kind(
        (
            *(
                "reward",
                "train",
                "synthetic-reward",
                "data.generate={pairs: 300, eval_pairs: 60}",
                f"model.tiny={SMALL_MODEL}",
            ),
            *("batch_size=16", "total_learner_steps=300", "eval_every=100", "checkpoint.every_steps=10"),
        ),
        {"driver": 10, "stop:driver": 2} | _seams(("optimise", "save", "checkpoint", "rename", "replace"), 10),
        kills=10,
        hashed=True,
        offline=True,
    ),
    "direct preferences": Kind(
        (
            *("train", "synthetic-dpo", "data.generate={pairs: 240, eval_pairs: 40}", f"policy.tiny={SMALL_MODEL}"),
            "policy.warm_start={steps: 20, batch_size: 16, learning_rate: 5e-3, threads: 1}",
            *("batch_size=12", "total_learner_steps=300", "eval_every=100", "kl_prompts=4", "kl_max_tokens=12"),
            "checkpoint.every_steps=10",
        ),
        {"driver": 10, "stop:driver": 2} | _seams(("optimise", "save", "checkpoint", "rename", "replace"), 10),
        kills=10,
        hashed=True,
        offline=True,
    ),
    "network": Kind(
        _train("cartpole-ppo", *CONTROL, *FOR_EVER, *PATIENT, *QUIET, "actors.num=2"),
        {
            **{"cut:redis": 6, "hold:redis": 4, "slow:redis": 4, "cut:reward": 6, "hold:reward": 4, "slow:reward": 4},
            **{"redis": 12, "reward_service": 10, "actor": 6, "scoring": 6, "learner": 2},
        },
        kills=30,
        surroundings=frozenset({"proxy"}),
    ),
    "disk": Kind(
        _train("cartpole-ppo", *CONTROL, *FOR_EVER, *PATIENT, *QUIET, "actors.num=2", "redis.reconnect_timeout_s=60"),
        {"full_disk": 5, "full_redis": 6, "slow_disk": 5, "redis": 12, "actor": 6, "learner": 3, "seam:checkpoint": 1},
        kills=24,
        surroundings=frozenset({"disk"}),
    ),
    # In one process: Ray's own waits have ends by the clock of the kernel, which does not jump here.
    "clock": Kind(
        _train(
            "cartpole-ppo", *CONTROL, *OFTEN, *PATIENT, *QUIET, *SCORED, "runtime=serial", "total_learner_steps=400"
        ),
        {"clock:stands": 5, "clock:back": 4, "clock:forward": 4, "redis": 16, "reward_service": 6, "driver": 4},
        kills=20,
        hashed=True,
        surroundings=frozenset({"clock"}),
    ),
}

# How often each kind is among the rounds, one after the other in an order drawn by the seed, and again.
CYCLE = {
    "control": 3,
    "control at lag 0": 2,
    "control in one process": 2,
    "scored": 2,
    "scored in one process": 1,
    "preferences": 1,
    "several learners": 1,
    "language": 2,
    "language in one process": 1,
    "imitation": 1,
    "reward model": 1,
    "direct preferences": 1,
    "network": 1,
    "disk": 1,
    "clock": 1,
}
