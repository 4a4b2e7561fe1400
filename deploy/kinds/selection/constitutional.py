"""Constitutional AI, stage one: the policy answers, a critic revises its answers by principles, and the policy imitates
the revisions."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from rollcall.cluster.errors import BadInput, RollcallError
from rollcall.cluster.files import read_json, write_aside
from rollcall.cluster.inputs.import_path import import_object
from rollcall.cluster.seeds import derive_seed
from rollcall.deploy.config.kinds.constitutional import SETTINGS
from rollcall.deploy.config.language_checks import check_imitating
from rollcall.deploy.config.recipe.constitutional_config import ConstitutionalConfig
from rollcall.deploy.config.recipe.selection_config import KeepConfig
from rollcall.deploy.kinds.kind import RunKind
from rollcall.deploy.kinds.language.language_kind import elsewhere
from rollcall.deploy.kinds.language.policy import LoadedLanguage, misfit_of
from rollcall.deploy.kinds.selection.completions import AnsweredFile
from rollcall.deploy.kinds.selection.expert_iteration import imitated
from rollcall.deploy.kinds.selection.making import chosen_rows
from rollcall.deploy.kinds.selection.progress import EVERY_S, AnswerLines
from rollcall.deploy.kinds.selection.revising import Critic, Revised, RevisedFile, revisions
from rollcall.deploy.kinds.selection.rounds import Hands, Measure, RoundsRun
from rollcall.deploy.report.closing import eval_line, evaluated, policy_line, report_line, steps_line
from rollcall.deploy.report.counted import IMITATED
from rollcall.deploy.report.offline_progress import ProgressLines
from rollcall.deploy.report.progress import number
from rollcall.learners.data.demonstrations import Demonstration

RESPONSES, REVISIONS, SUMMARY = "responses.jsonl", "revisions.jsonl", "summary.json"


class Revisions:
    """A Collector: responses of the policy, revised."""

    def __init__(self, config: ConstitutionalConfig) -> None:
        self._config, self._settings = config, config.stage
        if config.reward is not None or config.preferences is not None:
            raise BadInput("reward: nothing is scored in a constitutional run: remove it")

    @property
    def measure(self) -> Measure | None:
        path = self._settings.measure
        if path is None:
            return None
        found = import_object(path)
        if not callable(found):
            raise BadInput(f"algorithm.measure = {path!r}: no function")
        return lambda prompt, response: float(bool(found(prompt, response)))

    def collect(self, number: int, directory: Path, hands: Hands) -> Sequence[Demonstration] | None:
        with closing(RevisedFile(directory / REVISIONS)) as file:
            if not (directory / SUMMARY).exists() and not self._revise(file, hands, directory):
                return None
            made = list(file.read())
        codec = hands.members.codec
        return [imitated(codec, item.prompt, item.final) for item in made]

    def facts(self, directory: Path) -> Mapping[str, Any]:
        return read_json(directory / SUMMARY)

    def _revise(self, file: RevisedFile, hands: Hands, directory: Path) -> bool:
        """False: a stop was requested before all were revised."""
        config, members = self._config, hands.members
        rows = chosen_rows(members, count=config.actors.prompts_per_batch, seed=config.seed)
        with closing(AnsweredFile(directory / RESPONSES)) as responses:
            if not self._answer(rows, responses, hands):
                return False
            answered = [item for item in responses.read(rows) if item.completions[0].is_whole]
        left = [item for item in answered if item.row not in file.rows]
        failed: list[str] = []
        with closing(Critic(hands.critic(self._settings.critic), self._settings, seed=config.seed)) as critic:
            told = time.monotonic()
            at_once = self._settings.critic.concurrency
            for item in revisions(critic, left, at_once=at_once, stop_requested=hands.stop_requested, failed=failed):
                file.add(item)
                if time.monotonic() - told > EVERY_S or len(file.rows) == len(answered):
                    told = time.monotonic()
                    print(f"revised {len(file.rows)}/{len(answered)}", flush=True)
        if len(file.rows) + len(failed) < len(answered):
            return False
        if not file.rows:
            what = failed[0] if failed else "no response came to its own end (actors.sampling.max_tokens)"
            raise RollcallError(f"there is nothing to imitate: {what}")
        self._sum_up(list(file.read()), rows, answered, failed, directory)
        return True

    def _answer(self, rows: Sequence[int], file: AnsweredFile, hands: Hands) -> bool:
        left = [row for row in rows if row not in file.rows]
        if not left:
            return True
        sampler = hands.generation().sampler(seed=derive_seed(self._config.seed, "responses"), num_samples=1)
        lines = AnswerLines(sys.stdout, len(left), prefix="responses: ")
        for item in sampler.answers(left, stop_requested=hands.stop_requested):
            file.add(item)
            lines.tally.add(item, KeepConfig())
            lines.tell()
        return file.rows.issuperset(rows)

    def _sum_up(
        self,
        made: Sequence[Revised],
        rows: Sequence[int],
        answered: Sequence[Any],
        failed: Sequence[str],
        directory: Path,
    ) -> None:
        measure = self.measure
        summary: dict[str, Any] = {"round": 1, "responses": len(rows), "cut": len(rows) - len(answered)}
        summary |= {"revised": len(made), "unchanged": sum(item.final == item.response for item in made)}
        summary |= {"not_revised": len(failed), "first_failure": failed[0] if failed else None}
        summary["generated_tokens"] = sum(item.completions[0].num_tokens for item in answered)
        if measure is not None:
            summary["broken_before"] = sum(measure(item.prompt, item.response) for item in made) / len(made)
            summary["broken_revised"] = sum(measure(item.prompt, item.final) for item in made) / len(made)
        write_aside(directory / SUMMARY, json.dumps(summary, indent=1) + "\n")  # last: all is revised


def _make(config: ConstitutionalConfig, directory: Path) -> RoundsRun:
    return RoundsRun(config, directory, config.stage, Revisions(config))


def _closing_lines(summary: Mapping[str, Any], run_directory: Path) -> list[str]:
    lines = [steps_line(summary)]
    for made in summary.get("rounds") or ():
        if "revised" not in made:
            continue
        left_out = f", {number(made['not_revised'])} not: {made['first_failure']}" if made["not_revised"] else ""
        lines.append(f"revised: {number(made['revised'])} of {number(made['responses'])} responses{left_out}")
        lines.append(f"for people to read: {run_directory / 'rounds' / '1' / REVISIONS}")
    for name, text in (("first_eval", "before"), ("final_eval", "after")):
        lines += evaluated(text, summary.get(name))
    return [*lines, report_line(run_directory), *policy_line(summary, run_directory)]


CONSTITUTIONAL = RunKind(
    settings=SETTINGS,
    counts=IMITATED,
    make=_make,
    load=LoadedLanguage.of,
    elsewhere=elsewhere,
    closing_lines=_closing_lines,
    console=ProgressLines,
    unfit=check_imitating,
    eval_line=eval_line,
    data="revisions of its own responses",
    policy="language model",
    exportable=True,
    misfit=misfit_of,
    exports=True,
)
