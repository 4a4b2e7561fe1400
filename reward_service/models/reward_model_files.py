"""Reward models as directories: safetensors and JSON, hashed, written in one move; of texts with tokenizer, in Hugging
Face's layout. Reads nothing that could run."""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import safetensors
import safetensors.torch
import torch
from pydantic import Field, JsonValue, ValidationError
from torch import nn

from rollcall.cluster.errors import BadInput
from rollcall.cluster.inputs.strict import Strict
from rollcall.reward_service.models.reward_models import (
    SegmentArchitecture,
    SegmentRewardModel,
    Statistics,
    TextRewardModel,
)
from rollcall.reward_service.models.text_encoder import TextEncoder
from rollcall.reward_service.models.word_model import is_words_model, load_words_model

CARD = "reward_model.json"
_WEIGHTS = "model.safetensors"
_BESIDE = (".json", ".txt", ".model", ".jinja", ".tiktoken")  # a model's config and tokenizer
_VERSION_DIGITS = 16


class HeldOut(Strict):
    """How often the model is right about comparisons that it did not learn from; ties count half."""

    accuracy: float
    low: float = Field(description="95% interval")
    high: float
    n: int


class RewardModelCard(Strict):
    """What reward_model.json says."""

    format: Literal[1] = 1
    kind: Literal["text", "segment"]
    architecture: SegmentArchitecture | None = Field(default=None, description="of a model of segments")
    statistics: Statistics = Field(default=Statistics(), description="what raw rewards are normalised by")
    trained_on: Mapping[str, JsonValue] = Field(default_factory=dict, description="where its preferences came from")
    held_out: HeldOut | None = None
    files: Mapping[str, str] = Field(default_factory=dict, description="SHA-256 of each other file")


@dataclass(frozen=True)
class RewardModel:
    """A model ready to score: no gradients, evaluation mode."""

    module: TextRewardModel | SegmentRewardModel
    card: RewardModelCard
    encoder: TextEncoder | None  # of a model of texts
    max_tokens: int | None  # that its positions reach to
    version: str  # digest of the directory's files


def save_segment_model(module: SegmentRewardModel, directory: Path, card: RewardModelCard) -> str:
    """Writes the directory, in place of an earlier model there; returns the version. Raises BadInput: for a directory
    that holds anything else."""
    with _in_one_move(directory) as aside:
        _write_tensors(module.state_dict(), aside / _WEIGHTS)
        return _seal(aside, card.model_copy(update={"architecture": module.architecture}))


def save_text_model(
    module: TextRewardModel,
    source: Path,
    directory: Path,
    card: RewardModelCard,
    *,
    tensors: Mapping[str, torch.Tensor] | None = None,
) -> str:
    """As save_segment_model; the tokenizer is copied from the directory `source`. `tensors`: in place of the module's
    own, of one with adapters, say."""
    model: Any = module.model
    with _in_one_move(directory) as aside:
        for path in sorted(source.iterdir()):
            beside = path.suffix in _BESIDE and path.is_file() and not path.name.endswith(".index.json")
            if beside and path.name not in (CARD, "rollcall.json", "generation_config.json"):
                shutil.copyfile(path, aside / path.name)
        model.config.architectures = [type(model).__name__]
        model.config.save_pretrained(aside)
        _write_tensors(model.state_dict() if tensors is None else tensors, aside / _WEIGHTS)
        return _seal(aside, card)


