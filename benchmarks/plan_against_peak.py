"""What `rollcall plan` says a run's processes take, against what they then took at their peak: a table of roles for some
configurations. `python -m benchmarks.plan_against_peak [--only NAME ...]`; ten minutes on two cores, 6 GB.

A process's peak is of its own memory: what it has of the object store, which all share, is not counted (VmHWM less
RssShmem, or the largest of RssAnon + RssFile that was seen, whichever is more)."""

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
MODEL = "MODEL"  # in a configuration: where the model with a real vocabulary is
VOCABULARY = 151_936  # Qwen3's
ROLES = {
    "LearnerProcess": "learner process",
    "LMActorProcess": "actor",
    "GymActorProcess": "actor",
    "EvalProcess": "evaluator",
    "ParameterServerProcess": "Ray and parameter server",
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
    """Role -> the peak of its largest process; of Ray and its like, the sum of all."""
    environment = {**os.environ, "ROLLCALL_RUNS": str(runs)}
    command = [*ROLLCALL, case.command, case.recipe, *settings]
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL) as run:
        driver, peaks = psutil.Process(run.pid), dict[int, _Peak]()
        while run.poll() is None:
            for process in (driver, *driver.children(recursive=True)):
                with suppress(psutil.Error, OSError):
                    peaks.setdefault(process.pid, _Peak()).look(process)
            time.sleep(EVERY_S)
        if run.returncode:
            raise SystemExit(f"{' '.join(command)}: ended with {run.returncode}")
    found: dict[str, int] = {}
    for pid, peak in peaks.items():
        role = ("driver" if case.has_actors else "trainer") if pid == run.pid else peak.role
        together = role == "Ray and parameter server"
        found[role] = found.get(role, 0) + peak.size_bytes if together else max(found.get(role, 0), peak.size_bytes)
    return found


class _Peak:
    """Of one process, as far as it was seen."""

    def __init__(self) -> None:
        self.role = ""
        self._seen = self._most = self._shared = 0

    def look(self, process: psutil.Process) -> None:
        line = " ".join(process.cmdline())
        named = next((role for name, role in ROLES.items() if f"ray::{name}" in line), "")
        self.role = named or self.role or ("Ray and parameter server" if RAYS_OWN.search(line) else "")
        status = dict(re.findall(r"^(\w+):\s+(\d+) kB", Path(f"/proc/{process.pid}/status").read_text(), re.MULTILINE))
        own = int(status["RssAnon"]) + int(status["RssFile"])
        self._seen, self._most = max(self._seen, own), int(status["VmHWM"])
        self._shared = max(self._shared, int(status["RssShmem"]))

    @property
    def size_bytes(self) -> int:
        return 1024 * max(self._seen, self._most - self._shared)


def _write_model(directory: Path) -> None:
    """Two layers of width 64, with a vocabulary of a real size: random numbers."""
    code = (
        "import sys, torch; from transformers import Qwen3ForCausalLM;"
        "from rollcall.actors.tasks.arithmetic import TASK;"
        "from rollcall.learners.models import tiny_model;"
        "tokenizer = tiny_model.character_tokenizer(TASK(TASK.Config()).alphabet());"
        "torch.manual_seed(0);"
        f"config = tiny_model.tiny_config({VOCABULARY}, hidden_size=64, num_layers=2,"
        " pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id);"
        "Qwen3ForCausalLM(config).save_pretrained(sys.argv[1]); tokenizer.save_pretrained(sys.argv[1])"
    )
    subprocess.run([sys.executable, "-c", code, str(directory)], check=True, capture_output=True)


if __name__ == "__main__":
    sys.exit(main())
