"""Settings of a control run that contradict each other, as they show without making an environment. Each problem
names the setting to change; validation.py says where that was written."""

from __future__ import annotations

from rollcall.deploy.config import plugins
from rollcall.deploy.config.kind_settings import KindSettings
from rollcall.deploy.config.problem import Problem
from rollcall.deploy.config.recipe.run_config import OnlineConfig, RunConfig


def check_settings(config: RunConfig) -> list[Problem]:
    """Contradictions that show without making an environment."""
    if plugins.is_language(config.declared):
        return [Problem(("algorithm", "name"), "learns from text: give the recipe a task instead of an env")]
    return [
        *_length(config),
        *_shards(config),
        *check_lag(config),
        *_portions(config),
        *_sharding(config),
        *_preferences(config),
        *_replay(config),
        *_expert(config),
        *_gradients(config),
        *_compiled(config),
    ]


def _preferences(config: RunConfig) -> list[Problem]:
    """What a run that learns its reward from raters lacks."""
    preferences, problems = config.preferences, []
    if preferences is None:
        return []
    if config.reward is not None:
        problems.append(Problem(("reward",), "preferences make the reward of this run: leave one of the two out"))
    if config.declared.unit != "fragment" or config.learner_steps is None:
        text = f"{config.algorithm_name} learns from whole episodes: use an algorithm that learns from fragments (ppo)"
        problems.append(Problem(("algorithm", "name"), text))
    elif preferences.segment_steps > config.actors.unroll_length:
        text = f"longer than actors.unroll_length={config.actors.unroll_length}, in which stretches are found: lower it"
        problems.append(Problem(("preferences", "segment_steps"), text))
    return problems


def _replay(config: RunConfig) -> list[Problem]:
    """What a run with kept experience cannot do, or has no room for."""
    replay, name = config.replay, config.algorithm_name
    needs = config.declared.needs.replay
    if replay is None:
        return [Problem(("replay",), f"{name} learns from kept experience: leave it out for the defaults")] * needs
    if not needs:
        return [Problem(("replay",), f"{name} learns from fresh experience and keeps none: remove the section")]
    problems = []
    if config.policy.recurrent != "none":
        text = f"{name} draws single steps, of which a memory knows nothing: use none"
        problems.append(Problem(("policy", "recurrent"), text))
    if config.policy.normalise_rewards:
        text = "kept rewards would each be of another scale: use env.reward_clip, or scale them in the env"
        problems.append(Problem(("policy", "normalise_rewards"), text))
    batch = config.actors.num_envs * config.actors.unroll_length
    if replay.capacity < 2 * batch + config.actors.num_envs:
        text = f"less than two learner steps' experience ({batch} env steps each, and where episodes ended)"
        text += f": raise it to {2 * batch + config.actors.num_envs} or more, or lower actors.unroll_length"
        problems.append(Problem(("replay", "capacity"), text))
    total = config.total_env_steps or (config.total_learner_steps or 0) * batch
    if total and replay.learning_starts >= total:
        problems.append(Problem(("replay", "learning_starts"), f"the run ends after {total} env steps: lower it"))
    if config.learner.num_processes > replay.batch_size:
        text = f"more learner processes than the {replay.batch_size} transitions of a minibatch to share"
        problems.append(Problem(("learner", "num_processes"), f"{text}: {replay.batch_size} at the most"))
    return problems


def _compiled(config: RunConfig) -> list[Problem]:
    """What torch cannot compile, or would have to compile for every batch anew."""
    if config.learner.compile != "on":
        return []
    where, reason = ("learner", "compile"), ""
    if config.policy.recurrent != "none":
        reason = f"torch does not compile a {config.policy.recurrent}"
    elif config.declared.unit == "episode":
        reason = f"{config.algorithm_name} learns from whole episodes, and each batch has another length"
    return [Problem(where, f"{reason}: set it to off or auto")] if reason else []


def _expert(config: RunConfig) -> list[Problem]:
    if config.expert is None or config.actors.outside is None:
        return []
    text = f"{config.algorithm_name}'s expert labels what the run's own actors see: leave it out"
    return [Problem(("actors", "outside"), text)]


