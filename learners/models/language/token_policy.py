"""Language models as the learner uses them: padded rows in, one number per sampled token out."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, ParamSpec, Self, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from rollcall.cluster.errors import BadInput
from rollcall.cluster.messages.sampling import SamplingConfig
from rollcall.learners.batches.placement import Layout
from rollcall.learners.batches.prompt_sharing import Sharing
from rollcall.learners.batches.token_batch import TokenRows
from rollcall.learners.maths.sampling import Distribution, Processed
from rollcall.learners.models.language.causal_model import CausalModel, body_states
from rollcall.learners.models.language.lm_policy_config import LMPolicyConfig
from rollcall.learners.models.language.logits_in_chunks import process_states
from rollcall.learners.models.language.workspace import Workspace, memory_bytes, workspace_bytes

LANGUAGE_EXTRA = "pip install 'rollcall-rl[lm-cpu]' (or [lm-gpu] on a machine with a GPU)"

_CPU = torch.device("cpu")
_log = logging.getLogger("rollcall")
_P = ParamSpec("_P")
_T = TypeVar("_T")


def preload() -> None:
    """Imports what a learner of language models needs: seconds, for which no model has to be there."""
    try:
        from transformers import AutoModelForCausalLM  # noqa: F401
    except ImportError:
        return  # whoever loads the model says so


def load_policy_model(directory: Path, config: LMPolicyConfig, *, device: torch.device = _CPU) -> nn.Module:
    """The model of a directory, float32, for learning: in evaluation mode, so without dropout. What a policy says of a
    token would otherwise be another thing in each pass, and its ratio to itself not 1.

    Args:
      device: where it is to learn.

    Raises:
      BadInput: when it holds no model that can be loaded, or one that cannot be learnt here, naming its architecture.
    """
    try:
        from safetensors import SafetensorError
        from transformers import AutoModelForCausalLM
        from transformers.utils.logging import disable_progress_bar
    except ImportError:
        raise BadInput(f"language models need transformers: {LANGUAGE_EXTRA}") from None
    disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        model: Any = AutoModelForCausalLM.from_pretrained(str(directory), dtype=torch.float32, return_dict=True)
    except (OSError, ValueError, SafetensorError) as error:
        first = str(error).strip().splitlines()[0]
        raise BadInput(f"{directory}: no causal language model can be loaded from it: {first}") from None
    model.eval()
    halves = CausalModel(model)
    halves.check()
    if config.attention == "flex" or (config.attention == "auto" and device.type == "cuda"):
        reason = halves.pack(device=device, dtype=autocast_dtype(config) or torch.float32)
        if reason:
            level = logging.WARNING if config.attention == "flex" else logging.INFO
            _log.log(level, "policy.attention: %s keeps sdpa and padded rows: %s", type(model).__name__, reason)
    if config.gradient_checkpointing:
        _checkpoint_layers(model)
    return cast(nn.Module, model)


def model_length(directory: Path) -> int | None:
    """Positions that a model was made for; None where its config does not say, or stretches them (scaled RoPE).

    Raises:
      BadInput: when the directory has no config that can be read.
    """
    from transformers import AutoConfig

    try:
        config: Any = AutoConfig.from_pretrained(str(directory)).get_text_config()
    except Exception as error:  # whatever a config of somebody's makes its class raise
        first = " ".join(str(error).split())[:300]
        raise BadInput(f"{directory}: no model's config can be read from it: {first}") from None
    rope = getattr(config, "rope_parameters", None) or {}
    kinds = {part.get("rope_type", "default") for part in (rope, *rope.values()) if isinstance(part, dict)}
    length = getattr(config, "max_position_embeddings", None)
    return int(length) if length and kinds <= {"default"} else None


def _checkpoint_layers(model: nn.Module) -> None:
    """As transformers would, which does it in training mode alone."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    layers = [part for part in model.modules() if isinstance(part, GradientCheckpointingLayer)]
    if not layers:
        raise BadInput(
            f"policy.gradient_checkpointing = true: {type(model).__name__} has no layers for it: set it to false"
        )
    for layer in layers:
        setattr(layer, "forward", partial(_checkpointed, layer.forward))  # noqa: B010 - mypy: a method


