"""Greedy answers of the real vLLM, with adapters beside its model or without, in a process of its own: one process has
one engine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests import ROOT

Answer = tuple[list[int], list[float]]


def answers(model: Path, adapters: Path | None, prompts: Sequence[str]) -> list[Answer]:
    """Of each prompt (token ids, the log-probability of each)."""
    found = subprocess.run(
        [
            sys.executable,
            "-m",
            "tests.deploy.kinds.language.vllm_with_adapters",
            str(model),
            str(adapters or ""),
            *prompts,
        ],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1", "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "0"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert found.returncode == 0, found.stderr[-3000:]
    return [(tokens, logprobs) for tokens, logprobs in json.loads(found.stdout.splitlines()[-1])]


def main(model: str, adapters: str, *prompts: str) -> None:
    from vllm import LLM, SamplingParams
    from vllm.lora.request import LoRARequest

    engine = LLM(
        model, enable_lora=bool(adapters), max_lora_rank=8, max_model_len=16, dtype="float32", enforce_eager=True
    )
    request = LoRARequest("policy", 1, adapters) if adapters else None
    params = SamplingParams(temperature=0.0, max_tokens=4, logprobs=1, ignore_eos=True)
    outputs = engine.generate(list(prompts), params, lora_request=request, use_tqdm=False)
    told = []
    for output in outputs:
        completion: Any = output.outputs[0]
        tokens = [int(token) for token in completion.token_ids]
        told.append((tokens, [step[token].logprob for step, token in zip(completion.logprobs, tokens, strict=True)]))
    print(json.dumps(told))


if __name__ == "__main__":
    main(*sys.argv[1:])
