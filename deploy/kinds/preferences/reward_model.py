"""Reward models: from a file of preferences, judged on held-out ones, written so that the service can load them. The
loss is bradley_terry.py's."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from rollcall.cluster.errors import BadInput
from rollcall.cluster.seeds import derive_seed
from rollcall.deploy.config.kinds.reward_model import SETTINGS
from rollcall.deploy.config.recipe.preference_config import RewardTrainConfig, SegmentModelConfig, TextModelConfig
from rollcall.deploy.kinds.kind import Preparation, RunKind, StoredRun
from rollcall.deploy.kinds.language.starting_model import START, given_model
from rollcall.deploy.kinds.preferences.checkpoint import LoadedOnPreferences, elsewhere
from rollcall.deploy.kinds.preferences.needs import reward_model_needs
from rollcall.deploy.plan.needs import Needs
from rollcall.deploy.preferences import reward_evaluation
from rollcall.deploy.preferences.best_model import BestModel, let_go, whole
from rollcall.deploy.preferences.data import Preferences, counted, encode_segments, encode_texts, load_preferences
from rollcall.deploy.report.closing import pairs_eval_line, pairs_lines
from rollcall.deploy.report.counted import LEARNT
from rollcall.deploy.report.offline_progress import ProgressLines
from rollcall.learners.algorithms.preferences.bradley_terry import BradleyTerry
from rollcall.learners.collators.preferences import PreferenceCollator
from rollcall.learners.collective import Collective
from rollcall.learners.data.comparisons import RankedCandidates, bootstrapped
from rollcall.learners.data.source import ShuffledSource
from rollcall.learners.loop.learner import Learner
from rollcall.learners.models.language.lora import add_adapters, merged_parameters, merged_tensors
from rollcall.learners.models.language.lora_config import LoraConfig
from rollcall.learners.models.language.token_policy import decoder_layers
from rollcall.reward_service.models.reward_model_files import (
    HeldOut,
    RewardModelCard,
    new_text_model,
    save_segment_model,
    save_text_model,
)
from rollcall.reward_service.models.reward_models import (
    SegmentArchitecture,
    SegmentRewardModel,
    Statistics,
    TextRewardModel,
)
from rollcall.reward_service.models.text_encoder import TextEncoder
from rollcall.reward_service.preferences.files import SegmentPair

# Held-out pairs from which on "best" means something: their mean loss is known to about 0.5 / sqrt(pairs) nats, 0.05 of
# 100, and what overfitting costs is more than that. With fewer, the best of many evaluations is the luckiest.
ENOUGH_HELD_OUT = 100
_REFERENCE = 2000  # training comparisons that rewards are normalised over, and the training loss is told of
MODEL = "model"  # of the run directory: what the service loads


class RewardModelRun:
    """One run of reward-model training, from its data to its model directory."""

    drive: Literal["offline"] = "offline"
    policy_id = "reward"

    def __init__(self, config: RewardTrainConfig, directory: Path) -> None:
        self._config = config
        self._directory = directory
        self._start: Path | None = None
        self._train: Sequence[RankedCandidates[Any]]
        self._held_out: Sequence[RankedCandidates[Any]]
        self._module: TextRewardModel | SegmentRewardModel
        self._best: BestModel | None = None
        self._collective = Collective()

    @property
    def num_processes(self) -> int:
        return self._config.learner.num_processes

    def share(self, collective: Collective) -> None:
        self._collective = collective

    def preparations(self) -> Iterator[Preparation]:
        _ = self._learnt
        yield from ()

    def needs(self) -> Needs:
        return reward_model_needs(self._config, self._found)

    @cached_property
    def _found(self) -> Preferences:
        return load_preferences(self._config.data, self._directory, seed=self._config.seed, pair_labels=True)

    @cached_property
    def _learnt(self) -> Sequence[RankedCandidates[Any]]:
        """What is learnt from, once the model is made."""
        model = self._config.model
        if isinstance(model, TextModelConfig):
            self._of_texts(model)
            bootstrap = model.members > 1
        else:
            self._of_segments(model)
            bootstrap = model.bootstrap
        if not bootstrap:
            return self._train
        return bootstrapped(self._train, members=model.members, seed=self._config.seed)

    @cached_property
    def steps(self) -> int:
        return self._config.steps(len(self._learnt))

    @cached_property
    def algorithm(self) -> BradleyTerry:
        return BradleyTerry(self._config.loss)

    @cached_property
    def source(self) -> ShuffledSource[RankedCandidates[Any]]:
        config = self._config
        return ShuffledSource(
            self._learnt, batch_size=config.batch_size, steps=self.steps, seed=derive_seed(config.seed, "batches")
        )

    @cached_property
    def learner(self) -> Learner:
        config, _ = self._config, self._learnt
        told_apart = sum(len(set(item.ranks)) > 1 for item in self._held_out)
        if config.keep == "best" or (config.keep == "auto" and told_apart >= ENOUGH_HELD_OUT):
            self._best = BestModel(self._module, patience=config.patience, writes=self._collective.rank == 0)
        of_texts = config.model if isinstance(config.model, TextModelConfig) else None
        return Learner(
            models={"reward": self._module},
            algorithm=self.algorithm,
            config=config.learner if of_texts is None else config.learner.for_language(),
            policy_id=self.policy_id,
            run_seed=config.seed,
            collator=PreferenceCollator(),
            collective=self._collective,
            fsdp_units=None if of_texts is None or of_texts.start == "words" else decoder_layers,
            read_out=merged_parameters if self._has_adapters else None,
        )

    @property
    def eval_every(self) -> int:
        return self._config.eval_every or max(1, self.steps // (5 if self._best is None else 10))

    @property
    def is_over(self) -> bool:
        return self._best is not None and self._best.gave_up

    def save(self, checkpoint: Path) -> None:
        if self._best is not None:
            self._best.save(checkpoint)

    def restore(self, checkpoint: Path) -> None:
        if self._best is not None:
            self._best.restore(checkpoint)

    def evaluate(self, step: int) -> Mapping[str, Any]:
        with evaluating(self._module):
            _, record = reward_evaluation.accuracy_record(self._judge(self._held_out), self._statistics())
        if self._best is not None:
            self._best.judge(step=step, loss=record["eval_loss"])
        return record

    def keep(self) -> Mapping[str, Any]:
        """Makes the model the one that is kept; what there is to say of it and of the last one, for the summary."""
        if self._best is None or not self._best.step:
            return {"kept": {"which": "last"}}
        last = self._held_out_record()
        self._best.put_back()
        return {"kept": {"which": "best", "step": self._best.step}, "held_out_last": last}

    def finish(self, steps_done: int) -> Mapping[str, Any]:
        """Writes the model that is kept; the checkpoints hold the one of the last step."""
        kept = self.keep()
        noise = self._config.loss.noise
        with evaluating(self._module):
            train, held_out = self._judge(self._reference()), self._judge(self._held_out)
        statistics = train.statistics()
        found, _ = reward_evaluation.accuracy_record(held_out, statistics)
        train_found, _ = reward_evaluation.accuracy_record(train, statistics)
        counts = counted(self._train, self._held_out, self._found)
        tensors = self._tensors()
        if self._collective.rank:  # of several processes, the first writes
            return {}
        card = RewardModelCard(
            kind=self._config.model.kind,
            statistics=statistics,
            trained_on={
                **{"sources": [Path(source).name for source in self._found.sources], "comparisons": counts["train"]},
                **{"config_hash": self._config.config_hash, "loss": self._config.loss.model_dump(mode="json")},
            },
            held_out=None if found is None else HeldOut(**found.as_dict()),
        )
        goal = self._directory / MODEL
        if isinstance(self._module, SegmentRewardModel):
            version = save_segment_model(self._module, goal, card)
        else:
            assert self._start is not None, "models of texts begin with a directory"
            version = save_text_model(self._module, self._start, goal, card, tensors=tensors)
        return {
            **kept,
            "held_out": None if found is None else {**found.as_dict(), "loss": held_out.loss},
            "train": None if train_found is None else {**train_found.as_dict(), "loss": train.loss},
            "calibration": reward_evaluation.calibration_record(held_out, noise=noise),
            "comparisons": dict(counts),
            "model": str(goal),
            "model_version": version,
        }

    def _tensors(self) -> dict[str, torch.Tensor] | None:
        """Of a model of texts that lies otherwise than it is kept: its own, by all processes together."""
        if isinstance(self._module, SegmentRewardModel) or not (self._has_adapters or self.learner.in_pieces):
            return None
        let_go(self._module)
        if self._has_adapters:
            return merged_tensors(self._module.model, whole)
        return {name: whole(tensor) for name, tensor in self._module.model.state_dict().items()}

    def _statistics(self) -> Statistics:
        """What tells who is right by several members, or by sums over steps. One reward of one member is as right
        however it is normalised, and the reference set is far larger than what is held out."""
        if isinstance(self._config.model, TextModelConfig) and self._config.model.members == 1:
            return Statistics()
        return self._judge(self._reference()).statistics()

    def _held_out_record(self) -> dict[str, Any] | None:
        with evaluating(self._module):
            held_out = self._judge(self._held_out)
            found, _ = reward_evaluation.accuracy_record(held_out, self._statistics())
        return None if found is None else {**found.as_dict(), "loss": held_out.loss}

    def _of_texts(self, model: TextModelConfig) -> None:
        if not self._found.is_text:
            raise BadInput(f"{self._found.train[0].source}: segments, and model.kind = 'text': set model.kind=segment")
        config, found = self._config, self._found
        seed = derive_seed(config.seed, "network")
        made = self._directory / START
        self._start = given_model(model.start, model.tiny, found.train, made, max_tokens=model.max_tokens, seed=seed)
        encoder = TextEncoder(self._start)
        self._train = encode_texts(found.train, encoder, max_tokens=model.max_tokens)
        self._held_out = encode_texts(found.held_out, encoder, max_tokens=model.max_tokens)
        self._module = new_text_model(self._start, seed=seed, members=model.members).train()
        if model.lora is not None:
            adapt(self._module, model.lora, seed=derive_seed(config.seed, "lora"))

    @property
    def _has_adapters(self) -> bool:
        model = self._config.model
        return isinstance(model, TextModelConfig) and model.lora is not None

    def _of_segments(self, model: SegmentModelConfig) -> None:
        if self._found.is_text:
            raise BadInput(f"{self._found.train[0].source}: texts, and model.kind = 'segment': set model.kind=text")
        pairs = [*self._found.train, *self._found.held_out]
        settings = model.model_dump(include={"hidden_sizes", "activation", "members"})
        if model.num_actions is not None:
            settings |= {"num_actions": model.num_actions, "action_shape": None}
        if model.first_action is not None:
            settings["first_action"] = model.first_action
        segments = [segment for pair in pairs if isinstance(pair, SegmentPair) for segment in pair.segments]
        try:
            architecture = SegmentArchitecture.of(segments, **settings)
        except ValueError as error:
            raise BadInput(f"{self._found.sources[0]}: {error}") from None
        train = encode_segments(self._found.train, architecture)
        self._train, self._held_out = train, encode_segments(self._found.held_out, architecture)
        self._module = SegmentRewardModel(architecture, seed=derive_seed(self._config.seed, "network"))
        seen = [torch.from_numpy(steps.observations) for item in train for steps in item.candidates]
        self._module.normalise_by(torch.cat(seen))

    def _reference(self) -> Sequence[RankedCandidates[Any]]:
        return self._train[:_REFERENCE]

    def _judge(self, comparisons: Sequence[RankedCandidates[Any]]) -> reward_evaluation.Judged:
        return reward_evaluation.judge(self.algorithm, self._module, comparisons)


def adapt(module: TextRewardModel, lora: LoraConfig, *, seed: int) -> None:
    """Puts adapters on the body, which is frozen; what is read from it, the heads, is trained whole.

    Raises:
      BadInput: as add_adapters.
    """
    body: Any = module.model
    add_adapters(body.base_model, lora, seed=seed)


@contextlib.contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """A module in evaluation mode, and then as it was."""
    was = module.training
    module.eval()
    try:
        yield
    finally:
        module.train(was)


def _load(run: StoredRun) -> LoadedOnPreferences:
    made = RewardModelRun(run.config, run.directory)
    return LoadedOnPreferences.of(run, made, made.keep)


def _closing_lines(summary: Mapping[str, Any], run_directory: Path) -> list[str]:
    serve = f"serve it with: rollcall reward serve --model {run_directory.name}={summary['model']}"
    return [*pairs_lines(summary, run_directory), serve]


REWARD_MODEL = RunKind(
    settings=SETTINGS,
    counts=LEARNT,
    make=RewardModelRun,
    load=_load,
    elsewhere=elsewhere,
    closing_lines=_closing_lines,
    console=ProgressLines,
    eval_line=pairs_eval_line,
    data="preferences",
)
