"""The configuration of runs with actors: what those of both halves have in common, and the control half's own. Knows
all components' settings and none of their defaults; how it is read from a recipe is reading.py's."""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, field_validator

from rollcall.actors.control.actors_config import ActorsConfig
from rollcall.actors.control.evaluation_config import EvalConfig
from rollcall.actors.envs.env_config import EnvConfig
from rollcall.cluster.loop.supervision import SupervisionConfig
from rollcall.cluster.metrics.metrics_config import MetricsConfig
from rollcall.cluster.store.redis_config import URL_VARIABLE, RedisConfig
from rollcall.deploy.config import plugins
from rollcall.deploy.config.placement import ClusterConfig
from rollcall.deploy.config.plugins import Plugin
from rollcall.deploy.config.recipe import reward_config
from rollcall.deploy.config.recipe.preference_settings import PreferencesConfig
from rollcall.deploy.config.recipe.reward_config import RewardConfig
from rollcall.deploy.config.recipe.root_config import (
    DEFAULT_NUM_CHECKPOINTS,
    AlgorithmSettings,
    OptimisedConfig,
    plugin_name_of,
    section_settings,
    settings_name,
)
from rollcall.deploy.config.runtime_choice import reason_for_processes
from rollcall.deploy.config.settings import to_yaml
from rollcall.learners.data.replay_config import ReplayConfig
from rollcall.learners.declared import Declared
from rollcall.learners.models.policy_config import PolicyConfig

# To compile the steps of an epoch takes about 20 s with nothing cached, and saves about 1 ms of each (measured on one
# core, minibatches of 256, two 64x64 MLPs): it pays from this many on. With critics beside the policy (SAC and TD3, of
# 256x256) it saves several times as much.
COMPILE_PAYS_FROM_MINIBATCHES = 24_000
COMPILE_PAYS_WITH_CRITICS_FROM = 4_000


class OnlineConfig(OptimisedConfig):
    """What runs with actors have in common, of both halves."""

    PLUGINS: ClassVar[Mapping[str, Plugin]] = {"algorithm": plugins.ALGORITHM}

    runtime: Literal["auto", "ray", "serial"] = Field(
        default="auto",
        description="serial: one process, in which acting and learning take turns; ray: processes side by side; auto: "
        "serial for control runs that are over before processes would pay, ray for all others",
    )
    algorithm: AlgorithmSettings = Field(description="the algorithm's own settings; a plain string is its name")
    max_policy_lag: int = Field(
        default_factory=lambda known: _default_lag(known.get("algorithm")),
        ge=0,
        le=64,
        description="versions the acting policy may lag; 0: synchronous. Default 1, or 0 without lag correction",
    )
    reward: RewardConfig | None = Field(
        default=None,
        description="who scores what was produced; none: the env or task. my_module:score, or the name of a scorer",
    )
    cluster: ClusterConfig = Field(default_factory=ClusterConfig, description="what the run needs of a Ray cluster")
    redis: RedisConfig = Field(default_factory=RedisConfig, description="where the books are kept")
    metrics: MetricsConfig = Field(default_factory=MetricsConfig, description="the Prometheus endpoint")
    supervision: SupervisionConfig = Field(
        default_factory=SupervisionConfig, description="how patient the run is, and how often it fixes itself"
    )

    @field_validator("reward", mode="before")
    @classmethod
    def _reward_by_name(cls, value: Any) -> Any:
        return section_settings(RewardConfig, reward_config.by_name(value))

    # What follows from the settings.

    @property
    def against_one_process(self) -> str:
        """Why processes side by side are faster than one, in a few words; empty: they are not."""
        return "an engine and a learner"

    def resolved(self) -> Self:
        """With `runtime: auto` decided: a run keeps what was chosen when it is resumed."""
        if self.runtime != "auto":
            return self
        return self.model_copy(update={"runtime": "ray" if self.against_one_process else "serial"})

    @property
    def algorithm_name(self) -> str:
        return settings_name(self.algorithm)

    @property
    def algorithm_class(self) -> type[Any]:
        return plugins.find(plugins.ALGORITHM, self.algorithm_name)

    @property
    def declared(self) -> type[Any] | Declared:
        """What is known of the algorithm before it is imported: `needs` and `unit`."""
        return plugins.declared(plugins.ALGORITHM, self.algorithm_name)

    def build_algorithm(self) -> Any:
        """A new learners.algorithm.Algorithm with this run's settings."""
        return self.algorithm_class(self.algorithm)

    @property
    def learner_steps(self) -> int | None:
        """Learner steps of the whole run; None when it does not end by them."""
        return self.total_learner_steps

    @property
    def names_store(self) -> bool:
        return self.redis.url is not None

    @property
    def env_steps(self) -> int | None:
        """Env steps after which the run ends, where it ends by them."""
        return None

    @property
    def drop_degenerate(self) -> bool:
        """Whether groups of samples that teach nothing are dropped, and others asked for in their place."""
        return False

    @property
    def tickets_per_step(self) -> int:
        """B of the flow control."""
        raise NotImplementedError

    @property
    def checkpoint_every_steps(self) -> int:
        return self.checkpoint_every(self.learner_steps or 100 * DEFAULT_NUM_CHECKPOINTS)

    @property
    def eval_every_steps(self) -> int | None:
        """Learner steps between evaluations during the run."""
        raise NotImplementedError

    def to_yaml(self) -> str:
        """As of every run. A password is left out."""
        values = self.resolved().model_dump(mode="json", exclude={"redis": {"url"}})
        if self.redis.url is not None:
            url = self.redis.url.get_secret_value()
            if urlsplit(url).password is None:
                values["redis"]["url"] = url
            else:
                note = f"# redis.url holds a password and is not saved: set {URL_VARIABLE}\n"
                return note + to_yaml(values)
        return to_yaml(values)


