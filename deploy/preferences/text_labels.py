"""A file of texts with labels as comparisons: each text is compared with some of another label. Must never know what
learns from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rollcall.cluster.errors import BadInput
from rollcall.cluster.inputs.json_lines import parse_object, read_json_lines
from rollcall.cluster.seeds import derive_seed
from rollcall.reward_service.preferences.files import PreferencePair

PAIRS_PER_TEXT = 4  # at least as many pairs has each text: more of them say little that is new
_TEXTS = ("text", "completion")  # what the text may be called
_ORDERS = (  # of labels in words, from worse to better
    ("neg", "neutral", "pos"),
    ("negative", "neutral", "positive"),
    ("bad", "neutral", "good"),
    ("rejected", "chosen"),
    ("undesirable", "desirable"),
    ("no", "yes"),
    ("false", "true"),
    ("harmful", "harmless"),
    ("unsafe", "safe"),
    ("unhelpful", "helpful"),
    ("incorrect", "correct"),
    ("wrong", "right"),
    ("dislike", "like"),
    ("down", "up"),
    ("0", "1"),
)


@dataclass(frozen=True)
class LabelledText:
    prompt: str
    text: str
    label: str | float  # bools are 0 and 1
    source: str


def is_labelled(path: Path) -> bool:
    """Whether the first line is a text with a label, and no comparison.

    Raises:
      BadInput: as read_json_lines does.
    """
    for source, line in read_json_lines(path):
        try:
            return _is_label(parse_object(line))
        except ValueError as error:
            raise BadInput(f"{source}: {error}; fix the line: nothing of the file was loaded") from None
    return False


def _is_label(values: Mapping[str, object]) -> bool:
    return "label" in values and any(name in values for name in _TEXTS)


def read_labelled(path: Path) -> list[LabelledText]:
    """Every line of the file, or none.

    Raises:
      BadInput: naming file and line, for the first line that is no text with a label.
    """
    rows = []
    for source, line in read_json_lines(path):
        try:
            rows.append(_row(parse_object(line), source))
        except ValueError as error:
            raise BadInput(f"{source}: {error}; fix the line: nothing of the file was loaded") from None
    return rows


def _row(values: Mapping[str, object], source: str) -> LabelledText:
    if not _is_label(values):
        raise ValueError("a text and a label are needed, as in the first line")
    name = next(name for name in _TEXTS if name in values)
    text, label, prompt = values[name], values["label"], values.get("prompt", "")
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"{name} {'is empty' if isinstance(text, str) else 'is not text'}")
    if not isinstance(prompt, str):
        raise ValueError("prompt is not text")
    if isinstance(label, (bool, int, float)):
        return LabelledText(prompt, text, float(label), source)
    if not isinstance(label, str) or not label.strip():
        raise ValueError("label is neither a word, nor a number, nor true or false")
    return LabelledText(prompt, text, label.strip(), source)


def places_of(rows: Sequence[LabelledText], worst_first: Sequence[str] | None) -> dict[str | float, int]:
    """From a label to its place, 0 for the worst.

    Raises:
      BadInput: when there are fewer than two labels, or which one is better is not known.
    """
    labels = sorted({row.label for row in rows}, key=str)
    file = rows[0].source.rpartition(":")[0]
    if worst_first is not None:
        known = {name: place for place, name in enumerate(worst_first)}
        found = {label: known[_written(label)] for label in labels if _written(label) in known}
        if len(found) < len(labels):
            missing = ", ".join(_written(label) for label in labels if label not in found)
            raise BadInput(f"data.labels: {file} also has {missing}: name all labels, the worst first")
    elif all(isinstance(label, float) for label in labels):
        found = {label: place for place, label in enumerate(sorted(labels, key=float))}
    else:
        order = next((o for o in _ORDERS if {_written(label).lower() for label in labels} <= set(o)), None)
        if order is None:
            shown = ", ".join(map(_written, labels[:8]))
            raise BadInput(f"{file}: labels {shown}: which is better is not known: give data.labels=[WORST, ..., BEST]")
        found = {label: order.index(_written(label).lower()) for label in labels}
    if len(set(found.values())) < 2:
        raise BadInput(f"{file}: all texts have the label {_written(labels[0])}: a comparison needs two")
    return found


def _written(label: str | float) -> str:
    return label if isinstance(label, str) else f"{label:g}"


def divided(
    rows: Sequence[LabelledText], *, fraction: float, seed: int
) -> tuple[list[LabelledText], list[LabelledText]]:
    """(what is learnt from, what is held out): a share of the texts of each label, where labels that only one text has
    are as one; a text is on one side alone."""
    generator = np.random.default_rng(derive_seed(seed, "held_out"))
    texts_of: dict[str | float, dict[str, None]] = {}
    for row in rows:
        texts_of.setdefault(row.label, {})[row.text] = None
    several = [list(texts) for texts in texts_of.values() if len(texts) > 1]
    single = [text for texts in texts_of.values() if len(texts) == 1 for text in texts]
    held: set[str] = set()
    for texts in filter(None, (*several, single)):
        order = generator.permutation(len(texts))
        held |= {texts[i] for i in order[: max(1, round(fraction * len(texts)))]}
    return [row for row in rows if row.text not in held], [row for row in rows if row.text in held]


def pairs_of(
    rows: Sequence[LabelledText], places: Mapping[str | float, int], *, per_text: int, seed: int
) -> list[PreferencePair]:
    """Each text with `per_text` drawn ones of other labels, or with all; of the same prompt where there are some."""
    generator = np.random.default_rng(derive_seed(seed, "pairs"))
    place_of = [places[row.label] for row in rows]
    everywhere = _Others(range(len(rows)), place_of)
    of_prompt: dict[str, list[int]] = {}
    for index, row in enumerate(rows):
        of_prompt.setdefault(row.prompt, []).append(index)
    near = {prompt: _Others(members, place_of) for prompt, members in of_prompt.items() if prompt}
    pairs: dict[tuple[int, int], PreferencePair] = {}
    for index, row in enumerate(rows):
        place = place_of[index]
        others = near.get(row.prompt, everywhere)
        others = others if others.count(place) else everywhere
        count = others.count(place)
        drawn = range(count) if count <= per_text else generator.choice(count, per_text, replace=False)
        for other in (others.one(place, int(nth)) for nth in drawn):
            up, down = (index, other) if place > place_of[other] else (other, index)
            better, worse = rows[up], rows[down]
            if better.text != worse.text:
                prompt = better.prompt if better.prompt == worse.prompt else ""
                pairs[up, down] = PreferencePair(prompt, better.text, worse.text, source=row.source)
    return list(pairs.values())


class _Others:
    """Rows by what they are not: labels may be as many as rows, so no list of those of other labels is kept."""

    def __init__(self, members: Sequence[int], place_of: Sequence[int]) -> None:
        self._members = members
        own: dict[int, list[int]] = {}
        for number, index in enumerate(members):
            own.setdefault(place_of[index], []).append(number)
        # Of each place: how many members of other places stand before each of its own.
        self._before = {place: np.array(numbers) - np.arange(len(numbers)) for place, numbers in own.items()}

    def count(self, place: int) -> int:
        """Members of another place than this one, which some member has."""
        return len(self._members) - len(self._before[place])

    def one(self, place: int, nth: int) -> int:
        """The row of the nth of them."""
        return self._members[nth + int(np.searchsorted(self._before[place], nth, side="right"))]
