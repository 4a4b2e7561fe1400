"""The direct methods: a policy from a file of comparisons, a frozen reference beside it, judged by its implicit rewards
on held-out comparisons. The losses are dpo.py's, ipo.py's and group_dpo.py's."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from torch import nn

from rollcall.cluster.errors import BadInput
from rollcall.cluster.messages.sampling import SamplingConfig
from rollcall.cluster.seeds import derive_seed
from rollcall.deploy.config import plugins
from rollcall.deploy.config.kinds.direct import SETTINGS
from rollcall.deploy.config.recipe.preference_config import DirectRunConfig
from rollcall.deploy.kinds.exporting import Exported, ExportOptions
from rollcall.deploy.kinds.kind import POLICY_ID, Preparation, RunKind, StoredRun
from rollcall.deploy.kinds.language.export import TrainedModel, export_language
from rollcall.deploy.kinds.language.model_card import Training
from rollcall.deploy.kinds.language.model_directory import model_source, save_policy
from rollcall.deploy.kinds.language.models import language_models, policy_layout
from rollcall.deploy.kinds.language.starting_model import START, given_model
from rollcall.deploy.kinds.language.warm_start import WARM_START, WarmStart
from rollcall.deploy.kinds.preferences.checkpoint import LoadedOnPreferences, elsewhere
from rollcall.deploy.kinds.preferences.judged import evaluation_record
from rollcall.deploy.kinds.preferences.needs import direct_needs
from rollcall.deploy.plan.needs import Needs
from rollcall.deploy.preferences.data import Preferences, counted, encode_texts, load_preferences
from rollcall.deploy.preferences.implicit_rewards import PolicyJudgement, judge_policy, sampled_kl
from rollcall.deploy.preferences.labelled import rows_of, side_by_side
from rollcall.deploy.report.closing import pairs_eval_line, pairs_lines
from rollcall.deploy.report.counted import LEARNT
from rollcall.deploy.report.offline_progress import ProgressLines
from rollcall.deploy.rundir.earlier_runs import run_hash
from rollcall.deploy.rundir.files import POLICY
from rollcall.learners.batches.placement import Layout
from rollcall.learners.collators.preferences import LabelledCollator, PreferenceCollator
from rollcall.learners.collective import Collective
from rollcall.learners.data.comparisons import RankedCandidates, TokenSequence
from rollcall.learners.data.demonstrations import Demonstration
from rollcall.learners.data.source import ShuffledSource
from rollcall.learners.loop.footprint import frozen_dtype, trained_dtype
from rollcall.learners.loop.learner import Learner, resolve_device
from rollcall.learners.models.language.lora import merged_parameters
from rollcall.learners.models.language.token_policy import decoder_layers
from rollcall.reward_service.models.text_encoder import TextEncoder

NUM_EVALUATIONS = 5  # over a run that does not say how often


class DirectRun:
    """One run of a direct method, from its data to its policy's directory."""

    drive: Literal["offline"] = "offline"
    policy_id = POLICY_ID
    is_over = False  # before its last step: what is kept is the policy of the last one

    def __init__(self, config: DirectRunConfig, directory: Path) -> None:
        self._config = config
        self._directory = directory
        self._rows_held_out = 0  # of a method that learns from labelled rows
        self._collective = Collective()

    @property
    def num_processes(self) -> int:
        return self._config.learner.num_processes

    def share(self, collective: Collective) -> None:
        self._collective = collective

    def preparations(self) -> Iterator[Preparation]:
        warm_start, goal = self._config.policy.warm_start, self._directory / WARM_START
        _ = self._comparisons, self.groups
        if warm_start is not None and not goal.exists():
            best_only = self._config.imitate == "chosen"
            shown = [c for item in self._train for c in _imitated(item, best_only=best_only)]
            yield WarmStart(
                demonstrations=shown[: warm_start.num_rows],
                given=self._given,
                goal=goal,
                policy=self._config.policy,
                optimised=self._config.learner,
                seed=derive_seed(self._config.seed, "warm_start"),
            )

    def needs(self) -> Needs:
        return direct_needs(self._config, self._found)

    @cached_property
    def _found(self) -> Preferences:
        found = load_preferences(self._config.data, self._directory, seed=self._config.seed)
        if not found.is_text:
            raise BadInput(f"{found.train[0].source}: segments: a language model learns from texts alone")
        return found

    @cached_property
    def _given(self) -> Path:
        """The model as it was given, or made for the texts at hand."""
        config = self._config
        return given_model(
            config.policy.model,
            config.policy.tiny,
            self._found.train,
            self._directory / START,
            max_tokens=config.max_tokens,
            seed=derive_seed(config.seed, "network"),
        )

    @property
    def _begin(self) -> Path:
        """The directory of policy and reference at the beginning."""
        return self._given if self._config.policy.warm_start is None else self._directory / WARM_START

    @cached_property
    def _comparisons(self) -> tuple[list[RankedCandidates[TokenSequence]], list[RankedCandidates[TokenSequence]]]:
        """(those learnt from, those held out)"""
        groups, encoder, max_tokens = self.groups, TextEncoder(self._given), self._config.max_tokens
        sides = [self._found.train, self._found.held_out]
        if self._unpaired:
            sides = [list(rows_of(side)) for side in sides]
        train, held_out = (
            encode_texts(side, encoder, max_tokens=max_tokens, groups=groups, for_policy=True, labelled=self._unpaired)
            for side in sides
        )
        if self._unpaired:
            if len({row.ranks for row in train}) < 2:
                raise BadInput(f"{self._found.sources[0]}: all rows have one label: kto needs desirable and other ones")
            self._rows_held_out = len(held_out)
            held_out = self._side_by_side(held_out)
        return train, held_out

    @property
    def _unpaired(self) -> bool:
        """Whether the method learns from labelled rows, and not from comparisons."""
        return bool(getattr(plugins.find(plugins.DIRECT_METHOD, self._config.algorithm_name), "unpaired", False))

    def _side_by_side(self, rows: list[RankedCandidates[TokenSequence]]) -> list[RankedCandidates[TokenSequence]]:
        found = side_by_side(rows, seed=derive_seed(self._config.seed, "side_by_side"))
        if not found:
            raise BadInput(f"{self._found.sources[-1]}: the rows held out have one label: hold out more of both")
        return found

    @property
    def _train(self) -> list[RankedCandidates[TokenSequence]]:
        return self._comparisons[0]

    @property
    def _held_out(self) -> list[RankedCandidates[TokenSequence]]:
        return self._comparisons[1]

    @cached_property
    def steps(self) -> int:
        return self._config.steps(len(self._train))

    @property
    def eval_every(self) -> int:
        return self._config.eval_every or max(1, self.steps // NUM_EVALUATIONS)

    @cached_property
    def source(self) -> ShuffledSource[RankedCandidates[TokenSequence]]:
        in_turn = getattr(self._config.algorithm, "draw", "by_size") == "evenly"
        return ShuffledSource(
            self._train,
            batch_size=self._config.batch_size,
            steps=self.steps,
            seed=derive_seed(self._config.seed, "batches"),
            groups=[item.group for item in self._train] if in_turn else None,
        )

    @cached_property
    def learner(self) -> Learner:
        config = self._config
        return Learner(
            models=self._models,
            algorithm=self.algorithm,
            config=config.learner.for_language(),
            policy_id=self.policy_id,
            run_seed=config.seed,
            collator=(
                LabelledCollator(self._layout, max_tokens=config.max_tokens)
                if self._unpaired
                else PreferenceCollator(self._layout)
            ),
            published=("policy",),
            collective=self._collective,
            fsdp_units=decoder_layers,
            read_out=None if config.policy.lora is None else merged_parameters,
            weights_dtype=trained_dtype(config.policy, config.learner),
            frozen_dtype=frozen_dtype(config.policy),
        )

    @property
    def budget(self) -> int:
        return int(getattr(self._config.algorithm, "budget", 16384))

    def save(self, checkpoint: Path) -> None:
        """The learner's state is all there is."""

    def restore(self, checkpoint: Path) -> None: ...

    def evaluate(self, step: int) -> Mapping[str, Any]:
        judged = self._judge(self._held_out)
        record = evaluation_record(judged, self.groups)
        if self._config.kl_prompts:
            record |= sampled_kl(
                self._models,
                self._held_out[: self._config.kl_prompts],
                max_tokens=self._config.kl_max_tokens,
                budget=self.budget,
                seed=derive_seed(self._config.seed, "kl", step),
                layout=self._layout,
            )
        return record

    def finish(self, steps_done: int) -> Mapping[str, Any]:
        shown = self._side_by_side(self._train) if self._unpaired else self._train
        judged, train = self._judge(self._held_out), self._judge(shown)
        weights = self.learner.publish(epoch=0, version=self.steps)
        goal = self._directory / POLICY
        if weights is not None:  # of several processes, the first writes
            marker: dict[str, object] = {"config_hash": run_hash(self._directory), "policy_id": self.policy_id}
            save_policy(weights, self._begin, goal, marker=marker)
        return {
            "held_out": evaluation_record(judged, self.groups),
            "train": evaluation_record(train, self.groups),
            "comparisons": dict(self._counted()),
            "groups": dict(Counter(self.groups[item.group] for item in self._train)) if self.groups else None,
            "policy": str(goal),
        }

    def _counted(self) -> Mapping[str, int]:
        if not self._unpaired:
            return counted(self._train, self._held_out, self._found)
        train, held_out = (rows_of(side) for side in (self._found.train, self._found.held_out))
        return {
            **{"train": len(self._train), "held_out": self._rows_held_out},
            "left_out": len(train) + len(held_out) - len(self._train) - self._rows_held_out,
        }

    @cached_property
    def groups(self) -> tuple[str, ...]:
        """Of a method that learns by groups, or where every comparison has one to report by."""
        groups = self._found.groups()
        everywhere = all(item.group is not None for item in [*self._found.train, *self._found.held_out])
        if self._config.algorithm_name == "group_dpo":
            if len(groups) < 2:
                have = "there is one" if groups else "there is none"
                raise BadInput(
                    f"{self._found.sources[0]}: group_dpo needs two groups or more ('group' in each line), and {have}: "
                    "use dpo"
                )
            return groups
        return groups if everywhere and len(groups) > 1 else ()

    @cached_property
    def algorithm(self) -> Any:
        config = self._config
        found = plugins.find(plugins.DIRECT_METHOD, config.algorithm_name)
        if config.algorithm_name != "group_dpo":
            return found(config.algorithm)
        sizes = Counter(item.group for item in self._train)
        empty = [name for number, name in enumerate(self.groups) if not sizes[number]]
        if empty:
            raise BadInput(f"group {empty[0]!r}: no comparison is left of it (max_tokens={config.max_tokens})")
        return found(config.algorithm, group_sizes=[sizes[number] for number in range(len(self.groups))])

    @cached_property
    def _models(self) -> dict[str, nn.Module]:
        config = self._config
        return language_models(
            self._begin,
            config.policy,
            SamplingConfig(),
            critic=False,
            reference=True,
            seed=config.seed,
            device=resolve_device(config.learner.device),
        )

    @cached_property
    def _layout(self) -> Layout:
        return policy_layout(self._models, self._config.policy, self.budget)

    def _judge(self, comparisons: Sequence[RankedCandidates[TokenSequence]]) -> PolicyJudgement:
        return judge_policy(self.algorithm, self._models, comparisons, budget=self.budget, layout=self._layout)


def _imitated(item: RankedCandidates[TokenSequence], *, best_only: bool) -> list[Demonstration]:
    chosen = [c for c, rank in zip(item.candidates, item.ranks, strict=True) if rank == 0 or not best_only]
    return [Demonstration(c.token_ids, np.arange(len(c.token_ids)) >= c.num_prompt) for c in chosen]


class LoadedDirect(LoadedOnPreferences):
    """A checkpoint of a direct method's run, whose policy can be exported."""

    def export(self, options: ExportOptions) -> Exported:
        run, config = self.run, self.run.config
        options.refuse_for_language(run.directory)
        made = next((path for name in (WARM_START, START) if (path := run.directory / name).is_dir()), None)
        source = made or model_source(Path(config.policy.model))
        trained = TrainedModel(
            weights=self.weights,
            checkpoint=self.checkpoint,
            source=source,
            given=made or Path(config.policy.model),
            taken=(source,),
            policy=config.policy,
            lora=config.policy.lora,
            has_critic=False,
            training=Training.of(run.directory, config, "preferences"),
        )
        return export_language(trained, options)


def _load(run: StoredRun) -> LoadedDirect:
    return LoadedDirect.of(run, DirectRun(run.config, run.directory))


def _closing_lines(summary: Mapping[str, Any], run_directory: Path) -> list[str]:
    return [*pairs_lines(summary, run_directory), f"policy: {summary['policy']}"]


DIRECT = RunKind(
    settings=SETTINGS,
    counts=LEARNT,
    make=DirectRun,
    load=_load,
    elsewhere=elsewhere,
    closing_lines=_closing_lines,
    console=ProgressLines,
    eval_line=pairs_eval_line,
    data="preferences",
    exportable=True,
)
