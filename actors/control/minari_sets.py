"""Minari's data sets (https://minari.farama.org) as recorded episodes, read and written. The package is an extra, and
is imported when a set is named: `minari:ID`, an id as Minari has it."""

from __future__ import annotations

import json
import warnings
from types import ModuleType
from typing import Any

import gymnasium as gym
import numpy as np

from rollcall.actors.envs.contract import ContractError
from rollcall.actors.envs.observations import ObservationReader, check_spaces, observed_space
from rollcall.actors.envs.plain_spaces import space_of, space_text
from rollcall.cluster.errors import BadInput
from rollcall.cluster.messages.arrays import Array
from rollcall.cluster.messages.recorded import RecordedEpisodes

PREFIX = "minari:"


def is_named(text: str) -> bool:
    return text.startswith(PREFIX)


def check_new(target: str) -> None:
    """Raises BadInput: where a set of that name cannot be made here."""
    name, minari = target.removeprefix(PREFIX), _minari(target)
    try:
        minari.dataset.minari_dataset.parse_dataset_id(name)
    except ValueError as error:
        raise BadInput(f"{target}: {' '.join(str(error).split())[:200]}: name it minari:my-env/expert-v0") from None
    if name in minari.list_local_datasets():
        raise BadInput(f"{target}: there is such a data set: give another version, or delete it with Minari")


def write(target: str, recorded: RecordedEpisodes) -> None:
    """Makes a local data set of it.

    Raises:
      BadInput: where Minari does not take it.
    """
    minari = _minari(target)
    shown, taken = space_of(recorded.observation_space), space_of(recorded.action_space)
    buffers = []
    for number, (begin, end) in enumerate(zip(recorded.episode_starts, recorded.episode_ends, strict=True)):
        observed = {
            name: np.concatenate([array[begin:end], recorded.last_observations[name][number][None]])
            for name, array in recorded.observations.items()
        }
        buffers.append(
            minari.data_collector.EpisodeBuffer(
                id=number,
                observations=_nested(observed, shown, ()),
                actions=recorded.actions[begin:end],
                rewards=recorded.rewards[begin:end],
                terminations=recorded.terminated[begin:end],
                truncations=recorded.truncated[begin:end],
                infos={},
            )
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it misses an author, and a link to code
            minari.create_dataset_from_buffers(
                dataset_id=target.removeprefix(PREFIX),
                buffer=buffers,
                env=recorded.env if recorded.env in gym.registry else None,
                observation_space=shown,
                action_space=taken,
                algorithm_name=f"Rollcall, {recorded.acted_by}",
            )
    except Exception as error:
        raise BadInput(f"{target}: Minari does not take it: {_short(error)}") from error


def read(source: str) -> RecordedEpisodes:
    """Of a data set that is on this machine.

    Raises:
      BadInput: in one line, where there is none, or its spaces are not supported.
    """
    minari, name = _minari(source), source.removeprefix(PREFIX)
    if name not in minari.list_local_datasets():
        raise BadInput(f"{source}: not on this machine: minari download {name}")
    try:
        found = minari.load_dataset(name)
        episodes = list(found.iterate_episodes())
    except Exception as error:
        raise BadInput(f"{source}: Minari cannot read it: {_short(error)}") from error
    check_spaces(source, found.observation_space, found.action_space)
    reader = ObservationReader(found.observation_space, found.action_space)
    shown, last, actions, rewards, terminated, truncated = ([] for _ in range(6))
    for episode in episodes:
        steps = len(episode.rewards)
        try:
            observed, _ = reader.read_one_or_batch(episode.observations)
        except ContractError as error:
            raise BadInput(f"{source}: episode {episode.id}: {error}") from None
        if steps == 0 or any(len(array) != steps + 1 for array in observed.values()):
            raise BadInput(f"{source}: episode {episode.id} has not one observation more than its {steps} steps")
        over, cut = np.array(episode.terminations, bool), np.array(episode.truncations, bool)
        cut[-1] |= not over[-1]  # left before its end
        shown.append({name: array[:-1] for name, array in observed.items()})
        last.append({name: array[-1] for name, array in observed.items()})
        actions.append(np.asarray(episode.actions))
        rewards.append(np.asarray(episode.rewards, np.float32))
        terminated.append(over)
        truncated.append(cut & ~over)
    return RecordedEpisodes(
        env=_env_of(found) or name,
        observation_space=space_text(observed_space(found.observation_space)),
        action_space=space_text(found.action_space),
        acted_by="unknown",
        observations={key: np.concatenate([item[key] for item in shown]) for key in shown[0]},
        actions=np.concatenate(actions),
        rewards=np.concatenate(rewards),
        terminated=np.concatenate(terminated),
        truncated=np.concatenate(truncated),
        episode_ends=np.cumsum([len(item) for item in rewards]).astype(np.int64),
        last_observations={key: np.stack([item[key] for item in last]) for key in last[0]},
    )


def _minari(name: str) -> ModuleType:
    try:
        import minari
        import minari.data_collector
        import minari.dataset.minari_dataset
    except ModuleNotFoundError as error:
        raise BadInput(
            f"{name}: needs the package {error.name}: pip install 'rollcall-rl[minari]', or record a .safetensors file"
        ) from None
    found: ModuleType = minari
    return found


def _nested(named: dict[str, Array], space: gym.Space[Any], path: tuple[str, ...]) -> Any:
    if not isinstance(space, gym.spaces.Dict):
        return next(iter(named.values())) if not path else named[".".join(path)]
    return {key: _nested(named, inner, (*path, str(key))) for key, inner in space.spaces.items()}


def _env_of(found: Any) -> str:
    spec = found.spec.env_spec
    if spec is None:
        return ""
    return str(getattr(spec, "id", None) or json.loads(spec).get("id", ""))


def _short(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]
