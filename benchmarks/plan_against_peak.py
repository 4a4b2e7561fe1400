"""What `rollcall plan` says a run's processes take, against what they then took at their peak: a table of roles of some
configurations. `python -m benchmarks.plan_against_peak [--only NAME ...]`; ten minutes on two cores, 6 GB.

A process's peak is of its own memory: what it has of the object store, which all share, is not counted (VmHWM less
RssShmem, or the largest of RssAnon + RssFile that was seen, whichever is more). Ray's own processes, which are always
together, count at one moment, and a page that several of them have in common counts once (Pss_Anon + Pss_File)."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from benchmarks import proofs
from benchmarks.proofs import ROLLCALL, ROOT, Row, rollcall

BOUND = 0.15  # of the peak
EVERY_S = 0.05
FAIR_EVERY = 10  # looks: to find out with whom a process shares its pages takes milliseconds
RAY = "Ray and parameter server"
MODEL = "MODEL"  # in a configuration: where the model with a real vocabulary is
VOCABULARY = 151_936  # Qwen3's
ROLES = {
    "LearnerProcess": "learner process",
    "LMActorProcess": "actor",
    "GymActorProcess": "actor",
    "EvalProcess": "evaluator",
    "ParameterServerProcess": RAY,
}
RAYS_OWN = re.compile(r"site-packages/ray/|raylet|gcs_server")


@dataclass(frozen=True)
class Case:
    """A command line; `has_actors`: the process that is started drives others, and does not train."""

    command: str
    recipe: str
    settings: tuple[str, ...]
    has_actors: bool = True


_FULL = ("actors.sampling.ignore_eos=true", "eval.num_rows=32")  # completions of the length that the plan counts with
CASES = {
    "cartpole-ppo": Case("train", "cartpole-ppo", ("total_env_steps=20000",)),
    "arithmetic-grpo": Case(
        "train", "arithmetic-grpo", ("total_learner_steps=4", "policy.warm_start.steps=10", *_FULL)
    ),
    "a vocabulary of 151,936": Case(
        "train",
        "arithmetic-grpo",
        (
            *("total_learner_steps=3", "policy.warm_start=null", f"policy.model={MODEL}", "policy.tiny={}"),
            *("actors.prompts_per_batch=8", "actors.samples_per_prompt=16", *_FULL),
        ),
    ),
    "97M parameters": Case(
        "train",
        "arithmetic-grpo",
        (
            *("total_learner_steps=2", "policy.warm_start=null", "actors.prompts_per_batch=8"),
            "policy.tiny={vocab_size: 300, hidden_size: 768, num_layers: 14, num_heads: 24, num_kv_heads: 8, "
            "intermediate_size: 2304}",
            *("actors.samples_per_prompt=4", "actors.engine.max_num_seqs=32", "algorithm.token_budget=512", *_FULL),
        ),
    ),
    "synthetic-dpo": Case("train", "synthetic-dpo", ("total_learner_steps=20",), has_actors=False),
    "sft": Case("sft", "arithmetic-grpo", ("policy.warm_start.steps=20", "eval.num_rows=64"), has_actors=False),
}


def main(argv: Sequence[str] | None = None) -> int:
    args = proofs.parser(__doc__, CASES).parse_args(argv)
    return proofs.report(_rows(args.only or list(CASES)), args.append)


def _rows(names: Sequence[str]) -> Iterator[Row]:
    with tempfile.TemporaryDirectory() as aside:
        directory = Path(aside)
        _write_model(directory / "model")
        for number, name in enumerate(names):
            case = CASES[name]
            settings = [text.replace(MODEL, str(directory / "model")) for text in case.settings]
            planned = _planned(case, settings)
            measured = _measured(case, [*settings, f"name=case-{number}"], directory / "runs")
            for role, size in planned.items():
                peak = measured.get(role, 0)
                off = (size - peak) / peak if peak else float("inf")
                text = f"{role}: planned {size / 1e6:,.0f} MB, peak {peak / 1e6:,.0f} MB, {off:+.0%}"
                yield Row(name, text, abs(off) <= BOUND)


def _planned(case: Case, settings: Sequence[str]) -> dict[str, int]:
    sft = ["--sft"] if case.command == "sft" else []
    found = json.loads(rollcall("plan", case.recipe, *settings, *sft, "--json").stdout)
    return {role["name"]: role["memory_bytes"] for role in found["roles"]}


def _measured(case: Case, settings: Sequence[str], runs: Path) -> Mapping[str, int]:
    """Role -> the peak of its largest process; of Ray and its like, of all together."""
    environment = {**os.environ, "ROLLCALL_RUNS": str(runs)}
    command = [*ROLLCALL, case.command, case.recipe, *settings]
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL) as run:
        driver, seen = psutil.Process(run.pid), dict[int, _Seen]()
        looks = 0
        while run.poll() is None:
            for process in (driver, *driver.children(recursive=True)):
                with suppress(psutil.Error, OSError, KeyError):  # it has just ended
                    seen.setdefault(process.pid, _Seen()).look(process, looks)
            looks += 1
            time.sleep(EVERY_S)
        if run.returncode:
            raise SystemExit(f"{' '.join(command)}: ended with {run.returncode}")
    seen.pop(run.pid).tell("driver" if case.has_actors else "trainer", found := dict[str, int]())
    rays = [process for process in seen.values() if process.role == RAY]
    for process in seen.values():
        process.tell(process.role, found)
    if rays:
        found[RAY] = max(sum(process.fair_at.get(look, 0) for process in rays) for look in range(0, looks, FAIR_EVERY))
    return found


class _Seen:
    """Of one process, as far as it was seen."""

    def __init__(self) -> None:
        self.role = ""
        self.fair_at: dict[int, int] = {}  # look -> its fair share, as long as it may be one of Ray's
        self._seen = self._most = self._shared = 0

    def look(self, process: psutil.Process, number: int) -> None:
        line = " ".join(process.cmdline())
        named = next((role for name, role in ROLES.items() if f"ray::{name}" in line), "")
        self.role = named or self.role or (RAY if RAYS_OWN.search(line) else "")
        status = _numbers(Path(f"/proc/{process.pid}/status"))
        own = status["RssAnon"] + status["RssFile"]
        self._seen, self._most = max(self._seen, own), status["VmHWM"]
        self._shared = max(self._shared, status["RssShmem"])
        if self.role == RAY and number % FAIR_EVERY == 0:
            pages = _numbers(Path(f"/proc/{process.pid}/smaps_rollup"))
            self.fair_at[number] = pages["Pss_Anon"] + pages["Pss_File"]

    def tell(self, role: str, found: dict[str, int]) -> None:
        """Of its role's processes the largest counts."""
        found[role] = max(found.get(role, 0), self.size_bytes)

    @property
    def size_bytes(self) -> int:
        return max(self._seen, self._most - self._shared)


def _numbers(file: Path) -> dict[str, int]:
    """What a file of /proc says in kB, in bytes."""
    return {name: 1024 * int(size) for name, size in re.findall(r"^(\w+):\s+(\d+) kB", file.read_text(), re.MULTILINE)}


def _write_model(directory: Path) -> None:
    """Two layers of width 64, with a vocabulary of a real size: random numbers."""
    code = (
        "import sys, torch; from transformers import Qwen3ForCausalLM;"
        "from rollcall.actors.tasks.arithmetic import TASK;"
        "from rollcall.learners.models.language import tiny_model;"
        "tokenizer = tiny_model.character_tokenizer(TASK(TASK.Config()).alphabet());"
        "torch.manual_seed(0);"
        f"config = tiny_model.tiny_config({VOCABULARY}, hidden_size=64, num_layers=2,"
        " pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id);"
        "Qwen3ForCausalLM(config).save_pretrained(sys.argv[1]); tokenizer.save_pretrained(sys.argv[1])"
    )
    subprocess.run([sys.executable, "-c", code, str(directory)], check=True, capture_output=True)


if __name__ == "__main__":
    sys.exit(main())
