"""A causal language model taken apart: a body that gives hidden states, and the model's own way from there to logits,
which are then computed for the tokens that need them alone."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import Tensor, nn

from rollcall.cluster.errors import BadInput
from rollcall.learners.batches.prompt_sharing import PROMPT, SharedPrompts, attends
from rollcall.learners.batches.token_batch import TokenRows

_AGREE = 1e-3  # relative: other float32 arithmetic stays below, another computation does not
_WINDOWS = ("window", "window_size", "chunk_size")  # how configs name attention that does not reach back to the start


class CausalModel:
    """The two halves of a Hugging Face model."""

    def __init__(self, model: nn.Module) -> None:
        own: Any = model
        self._model = own
        decoder, base = own.get_decoder(), own.base_model
        self.body: nn.Module = base if base is not model else self._largest_part()
        # What the forward pass asks for hidden states is the body, or (OPT) the decoder within it.
        self._asked = [part for part in self.body.modules() if part is self.body or part is decoder]

    @property
    def width(self) -> int:
        """H, of the states."""
        output = self._model.get_output_embeddings()
        if isinstance(output, nn.Linear):
            return output.in_features
        return int(self._model.config.get_text_config().hidden_size)

    @property
    def vocab_size(self) -> int:
        """V, of the logits."""
        return int(self._model.config.get_text_config().vocab_size)

    def states(self, rows: TokenRows) -> Tensor:
        """[K, H]: the last hidden states that predict the sampled tokens."""
        return body_states(self.body, rows)

    def logits(self, states: Tensor) -> Tensor:
        """[K, V], of states [K, H], as the model's own forward pass makes them: a softcap, a scale, a bias and whatever
        else it does after the body are in it. The body stands aside for this call."""
        output = _BodyOutput(states.unsqueeze(1))  # K sequences of one token
        place_holders = torch.zeros(len(states), 1, dtype=torch.int64, device=states.device)
        with contextlib.ExitStack() as stack:
            for part in self._asked:
                stack.enter_context(_answering(part, output))
            return cast(Tensor, self._model(input_ids=place_holders, use_cache=False).logits.squeeze(1))

    def check(self) -> None:
        """Tries the halves: two rows, one of them padded, must say what each of them says alone through the whole.

        Raises:
          BadInput: naming the architecture, when they do not.
        """
        texts = [self._tokens(9), self._tokens(5).flip(0)]
        device = texts[0].device
        token_ids = torch.zeros(2, 9, dtype=torch.int64, device=device)
        for row, text in enumerate(texts):
            token_ids[row, : len(text)] = text
        predictors = torch.cat([torch.arange(9), 9 + torch.arange(5)]).to(device)
        with torch.no_grad(), _evaluating(self._model):
            try:
                logits = self.logits(self.states(TokenRows(token_ids, predictors, torch.cat(texts))))
                alone = torch.cat([self._model(input_ids=text[None], use_cache=False).logits[0] for text in texts])
                agrees = logits.shape == alone.shape and _close(_centred(logits), _centred(alone))
            except Exception as error:  # whatever a model raises that takes no such call
                raise self._refusal(f"{type(error).__name__}: {error}") from error
        if not agrees:
            raise self._refusal("in padded rows, or from its last hidden states, it says something else")

    def shares_prompts(self) -> bool:
        """Whether a prompt can be computed once for several of its samples.

        The model must let a mask say who attends to whom, and positions say where a token stands. Attention over a
        window does neither, which only long rows would show; for all else two answers to one prompt are tried in both
        ways.
        """
        config = self._model.config.get_text_config()
        settings = config.to_dict()
        windows = settings.get("use_sliding_window", True) and any(
            name.endswith(_WINDOWS) and isinstance(value, int) and value for name, value in settings.items()
        )
        kinds = set(getattr(config, "layer_types", None) or ())
        if config._attn_implementation != "sdpa" or windows or not kinds <= {"full_attention"}:
            return False
        with torch.no_grad(), _evaluating(self._model):
            return self._computes_answers_together()

    def _largest_part(self) -> nn.Module:
        """Of a model that does not say which of its parts is the body (Llama 4)."""
        output = self._model.get_output_embeddings()
        parts: list[nn.Module] = [part for part in self._model.children() if part is not output]
        return max(parts, key=lambda part: sum(parameter.numel() for parameter in part.parameters()))

    def _computes_answers_together(self) -> bool:
        ids = self._tokens(8)
        prompt, one, other = ids[:3], ids[3:7], ids[7:]

        def states(*parts: Tensor, shared: SharedPrompts | None = None) -> Tensor:
            ids = torch.cat(parts)
            return self.states(TokenRows(ids[None], torch.arange(len(ids), device=ids.device), ids, shared))

        apart = torch.cat([states(prompt, one), states(prompt, other)[len(prompt) :]])
        positions = torch.tensor([[0, 1, 2, 3, 4, 5, 6, 3]], device=ids.device)
        owner = torch.tensor([[PROMPT, PROMPT, PROMPT, 1, 1, 1, 1, 2]], device=ids.device)
        try:
            together = states(prompt, one, other, shared=SharedPrompts(positions, attends(owner)))
        except Exception:  # whatever a model raises that takes no such mask, or no positions: it does without
            return False
        return _close(together, apart)

    def _tokens(self, count: int) -> Tensor:
        device = next(self._model.parameters()).device
        return (7 + 13 * torch.arange(count, device=device)) % self.vocab_size

    def _refusal(self, reason: str) -> BadInput:
        reason = " ".join(reason.split())[:200]
        return BadInput(
            f"{type(self._model).__name__}: models of this architecture cannot be trained here ({reason}): name a "
            "causal language model of another one"
        )


class _BodyOutput:
    """What a body returns, as far as anybody looks: its last hidden states, and nothing else."""

    def __init__(self, states: Tensor) -> None:
        self.last_hidden_state = states

    def __getitem__(self, index: int | slice) -> object:
        return (self.last_hidden_state,)[index]

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)


@contextlib.contextmanager
def _answering(part: nn.Module, output: object) -> Iterator[None]:
    """A module that returns `output`, whatever it is asked; then as it was."""
    own = vars(part).get("forward")
    setattr(part, "forward", lambda *_, **__: output)  # noqa: B010 - mypy: a method
    try:
        yield
    finally:
        if own is None:
            del part.forward
        else:
            setattr(part, "forward", own)  # noqa: B010


def body_states(body: nn.Module, rows: TokenRows) -> Tensor:
    """[K, H], as CausalModel.states."""
    # No attention mask for plain rows: padding stands on the right, where causal attention does not look.
    shared = {}
    if rows.shared is not None:
        shared = {"position_ids": rows.shared.positions, "attention_mask": rows.shared.attends}
    states: Tensor = body(input_ids=rows.token_ids, use_cache=False, **shared).last_hidden_state
    return states.flatten(0, 1)[rows.predictors]


def _centred(logits: Tensor) -> Tensor:
    """What a softmax looks at."""
    return logits.float() - logits.float().mean(-1, keepdim=True)


def _close(one: Tensor, other: Tensor) -> bool:
    return bool((one - other).norm() <= _AGREE * other.norm())


@contextlib.contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Without dropout, which would differ from pass to pass; then as it was."""
    training = [part for part in model.modules() if part.training]
    model.eval()
    try:
        yield
    finally:
        for part in training:
            part.training = True
