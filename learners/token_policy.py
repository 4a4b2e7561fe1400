"""Language models as the learner uses them: padded rows in, one number per sampled token out. The only file of the
learners that knows Hugging Face models; it must never know a loss."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, cast

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from rollcall.cluster.errors import BadInput
from rollcall.cluster.sampling import SamplingConfig
from rollcall.learners.lora import LoraConfig
from rollcall.learners.prompt_sharing import PROMPT, SharedPrompts, attends
from rollcall.learners.sampling import Processed, process_logits
from rollcall.learners.token_batch import TokenRows

LANGUAGE_EXTRA = "pip install 'rollcall-rl[lm-cpu]' (or [lm-gpu] on a machine with a GPU)"


class WarmStartConfig(BaseModel):
    """Supervised fine-tuning on a task's demonstrations, before reinforcement learning or on its own."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    steps: int = Field(default=400, ge=1, description="gradient steps")
    batch_size: int = Field(default=128, ge=1, description="demonstrations of one step")
    learning_rate: float = Field(default=1e-3, gt=0, description="step size")
    anneal_learning_rate: bool = Field(
        default=True,
        description="linearly to zero: the best model for its steps, but in so sharp a minimum that reinforcement "
        "learning at a useful rate first throws it out again; false before that",
    )
    num_rows: int | None = Field(
        default=None, ge=1, description="demonstrations there are: the first of the task's shuffled rows; None: all"
    )
    token_budget: int = Field(default=16384, ge=1, description="padded tokens of one forward pass")
    threads: int = Field(default=2, ge=1, le=256, description="CPU threads: the actors have not begun yet")
    lora: LoraConfig | None = Field(
        default=None,
        description="train adapters alone, and merge them into the model at the end; none: train all of it",
    )


class LMPolicyConfig(BaseModel):
    """The language model, and in what precision it is trained."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str = Field(default="tiny", description="a Hugging Face directory or name; tiny: made by the run itself")
    tiny: dict[str, Any] = Field(
        default_factory=dict, description="for model=tiny: hidden_size, num_layers and so on; see learners/tiny_model"
    )
    warm_start: WarmStartConfig | None = Field(
        default=None, description="imitate the task's demonstrations first; none: begin with the model as it is"
    )
    init_from: str | None = Field(
        default=None,
        min_length=1,
        description="begin with the policy of another run (its directory, its name under runs/, or one of its "
        "checkpoints) in place of `model`; optimiser, schedules and books begin anew",
    )
    dtype: Literal["float32", "bfloat16"] = Field(
        default="float32", description="of the forward and backward pass (autocast); the weights stay float32"
    )
    gradient_checkpointing: bool = Field(default=False, description="less memory, a third more time")
    share_prompts: bool = Field(
        default=True,
        description="compute a prompt once for several of its samples where that is cheaper: the same result; models "
        "with attention over a window, and others that cannot, do without by themselves",
    )
    lora: LoraConfig | None = Field(
        default=None,
        description="train adapters alone: a fraction of the memory; actors get them merged; none: train all",
    )


def load_policy_model(directory: Path, config: LMPolicyConfig) -> nn.Module:
    """The model of a directory, float32, for training.

    Raises:
      BadInput: when it holds no model that can be loaded.
    """
    try:
        from safetensors import SafetensorError
        from transformers import AutoModelForCausalLM
        from transformers.utils.logging import disable_progress_bar
    except ImportError:
        raise BadInput(f"language models need transformers: {LANGUAGE_EXTRA}") from None
    disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        model: Any = AutoModelForCausalLM.from_pretrained(str(directory), dtype=torch.float32)
    except (OSError, ValueError, SafetensorError) as error:
        first = str(error).strip().splitlines()[0]
        raise BadInput(f"{directory}: no causal language model can be loaded from it: {first}") from None
    model.train()
    if config.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return cast(nn.Module, model)


def autocast_dtype(config: LMPolicyConfig) -> torch.dtype | None:
    return torch.bfloat16 if config.dtype == "bfloat16" else None


class TokenPolicy(nn.Module):
    """A causal language model and the distribution that its tokens are sampled from."""

    def __init__(self, model: nn.Module, sampling: SamplingConfig, *, autocast: torch.dtype | None = None) -> None:
        super().__init__()
        self.model = model
        self._sampling = sampling
        self._autocast = autocast

    def forward(self, rows: TokenRows) -> Processed:
        """Log-probabilities and entropies of the rows' sampled tokens, each [K]."""
        device = rows.token_ids.device
        with torch.autocast(device.type, dtype=self._autocast, enabled=self._autocast is not None):
            states = hidden_states(self.model, rows)
            logits = cast(Any, self.model).get_output_embeddings()(states)
        sampling = self._sampling
        processed = process_logits(
            logits=logits,
            targets=rows.targets,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
        )
        # No view: sharding hangs its hooks on what a module returns, and those of a view can be lost.
        return processed._replace(logprobs=processed.logprobs.clone())


