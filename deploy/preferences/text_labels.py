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
            raise BadInput(f"{source}: {error}; mend the line: nothing of the file was loaded") from None
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
            raise BadInput(f"{source}: {error}; mend the line: nothing of the file was loaded") from None
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
    """(what is learnt from, what is held out): a share of the texts of each label; a text is on one side alone."""
    generator = np.random.default_rng(derive_seed(seed, "held_out"))
    held: set[str] = set()
    for label in dict.fromkeys(row.label for row in rows):
        texts = list(dict.fromkeys(row.text for row in rows if row.label == label))
        order = generator.permutation(len(texts))
        held |= {texts[i] for i in order[: max(1, round(fraction * len(texts)))]}
    return [row for row in rows if row.text not in held], [row for row in rows if row.text in held]


def pairs_of(
    rows: Sequence[LabelledText], places: Mapping[str | float, int], *, per_text: int, seed: int
) -> list[PreferencePair]:
    """Each text with `per_text` drawn ones of other labels, or with all; of the same prompt where there are some."""
    generator = np.random.default_rng(derive_seed(seed, "pairs"))
    everywhere = list(range(len(rows)))
    of_prompt: dict[str, list[int]] = {}
    for index, row in enumerate(rows):
        of_prompt.setdefault(row.prompt, []).append(index)
    pairs: dict[tuple[int, int], PreferencePair] = {}
    by_place = _without_own_place(rows, places, everywhere)
    for index, row in enumerate(rows):
        near = of_prompt[row.prompt] if row.prompt else everywhere
        place = places[row.label]
        others = [i for i in near if places[rows[i].label] != place] if row.prompt else by_place[place]
        others = others or by_place[place]
        chosen = (
            others
            if len(others) <= per_text
            else [others[i] for i in generator.choice(len(others), per_text, replace=False)]
        )
        for other in chosen:
            up, down = (index, other) if place > places[rows[other].label] else (other, index)
            better, worse = rows[up], rows[down]
            if better.text != worse.text:
                prompt = better.prompt if better.prompt == worse.prompt else ""
                pairs[up, down] = PreferencePair(prompt, better.text, worse.text, source=row.source)
    return list(pairs.values())


def _without_own_place(
    rows: Sequence[LabelledText], places: Mapping[str | float, int], everywhere: Sequence[int]
) -> dict[int, list[int]]:
    return {place: [i for i in everywhere if places[rows[i].label] != place] for place in set(places.values())}
