"""Whether a generation engine says of the learner's fixed tokens what the learner says: pure arithmetic."""

from __future__ import annotations

import numpy as np

from rollcall.cluster.errors import EngineMismatch
from rollcall.cluster.messages.arrays import Array
from rollcall.cluster.messages.weights import Canary

# Of the mean absolute difference, in nats. Two right computations differ by 1e-6 to 1e-4 in float32 on CPUs; a GPU's
# attention kernels round its products to 10 bits of mantissa (TF32), as float16 has. bfloat16 has 7: a logit of 20 is
# rounded by up to 0.06, and a layer of experts may choose another one. Wrong weights, or a learner that leaves out a
# part of the model, differ by 0.05 to several nats.
_BOUNDS = {"float32": 1e-3, "float16": 2e-2, "bfloat16": 0.2}
_BOUND_TF32 = 1e-2


def bound_of(*dtypes: str, on_gpu: bool) -> float:
    """Nats within which two computations in these dtypes agree."""
    bound = max(_BOUNDS[dtype] for dtype in dtypes)
    return max(bound, _BOUND_TF32) if on_gpu else bound


def check_canary(canary: Canary, said: Array, *, bound: float, version: int, model: str, dtype: str) -> float:
    """How far the learner's log-probabilities are from `said`, float32 [n - 1], an engine's of the same tokens under
    the same weights: the mean difference, in nats. `dtype`: the engine's; `bound`: of both.

    Raises:
      EngineMismatch: when it is beyond what rounding explains.
    """
    differences = np.abs(canary.logprobs.astype(np.float64) - said.astype(np.float64))
    mean = float(differences.mean())
    if mean <= bound:  # not so for NaN
        return mean
    raise EngineMismatch(
        f"{model}: engine and learner disagree at policy version {version}: their log-probabilities of "
        f"{len(differences)} fixed tokens differ by {mean:.3g} nats on average, {differences.max():.3g} at the most, "
        f"where {bound:g} is allowed in {dtype}; every ratio would be wrong, so the run stops: vLLM and transformers "
        "compute this model in different ways, or its weights did not arrive whole (docs/operations.md, "
        "'Engine and learner disagree')"
    )
