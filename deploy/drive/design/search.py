"""The drive of a search for a reward: ask, look at what was answered, train, measure, ask again with what was learnt.
All that it has come to is in the journal; every step of it may be the last of this process, and is not done twice."""

from __future__ import annotations

import queue
import re
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

from rollcall.cluster.errors import RollcallError
from rollcall.cluster.files import read_json
from rollcall.cluster.store.run_lock import DirectoryLock
from rollcall.deploy.config.recipe.design_config import DesignRunConfig
from rollcall.deploy.config.settings import to_yaml
from rollcall.deploy.drive.design import prompts
from rollcall.deploy.drive.design.coding_model import CodingModel, Messages, NotAsked, NoUse
from rollcall.deploy.drive.design.env_text import env_text
from rollcall.deploy.drive.design.films import film
from rollcall.deploy.drive.design.fitness import Fitness, NoFitness
from rollcall.deploy.drive.design.training import Trainings
from rollcall.deploy.drive.design.validation import contained, problem_of, sampled_steps
from rollcall.deploy.drive.records import RunRecorder
from rollcall.deploy.kinds.kind import StoredRun
from rollcall.deploy.plan.planning import Plan
from rollcall.deploy.report.candidate_report import training_curves
from rollcall.deploy.report.page import write_report
from rollcall.deploy.report.progress import number
from rollcall.deploy.report.recorders import Record
from rollcall.deploy.report.run_lines import iter_jsonl
from rollcall.deploy.rundir.candidates import VIDEO, Candidate, CandidateJournal, best_of, name_of, run_of

MOST_REQUESTS = 8  # under way at once
_LOOK_S = 0.2


