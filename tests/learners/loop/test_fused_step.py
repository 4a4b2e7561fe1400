"""A gradient step as one program is the gradient step of its parts, and an epoch as one program is its gradient steps:
for every algorithm of control, whatever the policy and the update rule's settings, and where something is not finite.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from itertools import islice
from typing import Any

import pytest
import torch
from torch import Tensor

from rollcall.learners.algorithm import Context, Loss, StepsApart, in_epochs, with_own_models
from rollcall.learners.algorithms.control.off_policy.dqn import DQN
from rollcall.learners.algorithms.control.off_policy.sac import SAC
from rollcall.learners.algorithms.control.off_policy.td3 import TD3
from rollcall.learners.algorithms.control.ppo import PPO
from rollcall.learners.algorithms.control.rnd import RND
from rollcall.learners.collective import Collective
from rollcall.learners.loop.fused_step import fused_step
from rollcall.learners.loop.optimizer_config import AdamConfig, AdamWConfig, OptimizerConfig, RMSpropConfig
from rollcall.learners.loop.parameters import ReplicatedParameters
from rollcall.learners.models.policy_config import PolicyConfig
from rollcall.learners.models.torsos import Tanh
from rollcall.learners.update import Stepper, minibatch_steps
from tests.learners.algorithms.control.off_policy.replayed import (
    CONTINUOUS,
    DETERMINISTIC,
    DISCRETE,
    SQUASHED,
    Trained,
    transitions,
)
from tests.learners.algorithms.control.test_algorithms import ALGORITHMS, MakeBatch, MakePolicy, build
from tests.learners.experience import context_of

# aot_eager traces, guards and differentiates as the compiler's front does, and spares the C++ compiler.
TRACED, COMPILED = "aot_eager", "inductor"
Q = PolicyConfig(q={}, hidden_sizes=(8,), orthogonal_init=False)  # type: ignore[arg-type]  # pydantic makes the config


class Twins:
    """The same algorithm, models and parameters twice: stepped in parts, and by one program."""

    def __init__(
        self,
        algorithm: Any,
        models: Mapping[str, torch.nn.Module],
        *,
        optimizer: OptimizerConfig | None = None,
        max_grad_norm: float | None = 0.5,
        backend: str = TRACED,
    ) -> None:
        self.algorithm = algorithm
        self.contexts: list[Context] = []
        self.trained: list[ReplicatedParameters] = []
        self.steppers: list[Stepper] = []
        models = with_own_models(algorithm, models)
        rates: dict[str, Any] = {}
        if isinstance(algorithm, StepsApart):
            rates = {"apart": {name: rate or 1e-2 for name, rate in algorithm.learning_rates().items()}}
        for fused in (False, True):
            own = deepcopy(dict(models))
            context = context_of(own)
            trained = ReplicatedParameters(
                own, collective=Collective(), optimizer=optimizer or AdamConfig(), learning_rate=1e-2, **rates
            )
            step = None
            if fused:
                step = fused_step(algorithm, context, trained, max_grad_norm=max_grad_norm, backend=backend)
                assert step is not None
            self.contexts.append(context)
            self.trained.append(trained)
            self.steppers.append(Stepper(algorithm, context, trained, whole_step=step, max_grad_norm=max_grad_norm))

    def begin(self) -> None:
        for stepper in self.steppers:
            stepper.begin()

    def step(self, minibatch: Any, models: tuple[str, ...] | None = None) -> list[dict[str, Tensor]]:
        return [stepper.gradient_step(minibatch, models) for stepper in self.steppers]

    def learn(self, batch: Any, *, num_steps: int) -> None:
        """Each by itself, from `prepare` on, which may change models."""
        found = []
        for context, stepper in zip(self.contexts, self.steppers, strict=True):
            with torch.no_grad():
                prepared = self.algorithm.prepare(context, batch)
            minibatches = self.algorithm.minibatches(context, prepared)
            found.append([stepper.gradient_step(minibatch) for minibatch in islice(minibatches, num_steps)])
        torch.testing.assert_close(found[1], found[0], atol=1e-5, rtol=1e-4)

    def learn_whole(self, batch: Any, *, num_batches: int = 1) -> None:
        """As learners do: each by itself, all epochs of a batch."""
        for _ in range(num_batches):
            self.begin()
            found = []
            for context, stepper in zip(self.contexts, self.steppers, strict=True):
                with torch.no_grad():
                    prepared = self.algorithm.prepare(context, batch)
                found.append(minibatch_steps(self.algorithm, context, prepared, stepper))
            assert self.steppers[0].num_steps == self.steppers[1].num_steps > 0
            assert list(found[0]) == list(found[1])
            torch.testing.assert_close(found[1], found[0], atol=1e-5, rtol=1e-4)

    def check_same(self) -> None:
        state, fused = (trained.tensors() for trained in self.trained)
        for name, tensor in state.items():
            torch.testing.assert_close(fused[name], tensor, atol=2e-6, rtol=1e-4, msg=f"{name} differs")
        theirs, own = (context.models for context in self.contexts)
        for name, model in theirs.items():
            torch.testing.assert_close(dict(own[name].state_dict()), dict(model.state_dict()), atol=2e-6, rtol=1e-4)


@pytest.fixture(autouse=True)
def forget_programs() -> Iterator[None]:
    yield
    torch._dynamo.reset()


@pytest.mark.long
@pytest.mark.parametrize(("kind", "settings"), ALGORITHMS)
def test_it_is_the_step_of_its_parts(
    make_policy: MakePolicy, make_batch: MakeBatch, kind: Any, settings: Mapping[str, Any]
) -> None:
    policy = make_policy()
    algorithm = build(kind, **settings)
    twins = Twins(algorithm, {"actor_critic": policy})
    twins.learn(make_batch(policy, lag=0.3, dead_rate=0.1), num_steps=3)
    twins.check_same()


REPLAYED = [
    pytest.param(SAC, SQUASHED, CONTINUOUS, id="sac"),
    pytest.param(SAC, PolicyConfig(hidden_sizes=(8,)), DISCRETE, id="sac-discrete"),
    pytest.param(TD3, DETERMINISTIC, CONTINUOUS, id="td3"),
    pytest.param(DQN, Q, DISCRETE, id="dqn"),
]


def replayed(
    kind: Any, policy: PolicyConfig, actions: Any, **settings: Any
) -> tuple[Twins, Callable[[int], list[Any]]]:
    algorithm = kind(kind.Config())
    single = Trained(algorithm, policy, actions=actions)
    twins = Twins(algorithm, single.models, **settings)
    return twins, lambda seed: single.parts(transitions(seed=seed, actions=actions))


class Alone:
    """A minibatch of one part."""

    ends_epoch = False

    def __init__(self, part: Any) -> None:
        self.part = part

    def shards(self, rank: int, num_processes: int) -> list[Any]:
        return [self.part]


@pytest.mark.parametrize("max_grad_norm", [None, 0.1])
@pytest.mark.parametrize(("kind", "policy", "actions"), REPLAYED)
def test_so_it_is_where_models_are_stepped_apart(
    kind: Any, policy: PolicyConfig, actions: Any, max_grad_norm: float | None
) -> None:
    twins, parts = replayed(kind, policy, actions, max_grad_norm=max_grad_norm)
    for seed in range(3):
        (part,) = parts(seed)
        critics_turn = kind is TD3 and seed == 1
        metrics, fused = twins.step(Alone(part), ("critic",) if critics_turn else None)
        torch.testing.assert_close(fused, metrics, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(twins.steppers[1].per_sample, twins.steppers[0].per_sample, atol=1e-5, rtol=1e-4)
    twins.check_same()


@pytest.mark.parametrize(
    "optimizer",
    [AdamWConfig(weight_decay=0.3), AdamConfig(beta1=0.5, beta2=0.9, eps=1e-3, weight_decay=0.1), AdamConfig(eps=1e-8)],
    ids=["adamw", "adam", "eps"],
)
def test_its_rule_is_adams_whatever_its_settings(
    make_policy: MakePolicy, make_batch: MakeBatch, optimizer: OptimizerConfig
) -> None:
    policy = make_policy()
    algorithm = PPO(PPO.Config())
    twins = Twins(algorithm, {"actor_critic": policy}, optimizer=optimizer)
    prepared = algorithm.prepare(twins.contexts[0], make_batch(policy))
    for step, minibatch in enumerate(list(algorithm.minibatches(twins.contexts[0], prepared))[:4]):
        if step == 2:  # a schedule's next rate: of the next batch
            for trained in twins.trained:
                trained.scale_learning_rates(0.3)
            twins.begin()
        twins.step(minibatch)
    twins.check_same()


@pytest.mark.parametrize("what", [math.nan, math.inf])
def test_what_is_not_finite_changes_nothing_from_then_on(
    make_policy: MakePolicy, make_batch: MakeBatch, what: float
) -> None:
    policy = make_policy()
    algorithm = PPO(PPO.Config())
    twins = Twins(algorithm, {"actor_critic": policy}, optimizer=AdamWConfig(weight_decay=0.3))
    prepared = algorithm.prepare(twins.contexts[0], make_batch(policy))
    good, bad, after, *_ = algorithm.minibatches(twins.contexts[0], prepared)
    bad.rows.targets.advantages[0] = what
    twins.step(good)
    before = {name: tensor.clone() for name, tensor in twins.trained[1].tensors().items()}
    for minibatch in (bad, after):
        twins.step(minibatch)
        for name, tensor in twins.trained[1].tensors().items():
            assert torch.equal(tensor, before[name]), name
    assert not math.isfinite(float(twins.steppers[1].broken))
    twins.begin()
    twins.step(after)
    twins.check_same()


# Whatever a minibatch holds: masks of actions and of dead steps, several minibatches of unequal size, an end of the
# epochs by their KL, a critic's values from before, the distribution from before, and a second critic's.
IN_EPOCHS = [
    pytest.param(PPO, {"num_minibatches": 3}, {}, id="uneven"),
    pytest.param(PPO, {"num_minibatches": 1, "epochs": 2}, {}, id="one"),
    pytest.param(PPO, {"target_kl": 1e-9}, {}, id="ends early"),
    pytest.param(PPO, {"value_loss": "clipped", "normalise_advantages": "batch"}, {}, id="clipped"),
    pytest.param(PPO, {"kl_penalty": {"target": 0.01}}, {}, id="penalty"),
    pytest.param(PPO, {}, {"forbid": True}, id="masks"),
    pytest.param(RND, {}, {}, id="rnd"),
]


@pytest.mark.parametrize(("kind", "settings", "batch"), IN_EPOCHS)
def test_an_epoch_is_its_gradient_steps(
    make_policy: MakePolicy, make_batch: MakeBatch, kind: Any, settings: Mapping[str, Any], batch: Mapping[str, Any]
) -> None:
    policy = make_policy()
    twins = Twins(kind(kind.Config(**settings)), {"actor_critic": policy}, optimizer=AdamWConfig(weight_decay=0.3))
    assert [stepper.takes_epochs for stepper in twins.steppers] == [False, True]
    twins.learn_whole(make_batch(policy, lag=0.3, dead_rate=0.1, **batch), num_batches=2)
    twins.check_same()


def test_an_epoch_ends_where_something_is_not_finite(make_policy: MakePolicy, make_batch: MakeBatch) -> None:
    policy = make_policy()
    algorithm = PPO(PPO.Config(normalise_advantages="none"))
    twins = Twins(algorithm, {"actor_critic": policy})
    for context, stepper in zip(twins.contexts, twins.steppers, strict=True):
        prepared = algorithm.prepare(context, make_batch(policy))
        prepared.targets.advantages[7] = math.nan
        metrics = minibatch_steps(algorithm, context, prepared, stepper)
        assert not math.isfinite(float(metrics["loss"]))
        assert not math.isfinite(float(stepper.broken))
    twins.check_same()  # some minibatches came before it, and count
    assert all(tensor.isfinite().all() for tensor in twins.trained[1].tensors().values())


class OwnMinibatches(PPO):
    """A user's, who knows nothing of epochs."""

    def minibatches(self, context: Context, prepared: Any) -> Iterator[Any]:
        return islice(super().minibatches(context, prepared), 4)


