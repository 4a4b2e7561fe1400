"""The comparisons of a run: read from preference files or made up, divided into what is learnt from and what is held
out, and turned into what a learner takes. Must never know what learns from them."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from rollcall.cluster.errors import BadInput
from rollcall.cluster.seeds import derive_seed
from rollcall.deploy.preferences import held_out, text_labels
from rollcall.deploy.preferences.data_config import PreferenceDataConfig
from rollcall.deploy.preferences.synthetic import write_synthetic
from rollcall.learners.data.comparisons import RankedCandidates, Steps, TokenSequence
from rollcall.reward_service.models.reward_models import SegmentArchitecture
from rollcall.reward_service.preferences.files import (
    Preference,
    PreferencePair,
    Prompt,
    Ranking,
    SegmentPair,
    read_preferences,
)
from rollcall.reward_service.preferences.records import shows_taken_actions

_log = logging.getLogger("rollcall")
_RANKS = {"left": (0, 1), "right": (1, 0), "tie": (0, 0)}


@dataclass(frozen=True)
class Preferences:
    """As they were read."""

    train: list[Preference]
    held_out: list[Preference]
    sources: tuple[str, ...]
    unused: int = 0  # on neither side: they share a segment with one that is held out

    @property
    def is_text(self) -> bool:
        return not isinstance(self.train[0], SegmentPair)

    def groups(self) -> tuple[str, ...]:
        """The names of those who judged, by number."""
        return tuple(sorted({item.group for item in self.train if item.group is not None}))


def load_preferences(
    config: PreferenceDataConfig, run_directory: Path, *, seed: int, pair_labels: bool = False
) -> Preferences:
    """All of it, or an error; nothing is loaded from a file with a bad line. `pair_labels`: a file of texts with labels
    gives pairs across labels.

    Raises:
      BadInput: naming file and line; or nothing is left to learn from, or to hold out.
    """
    if config.generate is not None:
        paths = write_synthetic(run_directory / "data", config.generate, seed=seed)
        found = Preferences(read_preferences(paths[0]), read_preferences(paths[1]), tuple(map(str, paths)))
    elif pair_labels and config.train is not None and text_labels.is_labelled(Path(config.train)):
        found = _of_labels(config, Path(config.train), seed=seed)
    else:
        assert config.train is not None, "one of the two is given"
        train = read_preferences(Path(config.train))
        order = np.random.default_rng(derive_seed(seed, "limit")).permutation(len(train))
        train = [train[i] for i in sorted(order[: config.limit])]
        if config.eval is not None:
            found = Preferences(train, read_preferences(Path(config.eval)), (config.train, config.eval))
            _warn_of_shared(found)
        else:
            kept, held = _divided(train, config.eval_fraction, seed)
            if not kept and len(train) > 1:
                raise BadInput(
                    f"{config.train}: all {len(train)} comparisons are of one prompt, and those stay together: "
                    "give data.eval=FILE.jsonl with what is to be held out"
                )
            found = Preferences(kept, held, (config.train,), unused=len(train) - len(kept) - len(held))
    if not found.train or not found.held_out:
        raise BadInput(f"{found.sources[0]}: too few comparisons: some are needed to learn from, and some to hold out")
    mixed = next((p for p in [*found.train, *found.held_out] if isinstance(p, SegmentPair) == found.is_text), None)
    if mixed is not None:
        raise BadInput(f"{mixed.source}: texts and segments are mixed: give one kind")
    _check_actions(found)
    return found


def _of_labels(config: PreferenceDataConfig, path: Path, *, seed: int) -> Preferences:
    """Texts are divided before they are paired: none is on both sides."""
    rows = text_labels.read_labelled(path)
    order = np.random.default_rng(derive_seed(seed, "limit")).permutation(len(rows))
    rows = [rows[i] for i in sorted(order[: config.limit])]
    sources: tuple[str, ...] = (str(path),)
    if config.eval is None:
        train, held = text_labels.divided(rows, fraction=config.eval_fraction, seed=seed)
    else:
        train, held, sources = rows, text_labels.read_labelled(Path(config.eval)), (str(path), config.eval)
        learnt = {row.text for row in train}
        shared = sum(row.text in learnt for row in held)
        if shared:
            text = "%s: %d of %d held-out texts are among those learnt from: what is said of them is too good"
            _log.warning(text, config.eval, shared, len(held))
    places = text_labels.places_of([*train, *held], config.labels)
    sides = [
        text_labels.pairs_of(side, places, per_text=config.pairs_per_text, seed=derive_seed(seed, name))
        for side, name in ((train, "train"), (held, "held_out"))
    ]
    if not all(sides):
        raise BadInput(f"{path}: too few texts: some of each label are needed to learn from, and some to hold out")
    return Preferences(list[Preference](sides[0]), list[Preference](sides[1]), sources)


def _divided(preferences: list[Preference], fraction: float, seed: int) -> tuple[list[Preference], list[Preference]]:
    generator = np.random.default_rng(derive_seed(seed, "held_out"))
    pairs = [_segments_of(p) for p in preferences if isinstance(p, SegmentPair)]
    if len(pairs) == len(preferences):
        sides = held_out.by_segment(pairs, fraction=fraction, generator=generator)
    else:  # of texts; where segments are among them, that is told later
        prompts = [p.source if isinstance(p, SegmentPair) else p.prompt for p in preferences]
        sides = held_out.by_prompt(prompts, fraction=fraction, generator=generator)
    train, held = (
        [p for p, side in zip(preferences, sides, strict=True) if side is wanted] for wanted in (False, True)
    )
    if pairs and not train and len(preferences) > 1:
        raise BadInput(
            f"{preferences[0].source.rpartition(':')[0]}: every comparison shares a segment with one that would be "
            "held out, and is not learnt from then: give data.eval=FILE.jsonl with what is to be held out"
        )
    return train, held


def _segments_of(pair: SegmentPair) -> tuple[str, str]:
    """Names of what happened, the same for the same."""
    left, right = (hashlib.sha256(segment.model_dump_json().encode()).hexdigest() for segment in pair.segments)
    return left, right


def _warn_of_shared(found: Preferences) -> None:
    """Of a file of held-out comparisons that somebody gave: what it has in common with the other one."""

    def names(preference: Preference) -> Sequence[object]:
        return _segments_of(preference) if isinstance(preference, SegmentPair) else (preference.prompt,)

    learnt = {name for preference in found.train for name in names(preference)}
    shared = sum(any(name in learnt for name in names(preference)) for preference in found.held_out)
    if shared:
        text = "%s: %d of %d held-out comparisons share a prompt or a segment with those learnt from: what is said of "
        text += "them is too good"
        _log.warning(text, found.sources[-1], shared, len(found.held_out))


def _check_actions(found: Preferences) -> None:
    """Raises BadInput where some segments hold actions as the env took them, and others as a policy sampled them: a
    run's labels say which since they are the former."""
    of: dict[bool, list[SegmentPair]] = {True: [], False: []}
    for pair in (p for p in [*found.train, *found.held_out] if isinstance(p, SegmentPair)):
        of[shows_taken_actions(pair)].append(pair)
    if not (of[True] and of[False]):
        return
    taken, other = (_first_action(of[side]) for side in (True, False))
    if taken is None or taken != other:  # else both count their actions from the same one: they are the same numbers
        raise BadInput(
            f"{of[False][0].source}: does not say that its actions are those that the env took, as "
            f"{of[True][0].source} does: labels of earlier releases hold them as they were sampled, before clip, tanh "
            'or start. Train on one kind; or, where they are what was done, add "metadata": {"actions": "taken"}'
        )


