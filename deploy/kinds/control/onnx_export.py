"""A control policy as an ONNX file, held against the policy itself on observations of the run's own env before anybody
gets it. The only file that knows onnx and onnxruntime, which are imported when a policy is exported."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rollcall.actors.control.evaluation import as_judged
from rollcall.actors.envs.env_config import EnvConfig
from rollcall.actors.envs.environment import make_env
from rollcall.actors.envs.local_group import LocalGroup
from rollcall.cluster.errors import BadInput, RollcallError
from rollcall.cluster.messages.arrays import Array
from rollcall.cluster.seeds import derive_seed
from rollcall.learners.maths.distributions import ActionDistribution
from rollcall.learners.models.greedy_policy import (
    ACTION,
    MASK,
    NEXT_STATE,
    STARTS,
    STATE,
    GreedyPolicy,
    told,
    told_names,
)
from rollcall.learners.models.policy import TorchPolicy

OBSERVATIONS, TOLERANCE = 1000, 1e-5
_ENVS = 8  # that are played side by side for them
_MARK = "rollcall_policy"  # in the file's metadata: such a file may be replaced by another export
_MISSING = "an ONNX file needs the packages onnx, onnxscript and onnxruntime: pip install 'rollcall-rl[onnx]'"


@dataclass(frozen=True)
class Shown:
    """One step of some envs, and what the policy itself makes of it."""

    inputs: Mapping[str, Array]  # as the file takes them
    outputs: Mapping[str, Array]  # as it is to give them


def export_onnx(policy: TorchPolicy, env: EnvConfig, goal: Path, *, seed: int, facts: Mapping[str, Any]) -> str:
    """Writes the policy to `goal`, in one move, once it has agreed with the policy on OBSERVATIONS observations of
    `env`, played from `seed` on. `facts` go into the file's metadata. Returns what was found, in words.

    Raises:
      BadInput: when the packages are missing, or `goal` is no place for it.
      RollcallError: when the file and the policy disagree; nothing is written then.
    """
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError:
        raise BadInput(_MISSING) from None
    _check_free(goal)
    policy.module.torso.image_dtype = torch.float32  # as the file computes, whatever the run did
    steps = list(_played(policy, env, seed=seed))
    try:
        greedy = GreedyPolicy(policy.module, masked=MASK in steps[0].inputs)
    except ValueError as error:
        raise BadInput(f"{goal}: no ONNX file of this policy: {error}: rename it in the env") from None
    aside = goal.with_name(f".{goal.name}.making")
    try:
        goal.parent.mkdir(parents=True, exist_ok=True)
        with _quietly():
            _write(greedy, steps[0], aside, facts)
        difference = _largest_difference(aside, greedy, steps)
        os.replace(aside, goal)
    except OSError as error:
        raise BadInput(f"cannot write {goal}: {error.strerror or error}") from None
    finally:
        with contextlib.suppress(OSError):
            aside.unlink()
    count = sum(len(step.outputs[ACTION]) for step in steps)
    return f"agrees with the policy on {count:,} observations, within {difference:.1e}"


def _check_free(goal: Path) -> None:
    """Raises BadInput: for what is there and is no earlier export."""
    import onnx

    if not goal.exists():
        return
    try:
        if goal.is_file() and _MARK in {entry.key for entry in onnx.load(str(goal)).metadata_props}:
            return
    except Exception:  # protobuf's own: it is no ONNX file
        pass
    raise BadInput(f"{goal}: is no export of Rollcall's: nothing is written over it; name another file")


def _played(policy: TorchPolicy, env: EnvConfig, *, seed: int) -> Iterator[Shown]:
    """OBSERVATIONS of them, of several envs at a time: sampled actions take the envs to more of their states."""
    group = LocalGroup(partial(make_env, as_judged(env)), _ENVS, seed=seed, name=env.id)
    try:
        shown: Any = group.reset([derive_seed(seed, "export", i) >> 32 for i in range(_ENVS)])
        starts, state = np.ones(_ENVS, bool), policy.initial_recurrent_state(_ENVS)
        mask = None
        for step in range(-(-OBSERVATIONS // _ENVS)):
            observations = {name: np.array(array) for name, array in shown.observations.items()}
            mask = None if shown.action_mask is None else np.array(shown.action_mask)
            begin = partial(policy.rollout, num_steps=1, num_envs=_ENVS, recurrent_state=state)
            sampled = begin(seed=derive_seed(seed, "export-noise", step))
            _, taken = sampled.act(observations, episode_starts=starts, action_mask=mask)
            taken = np.array(taken)
            greedy = begin(seed=0, greedy=True)
            _, chosen = greedy.act(observations, episode_starts=starts, action_mask=mask)
            inputs = {**observations, **({} if mask is None else {MASK: mask})}
            outputs = {ACTION: np.array(chosen), **_told(policy.module.distribution, greedy.params[0])}
            if state is not None:
                inputs |= {STATE: state, STARTS: starts}
                after = greedy.recurrent_state()
                assert after is not None
                outputs[NEXT_STATE] = state = after
            yield Shown(inputs, outputs)
            shown = group.step(taken)
            starts = np.array(shown.episode_starts)
    finally:
        group.close()


def _told(distribution: ActionDistribution, params: torch.Tensor) -> dict[str, Array]:
    tensors = zip(told_names(distribution), told(distribution, params), strict=True)
    return {name: tensor.numpy().copy() for name, tensor in tensors}


def _write(greedy: GreedyPolicy, example: Shown, path: Path, facts: Mapping[str, Any]) -> None:
    batch = torch.export.Dim("batch")
    tensors = tuple(torch.from_numpy(np.ascontiguousarray(example.inputs[name])) for name in greedy.inputs)
    program = torch.onnx.export(
        greedy.eval(),
        tensors,
        dynamo=True,
        verbose=False,
        input_names=list(greedy.inputs),
        output_names=list(greedy.outputs),
        dynamic_shapes=(tuple({1 if name == STATE else 0: batch} for name in greedy.inputs),),
    )
    assert program is not None
    program.model.metadata_props[_MARK] = json.dumps(dict(facts), sort_keys=True)
    program.save(str(path))


def _largest_difference(path: Path, greedy: GreedyPolicy, steps: list[Shown]) -> float:
    """Over all outputs of all steps; of numbers beyond 1, as a share of them.

    Raises:
      RollcallError: where it is beyond TOLERANCE, naming the output.
    """
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    largest = 0.0
    for step in steps:
        given = {name: step.inputs[name] for name in greedy.inputs}
        found = dict(zip(greedy.outputs, session.run(None, given), strict=True))
        for name, values in step.outputs.items():
            difference = _difference(found[name], values)
            if name == ACTION and values.dtype.kind in "iu" and difference > 0 and _is_tie(step):
                continue
            if not difference <= TOLERANCE:
                raise RollcallError(
                    f"the ONNX file and the policy differ by {difference:.1e} in {name!r} (at most {TOLERANCE:.0e}): "
                    "nothing was written; the policy itself is whole: rollcall.load_policy loads it"
                )
            largest = max(largest, difference)
    return largest


def _difference(found: Array, expected: Array) -> float:
    if found.shape != expected.shape or found.dtype != expected.dtype:
        return float("inf")
    wide = expected.astype(np.float64)
    return float((np.abs(found.astype(np.float64) - wide) / np.maximum(np.abs(wide), 1.0)).max(initial=0.0))


def _is_tie(step: Shown) -> bool:
    """Whether two choices are worth the same within the tolerance somewhere in the batch: either is right there."""
    numbers = next((step.outputs[name] for name in ("logits", "values") if name in step.outputs), None)
    if numbers is None or numbers.shape[-1] < 2:
        return False
    allowed = np.where(step.inputs[MASK], numbers, -np.inf) if MASK in step.inputs else numbers
    two = np.sort(allowed, -1)[..., -2:]
    return bool((two[..., 1] - two[..., 0] <= 2 * TOLERANCE * np.maximum(np.abs(two[..., 1]), 1.0)).any())


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """torch's exporter tells of what it does not need, in warnings and in its log."""
    log = logging.getLogger("torch.onnx")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)
