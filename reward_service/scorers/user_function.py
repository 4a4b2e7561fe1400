"""A user's reward function: how it wants to be called, as its signature says, and what its answer means. What fits
neither is refused by name: nothing here guesses a score."""

from __future__ import annotations

import asyncio
import inspect
import math
import numbers
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import cache
from typing import Any, Literal, get_origin

from rollcall.cluster.errors import BadInput
from rollcall.cluster.inputs.import_path import import_object
from rollcall.reward_service.protocol import ScoreItem
from rollcall.reward_service.scorer import Failure, Outcome, Score, Taken, finite

_RESPONSE = ("response", "completion", "solution_str")  # the last is verl's
_RESPONSES = ("responses", "completions")  # the last is TRL's
_WANTED = "give one number, {'score': ..., 'components': {...}}, or None for no score"


class Misfit(Exception):
    """The function and the item do not fit together; the message says in one line what is wanted."""


@dataclass(frozen=True)
class UserFunction:
    """A function by its import path, and its habit."""

    path: str
    function: Callable[..., Any]
    batched: bool  # it takes and gives lists
    by_name: bool  # by parameters named after what an item has, and not the items themselves

    @property
    def takes(self) -> frozenset[Taken]:
        return frozenset({"text"} if self.by_name else {"text", "segment"})

    def scores(self, items: Sequence[ScoreItem]) -> list[Outcome]:
        """One for each item.

        Raises:
          Exception: whatever the function raises; Misfit where it is not clear which answer is whose.
        """
        if not self.batched:
            return [self._outcome(self._call(item), item) for item in items]
        said = self._call(items)
        if isinstance(said, str | Mapping) or not isinstance(said, Iterable):
            raise Misfit(
                f"{self.path} gave {_described(said)} for a list of {len(items)}: give a list of as many scores"
            )
        said = list(said)
        if len(said) != len(items):
            raise Misfit(f"{self.path} gave {len(said)} scores for {len(items)} items")
        return [self._outcome(value, item) for value, item in zip(said, items, strict=True)]

    def _call(self, given: ScoreItem | Sequence[ScoreItem]) -> Any:
        said = self.function(**self._named(given)) if self.by_name else self.function(given)
        return _event_loop().run(_awaited(said)) if inspect.isawaitable(said) else said

    def _named(self, given: ScoreItem | Sequence[ScoreItem]) -> dict[str, Any]:
        """The arguments: of a batch, a list of each."""
        items = [given] if isinstance(given, ScoreItem) else given
        values = [_values(item, plural=self.batched) for item in items]
        shared = set(values[0]).intersection(*values)
        chosen: dict[str, Any] = {}
        for parameter in inspect.signature(self.function).parameters.values():
            if parameter.kind is parameter.VAR_KEYWORD:
                columns = shared.intersection(*(item.metadata for item in items))
                chosen |= {name: [item[name] for item in values] for name in sorted(columns - chosen.keys())}
            elif parameter.name in shared:
                chosen[parameter.name] = [item[parameter.name] for item in values]
            elif parameter.default is parameter.empty and parameter.kind is not parameter.VAR_POSITIONAL:
                known = ", ".join(sorted(items[0].metadata)) or "none"
                raise Misfit(
                    f"{self.path} needs {parameter.name!r}, and the data have no such column (they have {known}): "
                    "add the column, or give the parameter a default"
                )
        return chosen if self.batched else {name: value[0] for name, value in chosen.items()}

    def _outcome(self, said: object, item: ScoreItem) -> Outcome:
        try:
            return _score(said, item)
        except Misfit as misfit:
            return Failure("scorer_failed", f"{self.path} gave {misfit}")


def user_function(path: str) -> UserFunction:
    """The function that a path names, looked at before it is called.

    Raises:
      BadInput: when there is none, or it takes what no reward function is given.
    """
    function = import_object(path)
    if not callable(function):
        raise BadInput(f"{path} is a {type(function).__name__}, not a function: name one that takes an item")
    if inspect.isclass(function):
        raise BadInput(f"{path} is a class, not a function: name a function that takes an item, or an instance")
    batched = bool(getattr(function, "batched", False))
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):  # one that is written in C
        return UserFunction(path, function, batched, by_name=False)
    habit = _habit(parameters)
    if habit is None:
        raise BadInput(
            f"{path}{inspect.signature(function)} is no reward function: write def score(item), or, with parameters of "
            "these names, def score(prompt, response, metadata, A_COLUMN), or for lists def score(prompts, "
            "completions, A_COLUMN, **columns); with score.batched = True it takes a list of items"
        )
    return UserFunction(path, function, batched or habit in ("items", "lists"), by_name=habit in ("named", "lists"))