def test_minibatches_of_ones_own_are_kept_to(make_policy: MakePolicy, make_batch: MakeBatch) -> None:
    assert in_epochs(OwnMinibatches(PPO.Config())) is None
    assert in_epochs(PPO(PPO.Config())) is not None
    policy = make_policy()
    twins = Twins(OwnMinibatches(PPO.Config()), {"actor_critic": policy})
    twins.learn_whole(make_batch(policy))
    assert [stepper.num_steps for stepper in twins.steppers] == [4, 4]
    twins.check_same()


class TellsOfSamples(PPO):
    def loss(self, context: Context, minibatch: Any) -> Loss:
        return super().loss(context, minibatch)._replace(per_sample=minibatch.rows.mask)


def test_samples_are_not_lost_in_an_epoch_without_a_word(make_policy: MakePolicy, make_batch: MakeBatch) -> None:
    policy = make_policy()
    twins = Twins(TellsOfSamples(PPO.Config()), {"actor_critic": policy})
    with pytest.raises(ValueError, match="per_sample"):
        twins.learn_whole(make_batch(policy))


class Changing(PPO):
    """What a user's may do: its loss hangs on something that it changes itself."""

    weight = 1.0

    def loss(self, context: Context, minibatch: Any) -> Loss:
        found = super().loss(context, minibatch)
        return found._replace(loss=self.weight * found.loss)


