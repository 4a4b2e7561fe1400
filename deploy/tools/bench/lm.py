"""`rollcall bench lm`: generation and learning alone, the bound that follows, the whole system, and a peer, interleaved
so that a noisy machine disturbs all of them alike. Measures the production code paths; it has none of its own."""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import statistics
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from rollcall.cluster.cores import usable_cores
from rollcall.cluster.errors import BadInput
from rollcall.cluster.messages.experience import LMTrajectory
from rollcall.deploy.config.recipe.language_config import LanguageConfig
from rollcall.deploy.drive.lifecycle import prepare
from rollcall.deploy.kinds.language.factory import LanguageFactory
from rollcall.deploy.kinds.recipes import load_config
from rollcall.deploy.tools.bench import peers
from rollcall.deploy.tools.bench.aside import Aside
from rollcall.deploy.tools.bench.parts import Generation, Learning, num_tokens
from rollcall.deploy.tools.bench.result import achieved_line, bound_line, compared, last_lines, say, tell, whole_run

PART_S = 3.0  # how long each part is measured, twice per repeat; at the least one batch
WHOLE_S = 20.0  # and the whole system, at its bound
WARM_UP_STEPS = 2  # of a whole run, and of a peer's: the pipeline fills, buffers are allocated
LEAST_STEPS = 6  # that are counted in a whole run
PEER_STEPS = 4  # that are counted of the peer
# An untrained model, and every completion of full length: the work of a step is the same for all who are measured.
# (Its rewards are all 0, and so are its gradients; they cost what others cost.)
_COMPILED = "actors.engine.enforce_eager=false"  # as by default; short recipes do without, which start sooner so
_FULL_LENGTH = (_COMPILED, "policy.warm_start=null", "actors.sampling.ignore_eos=true", "actors.samples_per_prompt=8")
WORKLOADS: Mapping[str, tuple[str, ...]] = {
    # 512 completions x 32 tokens, 0.8M parameters
    "small": (
        *_FULL_LENGTH,
        "actors.prompts_per_batch=64",
        "actors.sampling.max_tokens=32",
        "actors.engine.max_model_len=48",
        "actors.engine.max_num_seqs=512",
    ),
    # 128 completions x 64 tokens, 9.7M parameters
    "large": (
        *_FULL_LENGTH,
        "policy.tiny.hidden_size=384",
        "policy.tiny.num_layers=6",
        "policy.tiny.num_heads=12",
        "policy.tiny.num_kv_heads=6",
        "policy.tiny.intermediate_size=1024",
        "actors.prompts_per_batch=16",
        "actors.sampling.max_tokens=64",
        "actors.engine.max_model_len=80",
        "actors.engine.max_num_seqs=128",
    ),
    "arithmetic": (_COMPILED,),  # otherwise the recipe as it is: after its warm start, completions end by themselves
}


@dataclass(frozen=True)
class Whole:
    """One complete run, without its first steps, and without its last, which also writes a checkpoint."""

    tokens_per_s: float
    step_s: Mapping[str, float]  # seconds of a step, by what they went into; the parts overlap


def counted(records: Sequence[Mapping[str, Any]]) -> Whole:
    """From the lines of metrics.jsonl."""
    first, *steps = records[WARM_UP_STEPS - 1 : -1]
    seconds = steps[-1]["elapsed_s"] - first["elapsed_s"]
    names = {"step": "step_s", "generate": "act_s", "apply": "apply_s", "update": "update_s"}
    names |= {"wait": "wait_batch_s", "publish": "publish_s"}
    means = {name: statistics.mean(float(step[key]) for step in steps) for name, key in names.items()}
    return Whole((steps[-1]["tokens"] - first["tokens"]) / seconds, means)


def _whole_run(config: LanguageConfig, directory: Path) -> Callable[[], Whole]:
    return lambda: counted(whole_run(config, directory))