def _gradients(config: RunConfig) -> list[Problem]:
    """What needs the experience itself, which stays with the actors where they compute the gradients."""
    if not config.learns_from_gradients:
        return []
    name, found = config.algorithm_name, []
    if config.learner.num_processes > 1:
        text = f"actors compute {name}'s gradients, and more learner processes have no part in it: set it to 1"
        found.append(Problem(("learner", "num_processes"), text))
    for setting in ("normalise_observations", "normalise_rewards"):
        if getattr(config.policy, setting):
            text = f"{name}'s learner is given gradients, and sees no experience to take statistics of: set it to false"
            found.append(Problem(("policy", setting), text))
    for section in ("reward", "preferences"):
        if getattr(config, section) is not None:
            text = f"{name}'s actors compute gradients before anybody could score what was done: remove the section"
            found.append(Problem((section,), text))
    if config.actors.outside is not None:
        text = f"outside actors hand in experience, and {name} takes gradients: remove the section"
        found.append(Problem(("actors", "outside"), text))
    return found


def _length(config: RunConfig) -> list[Problem]:
    if config.total_env_steps is not None and config.total_learner_steps is not None:
        return [Problem(("total_learner_steps",), "total_env_steps is given too: keep one of the two")]
    if config.total_env_steps is None and config.total_learner_steps is None:
        return [Problem(("total_env_steps",), "the run has no end: give total_env_steps or total_learner_steps")]
    return []


def _shards(config: RunConfig) -> list[Problem]:
    actors, problems = config.actors, []
    if actors.num_envs % actors.num_shards:
        near = [n for n in range(1, actors.num_envs + 1) if actors.num_envs % n == 0]
        text = f"{actors.num_envs} envs do not divide into {actors.num_shards} env shards of one size"
        problems.append(
            Problem(("actors", "num_envs"), f"{text}: choose actors.num_shards among {', '.join(map(str, near))}")
        )
    own = actors.first_outside_shard
    if own < 0:
        text = f"more than there are env shards ({actors.num_shards}): raise actors.num_shards"
        problems.append(Problem(("actors", "outside", "num_shards"), text))
    elif actors.num > own:
        text = f"more actors than env shards ({own}): {actors.num - own} would have no work"
        problems.append(Problem(("actors", "num"), f"{text}; set actors.num={own} or raise actors.num_shards"))
    elif actors.num == 0 and own > 0:
        text = f"nobody steps {own} of the env shards: give all to outside actors"
        problems.append(Problem(("actors", "num"), f"{text} (actors.outside.num_shards={actors.num_shards}), or set 1"))
    return problems


def check_lag(config: OnlineConfig) -> list[Problem]:
    if config.max_policy_lag == 0 or config.declared.needs.corrects_policy_lag:
        return []
    half = plugins.is_language(config.declared)
    known = {name: plugins.declared(plugins.ALGORITHM, name) for name in plugins.shipped(plugins.ALGORITHM)}
    able = [n for n, found in known.items() if found.needs.corrects_policy_lag and plugins.is_language(found) == half]
    text = f"{config.algorithm_name} has no correction for a policy that lags behind: set max_policy_lag=0"
    return [Problem(("max_policy_lag",), f"{text}, or use an algorithm that has one ({', '.join(able)})")]


def _portions(config: RunConfig) -> list[Problem]:
    """A minibatch and a learner process need something to work on. A recurrent policy's rows are whole env columns."""
    batch = config.steps_per_batch
    recurrent = config.policy.recurrent != "none"
    rows = config.actors.num_envs if recurrent or batch is None else batch
    what = "envs" if recurrent or batch is None else "env steps"
    minibatches = int(getattr(config.algorithm, "num_minibatches", 1))
    problems = []
    if minibatches > rows:
        text = f"more minibatches than the {rows} {what} of a batch{' (a recurrent policy)' if recurrent else ''}"
        problems.append(Problem(("algorithm", "num_minibatches"), f"{text}: {rows} at the most"))
    elif config.learner.num_processes > rows // minibatches:
        text = f"more learner processes than the {rows // minibatches} {what} of a minibatch to share"
        problems.append(Problem(("learner", "num_processes"), f"{text}: {rows // minibatches} at the most"))
    return problems


def _sharding(config: RunConfig) -> list[Problem]:
    if config.learner.sharding != "fsdp":
        return []
    return [Problem(("learner", "sharding"), "a control network is small: cutting it gains nothing; use auto or none")]


SETTINGS = KindSettings(
    name="control",
    config=RunConfig,
    problems=check_settings,
    fits=lambda algorithm: not plugins.is_language(algorithm),
)