def test_a_program_is_made_anew_where_the_algorithm_has_changed(make_policy: MakePolicy, make_batch: MakeBatch) -> None:
    policy = make_policy()
    algorithm = Changing(PPO.Config())
    twins = Twins(algorithm, {"actor_critic": policy}, max_grad_norm=None)
    prepared = algorithm.prepare(twins.contexts[0], make_batch(policy))
    for weight, minibatch in zip((1.0, -2.0, 0.0), algorithm.minibatches(twins.contexts[0], prepared), strict=False):
        algorithm.weight = weight
        metrics, fused = twins.step(minibatch)
        torch.testing.assert_close(fused, metrics, atol=1e-5, rtol=1e-4)
    twins.check_same()


@pytest.mark.parametrize("sizes", [(4, 3, 4)])
def test_and_where_a_part_has_another_shape(
    make_policy: MakePolicy, make_batch: MakeBatch, sizes: tuple[int, ...]
) -> None:
    policy = make_policy()
    twins = Twins(PPO(PPO.Config()), {"actor_critic": policy})
    for number in sizes:
        algorithm = PPO(PPO.Config(num_minibatches=number))
        prepared = algorithm.prepare(twins.contexts[0], make_batch(policy))
        twins.step(next(iter(algorithm.minibatches(twins.contexts[0], prepared))))
    twins.check_same()