def main(args: argparse.Namespace) -> int:
    """Runs the benchmark and prints its result. `args`: as arguments.py makes them."""
    dtype = [f"policy.dtype={args.dtype}", f"actors.engine.dtype={args.dtype}"]
    overrides = [*WORKLOADS[args.workload], *dtype, *args.overrides]
    config = _config(args.recipe, overrides)
    peer = peers.prepare(args.peer, say) if args.peer else None
    with tempfile.TemporaryDirectory(prefix="rollcall-bench-") as folder:
        result = _Measurement(config, args.repeats, Path(folder), peer).result()
    settings = {"recipe": args.recipe, "overrides": overrides, "workload": args.workload, "repeats": args.repeats}
    result["settings"] |= settings
    return tell(result, _table, args)


def _config(recipe: str, overrides: Sequence[str]) -> LanguageConfig:
    # Two checkpoints only: at the beginning, and with the last step, which is not counted. No evaluation, in the words
    # of both halves: a control recipe is refused for what it is.
    more = ("runtime=ray", "max_policy_lag=1", "eval.episodes=0", "name=bench", "checkpoint.every_steps=1000000")
    config = load_config(recipe, [*overrides, *more])
    if not isinstance(config, LanguageConfig):
        raise BadInput(f"{recipe}: bench lm measures language recipes; for control: rollcall bench gym {recipe}")
    return config


class _Measurement:
    """One benchmark, from its model to its result."""

    def __init__(self, config: LanguageConfig, repeats: int, scratch: Path, peer: peers.Peer | None) -> None:
        self._repeats, self._scratch, self._peer = repeats, scratch, peer
        self._parts = LanguageFactory(config, scratch)
        self._parts.check()
        if peer is not None and self._parts.task.chat:
            raise BadInput(f"--peer {peer.name}: compared on plain prompts only: set task.chat=false")
        say("making the model ...")
        with contextlib.redirect_stdout(sys.stderr):
            prepare(self._parts)
        self._config = config
        self._generated: list[float] = []
        self._learnt: list[float] = []
        self._wholes: list[Whole] = []
        self._peers: list[float] = []

    def result(self) -> dict[str, Any]:
        learning = Learning(self._parts, num_tokens)
        say("starting an engine ...")
        generation = Aside("generation", Generation, self._parts, learning.initial)
        try:
            rate, learning.batch = generation(0.0)
            self._tell_measured("warming up", "generation", rate)
            learning(0.0)  # twice: the first warms up
            learnt = learning(0.0)
            self._tell_measured("warming up", "learning", learnt)
            config = self._run_config(min(rate, learnt), learning.batch)
            run = Aside("the whole run", _whole_run, config, self._scratch / "run")
            try:
                for repeat in range(self._repeats):
                    self._repeat(repeat, learning, generation, run)
            finally:
                run.close()
        finally:
            generation.close()
        return self._summary(sum(spec.size for spec in learning.initial.index), learning.batch)

    def _run_config(self, bound: float, batch: Sequence[LMTrajectory]) -> LanguageConfig:
        """Long enough to be measured; beginning with the model that there is already."""
        steps = WARM_UP_STEPS + max(LEAST_STEPS, math.ceil(bound * WHOLE_S / sum(map(num_tokens, batch)))) + 1
        policy = self._config.policy.model_copy(
            update={"model": str(self._parts.model_directory), "warm_start": None, "tiny": {}}
        )
        return self._config.model_copy(update={"policy": policy, "total_learner_steps": steps})

    def _repeat(self, repeat: int, learning: Learning, generation: Aside, run: Aside) -> None:
        told = partial(self._tell_measured, f"repeat {repeat + 1}/{self._repeats}")
        for position in range(2):
            self._generated.append(generation(PART_S)[0])
            told("generation", self._generated[-1])
            self._learnt.append(learning(PART_S))
            told("learning", self._learnt[-1])
            if position == 0:
                self._wholes.append(run())
                told("whole", self._wholes[-1].tokens_per_s)
        if self._peer is not None:
            self._peers.append(self._peer.measure(self._peer_settings()).per_second)
            told(self._peer.name, self._peers[-1])

    def _tell_measured(self, when: str, what: str, tokens_per_s: float) -> None:
        say(f"{when}: {what:<10} {tokens_per_s:8,.0f} tokens/s")

    def _peer_settings(self) -> dict[str, Any]:
        """The same model directory, prompts, batch and optimiser settings."""
        actors, sampling, learner = self._config.actors, self._config.actors.sampling, self._config.learner
        steps = WARM_UP_STEPS + PEER_STEPS
        work, rows = self._parts.work(), self._parts.task.rows("train")
        path = self._scratch / "prompts.jsonl"
        with path.open("w", encoding="utf-8") as file:
            for ticket_id in range(steps * actors.prompts_per_batch):
                row = rows[work.assign(ticket_id)[1].row]
                file.write(json.dumps({"prompt": row.prompt, "answer": row.answer}) + "\n")
        return {
            "model": str(self._parts.model_directory),
            "rows": str(path),
            "prompts": actors.prompts_per_batch,
            "samples": actors.samples_per_prompt,
            "sampling": sampling.model_dump(),
            "learning_rate": learner.learning_rate,
            "max_grad_norm": learner.max_grad_norm or 0.0,
            "bfloat16": self._config.policy.dtype == "bfloat16",
            "threads": usable_cores(),  # for one thing after the other: all cores for each
            "steps": steps,
            "warm_up": WARM_UP_STEPS,
        }

    def _summary(self, num_parameters: int, batch: Sequence[LMTrajectory]) -> dict[str, Any]:
        generate, learn = statistics.median(self._generated), statistics.median(self._learnt)
        wholes = [whole.tokens_per_s for whole in self._wholes]
        step_s = {name: statistics.median(w.step_s[name] for w in self._wholes) for name in self._wholes[0].step_s}
        lengths = [int(x) for item in batch for x in _lengths(item)]
        return {
            **compared(min(generate, learn), wholes, {} if self._peer is None else {self._peer.name: self._peers}),
            "unit": "tokens/s",
            "limiter": limiter(generate, learn, step_s),
            "parts_tokens_per_s": {"generate": round(generate), "learn": round(learn)},
            "whole_step_s": {name: round(value, 4) for name, value in step_s.items()},
            "all": {
                "whole": [round(x) for x in wholes],
                "generate": [round(x) for x in self._generated],
                "learn": [round(x) for x in self._learnt],
                "peer": [round(x) for x in self._peers],
            },
            "settings": {
                "parameters": num_parameters,
                "completions": len(lengths),
                "tokens_per_completion": round(statistics.mean(lengths), 2),
            },
        }


