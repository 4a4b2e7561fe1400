"""What a GPU shows: the defaults on one, a model of real size (0.6B parameters, a vocabulary of 151,936) through every
part of a run, and the tests that need a GPU. Prints one JSON; at most eight minutes on one H100. What has no time left
is left out and named.

    python -m benchmarks.prove_gpu [--only PART ...] [--tiny] [--limit-s 480]

`--tiny`: the same with sizes for two CPU cores, to try the script itself.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, Literal

import torch

from benchmarks.proofs import ROLLCALL, ROOT

LIMIT_S = 480.0
LEAST_S = 30.0  # a part does not begin with less time than that
BFLOAT16_PEAK = 989e12  # of an H100 (SXM), dense, multiplications and additions a second


@dataclass(frozen=True)
class Sizes:
    """Of the model and of a step."""

    model: Mapping[str, int]
    workloads: Mapping[str, tuple[int, int]]  # name -> (completions, tokens of each)
    steps: int  # of a whole run
    budget: int  # padded tokens of one forward pass


REAL = Sizes(
    # Qwen3-0.6B's own
    {
        **{"vocab_size": 151_936, "hidden_size": 1024, "num_hidden_layers": 28, "num_attention_heads": 16},
        **{"num_key_value_heads": 8, "head_dim": 128, "intermediate_size": 3072, "max_position_embeddings": 8192},
    },
    {"512 x 512": (512, 512), "64 x 4096": (64, 4096)},
    steps=5,
    budget=32_768,
)
TINY = Sizes(
    {
        **{"vocab_size": 5_000, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2},
        **{"num_key_value_heads": 1, "head_dim": 32, "intermediate_size": 128, "max_position_embeddings": 512},
    },
    {"32 x 16": (32, 16), "8 x 64": (8, 64)},
    steps=3,
    budget=4_096,
)
GROUP = 8  # completions of a prompt


class Proof:
    """One machine's, with a clock that all parts share."""

    def __init__(self, sizes: Sizes, folder: Path, limit_s: float) -> None:
        self._sizes = sizes
        self._folder = folder
        self._until = time.monotonic() + limit_s
        self._on_gpu = torch.cuda.is_available()
        self._model = folder / "model"
        self._numbers = count()
        self.parts: Mapping[str, Callable[[], dict[str, Any]]] = {
            "tests": self.tests,
            "defaults": self.defaults,
            **{f"{name}: {what.__name__}": lambda n=name, w=what: w(*sizes.workloads[n])  # type: ignore[misc]
               for name in sizes.workloads for what in (self.whole, self.learner, self.generation)},
            "transfer": self.transfer,
            "pong": self.pong,
        }  # fmt: skip

    @property
    def left_s(self) -> float:
        return self._until - time.monotonic()

    def tests(self) -> dict[str, Any]:
        """Those with the mark gpu."""
        if not self._on_gpu:
            return {"left_out": "there is no GPU"}
        done = self._run([sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", "tests"])
        return {"exit_code": done.returncode, "said": done.stdout.splitlines()[-1:] or done.stderr.splitlines()[-1:]}

    def defaults(self) -> dict[str, Any]:
        """`make run`'s recipe without a setting."""
        return self._trained("arithmetic-grpo", ["total_learner_steps=2"] if self._sizes is TINY else [])

    def whole(self, completions: int, tokens: int) -> dict[str, Any]:
        """A run, as it chooses its own placement, dtypes and way of the weights."""
        return self._trained("arithmetic-grpo", self._settings(completions, tokens))

    def transfer(self) -> dict[str, Any]:
        """Weights through the object store, where the run would choose CUDA IPC."""
        completions, tokens = next(iter(self._sizes.workloads.values()))
        settings = [*self._settings(completions, min(tokens, 64)), "actors.engine.weight_transfer=object_store"]
        return self._trained("arithmetic-grpo", settings)

    def learner(self, completions: int, tokens: int) -> dict[str, Any]:
        """The update alone: tokens a second, and how much of the GPU's arithmetic it uses."""
        arguments = [str(self._model), str(completions), str(tokens), str(self._sizes.budget)]
        done = self._run([sys.executable, "-m", "benchmarks.prove_gpu", "--learner", *arguments])
        return _json_of(done)

    def generation(self, completions: int, tokens: int) -> dict[str, Any]:
        """The actor's, and vLLM's own with the same sampling."""
        share = "actors.engine.gpu_memory_utilization=0.4"  # both engines are up
        settings = ["policy.tiny={}", f"policy.model={self._model}", *([share] if self._on_gpu else [])]
        sizes = ["--sequences", str(completions), "--tokens", str(tokens), "--repeats", "1"]
        return _json_of(self._run([sys.executable, "-m", "benchmarks.raw_vllm", *sizes, *settings]))

    def pong(self) -> dict[str, Any]:
        """All cores but one act."""
        steps, cores = (20_000 if self._sizes is TINY else 400_000), os.cpu_count() or 2
        settings = [f"total_env_steps={steps}", f"actors.num={max(1, cores - 1)}", "eval.episodes=0"]
        return self._trained("pong-ppo", settings)

    def make_model(self) -> None:
        code = (
            "import json, sys, torch; from transformers import Qwen3Config, Qwen3ForCausalLM;"
            "from rollcall.actors.tasks.arithmetic import TASK;"
            "from rollcall.learners.models.language.tiny_model import character_tokenizer;"
            "tokenizer = character_tokenizer(TASK(TASK.Config()).alphabet());"
            "ids = dict(pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id);"
            "torch.manual_seed(0); config = Qwen3Config(**json.loads(sys.argv[2]), tie_word_embeddings=True, **ids);"
            "Qwen3ForCausalLM(config).save_pretrained(sys.argv[1]); tokenizer.save_pretrained(sys.argv[1])"
        )
        command = [sys.executable, "-c", code, str(self._model), json.dumps(dict(self._sizes.model))]
        subprocess.run(command, check=True, capture_output=True, timeout=self.left_s)

    def _settings(self, completions: int, tokens: int) -> list[str]:
        return [
            *("policy.tiny={}", f"policy.model={self._model}", "policy.warm_start=null", "eval.num_rows=0"),
            *(f"total_learner_steps={self._sizes.steps}", f"algorithm.token_budget={self._sizes.budget}"),
            *(f"actors.samples_per_prompt={GROUP}", f"actors.prompts_per_batch={completions // GROUP}"),
            *(f"actors.sampling.max_tokens={tokens}", "actors.sampling.ignore_eos=true"),
            *(f"actors.engine.max_model_len={tokens + 32}", f"actors.engine.max_num_seqs={completions}"),
            *("actors.engine.enforce_eager=false", "checkpoint.every_steps=1000000"),
            *(["policy.dtype=bfloat16"] if self._on_gpu else []),
        ]

    def _trained(self, recipe: str, settings: Sequence[str]) -> dict[str, Any]:
        name = f"run-{next(self._numbers)}"
        with _GpuMemory() as memory:
            done = self._run([*ROLLCALL, "train", recipe, f"name={name}", *settings], cwd=self._folder)
        directory = self._folder / "runs" / name
        if done.returncode:
            return {"exit_code": done.returncode, "said": (done.stdout + done.stderr).splitlines()[-6:]}
        summary = json.loads((directory / "summary.json").read_text())
        records = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
        events = [json.loads(line) for line in (directory / "events.jsonl").read_text().splitlines()]
        return {
            **{key: summary.get(key) for key in ("first_eval", "final_eval", "train_s", "wall_s")},
            "steady": _steady(records),
            "start": [event["text"] for event in events if event["kind"] == "start"],
            "peak_gpu_mib_by_process": memory.peaks,
        }

    def _run(self, command: Sequence[str], cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
        return subprocess.run(
            command, cwd=cwd, env=environment, capture_output=True, text=True, check=False, timeout=self.left_s
        )


class _GpuMemory:
    """The most that each process had of a GPU, as nvidia-smi says it: in MiB, by process id."""

    def __enter__(self) -> _GpuMemory:
        self.peaks: dict[str, int] = {}
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        query = ["nvidia-smi", "--query-compute-apps=pid,used_memory", "--format=csv,noheader,nounits"]
        while torch.cuda.is_available() and not self._over.wait(0.5):
            for line in subprocess.run(query, capture_output=True, text=True, check=False).stdout.splitlines():
                pid, _, used = line.partition(",")
                if used.strip().isdigit():
                    self.peaks[pid] = max(self.peaks.get(pid, 0), int(used))


def _steady(records: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Medians over a run's steps but the first and the last."""
    chosen = records[1:-1] or records
    names = [
        *("step_s", "update_s", "act_s", "wait_batch_s", "publish_s", "apply_s", "bound_fraction", "mismatch"),
        *("fresh_mismatch", "engine_canary", "tokens_per_s", "steps_per_s"),
    ]
    values = {name: [float(record[name]) for record in chosen if record.get(name) is not None] for name in names}
    found = {name: round(statistics.median(numbers), 5) for name, numbers in values.items() if numbers}
    return {**found, "first_step_s": round(float(records[0]["elapsed_s"]), 2)} if records else found


def _json_of(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    if done.returncode:
        return {"exit_code": done.returncode, "said": done.stderr.splitlines()[-6:]}
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def learner_alone(model: Path, completions: int, tokens: int, budget: int) -> dict[str, Any]:
    """In its own process: three updates of one batch, of which the first warms up; before them, on a GPU, two with sdpa
    over padded rows, for the ratio."""
    on_gpu = torch.cuda.is_available()
    padded = _updates(model, "sdpa", completions, tokens, budget, 2) if on_gpu else {}
    if on_gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    found = _updates(model, "auto", completions, tokens, budget, 3)
    if on_gpu:
        # 2 of the forward pass and 4 of the backward one for each parameter; attention and recomputation not counted.
        utilisation = 6 * found["parameters"] * found["tokens_per_s"] / BFLOAT16_PEAK
        found["model_flop_utilisation"] = round(utilisation, 3)
        found["peak_gpu_mib"] = round(torch.cuda.max_memory_allocated() / 2**20)
        found["sdpa_peak_gpu_mib"] = padded["peak_gpu_mib"]
        found["flex_to_sdpa"] = round(found["tokens_per_s"] / padded["tokens_per_s"], 2)
    return found


def _updates(
    model: Path, attention: Literal["auto", "sdpa"], completions: int, tokens: int, budget: int, count: int
) -> dict[str, Any]:
    from benchmarks.prove_logits import experience
    from rollcall.cluster.messages.reports import StepOrder
    from rollcall.cluster.messages.sampling import SamplingConfig
    from rollcall.learners.algorithms.language.grpo import GRPO
    from rollcall.learners.collators.language import LanguageCollator
    from rollcall.learners.loop.config import LearnerConfig
    from rollcall.learners.loop.learner import Learner, resolve_device
    from rollcall.learners.models.language.lm_policy_config import LMPolicyConfig
    from rollcall.learners.models.language.token_policy import TokenPolicy, autocast_dtype, layout_of, load_policy_model

    on_gpu = torch.cuda.is_available()
    config = LMPolicyConfig(model=str(model), attention=attention, dtype="bfloat16" if on_gpu else "float32")
    network = load_policy_model(model, config, device=resolve_device("auto"))
    layout = layout_of(network, token_budget=budget)
    learner = Learner(
        models={"policy": TokenPolicy(network, SamplingConfig(), autocast=autocast_dtype(config))},
        algorithm=GRPO(GRPO.Config(token_budget=budget)),
        config=LearnerConfig(learning_rate=1e-6, max_grad_norm=1.0).for_language(),
        policy_id="policy",
        run_seed=0,
        collator=LanguageCollator(token_budget=budget, layout=layout),
    )
    vocabulary = int(network.config.vocab_size)  # type: ignore[union-attr, arg-type]
    batch = experience(vocabulary, groups=completions // GROUP, completion=tokens)
    seconds = []
    for step in range(count):
        report, _ = learner.update(batch, StepOrder(step, 1, 0.0))
        seconds.append(report.update_s)
    seen = sum(len(item.token_ids) for item in batch)
    return {
        "attention": "flex" if layout.packed else "sdpa",
        "tokens_per_s": round(seen / min(seconds[1:])),
        "update_s": seconds,
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        **({"peak_gpu_mib": round(torch.cuda.max_memory_allocated() / 2**20)} if on_gpu else {}),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", metavar="PART", help="parts whose names begin so")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--limit-s", type=float, default=LIMIT_S)
    parser.add_argument("--learner", nargs=4, metavar=("MODEL", "COMPLETIONS", "TOKENS", "BUDGET"), help="one part")
    args = parser.parse_args()
    if args.learner:
        model, *numbers = args.learner
        print(json.dumps(learner_alone(Path(model), *map(int, numbers))))
        return 0
    with tempfile.TemporaryDirectory() as folder:
        found = prove(Proof(TINY if args.tiny else REAL, Path(folder), args.limit_s), args.only)
    print(json.dumps(found))
    return 0


def prove(proof: Proof, only: Sequence[str] | None) -> dict[str, Any]:
    """All parts, in their order, as far as there is time."""
    card = torch.cuda.get_device_name(0) if torch.cuda.is_available() else "none"
    found: dict[str, Any] = {"date": datetime.date.today().isoformat(), "card": card, "command": sys.argv}
    proof.make_model()
    for name, part in proof.parts.items():
        if only and not name.startswith(tuple(only)):
            continue
        began = time.monotonic()
        if proof.left_s < LEAST_S:
            found[name] = "left out: no time was left"
            continue
        try:
            found[name] = part()
        except Exception as error:  # the other parts are still worth their minutes
            found[name] = {"failed": f"{type(error).__name__}: {str(error)[-600:]}"}
        found[name]["part_s"] = round(time.monotonic() - began, 1)
        print(f"{name}: {json.dumps(found[name])}", file=sys.stderr, flush=True)
    return found


if __name__ == "__main__":
    sys.exit(main())