def test_other_rules_are_not_for_it(make_policy: MakePolicy) -> None:
    models = {"actor_critic": make_policy()}
    trained = ReplicatedParameters(models, collective=Collective(), optimizer=RMSpropConfig(), learning_rate=1e-2)
    assert fused_step(PPO(PPO.Config()), context_of(models), trained, max_grad_norm=None) is None


@pytest.mark.long
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # as torch's compiler is imported
@pytest.mark.parametrize("kind", ["ppo", "sac"])
def test_compiled_code_says_the_same(make_policy: MakePolicy, make_batch: MakeBatch, kind: str) -> None:
    if kind == "sac":
        twins, parts = replayed(SAC, SQUASHED, CONTINUOUS, backend=COMPILED)
        minibatches: list[Any] = [Alone(parts(seed)[0]) for seed in range(3)]
    else:
        policy = make_policy()
        algorithm = PPO(PPO.Config())
        twins = Twins(algorithm, {"actor_critic": policy}, backend=COMPILED)
        prepared = algorithm.prepare(twins.contexts[0], make_batch(policy))
        minibatches = list(algorithm.minibatches(twins.contexts[0], prepared))[:3]
    for minibatch in minibatches:
        metrics, fused = twins.step(minibatch)
        torch.testing.assert_close(fused, metrics, atol=1e-5, rtol=1e-3)
    twins.check_same()


@pytest.mark.long
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # as torch's compiler is imported
def test_so_does_an_epoch(make_policy: MakePolicy, make_batch: MakeBatch) -> None:
    policy = make_policy()
    twins = Twins(PPO(PPO.Config()), {"actor_critic": policy}, backend=COMPILED)
    twins.learn_whole(make_batch(policy, dead_rate=0.1), num_batches=2)
    twins.check_same()


def test_tanh_is_tanh_in_compiled_code() -> None:
    x = torch.cat([torch.linspace(-20, 20, 4001), torch.tensor([-1e30, -1e-8, 0.0, 1e-8, 1e30])]).requires_grad_()
    compiled: Any = torch.compile(Tanh(), backend="aot_eager")
    (expected,) = torch.autograd.grad(torch.tanh(x).sum(), x)
    (found,) = torch.autograd.grad(compiled(x).sum(), x)
    torch.testing.assert_close(compiled(x), torch.tanh(x), atol=2.5e-7, rtol=0)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)