def _lengths(item: LMTrajectory) -> Sequence[int]:
    """Sampled tokens of each completion."""
    ends = item.loss_mask.cumsum()[item.sample_offsets[1:] - 1].tolist()
    return [end - begin for begin, end in zip([0, *ends], ends, strict=False)]


def limiter(generate: float, learn: float, step_s: Mapping[str, float]) -> str:
    """Which part alone is the slower one, and where the seconds of a whole step went beside it."""
    slower, busy = ("learning", "update") if learn <= generate else ("generation", "generate")
    alone = f"{min(generate, learn):,.0f} tokens/s on one core; the other part alone {max(generate, learn):,.0f}"
    return (
        f"{slower} ({alone}); of a step's {step_s['step']:.3f} s it works {step_s[busy]:.3f}; the learner waits for "
        f"its batch {step_s['wait']:.3f}, publishing takes {step_s['publish']:.3f}, the actor's loading of weights "
        f"{step_s['apply']:.3f}"
    )


def _table(result: Mapping[str, Any]) -> list[str]:
    parts, step, settings = result["parts_tokens_per_s"], result["whole_step_s"], result["settings"]
    return [
        f"settings    {settings['recipe']} {' '.join(settings['overrides'])}",
        f"            {settings['completions']} completions of {settings['tokens_per_completion']:.1f} tokens, "
        f"{settings['parameters']:,} parameters; medians of {settings['repeats']} repeats",
        f"generation  {parts['generate']:8,d} {result['unit']} alone",
        f"learning    {parts['learn']:8,d} {result['unit']} alone",
        bound_line(result, "min(generation, learning), one core each"),
        achieved_line(result),
        "a step      " + ", ".join(f"{name} {seconds:.3f} s" for name, seconds in step.items()),
        *last_lines(result),
    ]
