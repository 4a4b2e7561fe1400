"""Our actor's generation against vLLM's own `LLM.generate` with the same model, prompts and sampling: each in a process
of its own, interleaved, so that a noisy machine disturbs both alike. Prints one JSON.

    .venv/bin/python -m benchmarks.raw_vllm [--sequences 8 64 512] [--tokens 32] [--repeats 5] [OVERRIDE ...]
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rollcall.cluster.messages.weights import Weights
from rollcall.deploy.config.recipe.language_config import LanguageConfig
from rollcall.deploy.drive.lifecycle import prepare
from rollcall.deploy.kinds.language.factory import LanguageFactory
from rollcall.deploy.kinds.recipes import load_config
from rollcall.deploy.tools.bench.aside import Aside
from rollcall.deploy.tools.bench.parts import Generation
from rollcall.learners.collective import Collective

SAMPLES = 8  # of a prompt
PART_S = 2.0  # at the least, of a measurement


class Ours:
    """The production actor."""

    def __init__(self, parts: LanguageFactory, weights: Weights) -> None:
        self._generation = Generation(parts, weights)

    def __call__(self, seconds: float) -> float:
        return self._generation(seconds)[0]


class Raw:
    """vLLM as its users call it."""

    def __init__(self, parts: LanguageFactory, seeds: bool) -> None:
        from rollcall.actors.engine.vllm_arguments import engine_arguments, set_environment

        actors = parts.config.actors
        set_environment(actors.engine, actors.threads)
        import torch
        import vllm

        arguments = engine_arguments(parts.model_directory, actors.engine)
        own = {name: getattr(arguments, name) for name in ("model", "dtype", "max_model_len", "max_num_seqs", "seed")}
        own |= {"enforce_eager": arguments.enforce_eager, "logprobs_mode": arguments.logprobs_mode}
        own |= {"max_num_batched_tokens": arguments.max_num_batched_tokens, "skip_tokenizer_init": True}
        own |= {"gpu_memory_utilization": arguments.gpu_memory_utilization} if torch.cuda.is_available() else {}
        self._llm = vllm.LLM(**own)
        torch.set_num_threads(actors.threads)
        rows, work = parts.task.rows("train"), parts.work()
        count = parts.config.tickets_per_step
        prompts = [parts.codec.prompt(rows[work.assign(number)[1].row].prompt) for number in range(count)]
        self._prompts = [{"prompt_token_ids": prompt} for prompt in prompts for _ in range(SAMPLES)]
        sampling = actors.sampling
        self._params = [
            vllm.SamplingParams(
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                top_k=sampling.top_k,
                max_tokens=sampling.max_tokens,
                ignore_eos=sampling.ignore_eos,
                logprobs=0,
                detokenize=False,
                seed=number if seeds else None,
            )
            for number in range(len(self._prompts))
        ]

    def __call__(self, seconds: float) -> float:
        amount, began = 0, time.perf_counter()
        while True:
            outputs: Any = self._llm.generate(self._prompts, self._params, use_tqdm=False)  # type: ignore[arg-type]
            amount += sum(len(output.outputs[0].token_ids) for output in outputs)
            if time.perf_counter() - began >= seconds:
                return amount / (time.perf_counter() - began)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sequences", type=int, nargs="+", default=[8, 64, 512])
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seeds", action="store_true", help="raw vLLM with a seed a request, as ours has")
    parser.add_argument("overrides", nargs="*")
    args = parser.parse_args()
    results = [compared(number, args) for number in args.sequences]
    print(json.dumps({"tokens": args.tokens, "overrides": args.overrides, "results": results}))


def compared(sequences: int, args: argparse.Namespace) -> dict[str, Any]:
    overrides = [
        *("actors.engine.enforce_eager=false", "policy.warm_start=null", "actors.sampling.ignore_eos=true"),
        *(f"actors.samples_per_prompt={SAMPLES}", f"actors.prompts_per_batch={sequences // SAMPLES}"),
        *(f"actors.sampling.max_tokens={args.tokens}", f"actors.engine.max_model_len={args.tokens + 16}"),
        *(f"actors.engine.max_num_seqs={sequences}", "runtime=serial", *args.overrides),
    ]
    config = load_config("arithmetic-grpo", overrides)
    assert isinstance(config, LanguageConfig)
    with tempfile.TemporaryDirectory() as folder:
        parts = LanguageFactory(config, Path(folder))
        prepare(parts)
        weights = parts.learner(Collective()).weights(epoch=1, version=0)
        pair = {"ours": Aside("ours", Ours, parts, weights), "raw": Aside("raw vLLM", Raw, parts, args.seeds)}
        try:
            rates: dict[str, list[float]] = {name: [] for name in pair}
            for repeat in range(args.repeats + 1):
                for name in sorted(pair, reverse=bool(repeat % 2)):
                    rate = pair[name](PART_S)
                    if repeat:  # the first warms up
                        rates[name].append(rate)
        finally:
            for part in pair.values():
                part.close()
    return told(sequences, rates["ours"], rates["raw"])


def told(sequences: int, ours: Sequence[float], raw: Sequence[float]) -> dict[str, Any]:
    share = statistics.median(a / b for a, b in zip(ours, raw, strict=True))
    found = {"ours": round(statistics.median(ours)), "raw": round(statistics.median(raw)), "share": round(share, 3)}
    print(f"{sequences} sequences: {found}", file=sys.stderr)
    return {"sequences": sequences, **found}


if __name__ == "__main__":
    main()
