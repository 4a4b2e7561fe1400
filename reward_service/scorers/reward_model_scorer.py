"""The scorer over learned reward models, of texts and of segments: items in, normalised scores out, whatever else is in
the batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from rollcall.cluster.errors import BadInput
from rollcall.reward_service.models.reward_model_config import RewardModelConfig
from rollcall.reward_service.models.reward_model_files import RewardModel, load_reward_model
from rollcall.reward_service.models.reward_models import SegmentRewardModel, TextRewardModel
from rollcall.reward_service.protocol import ScoreItem
from rollcall.reward_service.scorer import Failure, Outcome, Score, Scorer, Taken, finite

_MAX_PADDING = 0.15  # of a forward pass, unless it holds one item
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
_Read = TypeVar("_Read")  # an item as the model takes it


def build_reward_model_scorer(config: RewardModelConfig) -> Scorer:
    """Loads the model.

    Raises:
      BadInput: when there is none at the path, it is damaged, or the device is not there.
    """
    torch.set_num_threads(config.threads)
    model = load_reward_model(Path(config.path))
    device = _device(config.device)
    if isinstance(model.module, SegmentRewardModel):
        return SegmentRewardScorer(model, model.module.to(device), config, device)
    return TextRewardScorer(model, model.module.to(device), config, device)


class TextRewardScorer:
    """score = (raw - mean) / std, the mean over an ensemble's members; the raw reward is a component, and of several
    members the deviation of their scores."""

    takes: frozenset[Taken] = frozenset({"text"})
    cacheable = True

    def __init__(self, model: RewardModel, module: TextRewardModel, config: RewardModelConfig, device: torch.device):
        assert model.encoder is not None, "models of texts have one"
        self.version = f"{model.version}.bf16" if config.dtype == "bfloat16" else model.version
        self._module = module.to(_DTYPES[config.dtype])
        self._encoder = model.encoder
        self._statistics = model.card.statistics
        self._config = config
        self._device = device
        self._max_tokens = min(config.max_tokens, model.max_tokens or config.max_tokens)

    def cost(self, item: ScoreItem) -> int:
        """By the number of characters: to tokenise twice, the first time on the event loop, would be dear."""
        per_token = self._encoder.characters_per_token
        prompt = item.prompt or "".join(message.content for message in item.messages or ())
        characters = len(prompt) + len(item.response or "")
        return max(1, len(item.token_ids or ()) + round(characters / per_token))

    def score(self, items: Sequence[ScoreItem]) -> list[Outcome]:
        return _score(items, self._encode, len, self._scores, self._config)

    def _scores(self, sequences: Sequence[list[int]]) -> list[Score]:
        raw = self._rewards(sequences)
        values = self._statistics.normalise(raw)
        components = {"raw": raw.mean(0).tolist()}
        if len(raw) > 1:
            components["disagreement"] = values.std(0, correction=0).tolist()
        scores = values.mean(0).tolist()
        return [
            Score(score, {name: column[index] for name, column in components.items()})
            for index, score in enumerate(scores)
        ]

    def by_member(self, items: Sequence[ScoreItem]) -> Tensor:
        """[M, N]: what each member says of each item.

        Raises:
          ValueError: where one cannot be scored.
        """
        read = [self._encode(item) for item in items]
        failed = next((found for found in read if isinstance(found, Failure)), None)
        if failed is not None:
            raise ValueError(failed.message)
        tokens = [found for found in read if not isinstance(found, Failure)]
        found: list[Tensor] = [torch.empty(0)] * len(tokens)
        with torch.inference_mode():
            for part in _parts({index: len(one) for index, one in enumerate(tokens)}, self._config.batch_tokens):
                scores = self._statistics.normalise(self._rewards([tokens[index] for index in part]))
                for index, column in zip(part, scores.T, strict=True):
                    found[index] = column
        return torch.stack(found, 1)

    def _rewards(self, sequences: Sequence[list[int]]) -> Tensor:
        """[M, b]"""
        lengths = torch.tensor([len(tokens) for tokens in sequences])
        padded = torch.zeros(len(sequences), int(lengths.max()), dtype=torch.int64)
        for row, tokens in enumerate(sequences):
            padded[row, : len(tokens)] = torch.tensor(tokens)
        return self._module(padded.to(self._device), lengths.to(self._device)).float().cpu()  # type: ignore[no-any-return]

    def _encode(self, item: ScoreItem) -> list[int] | Failure:
        if item.response is None:
            return Failure("unsupported", "this model scores texts, not segments")
        if item.token_ids is not None:
            prompt = list(item.token_ids)
            vocabulary = self._module.model.config.get_text_config().vocab_size  # type: ignore[union-attr, operator]
            if prompt and not 0 <= min(prompt) <= max(prompt) < vocabulary:
                return Failure("unsupported", f"token_ids beyond the model's {vocabulary} tokens")
        else:
            try:
                prompt = self._encoder.prompt(item.prompt if item.messages is None else item.messages)  # type: ignore[arg-type]
            except ValueError as error:
                return Failure("unsupported", str(error))
        tokens = [*prompt, *self._encoder.response(item.response)]
        if not tokens:
            return Failure("unsupported", "neither prompt nor response has a token")
        if len(tokens) > self._max_tokens:
            return Failure("too_long", f"{len(tokens)} tokens, and this model takes {self._max_tokens}")
        return tokens

    def close(self) -> None:
        self._module.to("meta")  # frees the weights, whoever still holds the scorer


class SegmentRewardScorer:
    """score = the sum of the steps' rewards: each member's normalised by its own statistics, then their mean."""

    takes: frozenset[Taken] = frozenset({"segment"})
    cacheable = True

    def __init__(self, model: RewardModel, module: SegmentRewardModel, config: RewardModelConfig, device: torch.device):
        self.version = model.version
        self._module = module
        self._statistics = model.card.statistics
        self._config = config
        self._device = device

    def cost(self, item: ScoreItem) -> int:
        return 1 if item.segment is None else item.segment.num_steps

    def score(self, items: Sequence[ScoreItem]) -> list[Outcome]:
        return _score(items, self._arrays, lambda arrays: len(arrays[0]), self._scores, self._config)

    def _scores(self, arrays: Sequence[tuple[Tensor, Tensor]]) -> list[Score]:
        """Of all steps side by side."""
        observations = torch.cat([pair[0] for pair in arrays]).to(self._device)
        actions = torch.cat([pair[1] for pair in arrays]).to(self._device)
        rewards = self._statistics.normalise(self._module(observations, actions).cpu())
        return [_segment_score(part) for part in torch.split(rewards, [len(pair[0]) for pair in arrays], dim=1)]

    def _arrays(self, item: ScoreItem) -> tuple[Tensor, Tensor] | Failure:
        if item.segment is None:
            return Failure("unsupported", "this model scores segments, not texts")
        if item.segment.num_steps > self._config.max_tokens:
            return Failure(
                "too_long", f"{item.segment.num_steps} steps, and at most {self._config.max_tokens} are taken"
            )
        try:
            observations, actions = self._module.architecture.arrays(item.segment)
        except ValueError as error:
            return Failure("unsupported", str(error))
        return torch.from_numpy(observations), torch.from_numpy(actions)

    def close(self) -> None:
        self._module.to("meta")


def _score(
    items: Sequence[ScoreItem],
    read: Callable[[ScoreItem], _Read | Failure],
    length: Callable[[_Read], int],
    scores: Callable[[Sequence[_Read]], Sequence[Score]],
    config: RewardModelConfig,
) -> list[Outcome]:
    """One outcome per item: what `read` refuses is its failure, the rest is scored in parts of like length."""
    torch.set_num_threads(config.threads)
    given = [read(item) for item in items]
    taken = {index: found for index, found in enumerate(given) if not isinstance(found, Failure)}
    outcomes: dict[int, Outcome] = {index: found for index, found in enumerate(given) if isinstance(found, Failure)}
    with torch.inference_mode():
        for part in _parts({index: length(found) for index, found in taken.items()}, config.batch_tokens):
            outcomes |= zip(part, map(finite, scores([taken[index] for index in part])), strict=True)
    return [outcomes[index] for index in range(len(items))]


def _segment_score(rewards: Tensor) -> Score:
    """Of one segment's normalised rewards [M, T]. Disagreement: the deviation of the members' sums."""
    steps = rewards.mean(0)
    sums = rewards.sum(1)
    values = tuple(steps.tolist())
    return Score(sum(values), {"disagreement": float(sums.std(correction=0))}, step_values=values)


def _parts(lengths: dict[int, int], budget: int) -> Iterator[list[int]]:
    """Items of like length together, each part padded within the budget; a longer item is a part of its own."""
    part: list[int] = []
    width = used = 0
    for index in sorted(lengths, key=lambda i: (-lengths[i], i)):
        rows = len(part) + 1
        tight = used + lengths[index] >= (1 - _MAX_PADDING) * rows * width
        if part and (rows * width > budget or not tight):
            yield part
            part = []
        if not part:
            width, used = lengths[index], 0
        part.append(index)
        used += lengths[index]
    if part:
        yield part


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        first = str(error).splitlines()[0]
        raise BadInput(f"device = {name!r}: cannot be used: {first}") from None
    return device
