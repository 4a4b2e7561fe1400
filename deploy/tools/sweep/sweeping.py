"""A sweep from its beginning to its table: trials side by side as far as the machine allows, told of as they end."""

from __future__ import annotations

import json
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from rollcall.cluster.cores import usable_cores
from rollcall.cluster.errors import BadInput
from rollcall.cluster.files import read_json, write_aside
from rollcall.cluster.store.run_lock import DirectoryLock
from rollcall.deploy.config.settings import COMMAND_LINE
from rollcall.deploy.kinds.recipes import Recipe, load_recipe
from rollcall.deploy.overview.comparison import compare
from rollcall.deploy.overview.comparison_files import write_page
from rollcall.deploy.overview.statistics import mean_of
from rollcall.deploy.plan.machine import gpu_memory
from rollcall.deploy.report.progress import number
from rollcall.deploy.tools.sweep.proposing import Grid, OptunaSearch, Proposal, Proposer
from rollcall.deploy.tools.sweep.space import Choices, Dimension, Range, grid, parse_dimension
from rollcall.deploy.tools.sweep.trials import Outcome, Trials

SPEC, RESULTS, TRIALS = "sweep.json", "results.json", "trials"  # of a sweep's directory
DRAWN_FROM = 0  # the seed of a search


@dataclass(frozen=True)
class Sweep:
    """What was asked for."""

    recipe: str
    overrides: Sequence[str]
    search: Sequence[str]
    seeds: int
    trials: int | None
    jobs: int | None
    directory: Path

    @property
    def spec(self) -> dict[str, Any]:
        """What may not change when it goes on; more trials may be asked for."""
        spec = {"recipe": self.recipe, "overrides": list(self.overrides), "search": list(self.search)}
        return {**spec, "seeds": self.seeds, "grid": self.trials is None}


@dataclass(frozen=True)
class Swept:
    """What came of it, the best first."""

    outcomes: Sequence[Outcome]
    page: Path | None
    stopped: bool

    @property
    def best(self) -> Outcome | None:
        return next((outcome for outcome in self.outcomes if outcome.score is not None), None)


def sweep(wanted: Sweep, tell: Callable[[str], None]) -> Swept:
    """Begins a sweep, or goes on with the one of that directory.

    Raises:
      BadInput: for what cannot be swept, and a directory that has another sweep.
      RunAlive: when another process is at it.
    """
    dimensions = [parse_dimension(text) for text in wanted.search]
    if not dimensions and wanted.seeds == 1:
        raise BadInput(f"nothing varies ({COMMAND_LINE}): give --search KEY=..., --seeds N, or both")
    recipe = load_recipe(wanted.recipe, [*wanted.overrides, *_one_of_each(dimensions)])
    folder = wanted.directory / TRIALS
    folder.mkdir(parents=True, exist_ok=True)
    lock = DirectoryLock(wanted.directory)
    try:
        _settle_spec(wanted)
        with _stopped_by_signals() as stop:
            trials = Trials(wanted.recipe, wanted.overrides, range(wanted.seeds), folder.resolve(), stop)
            proposer = _proposer(wanted, dimensions)
            jobs = wanted.jobs or side_by_side(recipe, cores=usable_cores(), num_gpus=len(gpu_memory()))
            tell(f"{jobs} at a time; runs in {folder}")
            _carried_out(proposer, trials, jobs, partial(_noted, wanted.directory, tell))
            return _summed_up(wanted.directory, stopped=stop.is_set())
    finally:
        lock.release()


def _proposer(wanted: Sweep, dimensions: Sequence[Dimension]) -> Proposer:
    if wanted.trials is None:
        return Grid(dimensions)
    return OptunaSearch(dimensions, trials=wanted.trials, seed=DRAWN_FROM, directory=wanted.directory)


