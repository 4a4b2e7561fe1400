"""README.md of an exported language model: where it is from, how it was trained and how well it does, for people who
find it without the run."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from rollcall.cluster.files import read_json

CARD = "README.md"
_ON_HUB = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")  # NAME, or OWNER/NAME; a path that is gone is none


@dataclass(frozen=True)
class Training:
    """What a card says of the run."""

    run_directory: Path
    algorithm: str
    trained_on: str  # the task or the data
    base: str  # the model that it began with; empty: made by the run itself
    settings: Mapping[str, Any]  # the algorithm's own

    @classmethod
    def of(cls, run_directory: Path, config: Any, trained_on: str) -> Training:
        """Of a run with such a config, whose policy is a language model."""
        base = "" if config.policy.model == "tiny" else config.policy.model
        return cls(run_directory, config.algorithm_name, trained_on, base, config.algorithm.model_dump(mode="json"))


def model_card(training: Training, *, marker: Mapping[str, Any], dtype: str, adapters: bool) -> str:
    """Markdown, with the header that the Hugging Face hub reads. Nothing of the machine is in it: paths are left out.

    `marker`: what rollcall.json says.
    """
    on_hub = bool(_ON_HUB.fullmatch(training.base)) and not Path(training.base).exists()
    header: dict[str, Any] = {
        "library_name": "peft" if adapters else "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["rollcall", "reinforcement-learning", training.algorithm, *(["lora"] if adapters else [])],
    }
    if on_hub:
        header["base_model"] = training.base
    base = f"`{training.base}`" if on_hub else "a local model" if training.base else "a small model made for the task"
    what = "LoRA adapters" if adapters else "A language model"
    lines = [
        f"# {training.run_directory.resolve().name}",
        "",
        f"{what} trained with Rollcall by `{training.algorithm}` on `{training.trained_on}`, from {base}.",
        "",
        "| | |",
        "| --- | --- |",
        f"| learner steps | {marker['policy_version']} |",
        *_evaluated(training.run_directory, int(marker["policy_version"])),
        f"| weights | {dtype} |",
        f"| config hash | `{str(marker['config_hash'])[:12]}` |",
        "",
        "Use:",
        "",
        "```python",
        *(_PEFT if adapters else _TRANSFORMERS),
        "```",
        "",
        "The algorithm's settings:",
        "",
        "```json",
        json.dumps(dict(training.settings), indent=1, default=str),
        "```",
    ]
    return f"---\n{yaml.safe_dump(header, sort_keys=False)}---\n\n" + "\n".join(lines) + "\n"


_TRANSFORMERS = (
    "from transformers import AutoModelForCausalLM, AutoTokenizer",
    "",
    'model = AutoModelForCausalLM.from_pretrained("DIRECTORY_OR_NAME")',
    'tokenizer = AutoTokenizer.from_pretrained("DIRECTORY_OR_NAME")',
)
_PEFT = (
    "from peft import AutoPeftModelForCausalLM",
    "",
    'model = AutoPeftModelForCausalLM.from_pretrained("DIRECTORY_OR_NAME")',
)


def _evaluated(run_directory: Path, version: int) -> list[str]:
    """The run's last evaluation, where it is of this version."""
    summary = read_json(run_directory / "summary.json")
    found = summary.get("final_eval") or {}
    if found.get("mean") is None or summary.get("learner_steps") != version:
        return []
    first = (summary.get("first_eval") or {}).get("mean")
    before = "" if first is None else f", {first:.4g} before"
    return [f"| {found.get('unit') or 'mean reward'} | {found['mean']:.4g}{before} (n = {found.get('n')}) |"]
