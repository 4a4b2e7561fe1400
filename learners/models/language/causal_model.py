"""A causal language model taken apart: a body that gives hidden states, and the model's own way from there to logits,
which are then computed for the tokens that need them alone."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from rollcall.cluster.errors import BadInput
from rollcall.learners.batches.placement import PackedSamples, Places, begins_of, row_sizes, shape_of
from rollcall.learners.batches.prompt_sharing import PROMPT, SharedPrompts, attends
from rollcall.learners.batches.token_batch import TokenRows
from rollcall.learners.models.language.attention_settings import FULL, SLIDING, AttentionSettings
from rollcall.learners.models.language.packed_attention import PACKED, block_mask, register, works_on

_AGREE = 1e-3  # relative: other float32 arithmetic stays below, another computation does not


class CausalModel:
    """The two halves of a Hugging Face model."""

    def __init__(self, model: nn.Module) -> None:
        own: Any = model
        self._model = own
        self._attention = AttentionSettings(own.config)
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
        if self._attention.implementation not in ("sdpa", PACKED) or not self._attention.whole:
            return False
        with torch.no_grad(), _evaluating(self._model):
            return self._computes_answers_together()

    @property
    def packed(self) -> bool:
        """Whether it takes packed rows."""
        return self._attention.implementation == PACKED

    def pack(self, *, device: torch.device, dtype: torch.dtype) -> str:
        """Gives the model attention for packed rows, where it can have that: two prompts with their answers in one row
        must say what each answer says alone, and the device's kernel what plain attention says.

        Returns:
          Why it stays as it is; "" when it does not.
        """
        own = self._attention.implementation
        if own != "sdpa" or not self._attention.packable:
            return "its attention is of another kind"
        register()
        try:
            with torch.no_grad(), _evaluating(self._model), self._attention.short_window():
                # Plain sdpa leaves out what some models do to their scores.
                self._model.set_attn_implementation("eager")
                apart, rows = self._answers_apart(), self._answers_packed()
                self._model.set_attn_implementation(PACKED)
                reason = "" if _close(self.states(rows), apart) else "in packed rows it says something else"
            if not reason and not works_on(device, dtype, *self._attention.heads):
                reason = f"the kernel on {device} computes something else"
        except Exception as error:  # whatever a model raises that takes no such attention: it does without
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        if reason:
            self._model.set_attn_implementation(own)
        return reason

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
            return self.states(replace(_plain(ids), shared=shared))

        apart = torch.cat([states(prompt, one), states(prompt, other)[len(prompt) :]])
        positions = torch.tensor([[0, 1, 2, 3, 4, 5, 6, 3]], device=ids.device)
        owner = torch.tensor([[PROMPT, PROMPT, PROMPT, 1, 1, 1, 1, 2]], device=ids.device)
        try:
            together = states(prompt, one, other, shared=SharedPrompts(positions, attends(owner)))
        except Exception:  # whatever a model raises that takes no such mask, or no positions: it does without
            return False
        return _close(together, apart)

    def _answers_apart(self) -> Tensor:
        return torch.cat([self.states(_plain(ids))[begin:] for ids, begin in self._answers()])

    def _answers_packed(self) -> TokenRows:
        texts = self._answers()
        lengths, prompts = [len(ids) for ids, _ in texts], [begin for _, begin in texts]
        samples = [[0, 1], [2]]
        sizes = row_sizes(samples, lengths=lengths, prompts=prompts)
        device = texts[0][0].device
        stand = Places.of(samples, begins_of(sizes, packed=True), lengths=lengths, prompts=prompts, device=device)
        token_ids = torch.zeros(shape_of(sizes, packed=True), dtype=torch.int64, device=device)
        stand.fill(
            token_ids, torch.cat([ids for ids, _ in texts]), torch.tensor([0, *lengths], device=device).cumsum(0)
        )
        own = torch.tensor(
            [(i, t) for i, text in enumerate(texts) for t in range(text[1], len(text[0]))], device=device
        )
        predictors = stand.find(*own.T)
        return TokenRows(token_ids, predictors, token_ids.view(-1)[predictors], packed=stand.packed(token_ids.shape[1]))

    def _answers(self) -> list[tuple[Tensor, int]]:
        """Texts, and where in each an answer begins: of two to one prompt, and one to another."""
        ids = self._tokens(20)
        return [(ids[:9], 3), (torch.cat([ids[:3], ids[9:15]]), 3), (ids[12:].flip(0), 2)]

    def _tokens(self, count: int) -> Tensor:
        device = next(self._model.parameters()).device
        return (7 + 13 * torch.arange(count, device=device)) % self.vocab_size

    def _refusal(self, reason: str) -> BadInput:
        reason = " ".join(reason.split())[:200]
        return BadInput(
            f"{type(self._model).__name__}: models of this architecture cannot be trained here ({reason}): name a "
            "causal language model of another one"
        )


def _plain(ids: Tensor) -> TokenRows:
    return TokenRows(ids[None], torch.arange(len(ids), device=ids.device), ids)


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
    settings: dict[str, object] = {}
    if rows.packed is not None:
        masks = _masks(AttentionSettings(body.config), rows.packed)
        settings = {"position_ids": rows.packed.positions, "attention_mask": masks}
    elif rows.shared is not None:
        settings = {"position_ids": rows.shared.positions, "attention_mask": rows.shared.attends}
    states: Tensor = body(input_ids=rows.token_ids, use_cache=False, **settings).last_hidden_state
    return states.flatten(0, 1)[rows.predictors]


def _masks(settings: AttentionSettings, samples: PackedSamples) -> object:
    """As models take them: one for all layers; of models with layers of both kinds, one for each kind."""
    if SLIDING in settings.kinds:
        return {FULL: block_mask(samples), SLIDING: block_mask(samples, settings.window)}
    return block_mask(samples, None if settings.kinds else settings.window)


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
