"""The one file format of preferences, read and written: what raters export, and what reward models and DPO learn from.
One JSON object a line, plain or gzipped.

  two texts     {"prompt": str | "messages": [...], "chosen": str, "rejected": str, "margin": float?, "tie": bool?,
                 "probability": float?}, of a soft label how likely it is that the chosen one is better: 0.5 to 1
  HH's format   {"chosen": "\\n\\nHuman: ...\\n\\nAssistant: ...", "rejected": ...}; the turns they share are the prompt
  a label       {"prompt": str | "messages": [...], "completion": str, "label": true | false}, for kto
  a ranking     {"prompt": str | "messages": [...], "responses": [str, ...], "ranks": [int, ...]}, 0 the best
  two segments  {"segments": [Segment, Segment], "choice": "left" | "right" | "tie", "env": str?}

Any of them may also have "group" and "rater"; what else a line says is kept in `details`.
"""

from __future__ import annotations

import difflib
import gzip
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, JsonValue, ValidationError

from rollcall.cluster.errors import BadInput
from rollcall.cluster.inputs.json_lines import parse_object, read_json_lines
from rollcall.reward_service.protocol import Message, Segment

Prompt = str | tuple[Message, ...]
Details = Mapping[str, JsonValue]
HH_TURN = "\n\nAssistant:"
_FORMS = "chosen and rejected, responses and ranks, completion and label, or segments and choice"


@dataclass(frozen=True, slots=True)
class PreferencePair:
    """Two responses to one prompt. Of a tie, which one is called `chosen` means nothing."""

    prompt: Prompt
    chosen: str
    rejected: str
    margin: float | None = None  # by how much the chosen one is better, where the rater said so
    tie: bool = False
    group: str | None = None
    rater: str | None = None
    source: str = field(default="", compare=False)  # "train.jsonl:12", for messages
    details: Details = field(default_factory=dict)
    probability: float | None = None  # in [0.5, 1]: that the chosen one is better, where the label is soft


@dataclass(frozen=True, slots=True)
class Ranking:
    """K responses to one prompt. ranks[i] is the place of responses[i]: 0 is the best, equal places are a tie. Of one
    response, which was labelled and not compared, 0 says that it is desirable, and 1 that it is not."""

    prompt: Prompt
    responses: tuple[str, ...]
    ranks: tuple[int, ...]
    group: str | None = None
    rater: str | None = None
    source: str = field(default="", compare=False)
    details: Details = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class SegmentPair:
    """Two segments of experience, and which was preferred."""

    segments: tuple[Segment, Segment]
    choice: Literal["left", "right", "tie"]
    env: str | None = None
    group: str | None = None
    rater: str | None = None
    source: str = field(default="", compare=False)
    details: Details = field(default_factory=dict)


Preference = PreferencePair | Ranking | SegmentPair


def read_preferences(path: Path) -> list[Preference]:
    """Every line of the file, or none.

    Raises:
      BadInput: naming file and line, for the first line that is no preference; or the file is missing or has none.
    """
    preferences: list[Preference] = []
    for source, line in read_json_lines(path):
        try:
            preferences.append(parse_preference(line, source=source))
        except ValueError as error:
            raise BadInput(f"{source}: {error}; fix the line: nothing of the file was loaded") from None
    if not preferences:
        raise BadInput(f"{path}: no preference in it: one JSON object a line is needed")
    return preferences


def write_preferences(path: Path, preferences: Iterable[Preference]) -> int:
    """Writes the file, aside first and then in its place. Returns the number of lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.new")
    count = 0
    with gzip.open(aside, "wb") if path.suffix == ".gz" else aside.open("wb") as file:
        for preference in preferences:
            file.write(preference_line(preference).encode())
            count += 1
        file.flush()
        os.fsync(file.fileno())
    aside.replace(path)
    return count


def parse_preference(line: str, *, source: str) -> Preference:
    """One line.

    Raises:
      ValueError: in one line, saying what is wrong with it.
    """
    return parse_preference_values(parse_object(line), source=source)


def parse_preference_values(values: Mapping[str, Any], *, source: str) -> Preference:
    """One line's object. Raises as parse_preference does."""
    form: type[_PairLine] | type[_HHLine] | type[_RankingLine] | type[_LabelLine] | type[_SegmentLine]
    if "segments" in values:
        form = _SegmentLine
    elif "responses" in values:
        form = _RankingLine
    elif "completion" in values:
        form = _LabelLine
    elif "chosen" in values or "rejected" in values:
        form = _HHLine if "prompt" not in values and "messages" not in values else _PairLine
    else:
        raise ValueError(f"none of {_FORMS} is there")
    known = form.model_fields.keys()
    for name in values.keys() - known:
        if near := difflib.get_close_matches(name, known, n=1, cutoff=0.85):
            raise ValueError(f"an unknown {name!r}: did you mean {near[0]!r}?")
    try:
        parsed = form.model_validate({name: value for name, value in values.items() if name in known})
        return parsed.record(source, {name: value for name, value in values.items() if name not in known})
    except ValidationError as error:
        raise ValueError(first_problem(error)) from None


