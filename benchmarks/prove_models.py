"""Whether learner and engine agree for models of many architectures: each, tiny and with random weights, learns five
steps of GRPO at lag 0; its metric `mismatch` must stay below what the dtype allows; and what is exported must be loaded
by transformers and by vLLM to the same log-probabilities. A model that is refused in one line has kept the promise too.

With --real-vocabularies: the nine families that people train, each with the vocabulary of its best-known model (the
tokenizer here names the first 300 of them); they imitate demonstrations before they learn by GRPO.

python -m benchmarks.prove_models [--real-vocabularies] [--only NAME ...] [--runtime serial ray] [--jobs N]
                                  [--json FILE] [key=value ...]"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, cast

AT_MOST = {"float32": 1e-3, "bfloat16": 0.1}
RECIPE = """\
total_learner_steps: 5
max_policy_lag: 0
task: {{name: jsonl, path: {rows}, judge: contains}}
policy: {{model: {model}}}
algorithm: grpo
actors:
  samples_per_prompt: 4
  prompts_per_batch: 4
  sampling: {{max_tokens: 16}}
  engine: {{max_model_len: 64, max_num_seqs: 32, enforce_eager: true}}
learner: {{learning_rate: 1e-3}}
eval: {{episodes: 0}}
metrics: {{enabled: false}}
"""
REAL = {
    "gpt2": 50_257,
    "opt": 50_272,
    "llama": 128_256,
    "qwen2": 151_936,
    "qwen3": 151_936,
    "gemma3": 262_144,
    "mistral": 32_768,
    "phi3": 32_064,
    "qwen3-moe": 151_936,
}
WARM_START = "policy.warm_start={steps: 3, batch_size: 2}"
QUESTIONS = ("What is 1 plus 2?", "What is 3 plus 4?", "What is 5 plus 6? Say it slowly, please, in words.")


def families(vocab_size: int) -> dict[str, Callable[[], Any]]:
    """Configurations by name: few layers, and everything that a family does differently."""
    import transformers

    t: Any = transformers
    ids: dict[str, Any] = {"vocab_size": vocab_size, "bos_token_id": 1, "eos_token_id": 1, "pad_token_id": 0}
    heads = {"num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 256}
    sizes: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 128, **heads, **ids}
    wide = {**sizes, "head_dim": 32}
    old: dict[str, Any] = {"n_embd": 64, "n_head": 2, "n_layer": 2, "n_positions": 256, **ids}
    plain = {name: value for name, value in sizes.items() if name != "num_key_value_heads"}
    experts = {"num_experts_per_tok": 2, "num_experts": 4}
    return {
        "gpt2": lambda: t.GPT2Config(**old),  # its dropout is 0.1
        "gptj": lambda: t.GPTJConfig(rotary_dim=16, **old),
        "gpt-neox": lambda: t.GPTNeoXConfig(**plain),
        "opt": lambda: t.OPTConfig(ffn_dim=128, word_embed_proj_dim=64, **plain),
        "bloom": lambda: t.BloomConfig(hidden_size=64, n_head=2, n_layer=2, **ids),
        "llama": lambda: t.LlamaConfig(**wide),
        "qwen2": lambda: t.Qwen2Config(tie_word_embeddings=True, **sizes),
        "qwen3": lambda: t.Qwen3Config(tie_word_embeddings=True, **wide),
        "qwen3-moe": lambda: t.Qwen3MoeConfig(moe_intermediate_size=32, decoder_sparse_step=1, **experts, **wide),
        "qwen3-moe-48": lambda: t.Qwen3MoeConfig(moe_intermediate_size=48, decoder_sparse_step=1, **experts, **wide),
        "olmoe": lambda: t.OlmoeConfig(**experts, **{**sizes, "intermediate_size": 32}),
        "mixtral": lambda: t.MixtralConfig(num_local_experts=4, num_experts_per_tok=2, **wide),
        "mistral": lambda: t.MistralConfig(sliding_window=16, **wide),
        "gemma": lambda: t.GemmaConfig(**wide),
        "gemma2": lambda: t.Gemma2Config(final_logit_softcapping=2.0, sliding_window=16, **wide),
        "gemma3": lambda: t.Gemma3TextConfig(sliding_window=16, **wide),
        "phi": lambda: t.PhiConfig(**sizes),
        "phi3": lambda: t.Phi3Config(**sizes),
        "granite": lambda: t.GraniteConfig(logits_scaling=8.0, embedding_multiplier=4.0, **sizes),
        "cohere": lambda: t.CohereConfig(logit_scale=0.25, **sizes),
        "cohere2": lambda: t.Cohere2Config(logit_scale=0.25, sliding_window=16, **wide),
        "olmo2": lambda: t.Olmo2Config(**sizes),
        "smollm3": lambda: t.SmolLM3Config(**sizes),
        "starcoder2": lambda: t.Starcoder2Config(**sizes),
        "stablelm": lambda: t.StableLmConfig(**sizes),
        "falcon": lambda: t.FalconConfig(**plain),
        "glm": lambda: t.GlmConfig(**wide),
        "glm4": lambda: t.Glm4Config(**wide),
        "nemotron": lambda: t.NemotronConfig(**wide),
        "exaone4": lambda: t.Exaone4Config(sliding_window=16, **sizes),
    }


def build(name: str, folder: Path, *, real: bool) -> None:
    """Writes the model; its weights are drawn wide, so that what it says is far from uniform."""
    import torch
    from transformers import AutoModelForCausalLM

    from rollcall.learners.models.language.byte_tokenizer import byte_tokenizer

    tokenizer = byte_tokenizer(QUESTIONS, vocab_size=300)
    torch.manual_seed(0)
    config = families(REAL[name] if real else len(tokenizer))[name]()
    model: Any = cast(Any, AutoModelForCausalLM).from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(4.0)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def logprobs(engine: str, directory: Path) -> list[float]:
    """Of fixed tokens after one another, by a directory as transformers or vLLM loads it."""
    tokens = [int(token) for token in (7 * number % 300 for number in range(5, 29))]
    if engine == "transformers":
        import torch
        from transformers import AutoModelForCausalLM

        model: Any = AutoModelForCausalLM.from_pretrained(str(directory), dtype=torch.float32)
        model.eval()
        with torch.no_grad():
            logits = model(torch.tensor([tokens])).logits[0].log_softmax(-1)
        return [float(logits[at, token]) for at, token in enumerate(tokens[1:])]
    from vllm import LLM, SamplingParams
    from vllm.inputs import TokensPrompt

    settings: dict[str, Any] = {"max_model_len": 64, "enforce_eager": True, "gpu_memory_utilization": 0.12}
    llm = LLM(str(directory), dtype="float32", skip_tokenizer_init=True, **settings)
    asked = SamplingParams(max_tokens=1, prompt_logprobs=0, detokenize=False)
    (answer,) = llm.generate([TokensPrompt(prompt_token_ids=tokens)], asked, use_tqdm=False)
    said = answer.prompt_logprobs or []
    return [float(at[token].logprob) for at, token in zip(said[1:], tokens[1:], strict=True) if at is not None]


def call(arguments: Sequence[str], folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "OMP_NUM_THREADS": "1"}
    command = ["timeout", "900", sys.executable, *arguments]
    return subprocess.run(
        command, cwd=folder, env=os.environ | environment, capture_output=True, text=True, check=False
    )


def prove(name: str, runtime: str, overrides: Sequence[str], folder: Path, *, real: bool = False) -> dict[str, Any]:
    """One model, trained, exported, and read again."""
    row: dict[str, Any] = {"model": name, "runtime": runtime, "kept": False}
    here = folder / f"{name}-{runtime}"
    here.mkdir()
    me, model = str(Path(__file__).resolve()), here / "model"
    built = call([me, "--build", name, str(model), *(["--real-vocabularies"] if real else [])], here)
    if built.returncode:
        return row | {"error": f"the model cannot be made: {built.stderr.strip()[-200:]}"}
    rows = here / "rows.jsonl"
    rows.write_text(
        "".join(json.dumps({"prompt": q, "answer": a}) + "\n" for q, a in zip(QUESTIONS, "aei", strict=True))
    )
    (here / "arch.yaml").write_text(RECIPE.format(rows=rows, model=model))
    settings = [f"runtime={runtime}", *([WARM_START] if real else []), *overrides]
    trained = call(["-m", "rollcall.deploy.cli", "train", "arch.yaml", *settings], here)
    if trained.returncode == 2 and len(trained.stderr.strip().splitlines()) == 1:
        return row | {"kept": True, "refused": trained.stderr.strip()}
    if trained.returncode:
        return row | {"error": trained.stderr.strip()[-400:]}
    lines = (here / "runs" / "arch" / "metrics.jsonl").read_text().splitlines()
    row["mismatch"] = max(json.loads(line)["mismatch"] for line in lines)
    asked = "bfloat16" if any("bfloat16" in override for override in overrides) else "float32"
    row["at_most"] = AT_MOST[asked]
    said = {}
    for engine in ("transformers", "vllm"):
        read = call([me, "--logprobs", engine, str(here / "runs" / "arch" / "policy")], here)
        if read.returncode:
            return row | {"error": f"{engine} does not load the export: {read.stderr.strip()[-300:]}"}
        said[engine] = json.loads((here / "runs" / "arch" / "policy" / f"{engine}.json").read_text())
    row["export"] = max(abs(a - b) for a, b in zip(said["transformers"], said["vllm"], strict=True))
    return row | {
        "steps": len(lines),
        "kept": row["mismatch"] <= row["at_most"] and row["export"] <= AT_MOST["float32"],
    }


def line(row: dict[str, Any]) -> str:
    if "mismatch" not in row:
        return (
            f"{row['model']:<14}{row['runtime']:<8}{row.get('refused') or 'FAILED: ' + ' '.join(row['error'].split())}"
        )
    verdict = "" if row["kept"] else f"  NOT KEPT {row.get('error', '')}"
    export = f"{row['export']:.1e}" if "export" in row else "-"
    return f"{row['model']:<14}{row['runtime']:<8}mismatch {row['mismatch']:.1e}  export {export}{verdict}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="*", help="architectures")
    parser.add_argument("--real-vocabularies", action="store_true", help="nine families, at full width of words")
    parser.add_argument("--runtime", nargs="*", default=["serial"], choices=["serial", "ray"])
    parser.add_argument("--jobs", type=int, default=1, help="runs side by side")
    parser.add_argument("--json", type=Path, help="also write what was found")
    parser.add_argument("--build", nargs=2, metavar=("NAME", "DIRECTORY"), help=argparse.SUPPRESS)
    parser.add_argument("--logprobs", nargs=2, metavar=("ENGINE", "DIRECTORY"), help=argparse.SUPPRESS)
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    args = parser.parse_args()
    if args.build:
        build(args.build[0], Path(args.build[1]), real=args.real_vocabularies)
        return 0
    if args.logprobs:
        engine, directory = args.logprobs
        (Path(directory) / f"{engine}.json").write_text(json.dumps(logprobs(engine, Path(directory))))
        return 0
    known = REAL if args.real_vocabularies else families(300)
    wanted = [(name, runtime) for runtime in args.runtime for name in known if not args.only or name in args.only]
    rows = []
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(args.jobs) as pool:
        trained = partial(prove, overrides=args.overrides, folder=Path(folder), real=args.real_vocabularies)
        for row in pool.map(lambda what: trained(*what), wanted):
            rows.append(row)
            print(line(row), flush=True)
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1) + "\n")
    failures = sum(not row["kept"] for row in rows)
    print(f"{len(rows)} runs: {failures} targets missed")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