def _first_action(pairs: Sequence[SegmentPair]) -> int | None:
    """The smallest of discrete ones; None of others."""
    arrays = [segment.actions.array() for pair in pairs for segment in pair.segments]
    if any(array.ndim != 1 or array.dtype.kind not in "iu" for array in arrays):
        return None
    return min(int(array.min()) for array in arrays)


class Encoder(Protocol):
    """reward_service.text_encoder.TextEncoder, say."""

    def prompt(self, prompt: Prompt) -> list[int]: ...

    def response(self, text: str) -> list[int]: ...


def encode_texts(
    preferences: Sequence[Preference],
    encoder: Encoder,
    *,
    max_tokens: int,
    groups: Sequence[str] = (),
    for_policy: bool = False,
    labelled: bool = False,
) -> list[RankedCandidates[TokenSequence]]:
    """Prompt tokens followed by response tokens, nothing tokenised across the seam. Comparisons with a candidate of
    more than `max_tokens` are left out, and counted in the log. A policy cannot begin with nothing: it needs prompts.
    `labelled`: single responses are what is asked for, and refused otherwise.

    Raises:
      BadInput: when none is left, or one cannot be encoded or has no group where groups are asked for.
    """
    what = preferences[0].source.rpartition(":")[0]
    encoded, longest = [], 0
    numbers = {name: number for number, name in enumerate(groups)}
    for item in preferences:
        assert not isinstance(item, SegmentPair), "load_preferences keeps them apart"
        if groups and item.group not in numbers:
            raise BadInput(f"{item.source}: group {item.group!r}: learning by groups needs one of {', '.join(groups)}")
        try:
            prompt = encoder.prompt(item.prompt)
        except ValueError as error:
            raise BadInput(f"{item.source}: {error}") from None
        if for_policy and not prompt:
            raise BadInput(f"{item.source}: an empty prompt: a policy's response needs something to follow")
        responses, ranks = _responses(item)
        if len(responses) == 1 and not labelled:
            raise BadInput(f"{item.source}: a labelled completion, compared with nothing: kto learns from those")
        candidates = tuple(
            TokenSequence(np.array([*prompt, *tokens], np.int32), len(prompt))
            for tokens in (encoder.response(text) for text in responses)
        )
        length = max(len(candidate.token_ids) for candidate in candidates)
        longest = max(longest, length)
        if length > max_tokens or any(len(c.token_ids) == c.num_prompt for c in candidates):
            continue
        margin = (item.margin or 0.0) if isinstance(item, PreferencePair) else 0.0
        probability = (item.probability or 1.0) if isinstance(item, PreferencePair) else 1.0
        group = numbers.get(item.group or "", 0)
        encoded.append(RankedCandidates(candidates, ranks, margin=margin, group=group, probability=probability))
    left_out = len(preferences) - len(encoded)
    if not encoded:
        raise BadInput(
            f"{what}: none of {len(preferences)} comparisons fits into max_tokens={max_tokens} (the longest has "
            f"{longest}): raise it"
        )
    if left_out:
        text = "%s: %d of %d comparisons have more than %d tokens, and are left out (the longest has %d)"
        _log.warning(text, what, left_out, len(preferences), max_tokens, longest)
    return encoded


def _responses(item: PreferencePair | Ranking) -> tuple[tuple[str, ...], tuple[int, ...]]:
    if isinstance(item, Ranking):
        return item.responses, item.ranks
    return (item.chosen, item.rejected), (0, 0) if item.tie else (0, 1)


def encode_segments(
    preferences: Sequence[Preference], architecture: SegmentArchitecture
) -> list[RankedCandidates[Steps]]:
    """Raises BadInput: naming the line whose segments the model does not take."""
    encoded = []
    for item in preferences:
        assert isinstance(item, SegmentPair), "load_preferences keeps them apart"
        try:
            steps = tuple(Steps(*architecture.arrays(segment)) for segment in item.segments)
        except ValueError as error:
            raise BadInput(f"{item.source}: {error}; nothing of the file was loaded") from None
        encoded.append(RankedCandidates(steps, _RANKS[item.choice]))
    return encoded


def counted(train: Sequence[object], held: Sequence[object], found: Preferences) -> Mapping[str, int]:
    """What became of the comparisons that were read, for the summary."""
    return {
        "train": len(train),
        "held_out": len(held),
        "left_out": found.unused + len(found.train) + len(found.held_out) - len(train) - len(held),
    }