class DesignDrive:
    """One driver's part of a search."""

    plan: Plan | None = None  # each candidate's run makes its own

    def __init__(self, run: StoredRun, recorder: RunRecorder, stop_requested: Callable[[], bool]) -> None:
        self._config: DesignRunConfig = run.config
        self._directory = run.directory
        self._recorder = recorder
        self._stop_requested = stop_requested
        self._tidings: queue.SimpleQueue[str] = queue.SimpleQueue()  # of threads: recorders are the driver's
        self._films = self._config.design.videos
        self.facts: dict[str, Any] = {"runtime": self._config.runtime}  # for the summary

    def carry_out(self, *, resume: bool) -> str:
        """To the end, or to where a stop was requested. Returns the run's status.

        Raises:
          BadInput: before anything is asked, where the search cannot begin on this machine.
          RollcallError: when the model does not answer, or no candidate was of any use.
        """
        with ExitStack() as stack:
            lock = DirectoryLock(self._directory)
            stack.callback(lock.release)
            self._begin(stack)
            self._recorder.on_start({"start_step": 0, "epoch": 0, "total_learner_steps": None, "total_env_steps": None})
            self._journal = stack.enter_context(closing(CandidateJournal(self._directory)))
            if done := len([found for found in self._candidates.values() if found.settled]):
                self._recorder.on_event("note", f"the search goes on; settled so far: {done}")
            try:
                for iteration in range(1, self._config.design.iterations + 1):
                    self._iterate(iteration)
                    if self._stop_requested():
                        return "stopped"
            finally:
                self._sum_up()
        if best_of(self._candidates) is None:
            last = list(self._candidates.values())[-1]
            raise RollcallError(
                f"none of {len(self._candidates)} candidates could be used (the last one: {last.problem}); all reasons "
                f"are in {self._directory / 'report.html'}"
            )
        return "completed"

    def known_from(self, records: Iterable[Record]) -> dict[str, Any]:
        """All that is known is in the journal, which is summed up however a search ends."""
        return {}

    @property
    def _candidates(self) -> dict[str, Candidate]:
        return self._journal.candidates()

    def _begin(self, stack: ExitStack) -> None:
        """What can be wrong is said before anything is asked. Raises BadInput."""
        config, design = self._config, self._config.design
        self._containment = contained()
        self._env_text = env_text(config.env, design.env_text)
        self._steps = sampled_steps(config.env, config.seed)
        self._fitness = stack.enter_context(closing(Fitness(design.fitness)))
        self._model = stack.enter_context(closing(CodingModel(design, self._tidings.put, self._stop_requested)))
        self._trainings = Trainings(
            self._directory,
            at_once=config.side_by_side,
            timeout_s=design.train_timeout_s,
            without=[] if design.key_variable is None else [design.key_variable],
            stop_requested=self._stop_requested,
            tell=lambda text: self._recorder.on_event("warning", text),
        )

    def _iterate(self, iteration: int) -> None:
        names = [name_of(iteration, n) for n in range(1, self._config.design.candidates + 1)]
        missing = [number for number, name in enumerate(names, start=1) if name not in self._candidates]
        if missing:
            self._ask(iteration, missing)
        if self._stop_requested():
            return
        for name in names:
            self._look_at(self._candidates[name])
        if self._stop_requested():
            return
        ready = [found for name in names if not (found := self._candidates[name]).settled]
        for candidate in ready:
            if not candidate.begun:
                self._journal.begun(candidate.name)
        self._trainings.carry_out({c.name: self._recipe(c) for c in ready}, self._trained)
        if not self._stop_requested():
            self._film_best({name: self._candidates[name] for name in names})
            write_report(self._directory)

    # Asking.

    def _ask(self, iteration: int, missing: list[int]) -> None:
        """Each answer is in the journal as soon as it is there. Raises RollcallError: when one does not come."""
        messages, parent = self._request(iteration)
        design = self._config.design
        self._recorder.on_event("note", f"iteration {iteration}: {len(missing)} rewards are asked of {design.model}")
        problem: RollcallError | None = None
        with ThreadPoolExecutor(min(MOST_REQUESTS, len(missing)), thread_name_prefix="coding-model") as threads:
            asked = {threads.submit(self._model.answer, messages): number for number in missing}
            waiting = set(asked)
            while waiting:
                done = _done_of(waiting)
                while not self._tidings.empty():
                    self._recorder.on_event("warning", self._tidings.get())
                for future in done:
                    waiting.discard(future)
                    try:
                        text = future.result()
                        self._answered(iteration, asked[future], parent, text, prompts.code_in(text))
                    except NoUse as error:
                        self._answered(iteration, asked[future], parent, str(error), None)
                        self._fail(name_of(iteration, asked[future]), str(error))
                    except NotAsked:
                        pass
                    except RollcallError as error:
                        problem = error
        if problem is not None:
            raise RollcallError(f"{problem}; go on with: rollcall resume {self._directory}")

    def _request(self, iteration: int) -> tuple[Messages, str | None]:
        """What is asked, and the name of the candidate that it shows. The same however often a search goes on."""
        before = {name: found for name, found in self._candidates.items() if found.iteration < iteration}
        best = best_of(before)
        messages = prompts.next_request(
            self._env_text,
            self._config.design.task,
            best=best,
            curves={} if best is None else self._curves(run_of(self._directory, best.name)),
            failed=[found for found in before.values() if found.problem and found.iteration == iteration - 1],
        )
        return messages, None if best is None else best.name

    def _curves(self, run: Path) -> dict[str, list[float]]:
        """What a model is shown of a run. The env's own return is the fitness, where no other is named."""
        curves = training_curves(run)
        evaluated = [float(found["mean"]) for found in iter_jsonl(run / "evals.jsonl") if found.get("mean") is not None]
        return curves if self._config.design.fitness else {**curves, "fitness, where it was measured": evaluated}

    def _answered(self, iteration: int, number: int, parent: str | None, text: str, code: str | None) -> None:
        self._journal.answered(iteration, number, parent=parent, text=text, code=code)

    def _look_at(self, candidate: Candidate) -> None:
        """Rules out what cannot be trained by, and what was trained by before."""
        if candidate.settled or candidate.begun:
            return
        code = candidate.code
        if code is None:
            self._fail(candidate.name, f"the answer has no function {prompts.FUNCTION} in a block of code")
            return
        before = list(self._candidates.values())
        before = before[: before.index(candidate)]
        same = next((found for found in before if (found.code or "").strip() == code.strip()), None)
        problem = f"it is the same as candidate {same.name}" if same is not None else None
        problem = problem or problem_of(code, self._config.design.call_s, self._steps, self._containment)
        if problem is not None:
            self._fail(candidate.name, problem)

    # Training.

    def _recipe(self, candidate: Candidate) -> str:
        assert candidate.code is not None
        return to_yaml(self._config.candidate(candidate.name, candidate.code))

    def _trained(self, name: str, problem: str | None) -> None:
        """Of a run that has ended."""
        if problem is not None:
            self._fail(name, f"its training failed: {_of_its_reward(problem)}")
            return
        run = run_of(self._directory, name)
        try:
            fitness = self._fitness.of(run)
        except NoFitness as error:
            self._fail(name, str(error))
            return
        env_steps = int(read_json(run / "summary.json").get("env_steps") or 0)
        self._journal.trained(name, fitness=fitness, env_steps=env_steps)
        self._recorder.on_event(
            "candidate", f"{name}: fitness {number(fitness, 3)} after {number(env_steps)} env steps"
        )

    def _fail(self, name: str, problem: str) -> None:
        self._journal.failed(name, problem)
        self._recorder.on_event("candidate", f"{name} failed: {problem}")

    def _film_best(self, candidates: dict[str, Candidate]) -> None:
        best = best_of(candidates)
        if best is None or not self._films:
            return
        run = run_of(self._directory, best.name)
        problem = film(run, run / VIDEO)
        if problem is not None:
            self._films = False
            self._recorder.on_event("note", f"no videos: {problem}")

    def _sum_up(self) -> None:
        candidates = self._candidates
        best = best_of(candidates)
        summary = {} if best is None else read_json(run_of(self._directory, best.name) / "summary.json")
        trained = [found for found in candidates.values() if found.fitness is not None]
        self.facts |= {
            "candidates": {
                "answered": len(candidates),
                "trained": len(trained),
                "failed": len([found for found in candidates.values() if found.problem is not None]),
            },
            "best": None if best is None else best.name,
            "fitness": None if best is None else best.fitness,
            "learner_steps": int(summary.get("learner_steps") or 0),
            "env_steps": sum(found.env_steps for found in trained),
            "final_eval": summary.get("final_eval"),
        }


def _of_its_reward(problem: str) -> str:
    """What the scorer said of a reward that failed, without what is around it; anything else as it is."""
    found = re.search(r"item \S+: \w+: (.*?)(; what the scorer printed.*)?$", problem)
    return problem if found is None else found[1]


def _done_of(waiting: set[Any]) -> list[Any]:
    """Those that are done, after a moment."""
    try:
        return [next(as_completed(waiting, timeout=_LOOK_S))]
    except TimeoutError:
        return []