def new_text_model(directory: Path, *, seed: int, members: int = 1) -> TextRewardModel:
    """A reward model on a language model's body: its heads, one a member, say 0 at first. A directory that has a
    classifier with as many labels already is taken as it is.

    Raises:
      BadInput: when no such model can be loaded from the directory.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        model, missing = _load_classifier(directory, members)
    head = getattr(model, "score", None)
    if isinstance(head, nn.Linear) and any(name.startswith("score.") for name in missing):
        nn.init.zeros_(head.weight)
    return TextRewardModel(model, pad_token_id=TextEncoder(directory).pad_token_id)


def load_reward_model(directory: Path) -> RewardModel:
    """The model of a directory that `rollcall reward train` wrote, or of any with a Hugging Face sequence classifier.

    Raises:
      BadInput: when there is none, or a file is not the one that the card tells of.
    """
    if not directory.is_dir():
        raise BadInput(f"{directory}: no directory: a reward model is one that rollcall reward train writes")
    card, version = _read_card(directory), _digest(directory)
    module: TextRewardModel | SegmentRewardModel
    if card is not None and card.kind == "segment":
        assert card.architecture is not None, "_read_card refuses it"
        module = SegmentRewardModel(card.architecture)
        _read_tensors(module, directory / _WEIGHTS)
        _check_statistics(directory, card, card.architecture.members)
        return RewardModel(module.eval().requires_grad_(False), card, None, None, version)
    members = _members(directory)
    model, missing = _load_classifier(directory, members)
    if missing:
        raise BadInput(f"{directory}: no reward model: it has no weights for {missing[0]}; train one from it first")
    encoder = TextEncoder(directory)
    module = TextRewardModel(model, pad_token_id=encoder.pad_token_id)
    card = card or RewardModelCard(kind="text")
    _check_statistics(directory, card, members)
    longest = getattr(model.config, "max_position_embeddings", None)
    return RewardModel(module.eval().requires_grad_(False), card, encoder, longest, version)


def _members(directory: Path) -> int:
    """Heads of a text model that was written here: rows of its last layer. One of any other."""
    try:
        with safetensors.safe_open(directory / _WEIGHTS, framework="pt") as tensors:
            return int(tensors.get_slice("score.weight").get_shape()[0])
    except (OSError, safetensors.SafetensorError):
        return 1  # whatever is wrong, whoever loads it says so


def _load_classifier(directory: Path, members: int) -> tuple[Any, list[str]]:
    """(the sequence classifier of a directory, float32, names of weights that were not there)"""
    if is_words_model(directory):
        return load_words_model(directory), []
    try:
        from transformers import AutoModelForSequenceClassification
        from transformers.utils import logging
    except ImportError:
        raise BadInput("reward models of texts need transformers: pip install 'rollcall-rl[lm-cpu]'") from None
    if not (directory / "config.json").is_file():
        raise BadInput(f"{directory}: no model here: config.json is missing")
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        model, info = AutoModelForSequenceClassification.from_pretrained(
            str(directory),
            num_labels=members,
            dtype=torch.float32,
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
        )
    except (OSError, ValueError, RuntimeError, KeyError, safetensors.SafetensorError) as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise BadInput(f"{directory}: no sequence classifier with one label can be loaded: {first}") from None
    finally:
        logging.set_verbosity(verbosity)
    return model, sorted(info["missing_keys"])


def _read_card(directory: Path) -> RewardModelCard | None:
    path = directory / CARD
    if not path.is_file():
        return None
    try:
        card = RewardModelCard.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise BadInput(f"{path}: no reward model's card: {where}: {first['msg']}") from None
    if card.kind == "segment" and card.architecture is None:
        raise BadInput(f"{path}: a model of segments without an architecture")
    for name, expected in card.files.items():
        file = directory / name
        if Path(name).name != name or not file.is_file():
            raise BadInput(f"{file}: named in {CARD}, but missing")
        if _sha256(file) != expected:
            raise BadInput(f"{file}: damaged, or exchanged: its hash is not the one in {CARD}")
    return card


def _check_statistics(directory: Path, card: RewardModelCard, members: int) -> None:
    statistics = card.statistics
    if len(statistics.mean) != members or len(statistics.std) != members or min(statistics.std) <= 0:
        raise BadInput(f"{directory / CARD}: statistics of {len(statistics.mean)} members, and there are {members}")


def _read_tensors(module: nn.Module, path: Path) -> None:
    try:
        tensors = safetensors.torch.load_file(path)
        module.load_state_dict(tensors)
    except (OSError, safetensors.SafetensorError, RuntimeError) as error:
        first = " ".join(str(error).split())[:200]
        raise BadInput(f"{path}: not the weights of the architecture in {CARD}: {first}") from None


def _write_tensors(tensors: Mapping[str, torch.Tensor], path: Path) -> None:
    found = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    path.write_bytes(safetensors.torch.save(found, metadata={"format": "pt"}))


def _seal(aside: Path, card: RewardModelCard) -> str:
    """Writes the card, last, with the hashes of all other files."""
    files = {path.name: _sha256(path) for path in sorted(aside.iterdir())}
    text = card.model_copy(update={"files": files}).model_dump_json(indent=1, exclude_none=True)
    (aside / CARD).write_text(text + "\n", encoding="utf-8")
    return _digest(aside)


def _digest(directory: Path) -> str:
    """Of the names and contents of all that a model is read from: another one whenever another score is possible."""
    hasher = hashlib.sha256()
    for path in sorted(directory.iterdir()):
        if path.is_file() and (path.suffix in _BESIDE or path.suffix == ".safetensors"):
            hasher.update(json.dumps([path.name, _sha256(path)]).encode())
    return hasher.hexdigest()[:_VERSION_DIGITS]


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def _in_one_move(directory: Path) -> Iterator[Path]:
    """A directory aside that takes its place when all is written: whoever looks sees all of a model or nothing."""
    directory = directory.resolve()
    if directory.exists() and not (directory / CARD).is_file() and any(directory.iterdir()):
        raise BadInput(f"{directory}: holds something that is no reward model of Rollcall's: name another directory")
    aside, old = (directory.with_name(f".{directory.name}.{what}") for what in ("making", "old"))
    for path in (aside, old):
        shutil.rmtree(path, ignore_errors=True)
    aside.mkdir(parents=True)
    try:
        yield aside
        if directory.exists():
            directory.rename(old)
        aside.rename(directory)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)