def side_by_side(recipe: Recipe, *, cores: int, num_gpus: int) -> int:
    """How many runs a machine steps at once: a core for the learner of each, and one for each of its actors. A run of a
    language model takes all the GPUs there are."""
    config = recipe.config
    if num_gpus and recipe.kind.policy == "language model":
        return 1
    actors = getattr(getattr(config, "actors", None), "num", 0) or 0
    each = 1 if getattr(config, "runtime", "serial") == "serial" else 1 + actors
    return max(1, cores // each)


def _carried_out(proposer: Proposer, trials: Trials, jobs: int, note: Callable[[Outcome], None]) -> None:
    noting = threading.Lock()

    def work() -> None:
        while not trials.stop.is_set() and (proposal := proposer.next()) is not None:
            outcome = trials.carry_out(proposal, partial(proposer.hopeless, proposal))
            with noting:
                note(outcome)
            if not outcome.stopped:
                proposer.told(proposal, outcome.score, pruned=outcome.pruned)

    with ThreadPoolExecutor(jobs) as pool:
        for done in as_completed([pool.submit(work) for _ in range(jobs)]):
            if done.exception() is not None:
                trials.stop.set()  # the others end with checkpoints, and do not go on for hours before this is told
            done.result()


def line_of(outcome: Outcome) -> str:
    """`003  498.2 [490.1, 506.3]  algorithm.clip_range=0.1`."""
    settings = " ".join(f"{key}={_shown(value)}" for key, value in outcome.proposal.settings.items()) or "the recipe"
    return f"{outcome.proposal.number:03}  {_ending(outcome)}  {settings}"


def _ending(outcome: Outcome) -> str:
    if outcome.score is None:
        return "given up" if outcome.pruned else "stopped" if outcome.stopped else f"failed ({outcome.error})"
    mean = mean_of(outcome.scores)
    if mean is None or mean.low is None:
        return number(outcome.score)
    return f"{number(mean.mean)} [{number(mean.low)}, {number(mean.high)}]"


def _noted(directory: Path, tell: Callable[[str], None], outcome: Outcome) -> None:
    """At once: what was learnt of a trial outlives a sweep that is killed."""
    known = {entry["number"]: entry for entry in _results(directory)}
    known[outcome.proposal.number] = {
        **{"number": outcome.proposal.number, "settings": dict(outcome.proposal.settings)},
        **{"score": outcome.score, "scores": list(outcome.scores), "runs": [run.name for run in outcome.runs]},
        **{"pruned": outcome.pruned, "stopped": outcome.stopped, "error": outcome.error},
    }
    ranked = sorted(known.values(), key=lambda e: (e["score"] is None, -(e["score"] or 0.0), e["number"]))
    write_aside(directory / RESULTS, json.dumps({"trials": ranked}, indent=1) + "\n")
    tell(line_of(outcome))


def _results(directory: Path) -> list[Mapping[str, Any]]:
    """Of all trials so far, the best first."""
    return [entry for entry in read_json(directory / RESULTS).get("trials", []) if isinstance(entry, Mapping)]


def _summed_up(directory: Path, *, stopped: bool) -> Swept:
    found = [_outcome(entry, directory) for entry in _results(directory)]
    finished = [run for outcome in found if outcome.score is not None for run in outcome.runs]
    page = write_page(compare(finished), directory / "comparison.html") if finished else None
    return Swept(found, page, stopped)


def _outcome(entry: Mapping[str, Any], directory: Path) -> Outcome:
    runs = [directory / TRIALS / name for name in entry["runs"]]
    proposal = Proposal(int(entry["number"]), entry["settings"])
    kinds = {"pruned": entry["pruned"], "stopped": entry["stopped"], "error": entry["error"]}
    return Outcome(proposal, entry["score"], entry["scores"], runs, **kinds)


def _settle_spec(wanted: Sweep) -> None:
    path = wanted.directory / SPEC
    before = read_json(path)
    if before and before != wanted.spec:
        differing = ", ".join(key for key, value in wanted.spec.items() if before.get(key) != value)
        raise BadInput(
            f"{wanted.directory} has another sweep (it differs in {differing}): give --name, or what it was begun with"
        )
    write_aside(path, json.dumps(wanted.spec, indent=1) + "\n")


def _one_of_each(dimensions: Sequence[Dimension]) -> list[str]:
    """Settings as a first trial may have them: what is wrong with their names is said before anything runs."""
    chosen = next(grid([dimension for dimension in dimensions if isinstance(dimension, Choices)]), {})
    ends = {dimension.setting: dimension.low for dimension in dimensions if isinstance(dimension, Range)}
    return [f"{key}={json.dumps(value)}" for key, value in {**chosen, **ends}.items()]


def _shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else json.dumps(value) if not isinstance(value, str) else value


@contextmanager
def _stopped_by_signals() -> Iterator[threading.Event]:
    """Ctrl-C and SIGTERM stop trials with a checkpoint."""
    stop = threading.Event()
    before = {}
    if threading.current_thread() is threading.main_thread():
        for kind in (signal.SIGINT, signal.SIGTERM):
            before[kind] = signal.signal(kind, lambda *_: stop.set())
    try:
        yield stop
    finally:
        for kind, handler in before.items():
            signal.signal(kind, handler)