def _checkpointed(forward: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
    if not torch.is_grad_enabled():
        return forward(*args, **kwargs)
    called = partial(forward, *args, **kwargs)
    return cast(_T, checkpoint(called, use_reentrant=False, preserve_rng_state=False))


def autocast_dtype(config: LMPolicyConfig) -> torch.dtype | None:
    return torch.bfloat16 if config.dtype == "bfloat16" else None


class TokenPolicy(nn.Module):
    """A causal language model and the distribution that its tokens are sampled from. Always without dropout."""

    def __init__(
        self,
        model: nn.Module,
        sampling: SamplingConfig,
        *,
        autocast: torch.dtype | None = None,
        logits_mib: float | None = None,
    ) -> None:
        """`logits_mib`: as LMPolicyConfig.logits_workspace_mib."""
        super().__init__()
        self.model = model
        self._halves = CausalModel(model)
        self._sampling = sampling
        self._autocast = autocast
        self._logits_mib = logits_mib
        self.eval()

    def train(self, mode: bool = True) -> Self:
        """Evaluation mode, whatever is asked for."""
        return super().train(False)

    def forward(self, rows: TokenRows, *, as_sampled: bool = True) -> Processed:
        """Log-probabilities and entropies of the rows' sampled tokens, each [K]; `as_sampled=False`: under the model
        itself, without temperature and nucleus."""
        device = rows.token_ids.device
        sampling = self._sampling if as_sampled else SamplingConfig()
        with self._precision(device):
            states = self._halves.states(rows)
        size = workspace_bytes(self._logits_mib, device_type=device.type, device_bytes=memory_bytes(device))

        def head(states: Tensor) -> Tensor:
            with self._precision(device):
                return self._halves.logits(states)

        processed = process_states(
            head,
            states=states,
            targets=rows.targets,
            distribution=Distribution(sampling.temperature, sampling.top_p, sampling.top_k),
            at_once=Workspace(size, self._halves.vocab_size).tokens,
        )
        # No view: sharding hangs its hooks on what a module returns, and those of a view can be lost.
        return processed._replace(logprobs=processed.logprobs.clone())

    def _precision(self, device: torch.device) -> torch.autocast:
        return torch.autocast(device.type, dtype=self._autocast, enabled=self._autocast is not None)


class TokenCritic(nn.Module):
    """A language model's body with a scalar head: the value of the state before each sampled token. Always without
    dropout."""

    def __init__(self, model: nn.Module, *, autocast: torch.dtype | None = None) -> None:
        super().__init__()
        halves = CausalModel(model)
        self.body = halves.body
        self.head = nn.Linear(halves.width, 1)
        nn.init.zeros_(self.head.weight)  # a critic that knows nothing says 0: the advantages begin as the returns
        nn.init.zeros_(self.head.bias)
        self._autocast = autocast
        self.eval()

    def train(self, mode: bool = True) -> Self:
        """Evaluation mode, whatever is asked for."""
        return super().train(False)

    def forward(self, rows: TokenRows) -> Tensor:
        """[K]: values."""
        with torch.autocast(rows.token_ids.device.type, dtype=self._autocast, enabled=self._autocast is not None):
            states = body_states(self.body, rows)
        # float32, whatever the head's weights are kept in. No view: as TokenPolicy's.
        values = nn.functional.linear(states.float(), self.head.weight.float(), self.head.bias.float())
        return values.squeeze(-1).clone()


def decoder_layers(module: nn.Module) -> list[nn.Module]:
    """The layers of the language model within, which are computed one after the other: the units of sharding."""
    kinds = {kind for part in module.modules() for kind in getattr(part, "_no_split_modules", None) or ()}
    return [part for part in module.modules() if type(part).__name__ in kinds]


def layout_of(model: nn.Module, *, share_prompts: bool = True, token_budget: int = 0) -> Layout:
    """How samples stand in the passes of a model that was loaded here: as its attention has them."""
    if CausalModel(model).packed:
        return Layout(Sharing(None, token_budget) if share_prompts else None, packed=True)
    size = sharing_size(model) if share_prompts else None
    return Layout(None if size is None else Sharing(size, token_budget))


def sharing_size(model: nn.Module) -> int | None:
    """The hidden size of a model that can compute a prompt once for several of its samples; None: it cannot."""
    halves = CausalModel(model)
    return halves.width if halves.shares_prompts() else None


def canary_tokens(model: nn.Module, length: int) -> list[int]:
    """What every text begins with, if anything, and then tokens from all over a model's vocabulary: many embeddings and
    experts see one. The same for the same model, whatever its weights."""
    config = cast(Any, model).config.get_text_config()
    first = [config.bos_token_id] if isinstance(config.bos_token_id, int) else []
    # The stride is a prime: a small vocabulary is gone through in an order that repeats late.
    return [*first, *((7919 * index) % config.vocab_size for index in range(1, length + 1))][:length]
