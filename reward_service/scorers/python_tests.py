"""Scores code by its tests, all of it run in the sandbox. The verdict rests on processes that the code cannot reach: a
test's own process, which sees plain values alone, or the comparison of what the program printed, made here. Must never
run a line of a response itself."""

from __future__ import annotations

import ast
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from pydantic import JsonValue

from rollcall.reward_service.protocol import ScoreItem
from rollcall.reward_service.sandbox.run import (
    PASSED,
    UNSUPPORTED,
    Containment,
    Program,
    RunResult,
    SandboxBroken,
    Script,
    Suite,
    probe,
    run,
)
from rollcall.reward_service.scorer import Failure, Outcome, Score, Taken
from rollcall.reward_service.scorers.python_tests_config import PythonTestsConfig
from rollcall.reward_service.scorers.text_scorers import text_cost, version_of

_FENCED = re.compile(r"^[ \t]*```[ \t]*([\w+-]*)[^\n]*\n(.*?)^[ \t]*```[ \t]*$", re.DOTALL | re.MULTILINE)
_PYTHON = ("", "python", "py", "python3")
_DEFINITION = re.compile(r"^(?:@[^\n]*\n)*(?:async[ \t]+def|def|class)\b", re.MULTILINE)
MAX_TESTS = 100


@dataclass(frozen=True, slots=True)
class _Exchange:
    """A program's input, and what it is to print."""

    stdin: str
    stdout: str


class PythonTestsScorer:
    takes: frozenset[Taken] = frozenset({"text"})
    cacheable = True

    def __init__(self, config: PythonTestsConfig, containment: Containment) -> None:
        self.version = version_of(config)
        self.containment = containment
        self._config = config
        self._threads = ThreadPoolExecutor(config.concurrency, thread_name_prefix="python-tests")

    def cost(self, item: ScoreItem) -> int:
        return text_cost(item)

    def score(self, items: Sequence[ScoreItem]) -> list[Outcome]:
        return list(self._threads.map(self._score, items))

    def close(self) -> None:
        self._threads.shutdown(cancel_futures=True)

    def _score(self, item: ScoreItem) -> Outcome:
        if item.response is None:
            return Failure("unsupported", "this scorer takes responses, not segments")
        if not self.containment.usable:
            return Failure("unavailable", f"no code is run here: {self.containment.problem}"[:500])
        config = self._config
        try:
            tests = tests_in(item.metadata.get(config.tests_key))
        except ValueError as error:
            return Failure("unsupported", f"metadata[{config.tests_key!r}]: {error}")
        code = code_in(item.response) if config.code == "fenced" else item.response
        preamble, entry_point = (_text(item, key) for key in (config.preamble_key, config.entry_point_key))
        if config.prompt_is_code and item.prompt is not None:
            given, unfinished = split_prompt(item.prompt)
            code = unfinished + code
            preamble = f"{preamble or ''}\n{given}"
        exchanges = [test for test in tests if isinstance(test, _Exchange)]
        if exchanges:
            whole = code if preamble is None else f"{preamble}\n{code}"
            program: Program = Script(whole, tuple(exchange.stdin for exchange in exchanges))
        else:
            program = Suite(code, tuple(test for test in tests if isinstance(test, str)), preamble or "", entry_point)
        try:
            results = run(program, config.limits, self.containment)
        except SandboxBroken as error:
            return Failure("scorer_failed", str(error)[:500])
        for result in results:
            if result.exit == UNSUPPORTED and not exchanges:
                return Failure("unsupported", f"a test cannot be run: {result.output.decode(errors='replace')}")
        if exchanges:
            passed = [self._printed(result, exchange) for result, exchange in zip(results, exchanges, strict=True)]
        else:
            passed = [result.exit == PASSED for result in results]
        share = sum(passed) / len(passed)
        timed_out = sum(result.ended_for == "time" for result in results)
        components = {"passed": float(sum(passed)), "tests": float(len(passed)), "timed_out": float(timed_out)}
        return Score(share if config.score == "fraction" else float(share == 1), components)

    def _printed(self, result: RunResult, exchange: _Exchange) -> bool:
        if result.exit != 0:
            return False
        printed = result.output.decode(errors="replace")
        if self._config.output == "exact":
            return printed == exchange.stdout
        if self._config.output == "words":
            return printed.split() == exchange.stdout.split()
        return _lines(printed) == _lines(exchange.stdout)


def build_python_tests_scorer(config: PythonTestsConfig) -> PythonTestsScorer:
    """Probes this machine."""
    return PythonTestsScorer(config, probe(config.limits, unsafe=config.sandbox == "unsafe"))


def code_in(response: str) -> str:
    """The last fenced block that is Python or says nothing; without one, the whole response."""
    blocks = fenced_blocks(response)
    return blocks[-1] if blocks else response


def fenced_blocks(text: str) -> list[str]:
    """Those that are Python or say nothing."""
    return [block[2] for block in _FENCED.finditer(text) if block[1].lower() in _PYTHON]


def split_prompt(prompt: str) -> tuple[str, str]:
    """A prompt that a completion goes on with: what is given to the tests as well (imports, helpers), and the last
    definition, which is the completion's. Nothing is given where that cannot be told."""
    starts = [match.start() for match in _DEFINITION.finditer(prompt)]
    given = prompt[: starts[-1]] if starts else ""
    try:
        ast.parse(given)
    except (SyntaxError, ValueError):
        return "", prompt
    return given, prompt[len(given) :]


def tests_in(given: JsonValue) -> list[str] | list[_Exchange]:
    """Raises ValueError for what is neither kind of tests."""
    several = given if isinstance(given, list) else [given]
    if not several or len(several) > MAX_TESTS:
        raise ValueError(f"{len(several)} tests: 1 to {MAX_TESTS} are run")
    if all(isinstance(test, str) for test in several):
        return [str(test) for test in several]
    exchanges = []
    for test in several:
        if not isinstance(test, dict) or set(test) != {"stdin", "stdout"}:
            raise ValueError("tests must be Python as text, or objects with stdin and stdout")
        stdin, stdout = test["stdin"], test["stdout"]
        if not isinstance(stdin, str) or not isinstance(stdout, str):
            raise ValueError("stdin and stdout must be text")
        exchanges.append(_Exchange(stdin, stdout))
    return exchanges


def _text(item: ScoreItem, key: str) -> str | None:
    found = item.metadata.get(key)
    return found if isinstance(found, str) else None


def _lines(text: str) -> list[str]:
    return [line.rstrip() for line in text.rstrip().splitlines()]