def preference_values(preference: Preference) -> dict[str, JsonValue]:
    """What stands in the line of a preference: `parse_preference` of its JSON gives the same preference."""
    values: dict[str, Any] = dict(preference.details)
    if isinstance(preference, SegmentPair):
        values |= {"segments": [segment.model_dump(mode="json") for segment in preference.segments]}
        values |= {"choice": preference.choice, "env": preference.env}
    else:
        prompt = preference.prompt
        values |= {"prompt": prompt} if isinstance(prompt, str) else {"messages": [m.model_dump() for m in prompt]}
        if isinstance(preference, Ranking) and len(preference.responses) == 1:
            values |= {"completion": preference.responses[0], "label": preference.ranks == (0,)}
        elif isinstance(preference, Ranking):
            values |= {"responses": list(preference.responses), "ranks": list(preference.ranks)}
        else:
            values |= {"chosen": preference.chosen, "rejected": preference.rejected, "margin": preference.margin}
            values |= {"tie": True} if preference.tie else {}
            values |= {"probability": preference.probability}
    values |= {"group": preference.group, "rater": preference.rater}
    return {name: value for name, value in values.items() if value is not None}


def preference_line(preference: Preference) -> str:
    return json.dumps(preference_values(preference), ensure_ascii=False, allow_nan=False) + "\n"


# How one line is checked, form by form.


class _Line(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    group: str | None = None
    rater: str | None = None


class _TwoTextsLine(_Line):
    chosen: str
    rejected: str
    margin: FiniteFloat | None = Field(default=None, ge=0)
    tie: bool = False
    probability: FiniteFloat | None = Field(default=None, ge=0.5, le=1)

    def pair(self, prompt: Prompt, chosen: str, rejected: str, source: str, details: Details) -> PreferencePair:
        if self.tie and self.margin:
            raise ValueError(f"a tie has no margin, and {self.margin} is given")
        if self.probability is not None and (self.tie or self.margin is not None):
            raise ValueError("probability is a soft label, which has no margin and is no tie: give one of them")
        if not self.tie and chosen == rejected:
            raise ValueError("chosen and rejected are the same")
        return PreferencePair(
            *(prompt, chosen, rejected, self.margin, self.tie),
            *(self.group, self.rater, source, details, self.probability),
        )


class _PairLine(_TwoTextsLine):
    prompt: str | None = None
    messages: list[Message] | None = Field(default=None, min_length=1)

    def record(self, source: str, details: Details) -> PreferencePair:
        return self.pair(_prompt(self.prompt, self.messages), self.chosen, self.rejected, source, details)


class _HHLine(_TwoTextsLine):
    def record(self, source: str, details: Details) -> PreferencePair:
        """The prompt goes up to the last turn of the assistant's that both begin; more than one turn may follow."""
        both = zip(self.chosen, self.rejected, strict=False)
        shared = next((i for i, (a, b) in enumerate(both) if a != b), min(len(self.chosen), len(self.rejected)))
        start = self.chosen.rfind(HH_TURN, 0, shared)
        if start < 0:
            raise ValueError(
                "no prompt or messages, and chosen and rejected share no beginning up to '\\n\\nAssistant:' either"
            )
        end = start + len(HH_TURN)
        return self.pair(self.chosen[:end], self.chosen[end:], self.rejected[end:], source, details)


class _RankingLine(_Line):
    prompt: str | None = None
    messages: list[Message] | None = Field(default=None, min_length=1)
    responses: list[str] = Field(min_length=2)
    ranks: list[int]

    def record(self, source: str, details: Details) -> Ranking:
        if len(self.ranks) != len(self.responses):
            raise ValueError(f"{len(self.responses)} responses and {len(self.ranks)} ranks")
        if sorted(set(self.ranks)) != list(range(len(set(self.ranks)))):
            raise ValueError(f"ranks are {self.ranks}: they count from 0 without a gap, equal ones are a tie")
        if len(set(self.responses)) < len(self.responses):
            raise ValueError("two responses are the same")
        prompt = _prompt(self.prompt, self.messages)
        return Ranking(prompt, tuple(self.responses), tuple(self.ranks), self.group, self.rater, source, details)


class _LabelLine(_Line):
    prompt: str | None = None
    messages: list[Message] | None = Field(default=None, min_length=1)
    completion: str
    label: bool

    def record(self, source: str, details: Details) -> Ranking:
        prompt, places = _prompt(self.prompt, self.messages), (0 if self.label else 1,)
        return Ranking(prompt, (self.completion,), places, self.group, self.rater, source, details)


class _SegmentLine(_Line):
    model_config = ConfigDict(strict=False)  # shapes are tuples, and JSON has lists

    segments: tuple[Segment, Segment]
    choice: Literal["left", "right", "tie"]
    env: str | None = None

    def record(self, source: str, details: Details) -> SegmentPair:
        for segment in self.segments:
            check_segment(segment)
        spaces = [segment_space(segment) for segment in self.segments]
        if spaces[0] != spaces[1]:
            raise ValueError(f"one segment is of {spaces[0]}, the other of {spaces[1]}")
        return SegmentPair(self.segments, self.choice, self.env, self.group, self.rater, source, details)


def _prompt(prompt: str | None, messages: list[Message] | None) -> Prompt:
    if prompt is not None and messages is None:
        return prompt
    if messages is not None and prompt is None:
        return tuple(messages)
    raise ValueError("one of prompt and messages is needed")


def check_segment(segment: Segment) -> None:
    """Raises ValueError where a segment's bytes cannot be read, or say NaN or infinity."""
    for name in ("observations", "actions"):
        array = getattr(segment, name).array()
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise ValueError(f"{name} of a segment are not finite")


def segment_space(segment: Segment) -> str:
    parts = (segment.observations, segment.actions)
    return " and ".join(f"{part.dtype}{list(part.shape[1:])}" for part in parts)


def first_problem(error: ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    where = ".".join(map(str, first["loc"]))
    said = first["msg"].removeprefix("Value error, ")
    return f"{where}: {said}" if where else said
