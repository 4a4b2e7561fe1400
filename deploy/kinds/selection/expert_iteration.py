"""Expert iteration: rounds in which the policy's own completions are scored, and it imitates those that are kept."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np

from rollcall.actors.language.text_codec import TextCodec
from rollcall.actors.trajectory_scoring import as_asked
from rollcall.cluster.errors import RollcallError
from rollcall.cluster.files import read_json, write_aside
from rollcall.cluster.seeds import derive_seed
from rollcall.deploy.config.kinds.expert_iteration import SETTINGS
from rollcall.deploy.config.language_checks import check_imitating
from rollcall.deploy.config.recipe.selection_config import (
    ExpertIterationConfig,
)
from rollcall.deploy.kinds.kind import RunKind
from rollcall.deploy.kinds.language.language_kind import elsewhere
from rollcall.deploy.kinds.language.policy import LoadedLanguage, misfit_of
from rollcall.deploy.kinds.selection.completions import AnsweredFile
from rollcall.deploy.kinds.selection.data_sets import Tally, best_of_curve, write_data_sets
from rollcall.deploy.kinds.selection.making import chosen_rows
from rollcall.deploy.kinds.selection.progress import AnswerLines
from rollcall.deploy.kinds.selection.rounds import Hands, RoundsRun
from rollcall.deploy.report.closing import eval_line, evaluated, policy_line, report_line, steps_line
from rollcall.deploy.report.counted import IMITATED
from rollcall.deploy.report.offline_progress import ProgressLines
from rollcall.deploy.report.progress import number
from rollcall.learners.data.demonstrations import Demonstration

COMPLETIONS, MADE_BY, SUMMARY = "completions.jsonl", "made_by.json", "summary.json"


class BestCompletions:
    """A Collector: prompts answered, and of each the completions that are kept."""

    def __init__(self, config: ExpertIterationConfig) -> None:
        self._config = config

    @property
    def measure(self) -> None:
        """The task judges held-out answers."""

    def collect(self, number: int, directory: Path, hands: Hands) -> Sequence[Demonstration] | None:
        config, members = self._config, hands.members
        if not (directory / SUMMARY).exists():
            self._only_by_these_weights(directory, hands)
        with closing(AnsweredFile(directory / COMPLETIONS)) as file:
            if not (directory / SUMMARY).exists() and not self._answer(number, file, hands, directory):
                return None
            kept = [(item.prompt, item.completions[i].text) for item in file.read() for i in item.kept(config.keep)]
        if not kept:
            keep = ", ".join(f"keep.{name}={value}" for name, value in config.keep.model_dump().items())
            raise RollcallError(
                f"round {number + 1}: none of the completions came to its own end and was kept ({keep}; {directory}): "
                "begin with a better policy (policy.warm_start), or lower keep.at_least"
            )
        return [imitated(members.codec, prompt, text) for prompt, text in kept]

    def facts(self, directory: Path) -> Mapping[str, Any]:
        return read_json(directory / SUMMARY)

    def _only_by_these_weights(self, directory: Path, hands: Hands) -> None:
        """What an earlier process sampled of a round stands only where the policy is the very same again."""
        checksum = hands.weights_now.checksum
        if read_json(directory / MADE_BY).get("weights") != checksum:
            (directory / COMPLETIONS).unlink(missing_ok=True)
            write_aside(directory / MADE_BY, json.dumps({"weights": checksum}) + "\n")

    def _answer(self, number: int, file: AnsweredFile, hands: Hands, directory: Path) -> bool:
        """False: a stop was requested before all were answered."""
        config, members = self._config, hands.members
        seed = derive_seed(config.seed, "round", number)
        rows = chosen_rows(members, count=config.actors.prompts_per_batch, seed=seed)
        left = [row for row in rows if row not in file.rows]
        sampler = hands.generation().sampler(seed=seed)
        lines = AnswerLines(sys.stdout, len(left), prefix=f"round {number + 1}: ")
        for item in sampler.answers(left, stop_requested=hands.stop_requested):
            file.add(item)
            lines.tally.add(item, config.keep)
            lines.tell()
        missing = len(rows) - len(file.rows)
        if missing > len(sampler.unscored) or (missing and hands.stop_requested()):
            return False
        tally, scores = Tally(), []
        for item in file.read():
            tally.add(item, config.keep)
            scores.append([completion.score for completion in item.completions])
        write_data_sets(
            directory,
            file.read,
            config.keep,
            asked=lambda prompt: as_asked(members.task, prompt),
            origin={"policy": hands.weights_now.checksum[:16], "round": number + 1},
        )
        summary = {"round": number + 1, **tally.as_dict(), "unscored": missing, "best_of": best_of_curve(scores)}
        write_aside(directory / SUMMARY, json.dumps(summary, indent=1) + "\n")  # last: the round is made
        return True


def imitated(codec: TextCodec, prompt: str, text: str) -> Demonstration:
    """A response after its prompt, with its end."""
    asked, said = codec.prompt(prompt), [*codec.encode(text), codec.eos_token_id]
    tokens = np.array([*asked, *said], np.int32)
    return Demonstration(tokens, np.arange(len(tokens)) >= len(asked))


def _make(config: ExpertIterationConfig, directory: Path) -> RoundsRun:
    return RoundsRun(config, directory, config.rounds, BestCompletions(config))


def closing_lines(summary: Mapping[str, Any], run_directory: Path) -> list[str]:
    lines = [f"{steps_line(summary)}, {number(summary.get('generated_tokens'))} tokens generated"]
    for made in summary.get("rounds") or ():
        if "mean_score" in made:
            score, kept = number(made["mean_score"], 3), number(made["kept"])
            lines.append(f"round {made['round']}: mean score {score}, {kept} of {number(made['completions'])} kept")
    for name, text in (("first_eval", "before"), ("final_eval", "after")):
        lines += evaluated(text, summary.get(name))
    return [*lines, report_line(run_directory), *policy_line(summary, run_directory)]


EXPERT_ITERATION = RunKind(
    settings=SETTINGS,
    counts=IMITATED,
    make=_make,
    load=LoadedLanguage.of,
    elsewhere=elsewhere,
    closing_lines=closing_lines,
    console=ProgressLines,
    unfit=check_imitating,
    eval_line=eval_line,
    data="its own completions",
    policy="language model",
    exportable=True,
    misfit=misfit_of,
    exports=True,
)