class TokenCritic(nn.Module):
    """A language model's body with a scalar head: the value of the state before each sampled token."""

    def __init__(self, model: nn.Module, *, autocast: torch.dtype | None = None) -> None:
        super().__init__()
        self.body = _body(model)
        self.head = nn.Linear(_hidden_size(model), 1)
        nn.init.zeros_(self.head.weight)  # a critic that knows nothing says 0: the advantages begin as the returns
        nn.init.zeros_(self.head.bias)
        self._autocast = autocast

    def forward(self, rows: TokenRows) -> Tensor:
        """[K]: values."""
        with torch.autocast(rows.token_ids.device.type, dtype=self._autocast, enabled=self._autocast is not None):
            states = _states_of(self.body, rows)
        return cast(Tensor, self.head(states.float()).squeeze(-1).clone())  # as TokenPolicy's: no view


def decoder_layers(module: nn.Module) -> list[nn.Module]:
    """The layers of the language model within, which are computed one after the other: the units of sharding."""
    kinds = {kind for part in module.modules() for kind in getattr(part, "_no_split_modules", None) or ()}
    return [part for part in module.modules() if type(part).__name__ in kinds]


def hidden_states(model: nn.Module, rows: TokenRows) -> Tensor:
    """[K, H]: the last hidden states that predict the sampled tokens; logits are then computed for these alone."""
    return _states_of(_body(model), rows)


def _states_of(body: nn.Module, rows: TokenRows) -> Tensor:
    # No attention mask for plain rows: padding stands on the right, where causal attention does not look.
    shared = {}
    if rows.shared is not None:
        shared = {"position_ids": rows.shared.positions, "attention_mask": rows.shared.attends}
    states: Tensor = body(input_ids=rows.token_ids, use_cache=False, **shared).last_hidden_state
    return states.flatten(0, 1)[rows.predictors]


def _body(model: nn.Module) -> nn.Module:
    return cast(nn.Module, cast(Any, model).base_model)


def sharing_size(model: nn.Module) -> int | None:
    """The hidden size of a model that can compute a prompt once for several of its samples; None: it cannot.

    It must let a mask say who attends to whom, and positions say where a token stands. Attention over a window does
    neither, which only long rows would show; for all else two answers to one prompt are tried in both ways.
    """
    config = cast(Any, model).config.get_text_config()
    windows = getattr(config, "sliding_window", None) is not None and getattr(config, "use_sliding_window", True)
    kinds = set(getattr(config, "layer_types", None) or ())
    if config._attn_implementation != "sdpa" or windows or not kinds <= {"full_attention"}:
        return None
    return _hidden_size(model) if _computes_answers_together(model) else None


@torch.no_grad()
def _computes_answers_together(model: nn.Module) -> bool:
    device, vocab_size = next(model.parameters()).device, int(cast(Any, model).config.get_text_config().vocab_size)
    ids = torch.arange(8, device=device) % vocab_size
    prompt, one, other = ids[:3], ids[3:7], ids[7:]

    def states(*parts: Tensor, shared: SharedPrompts | None = None) -> Tensor:
        ids = torch.cat(parts)
        return _states_of(_body(model), TokenRows(ids[None], torch.arange(len(ids), device=device), ids, shared))

    training = model.training
    model.eval()  # dropout would differ from pass to pass
    try:
        apart = torch.cat([states(prompt, one), states(prompt, other)[len(prompt) :]])
        positions = torch.tensor([[0, 1, 2, 3, 4, 5, 6, 3]], device=device)
        owner = torch.tensor([[PROMPT, PROMPT, PROMPT, 1, 1, 1, 1, 2]], device=device)
        together = states(prompt, one, other, shared=SharedPrompts(positions, attends(owner)))
    except (TypeError, ValueError, RuntimeError):  # a model that takes no such mask, or no positions
        return False
    finally:
        model.train(training)
    return bool((apart - together).norm() <= 1e-3 * apart.norm())


def _hidden_size(model: nn.Module) -> int:
    return int(cast(Any, model).config.get_text_config().hidden_size)
