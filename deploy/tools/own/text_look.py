"""A user's reward is called with a few completions, a task is asked for its rows and judges some of them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from rollcall.actors.tasks.own_task import SettledTask
from rollcall.actors.tasks.text_task import Row
from rollcall.cluster.errors import BadInput
from rollcall.cluster.inputs.user_code import user_line_of
from rollcall.deploy.config import plugins
from rollcall.deploy.tools.own.seen import Seen, one_line
from rollcall.reward_service.protocol import ScoreItem
from rollcall.reward_service.scorer import Failure
from rollcall.reward_service.scorers.user_function import Misfit, user_function

ROWS_JUDGED = 50
SLOW_S = 0.1  # a call: with 512 completions a step, a minute
_RESPONSES = ("2", "The answer is 2.", "", "nonsense " * 40)


def look_at_reward(name: str, columns: Mapping[str, Any]) -> Seen:
    """`columns`: of the data, beside the prompt; `answer` is 2 where they have none."""
    seen = Seen("reward", name)
    metadata = {"answer": "2", **columns}
    items = [
        ScoreItem(id=str(number), prompt="1 + 1 =", response=text, metadata=metadata)
        for number, text in enumerate(_RESPONSES)
    ]
    try:
        function = user_function(name)
        seen.facts.append("called with lists" if function.batched else "called for one completion at a time")
        began = time.perf_counter()
        outcomes = function.scores(items)
        cost = (time.perf_counter() - began) / len(items)
        again = function.scores(items)
    except (BadInput, Misfit) as error:
        seen.problems.append(str(error))
        return seen
    except Exception as error:
        seen.problems.append(_placed(error))
        return seen
    values: list[float] = []
    for text, outcome in zip(_RESPONSES, outcomes, strict=True):
        if isinstance(outcome, Failure):
            seen.problems.append(f"for {text[:20]!r}: {outcome.message}")
        else:
            values.append(outcome.value)
            seen.facts.append(f"{text[:20]!r} -> {outcome.value:g}{_parts(outcome.components)}")
    seen.facts.append(f"a call takes {1e3 * cost:.3g} ms")
    if cost > SLOW_S:
        seen.notes.append("slow: completions of a step wait for it; let it take lists, or keep models in a service")
    if len(values) > 1 and len(set(values)) == 1:
        seen.notes.append(f"every completion scored {values[0]:g}: the samples here may be none of its kind")
    if [_value(outcome) for outcome in outcomes] != [_value(outcome) for outcome in again]:
        seen.notes.append("the same completion scored differently the second time: a resumed run cannot be the same")
    return seen


def look_at_task(name: str, settings: Mapping[str, Any]) -> Seen:
    """`settings`: its own, as a recipe's section has them."""
    seen = Seen("task", name)
    try:
        found = plugins.find(plugins.TASK, name)
        task = SettledTask(found(found.Config.model_validate({"name": name, **settings})), name)
        train, held_out = task.rows("train"), task.rows("eval")
        seen.facts.append(f"{len(train):,} rows to train on, {len(held_out):,} held out")
        if not train:
            seen.problems.append("there is no row to train on")
            return seen
        seen.facts.append(f"first prompt: {train[0].prompt[:80]!r}, answer {train[0].answer[:40]!r}")
        again = SettledTask(found(found.Config.model_validate({"name": name, **settings})), name)
        if list(train) != list(again.rows("train")):
            seen.problems.append("rows differ from one time to the next: every process must see the same, in one order")
        shared = {row.prompt for row in train} & {row.prompt for row in held_out}
        if shared:
            seen.notes.append(f"{len(shared):,} held-out prompts are among those trained on: the evaluation knows them")
        _judged(seen, task, train)
    except ValidationError as error:
        seen.problems += [f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()]
    except BadInput as error:
        seen.problems.append(str(error))
    except Exception as error:
        seen.problems.append(_placed(error))
    return seen


def _judged(seen: Seen, task: SettledTask, rows: Any) -> None:
    costs, right = [], 0
    some: list[Row] = list(rows[:ROWS_JUDGED])
    for row in some:
        env = task.environment(row)
        if env is not None:
            opening = env.reset()
            seen.facts.append(f"several turns; the first begins {opening[:60]!r}")
            return
        began = time.perf_counter()
        judged = [task.judge(row, text) for text in (row.answer, "", "nonsense " * 40)]
        costs.append((time.perf_counter() - began) / len(judged))
        right += judged[0].correct
        wrong = [j for j in judged[1:] if j.correct]
        if wrong and row.answer.strip():
            seen.notes.append(f"{row.source}: an empty or meaningless completion is judged right")
            break
    seen.facts.append(f"a judgement takes {1e3 * statistics.median(costs):.3g} ms")
    if right < len(costs):
        seen.notes.append(f"{len(costs) - right} of {len(costs)} rows: the row's own answer is not judged right")
    if statistics.median(costs) > SLOW_S:
        seen.notes.append("judging is slow: completions of a step wait for it")


def _placed(error: Exception) -> str:
    place = user_line_of(error)
    return f"{place}: {one_line(error)}" if place else one_line(error)


def _value(outcome: Any) -> Any:
    return None if isinstance(outcome, Failure) else outcome.value


def _parts(components: Mapping[str, float]) -> str:
    return f" ({', '.join(f'{name} {value:g}' for name, value in components.items())})" if components else ""
