"""What a real vocabulary costs the learner: a small Qwen3 with arithmetic-grpo's settings and 32 tokens a completion,
the vocabulary from 5,000 to 256,000 tokens, each in a process of its own. Shown are the process's peak memory, its time
for a token, and that loss and gradient are those of all logits at once. A few minutes on one core.

python -m benchmarks.prove_logits [--only memory gradients] [--append FILE.md]"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from typing import Any, cast

import numpy as np
import torch

from benchmarks.proofs import ROOT, Row, parser, report
from rollcall.cluster.messages.attempt import Header
from rollcall.cluster.messages.experience import LMTrajectory
from rollcall.cluster.messages.reports import StepOrder
from rollcall.cluster.messages.sampling import SamplingConfig
from rollcall.cluster.messages.steps import SampledTokens
from rollcall.learners.algorithms.language.grpo import GRPO
from rollcall.learners.algorithms.language.token_settings import TOKEN_BUDGET
from rollcall.learners.collators.language import LanguageCollator
from rollcall.learners.loop.config import LearnerConfig
from rollcall.learners.loop.learner import Learner
from rollcall.learners.models.language.token_policy import TokenPolicy

QWEN = 151_936
SMALL = 5_000
VOCABULARIES = (SMALL, 50_000, QWEN, 256_000)
HIDDEN, PROMPT, COMPLETION, GROUP = 64, 6, 32, 8
AT_MOST_GB, AT_MOST_SLOWER, AT_MOST_APART = 2.5, 1.3, 1e-5
WHOLE_MIB = 2.0**20  # room for all logits at once


def learner_of(vocab_size: int, *, logits_mib: float | None = None) -> Learner:
    import transformers

    torch.manual_seed(0)
    config = cast(Any, transformers).Qwen3Config(
        **{"vocab_size": vocab_size, "hidden_size": HIDDEN, "num_hidden_layers": 2, "num_attention_heads": 2},
        **{"num_key_value_heads": 1, "head_dim": 32, "intermediate_size": 128, "tie_word_embeddings": True},
    )
    model = cast(Any, transformers.AutoModelForCausalLM).from_config(config, dtype=torch.float32)
    return Learner(
        models={"policy": TokenPolicy(model, SamplingConfig(), logits_mib=logits_mib)},
        algorithm=GRPO(GRPO.Config()),
        config=LearnerConfig(learning_rate=4e-4, max_grad_norm=1.0).for_language(),
        policy_id="policy",
        run_seed=0,
        collator=LanguageCollator(token_budget=TOKEN_BUDGET),
    )


def experience(vocab_size: int, *, groups: int, completion: int = COMPLETION) -> list[LMTrajectory]:
    rng = np.random.default_rng(0)
    found = []
    for ticket in range(groups):
        length = PROMPT + completion
        mask = np.tile(np.arange(length) >= PROMPT, GROUP)
        found.append(
            LMTrajectory(
                header=Header(ticket, 1, 1, "policy"),
                row=ticket,
                sample_offsets=np.arange(GROUP + 1) * length,
                token_ids=rng.integers(0, vocab_size, GROUP * length).astype(np.int32),
                loss_mask=mask,
                tokens=SampledTokens(np.where(mask, -np.log(vocab_size), 0.0).astype(np.float32)),
                version_spans=np.array([(0, GROUP * length, 0)], np.int64),
                rewards=rng.random(GROUP).astype(np.float32),
                finish_reasons=("stop",) * GROUP,
            )
        )
    return found


def cost(vocab_size: int) -> dict[str, float]:
    """Of two learner steps: peak memory in GB, and CPU time for a token of the second, in ms."""
    learner, batch = learner_of(vocab_size), experience(vocab_size, groups=64)
    learner.update(batch, StepOrder(0, 1, 0.0))
    begun = time.process_time()
    learner.update(batch, StepOrder(1, 1, 0.0))
    taken = time.process_time() - begun
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"peak": peak / 1e9, "ms": 1e3 * taken / (64 * GROUP * COMPLETION)}


def plain_cost(vocab_size: int) -> dict[str, float]:
    """What the output layer takes at the least, in ms of CPU time for a token: logits, their log-softmax, and both
    gradients, of as many tokens as fit easily."""
    torch.set_num_threads(1)
    weight = torch.randn(vocab_size, HIDDEN).requires_grad_()
    states, targets = torch.randn(256, HIDDEN).requires_grad_(), torch.zeros(256, 1, dtype=torch.int64)
    found = []
    for _ in range(4):
        begun = time.process_time()
        torch.autograd.backward((states @ weight.T).log_softmax(-1).gather(-1, targets).sum())
        found.append(time.process_time() - begun)
    return {"ms": 1e3 * min(found) / len(states)}


def apart(vocab_size: int) -> dict[str, float]:
    """How far loss and gradient in chunks are from those of all logits at once, relative to these; 512 tokens."""
    losses, gradients = [], []
    for logits_mib in (None, WHOLE_MIB):
        learner = learner_of(vocab_size, logits_mib=logits_mib)
        report, _ = learner.update(experience(vocab_size, groups=2), StepOrder(0, 1, 0.0))
        losses.append(report.metrics["loss"])
        gradients.append(learner._trained.gradient.clone())
    return {
        "loss": abs(losses[0] - losses[1]) / abs(losses[1]),
        "gradient": float((gradients[0] - gradients[1]).norm() / gradients[1].norm()),
    }


MEASURES: dict[str, Callable[[int], dict[str, float]]] = {"cost": cost, "plain": plain_cost, "apart": apart}


def measured(name: str, vocab_size: int) -> dict[str, float]:
    """In a process of its own, for its peak memory."""
    command = [sys.executable, "-m", "benchmarks.prove_logits", "--measure", name, str(vocab_size)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{name} of {vocab_size}: exit code {done.returncode}: {done.stderr.strip()[-400:]}")
    return cast(dict[str, float], json.loads(done.stdout.splitlines()[-1]))


def memory() -> Iterable[Row]:
    least = {size: measured("plain", size)["ms"] for size in VOCABULARIES}
    found = {}
    for size in VOCABULARIES:
        found[size] = measured("cost", size)
        peak, taken = found[size]["peak"], found[size]["ms"]
        slower = taken / (found[SMALL]["ms"] + least[size] - least[SMALL])
        text = (
            f"peak {peak:.2f} GB; {taken:.2f} ms of CPU a token, the output layer alone {least[size]:.2f}: "
            f"{slower:.2f} times the {SMALL:,} and what the layer takes more"
        )
        fast = slower <= AT_MOST_SLOWER or size != QWEN  # the target of that one; of the others it is told
        yield Row(f"vocabulary of {size:,}", text, peak < AT_MOST_GB and fast)


def gradients() -> Iterable[Row]:
    found = measured("apart", QWEN)
    text = f"loss {found['loss']:.1e}, gradient {found['gradient']:.1e} from those of all logits at once (relative)"
    yield Row(f"vocabulary of {QWEN:,}, 512 tokens", text, max(found.values()) <= AT_MOST_APART)


PROOFS = {"memory": memory, "gradients": gradients}


def main() -> int:
    arguments = parser(__doc__, PROOFS)
    arguments.add_argument("--measure", nargs=2, metavar=("WHAT", "VOCABULARY"), help="one number, as JSON")
    args = arguments.parse_args()
    if args.measure:
        print(json.dumps(MEASURES[args.measure[0]](int(args.measure[1]))))
        return 0
    return report((row for name in args.only or PROOFS for row in PROOFS[name]()), args.append)


if __name__ == "__main__":
    sys.exit(main())
