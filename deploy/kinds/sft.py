"""`rollcall sft`: the warm start of a language recipe as a run of its own, judged before and after on held-out rows.
Knows the order of events; training is warm_start.py's, and nothing here may know a loss."""

from __future__ import annotations

import contextlib
import shutil
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from rollcall.cluster.errors import BadInput
from rollcall.cluster.messages.records import Weights
from rollcall.cluster.messages.reports import EvalReport
from rollcall.cluster.messages.sampling import SamplingConfig
from rollcall.deploy.config.load import AnyConfig, LanguageConfig, load_config
from rollcall.deploy.drive.runs import SUPERVISED, driver_log, write_summary
from rollcall.deploy.kinds.language_parts import LanguageParts
from rollcall.deploy.kinds.parts import POLICY_ID, parts_of
from rollcall.deploy.report.recorders import read_jsonl
from rollcall.learners.loop.flat import module_weights
from rollcall.learners.models.token_policy import TokenPolicy, load_policy_model


def load_supervised(recipe: str, overrides: list[str]) -> LanguageConfig:
    """The configuration of a recipe that says what to imitate.

    Raises:
      BadInput: as load_config, and for a recipe without a task or a warm start.
    """
    config: AnyConfig = load_config(recipe, overrides)
    if not isinstance(config, LanguageConfig):
        raise BadInput(
            f"{recipe}: a control recipe has no demonstrations to imitate: rollcall sft needs one with a task"
        )
    if config.policy.warm_start is None:
        raise BadInput(
            "policy.warm_start = null: nothing to imitate is asked for: give policy.warm_start.steps=400, or a recipe "
            "with a warm start"
        )
    return config


def carry_out(
    config: LanguageConfig, directory: Path, *, recipe: str, tell: Callable[[str], None] = print
) -> dict[str, Any]:
    """Fine-tunes in `directory` and leaves summary.json behind, whatever happens; returns the summary. SIGINT and
    SIGTERM end it: with the whole model if there is one by then, else without any.

    Raises:
      BadInput: before there is a model; the directory is removed again.
      Exception: whatever ended it; its traceback is in <run>/logs/driver.log.
    """
    parts = parts_of(config, directory)
    assert isinstance(parts, LanguageParts)
    began = time.monotonic()
    status, problem = "failed", None
    first = final = None
    with driver_log(directory) as log, _signals_interrupt():
        try:
            parts.check()
            parts.prepare()
            first, final = _evaluate(parts, tell)
            status = "completed"
        except KeyboardInterrupt:
            status = "stopped"
        except Exception as error:
            if isinstance(error, BadInput) and not parts.model_directory.exists():
                shutil.rmtree(directory, ignore_errors=True)
                raise
            error.rollcall_log = directory / "logs" / "driver.log"  # type: ignore[attr-defined]
            log.error("the run ended with an error\n%s", traceback.format_exc())
            problem = error
    summary = {
        "status": status,
        "recipe": recipe,
        "config_hash": config.config_hash,
        "algorithm": SUPERVISED,
        "seed": config.seed,
        "wall_s": time.monotonic() - began,
        "learner_steps": len(read_jsonl(directory / "warm_start.jsonl")),
        "first_eval": _shown(first),
        "final_eval": _shown(final),
        "model_directory": str(directory / "warm_start") if parts.model_directory.exists() else None,
    }
    if problem is not None:
        text = " ".join(f"{type(problem).__name__}: {problem}".split())
        write_summary(directory, {**summary, "error": text[:2000]})
        raise problem
    write_summary(directory, summary)
    return summary


def _evaluate(parts: LanguageParts, tell: Callable[[str], None]) -> tuple[EvalReport | None, EvalReport | None]:
    """The model as it was given and after its fine-tuning, on the held-out rows. Both come after the training: one
    engine serves both, and it need not share a GPU's memory with the trainer."""
    config = parts.config
    rows = parts.eval_episodes
    if rows == 0:
        return None, None
    tell(f"answering {rows} held-out rows, before and after")
    torch.cuda.empty_cache()
    as_given = config.model_copy(update={"policy": config.policy.model_copy(update={"warm_start": None})})
    evaluator = replace(parts, config=as_given).evaluator()
    try:
        first = evaluator.evaluate(_weights_of(parts.given_model, config, version=0))
        final = evaluator.evaluate(_weights_of(parts.model_directory, config, version=1))
    finally:
        evaluator.close()
    return first, final


def _weights_of(directory: Path, config: LanguageConfig, *, version: int) -> Weights:
    """A model directory's tensors, called as the learner calls those that it publishes."""
    model = TokenPolicy(load_policy_model(directory, config.policy), SamplingConfig())
    return module_weights({"policy": model}, POLICY_ID, epoch=0, version=version)


def _shown(result: EvalReport | None) -> dict[str, Any] | None:
    if result is None:
        return None
    return {"mean": result.mean, "std": result.std, "n": result.n, "unit": result.unit, "unparsed": result.unparsed}


@contextlib.contextmanager
def _signals_interrupt() -> Iterator[None]:
    """SIGTERM as Ctrl-C: there is no checkpoint to wait for, and what is half done is taken away on the way out."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
