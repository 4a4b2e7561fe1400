"""Where a model's tensors lie within an engine's parameters, learnt by loading markers in their place: fused, renamed
and cut between processes as the engine likes. And whether what lies there is what was published. Arithmetic, without
vLLM."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from rollcall.cluster.messages.arrays import Array
from rollcall.cluster.messages.fingerprints import NUM_SAMPLES, Fingerprints, sampled_places

_EXPONENT, _MANTISSA = {"float32": 8, "float16": 5, "bfloat16": 8}, {"float32": 10, "float16": 10, "bfloat16": 7}
_SIZES = {"float32": 4, "float16": 2, "bfloat16": 2}


def codes(dtype: str, number: int) -> Array:
    """float32 [number]: different numbers that `dtype` holds exactly, none of them zero, tiny, huge or a round one.

    Raises:
      ValueError: when there are not as many.
    """
    mantissa = _MANTISSA[dtype]
    per_exponent = 2 * ((1 << mantissa) - 1)  # of both signs, and no power of two
    exponents = (1 << _EXPONENT[dtype]) - 2 if dtype == "float16" else 200
    if number > per_exponent * exponents:
        raise ValueError(f"number={number}: {dtype} has {per_exponent * exponents} codes")
    index = np.arange(number)
    fraction = 1 + (index % per_exponent // 2 + 1) / (1 << mantissa)
    exponent = index // per_exponent - exponents // 2 + 1
    return np.where(index % 2, -1, 1) * np.ldexp(fraction, exponent).astype(np.float32)  # type: ignore[no-any-return]


@dataclass(frozen=True, slots=True)
class Markers:
    """A tensor of zeros in place of each of a model's, but for a code at each place that is sampled."""

    dtype: str  # in which the engine computes
    shapes: Mapping[str, tuple[int, ...]]

    @property
    def per_tensor(self) -> int:
        """Codes of one tensor, at the most."""
        room = 50_000 if self.dtype == "bfloat16" else 60_000
        return max(1, min(NUM_SAMPLES, room // len(self.shapes)))

    def codes(self) -> Array:
        """float32 [tensors * per_tensor]"""
        return codes(self.dtype, len(self.shapes) * self.per_tensor)

    def arrays(self) -> Iterator[tuple[str, Array]]:
        """Memory that nobody writes to is not there: each costs a few pages, however large it is."""
        all_codes = self.codes().reshape(len(self.shapes), -1)
        for (name, shape), own in zip(self.shapes.items(), all_codes, strict=True):
            array = np.zeros(shape, np.float32)
            places = sampled_places(array.size)[: self.per_tensor]
            array.reshape(-1)[places] = own[: len(places)]
            yield name, array

    def num_codes(self) -> Array:
        """int64 [tensors]: how many each has."""
        sizes = np.array([min(NUM_SAMPLES, int(np.prod(shape))) for shape in self.shapes.values()], np.int64)
        return np.minimum(sizes, self.per_tensor)

    def sums(self) -> Array:
        """int64 [tensors]: the `word_sum` of each, in `dtype`."""
        size = _SIZES[self.dtype]
        bits = _bits(self.codes(), self.dtype).reshape(len(self.shapes), -1)
        sums = np.zeros(len(self.shapes), np.int64)
        for tensor, shape in enumerate(self.shapes.values()):
            places = sampled_places(int(np.prod(shape)))[: self.per_tensor]
            shifts = (places * size % 8 * 8).astype(np.uint64)
            with np.errstate(over="ignore"):
                sums[tensor] = np.left_shift(bits[tensor, : len(places)], shifts).sum(dtype=np.uint64).astype(np.int64)
        return sums


def _bits(values: Array, dtype: str) -> Array:
    """uint64: of float32 values that `dtype` holds exactly."""
    if dtype == "float16":
        return values.astype(np.float16).view(np.uint16).astype(np.uint64)
    bits = values.astype(np.float32).view(np.uint32)
    return (bits >> 16 if dtype == "bfloat16" else bits).astype(np.uint64)


@dataclass(frozen=True, slots=True)
class Found:
    """What one process of an engine found of the markers in its parameters."""

    parameters: Array  # int64 [hits]: in which
    codes: Array  # int64 [hits]: which
    sums: Array  # int64 [parameters]: the word sum of each, with the markers in it


@dataclass(frozen=True, slots=True)
class Read:
    """What lies at the same places later."""

    values: Array  # float32 [hits]
    sums: Array  # int64 [parameters]


@dataclass(frozen=True, slots=True)
class _Group:
    """Parameters that hold certain tensors whole, and nothing else."""

    parameters: Sequence[int]
    tensors: Array  # int64 [n]
    copies: Array  # int64 [n]: how many of each there are, over all processes


class Places:
    """Where the tensors lie, over all processes of an engine."""

    def __init__(self, markers: Markers, found: Sequence[Found]) -> None:
        self._names = tuple(markers.shapes)
        self._dtype = markers.dtype
        self._tensors = [item.codes // markers.per_tensor for item in found]
        self._samples = [item.codes % markers.per_tensor for item in found]
        hits = np.zeros((len(self._names), markers.per_tensor), np.int64)
        for tensors, samples in zip(self._tensors, self._samples, strict=True):
            np.add.at(hits, (tensors, samples), 1)
        copies = hits.max(axis=1)
        whole = hits.sum(axis=1) == copies * markers.num_codes()  # each sample as often as the others
        sums = _total(item.sums for item in found)
        self._groups = []
        for group in self._joined(found, copies):
            with np.errstate(over="ignore"):
                expected = (markers.sums()[group.tensors] * group.copies).sum()
            if whole[group.tensors].all() and sums[list(group.parameters)].sum() == expected:
                self._groups.append(group)
        self.unknown = tuple(name for name, number in zip(self._names, copies, strict=True) if not number)

    def _joined(self, found: Sequence[Found], copies: Array) -> list[_Group]:
        """Parameters that share a tensor, together."""
        parameters_of: dict[int, set[int]] = {}
        for item, tensors in zip(found, self._tensors, strict=True):
            for tensor, parameter in zip(tensors.tolist(), item.parameters.tolist(), strict=True):
                parameters_of.setdefault(tensor, set()).add(parameter)
        joined: dict[int, tuple[set[int], set[int]]] = {}  # parameter -> all of its group, and their tensors
        for tensor, parameters in parameters_of.items():
            groups = {id(joined[p]): joined[p] for p in parameters if p in joined}.values()
            merged = (parameters.union(*(g[0] for g in groups)), {tensor}.union(*(g[1] for g in groups)))
            joined.update(dict.fromkeys(merged[0], merged))
        groups = {id(group): group for group in joined.values()}.values()
        return [_Group(sorted(p), np.array(sorted(t)), copies[sorted(t)]) for p, t in groups]

    def wrong(self, published: Fingerprints, read: Sequence[Read], *, prefix: str) -> list[str]:
        """The tensors, by their published names, that are not what `published` says; of several that lie in one
        parameter, all of them where it cannot be said which."""
        index = {name: row for row, name in enumerate(published.names)}
        rows = np.array([index.get(prefix + name, -1) for name in self._names])
        wrong: set[int] = set()
        for item, tensors, samples in zip(read, self._tensors, self._samples, strict=True):
            known = rows[tensors] >= 0
            expected = published.samples[rows[tensors], samples]
            differs = known & (_rounded(expected, self._dtype) != _rounded(item.values, published.dtype))
            wrong |= set(tensors[differs].tolist())
        if published.dtype == self._dtype:
            sums = _total(item.sums for item in read)
            for group in self._groups:
                if (rows[group.tensors] < 0).any() or wrong & set(group.tensors.tolist()):
                    continue
                with np.errstate(over="ignore"):
                    expected = (published.sums[rows[group.tensors]] * group.copies).sum()
                if sums[list(group.parameters)].sum() != expected:
                    wrong |= set(group.tensors.tolist())
        return [prefix + self._names[tensor] for tensor in sorted(wrong)]


def _total(sums: Iterator[Array]) -> Array:
    with np.errstate(over="ignore"):
        return np.asarray(np.sum(list(sums), axis=0, dtype=np.int64))


def _rounded(values: Array, dtype: str) -> Array:
    """To the precision of `dtype`, as torch rounds."""
    import torch

    return torch.from_numpy(values).to(getattr(torch, dtype)).float().numpy()