class RunConfig(OnlineConfig):
    """One run of the control half. Immutable; built by `load_config`, which also checks it against the environment."""

    total_env_steps: int | None = Field(default=None, ge=1, description="the run ends once it learned from so many")
    env: EnvConfig = Field(description="the environment; a plain string is its id or module:function")
    policy: PolicyConfig = Field(default_factory=PolicyConfig, description="the network")
    actors: ActorsConfig = Field(default_factory=ActorsConfig, description="who acts, and in what portions")
    eval: EvalConfig = Field(default_factory=EvalConfig, description="evaluation with frozen weights")
    replay: ReplayConfig | None = Field(
        default_factory=lambda known: _default_replay(known.get("algorithm")),
        description="what is kept and drawn from again, of algorithms that learn so (dqn)",
    )
    preferences: PreferencesConfig | None = Field(
        default=None, description="learn what is better from raters; the env's own rewards are not looked at"
    )

    @field_validator("env", mode="before")
    @classmethod
    def _env_by_name(cls, value: Any) -> Any:
        return section_settings(EnvConfig, {"id": value} if isinstance(value, str) else value)

    @property
    def begins_from(self) -> str | None:
        return self.policy.init_from

    @property
    def expert(self) -> str | None:
        """Who teaches the run, of an algorithm that is taught: a run, or my_module:function."""
        if not self.declared.needs.expert:
            return None
        return str(self.algorithm.expert)  # type: ignore[attr-defined]

    @property
    def taught_by(self) -> str | None:
        return self.expert if self.expert is not None and not is_function(self.expert) else None

    @property
    def acting_threads(self) -> int:
        return self.actors.torch_threads

    @property
    def eval_every_steps(self) -> int | None:
        return self.eval.every_steps

    @property
    def env_steps(self) -> int | None:
        return self.total_env_steps

    @property
    def tickets_per_step(self) -> int:
        """Every shard gives one unit to each learner step, unless the algorithm says how many gradients it takes."""
        return int(getattr(self.algorithm, "gradients_per_step", self.actors.num_shards))

    @property
    def learns_from_gradients(self) -> bool:
        """Whether actors compute them."""
        return bool(self.declared.needs.gradients)

    @property
    def steps_per_batch(self) -> int | None:
        """Env steps in one learner step; None when a unit is an episode, whose length is not known before."""
        if self.declared.unit == "episode":
            return None
        return self.tickets_per_step * self.envs_per_shard * self.actors.unroll_length

    @property
    def learner_steps(self) -> int | None:
        """Learner steps of the whole run; None when only env steps bound it and units are episodes."""
        if self.total_learner_steps is not None:
            return self.total_learner_steps
        if self.steps_per_batch is None or self.total_env_steps is None:
            return None
        return math.ceil(self.total_env_steps / self.steps_per_batch)

    @property
    def minibatches_per_step(self) -> int:
        """Gradient steps per learner step, as far as the settings say."""
        if self.replay is not None:
            return math.ceil(self.replay.updates_per_env_step * (self.steps_per_batch or 1))
        return int(getattr(self.algorithm, "epochs", 1)) * int(getattr(self.algorithm, "num_minibatches", 1))

    @property
    def compile_pays(self) -> bool:
        """Measured for MLPs alone: convolutions and recurrences spend their time inside kernels, not between them."""
        if (
            self.learns_from_gradients
            or self.policy.recurrent != "none"
            or self.policy.torso == "cnn"
            or self.env.is_atari
        ):
            return False
        needs = self.declared.needs
        has_critics = needs.replay and bool(needs.networks)
        enough = COMPILE_PAYS_WITH_CRITICS_FROM if has_critics else COMPILE_PAYS_FROM_MINIBATCHES
        return (self.learner_steps or 0) * self.minibatches_per_step >= enough

    @property
    def against_one_process(self) -> str:
        return reason_for_processes(
            env_steps=self.total_env_steps or (self.learner_steps or 0) * (self.steps_per_batch or 0) or None,
            minibatches=None if self.learner_steps is None else self.learner_steps * self.minibatches_per_step,
            asked_for={
                "actors.num": self.actors.num > 1 and "num" in self.actors.model_fields_set,
                "actors.outside": self.actors.outside is not None,
                "learner.num_processes": self.learner.num_processes > 1,
                "reward": self.reward is not None,
                "preferences": self.preferences is not None,
                "cluster": self.cluster != ClusterConfig(),
                self.algorithm_name: self.learns_from_gradients,
            },
            slow={
                "images": self.policy.torso == "cnn" or self.env.is_atari,
                f"a policy with {self.policy.recurrent}": self.policy.recurrent != "none",
                "envs in processes of their own": self.env.vectorization == "async",
            },
        )

    def resolved(self) -> Self:
        """With `runtime: auto` decided, and `learner.compile: auto` for this machine: the hash says which it was."""
        found = super().resolved()
        if found.learner.compile != "auto":
            return found
        choice = "on" if self.compile_pays and cpp_compiler() is not None else "off"
        return found.model_copy(update={"learner": self.learner.model_copy(update={"compile": choice})})

    def derived(self) -> dict[str, str]:
        """What is not written in the recipe but follows from it, by name, for people."""
        batch, steps = self.steps_per_batch, self.learner_steps
        facts = {
            "env steps per learner step": f"{batch:,}" if batch else "as the episodes are long",
            "learner steps": f"{steps:,}" if steps else f"until {self.total_env_steps:,} env steps",
            "tickets per learner step": f"{self.tickets_per_step} (env shards of {self.envs_per_shard} envs)",
            "minibatches per learner step": f"{self.minibatches_per_step}",
            "max policy lag": f"{self.max_policy_lag}{' (synchronous)' if self.max_policy_lag == 0 else ''}",
            "compiled update": self.resolved().learner.compile,
            "runtime": self.resolved().runtime,
        }
        for runtime, why in (("ray", self.against_one_process), ("serial", "over before Ray's processes would pay")):
            if self.resolved().runtime == runtime and bool(self.against_one_process) == (runtime == "ray"):
                facts["runtime"] += f" ({why})"
        if self.replay is not None:
            facts["minibatches per learner step"] += f" of {self.replay.batch_size} kept transitions"
        elif batch:
            size = f"{batch / int(getattr(self.algorithm, 'num_minibatches', 1)):,.0f} env steps each"
            facts["minibatches per learner step"] += f" of {size}"
        if self.compile_pays and cpp_compiler() is None:
            facts["compiled update"] += " (no C++ compiler found: updates run eagerly)"
        return facts

    @property
    def envs_per_shard(self) -> int:
        return self.actors.num_envs // self.actors.num_shards


def is_function(named: str) -> bool:
    """my_module:function, and not a path."""
    return ":" in named and not Path(named).exists()


def _default_lag(algorithm: Any) -> int:
    """An algorithm without lag correction runs synchronously unless the user says otherwise (and is told no)."""
    name = plugin_name_of(algorithm)
    return 0 if name is None else int(plugins.declared(plugins.ALGORITHM, name).needs.corrects_policy_lag)


def _default_replay(algorithm: Any) -> ReplayConfig | None:
    name = plugin_name_of(algorithm)
    replays = name is not None and plugins.declared(plugins.ALGORITHM, name).needs.replay
    return ReplayConfig() if replays else None


def cpp_compiler() -> str | None:
    """The compiler that torch.compile would call; None when the machine has none."""
    return next((found for name in ("g++", "clang++", "c++") if (found := shutil.which(name))), None)
