"""What the coding model is asked, and how its answer is read, after Eureka (Ma et al., 2023, arXiv:2310.12931). What is
asked follows from the journal and the candidates' own records alone: a search that goes on asks the same."""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence

from rollcall.deploy.report.progress import number
from rollcall.deploy.rundir.candidates import Candidate
from rollcall.reward_service.scorers.python_tests import fenced_blocks

FUNCTION = "compute_reward"
SHOWN_VALUES = 10  # of a curve
_MAX_FAILURES = 16

Curves = Mapping[str, Sequence[float]]
_SYSTEM = f"""\
You are a reward engineer. You write reward functions for reinforcement learning: a policy that is trained on your
reward is to do the task that the user describes as well as it can. You do not know how the user measures that.

Write one Python function of exactly this form:

    def {FUNCTION}(observation, action, next_observation, terminated):
        ...
        return reward, {{"name_of_a_component": value, ...}}

It is called once for each step. `observation` is what the policy saw, `action` what it then did, `next_observation`
what that led to, `terminated` whether the env ended the episode there (a time limit apart). Arrays come as lists of
floats, nested as their shape is; a discrete action is an int. The reward is one float. The dictionary holds every
component that the reward is made of, one float each, and the same names at every step.

It runs in a sandbox with Python's standard library alone: no numpy, no torch, no files, no network, no random numbers;
`math` is at hand. It must be quick, and give finite numbers for every observation. Keep components of a similar scale,
and use transformations such as math.exp with a named temperature where a component would grow without a bound.

Answer with your reasoning in a few sentences, and then the whole function in one block of ```python."""


def first_request(env: str, task: str) -> list[dict[str, str]]:
    """The messages that begin a search."""
    asked = f"The env:\n\n{env}\n\nThe task: {task}\n\nWrite the reward function."
    return [{"role": "system", "content": _SYSTEM}, {"role": "user", "content": asked}]


def next_request(
    env: str, task: str, *, best: Candidate | None, curves: Curves, failed: Sequence[Candidate]
) -> list[dict[str, str]]:
    """The messages of a later iteration: the best reward so far with what training by it was like, and why others of
    the last iteration came to nothing."""
    messages = first_request(env, task)
    told = _failures(failed)
    if best is None:
        if told:
            messages[-1]["content"] += f"\n\n{told}"
        return messages
    measured = number(best.fitness, 3)
    found = f"We trained a policy by this reward function. Its fitness, by our measure of the task: {measured}."
    return [
        *messages,
        {"role": "assistant", "content": f"```python\n{(best.code or '').strip()}\n```"},
        {"role": "user", "content": "\n\n".join(filter(None, (found, _curves(curves), told, _ADVICE)))},
    ]


_ADVICE = """\
Analyse this, and write a new, better reward function. A component whose values hardly change was not learnt: change its
scale or its form, or leave it out. A component that is much larger than the others drowns them: rescale it. If the
fitness is near what is possible, keep what works and refine it; if it is low, write the reward anew."""


def _curves(curves: Curves) -> str:
    if not curves:
        return ""
    lines = [
        f"- {name}: {', '.join(number(value, 3) for value in spread(values))}; max {number(max(values), 3)}, "
        f"mean {number(sum(values) / len(values), 3)}, min {number(min(values), 3)}"
        for name, values in curves.items()
        if values
    ]
    told = "Means over the steps of a batch, at even distances from the beginning of training to its end:"
    return "\n".join([told, *lines])


def spread(values: Sequence[float]) -> list[float]:
    """A few at even distances, the first and the last among them."""
    if len(values) <= SHOWN_VALUES:
        return list(values)
    return [values[round(i * (len(values) - 1) / (SHOWN_VALUES - 1))] for i in range(SHOWN_VALUES)]


def _failures(failed: Sequence[Candidate]) -> str:
    if not failed:
        return ""
    reasons = list(dict.fromkeys(candidate.problem or "" for candidate in failed))[:_MAX_FAILURES]
    return "\n".join(["Other functions could not be used. Do not repeat their mistakes:", *(f"- {r}" for r in reasons)])


def code_in(answer: str) -> str | None:
    """The last block that defines the function; of an answer without blocks the whole, if it is code. None: neither."""
    for block in reversed(fenced_blocks(answer)):
        if f"def {FUNCTION}" in block:
            return block
    if "```" not in answer and f"def {FUNCTION}" in answer:
        try:
            ast.parse(answer)
        except (SyntaxError, ValueError):
            return None
        return answer
    return None