def _habit(parameters: Sequence[inspect.Parameter]) -> Literal["item", "items", "named", "lists"] | None:
    """None: it cannot be called with anything that we have."""
    named = {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    if named.intersection(_RESPONSES):
        return "lists"
    if named.intersection(_RESPONSE):
        return "named"
    places = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD, p.VAR_POSITIONAL)]
    open_ended = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    if not places or any(p.default is p.empty and p.kind not in open_ended for p in parameters if p != places[0]):
        return None
    if places[0].annotation in (str, "str"):
        return None
    return "items" if places[0].name == "items" or _is_list(places[0].annotation) else "item"


def _is_list(annotation: object) -> bool:
    if isinstance(annotation, str):
        return annotation.partition("[")[0].rpartition(".")[2] in ("list", "List", "Sequence")
    return (get_origin(annotation) or annotation) in (list, Sequence)


def _values(item: ScoreItem, *, plural: bool) -> dict[str, Any]:
    """What an item has, by the names that functions call it by. What we have ourselves comes before a column."""
    prompt = item.messages[-1].content if item.messages else item.prompt
    truth = item.metadata.get("ground_truth", item.metadata.get("answer"))
    own: dict[str, Any] = dict.fromkeys(_RESPONSES if plural else _RESPONSE, item.response)
    own["prompts" if plural else "prompt"] = prompt
    own["items" if plural else "item"] = item
    known = {"metadata": item.metadata, "extra_info": item.metadata, "messages": item.messages, "ground_truth": truth}
    return {name: value for name, value in known.items() if value is not None} | dict(item.metadata) | own


@cache
def _event_loop() -> asyncio.Runner:
    """One for all calls: what a function keeps open (a client's connections) belongs to its loop."""
    return asyncio.Runner()


async def _awaited(said: Any) -> Any:
    return await said


def _score(said: object, item: ScoreItem) -> Outcome:
    """Raises Misfit: saying what came."""
    if said is None:
        return Failure("scorer_failed", "the function gave no score (None)")
    components: Mapping[Any, Any] = {}
    if isinstance(said, Mapping):
        if "score" not in said:
            raise Misfit(f"a dict without 'score' (it has {', '.join(map(str, said)) or 'nothing'}): {_WANTED}")
        components, said = said.get("components") or {}, said["score"]
        if not isinstance(components, Mapping):
            raise Misfit(f"{_described(components)} as components: give a number for each name")
    parts = {str(name): _number(part, f"as component {name!r}: give a number") for name, part in components.items()}
    if item.segment is not None and _is_listed(said):
        steps = _steps(said, item.segment.num_steps)
        return finite(Score(math.fsum(steps), parts, steps))
    thing = "text" if item.segment is None else "segment"
    return finite(Score(_number(said, f"for one {thing}: {_WANTED}"), parts))


def _steps(said: Any, num_steps: int) -> tuple[float, ...]:
    if len(getattr(said, "shape", (0,))) != 1:
        raise Misfit(f"{_described(said)} for {num_steps} steps: give one number for each step")
    if len(said) != num_steps:
        raise Misfit(f"{len(said)} scores for {num_steps} steps")
    return tuple(_number(step, "for one step: give a number") for step in said)


def _number(said: object, what: str) -> float:
    """A number of any library's; also an array of one. Raises Misfit: what came, and `what` it is and is wanted."""
    value = said
    if hasattr(said, "tolist"):  # numpy's and torch's, scalars included
        value = said.tolist()
        while isinstance(value, list) and len(value) == 1:
            value = value[0]
    if isinstance(value, numbers.Real | Decimal):
        return float(value)
    raise Misfit(f"{_described(said)} {what}")


def _is_listed(said: object) -> bool:
    return isinstance(said, list | tuple) or (hasattr(said, "shape") and len(said.shape) > 0)


def _described(said: Any) -> str:
    if isinstance(said, str):
        return f"the text {said[:40]!r}"
    if getattr(said, "shape", ()):
        return f"an array of shape {list(said.shape)}"
    if isinstance(said, list | tuple):
        kinds = ", ".join(type(part).__name__ for part in said[:4]) + (", ..." if len(said) > 4 else "")
        return f"a {type(said).__name__} of {len(said)} ({kinds})"
    name = type(said).__name__
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"
