"""Likelihoods and losses of comparisons against their definitions, written out one pair at a time."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from rollcall.learners.maths import preference_losses as losses

finite = st.floats(-8, 8)


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def tensor(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


@given(better=finite, worse=finite, margin=st.floats(0, 3), smoothing=st.floats(0, 0.49), noise=st.floats(0, 0.9))
def test_bradley_terry_is_the_likelihood_of_the_answer(
    better: float, worse: float, margin: float, smoothing: float, noise: float
) -> None:
    def answered(difference: float) -> float:
        """A rater who answers at random with probability `noise`, and else as Bradley and Terry say."""
        return (1 - noise) * sigmoid(difference) + noise * 0.5

    difference = better - worse - margin
    expected = -(1 - smoothing) * math.log(answered(difference)) - smoothing * math.log(answered(-difference))
    found = losses.bradley_terry_nll(
        differences=tensor(better - worse), margins=tensor(margin), label_smoothing=smoothing, noise=noise
    )
    assert float(found) == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_equal_rewards_cost_ln_2() -> None:
    assert float(losses.bradley_terry_nll(differences=tensor(0.0))) == pytest.approx(math.log(2))


def test_noise_bounds_the_loss_of_a_pair_that_is_surely_wrong() -> None:
    """10% random answers: no pair costs more than ln 20, however sure the model is (Christiano et al., 2017)."""
    wrong = tensor(-1000.0)
    assert float(losses.bradley_terry_nll(differences=wrong, noise=0.1)) == pytest.approx(math.log(20))
    assert float(losses.bradley_terry_nll(differences=wrong)) == pytest.approx(1000.0)


def test_a_tie_as_half_a_vote_is_cheapest_where_rewards_are_equal_and_the_same_from_both_sides() -> None:
    differences = tensor(-2.0, -1.0, 0.0, 1.0, 2.0)
    found = losses.half_tie_nll(differences=differences)
    torch.testing.assert_close(found, found.flip(0))
    assert int(found.argmin()) == 2
    assert float(found[2]) == pytest.approx(math.log(2))


@given(difference=finite, threshold=st.floats(0.01, 3))
def test_rao_kupper_gives_three_outcomes_that_sum_to_one(difference: float, threshold: float) -> None:
    def likelihood(d: float, *, tied: bool) -> float:
        found = losses.rao_kupper_nll(differences=tensor(d), tied=torch.tensor([tied]), threshold=threshold)
        return math.exp(-float(found))

    outcomes = [
        likelihood(difference, tied=False),
        likelihood(-difference, tied=False),
        likelihood(difference, tied=True),
    ]
    assert sum(outcomes) == pytest.approx(1.0, abs=1e-9)
    # In the form of the paper: pi_i / (pi_i + theta * pi_j), with theta = exp(threshold).
    theta, strength = math.exp(threshold), math.exp(difference)
    assert outcomes[0] == pytest.approx(strength / (strength + theta), rel=1e-9)


def test_a_segments_return_is_the_sum_of_its_own_steps_for_every_member() -> None:
    values = torch.tensor([[1.0, 2.0, 4.0, 8.0], [10.0, 20.0, 40.0, 80.0]])
    found = losses.sums_by_owner(values=values, owner=torch.tensor([0, 1, 1, 0]), num_owners=2)
    assert found.tolist() == [[9.0, 6.0], [90.0, 60.0]]


@given(
    policy=st.tuples(finite, finite),
    reference=st.tuples(finite, finite),
    beta=st.floats(0.01, 2),
    smoothing=st.floats(0, 0.49),
)
def test_dpo_is_bradley_terry_of_implicit_rewards(
    policy: tuple[float, float], reference: tuple[float, float], beta: float, smoothing: float
) -> None:
    rewards = [beta * (p - r) for p, r in zip(policy, reference, strict=True)]
    margin = rewards[0] - rewards[1]
    # -log sigmoid(x) = log(1 + exp(-x)): exact also where the chance itself rounds to 1.
    expected = (1 - smoothing) * math.log1p(math.exp(-margin)) + smoothing * math.log1p(math.exp(margin))
    h = (policy[0] - reference[0]) - (policy[1] - reference[1])
    found = float(losses.dpo_loss(differences=tensor(h), beta=beta, label_smoothing=smoothing))
    assert found == pytest.approx(expected, rel=1e-9, abs=1e-9)


def test_conservative_dpo_and_ipo_are_least_at_a_finite_place_and_dpo_nowhere() -> None:
    h = torch.linspace(-60, 60, 120_001, dtype=torch.float64)
    cautious = losses.dpo_loss(differences=h, beta=0.1, label_smoothing=0.2)
    assert float(h[cautious.argmin()]) == pytest.approx(math.log(0.8 / 0.2) / 0.1, abs=2e-3)
    assert float(h[losses.ipo_loss(differences=h, tau=0.05).argmin()]) == pytest.approx(10.0, abs=2e-3)
    assert int(losses.dpo_loss(differences=h, beta=0.1).argmin()) == len(h) - 1


def literal_group_step(
    alpha: list[float], sizes: list[int], drawn: list[tuple[int, float]], step: float
) -> list[float]:
    """Algorithm 1, lines 6 and 7, for pairs that are drawn at once: the exponents are means over the pairs."""
    moved = list(alpha)
    for group in range(len(alpha)):
        gain = sum(sum(sizes) / sizes[group] * loss for g, loss in drawn if g == group) / len(drawn)
        moved[group] = alpha[group] * math.exp(step * gain)
    return [value / sum(moved) for value in moved]


def group_step(alpha: list[float], sizes: list[int], drawn: list[tuple[int, float]], step: float) -> list[float]:
    found = losses.exponentiated_gradient(
        group_weights=tensor(*alpha),
        losses=tensor(*(loss for _, loss in drawn)),
        group=torch.tensor([group for group, _ in drawn]),
        group_sizes=tensor(*map(float, sizes)),
        sample_weights=torch.full((len(drawn),), 1 / len(drawn), dtype=torch.float64),
        step=step,
    )
    return [float(value) for value in found]


@given(
    drawn=st.lists(st.tuples(st.integers(0, 2), st.floats(0, 5)), min_size=1, max_size=12),
    step=st.floats(0, 1),
)
def test_group_weights_take_the_papers_step(drawn: list[tuple[int, float]], step: float) -> None:
    alpha, sizes = [0.5, 0.3, 0.2], [70, 20, 10]
    assert group_step(alpha, sizes, drawn, step) == pytest.approx(literal_group_step(alpha, sizes, drawn, step))


def test_group_weights_stay_where_all_groups_lose_alike_and_move_to_the_one_that_loses_more() -> None:
    sizes = [80, 20]
    alike = [(0, 1.0)] * 8 + [(1, 1.0)] * 2  # drawn as often as they are
    assert group_step([0.5, 0.5], sizes, alike, 0.3) == pytest.approx([0.5, 0.5])
    worse = [(0, 1.0)] * 8 + [(1, 2.0)] * 2
    assert group_step([0.5, 0.5], sizes, worse, 0.3)[1] == pytest.approx(1 / (1 + math.exp(-0.3)))


def test_importance_weights_make_a_mean_over_the_data_a_sum_of_group_means() -> None:
    group, value = torch.tensor([0, 0, 0, 1]), tensor(1.0, 2.0, 3.0, 10.0)
    weights = losses.importance_weights(group=group, group_sizes=tensor(3.0, 1.0))
    assert float((weights * value).mean()) == pytest.approx(2.0 + 10.0)


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (lambda: losses.bradley_terry_nll(differences=tensor(0.0), label_smoothing=0.5), "label_smoothing=0.5"),
        (lambda: losses.bradley_terry_nll(differences=tensor(0.0), noise=1.0), "noise=1.0"),
        (lambda: losses.rao_kupper_nll(differences=tensor(0.0), tied=torch.tensor([True]), threshold=0.0), "threshold"),
        (lambda: losses.dpo_loss(differences=tensor(0.0), beta=0.0), "beta=0.0"),
        (lambda: losses.ipo_loss(differences=tensor(0.0), tau=-1.0), "tau=-1.0"),
        (lambda: group_step([0.5, 0.5], [1, 0], [(0, 1.0)], 0.1), "every group needs a pair"),
    ],
)
def test_a_senseless_setting_is_named(call: object, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        call()  # type: ignore[operator]


@given(difference=finite, p=st.floats(0.5, 1), noise=st.floats(0, 0.9))
def test_a_soft_label_costs_the_cross_entropy_with_it(difference: float, p: float, noise: float) -> None:
    def answered(d: float) -> float:
        return (1 - noise) * sigmoid(d) + noise * 0.5

    expected = -p * math.log(answered(difference)) - (1 - p) * math.log(answered(-difference))
    found = losses.soft_labelled(
        preferred=losses.bradley_terry_nll(differences=tensor(difference), noise=noise),
        other=losses.bradley_terry_nll(differences=tensor(-difference), noise=noise),
        probabilities=tensor(p),
    )
    assert float(found) == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_a_soft_label_is_cheapest_where_the_model_says_the_same_probability() -> None:
    differences = torch.linspace(-4, 4, 8001, dtype=torch.float64)
    found = losses.soft_labelled(
        preferred=losses.bradley_terry_nll(differences=differences),
        other=losses.bradley_terry_nll(differences=-differences),
        probabilities=tensor(0.8),
    )
    assert sigmoid(float(differences[found.argmin()])) == pytest.approx(0.8, abs=1e-3)


@given(difference=finite, p=st.floats(0.51, 1), beta=st.floats(0.01, 2))
def test_of_dpo_a_soft_label_is_conservative_dpo(difference: float, p: float, beta: float) -> None:
    found = losses.soft_labelled(
        preferred=losses.dpo_loss(differences=tensor(difference), beta=beta),
        other=losses.dpo_loss(differences=tensor(-difference), beta=beta),
        probabilities=tensor(p),
    )
    conservative = losses.dpo_loss(differences=tensor(difference), beta=beta, label_smoothing=1 - p)
    torch.testing.assert_close(found, conservative, rtol=1e-9, atol=1e-12)


@given(
    ratio=finite,
    baseline=st.floats(0, 5),
    beta=st.floats(0.01, 2),
    weights=st.tuples(st.floats(0.1, 2), st.floats(0.1, 2)),
)
def test_kto_is_what_a_response_is_worth_less_than_it_could_be(
    ratio: float, baseline: float, beta: float, weights: tuple[float, float]
) -> None:
    """lambda_y - v(x, y), with v = lambda_D * sigmoid(beta * (r - z)) or lambda_U * sigmoid(beta * (z - r))."""
    found = losses.kto_loss(
        log_ratios=tensor(ratio, ratio),
        desirable=torch.tensor([True, False]),
        baseline=tensor(baseline)[0],
        beta=beta,
        desirable_weight=weights[0],
        undesirable_weight=weights[1],
    )
    worth = weights[0] * sigmoid(beta * (ratio - baseline)), weights[1] * sigmoid(beta * (baseline - ratio))
    assert found.tolist() == pytest.approx([weights[0] - worth[0], weights[1] - worth[1]], rel=1e-9, abs=1e-12)


def test_the_baseline_of_kto_is_no_divergence_below_0_and_lets_no_gradient_through() -> None:
    ratios = tensor(1.0, 3.0).requires_grad_()
    baseline = losses.kto_baseline(mismatched=ratios)
    assert float(baseline) == 2.0 and not baseline.requires_grad
    assert float(losses.kto_baseline(mismatched=tensor(-4.0, 1.0))) == 0.0
    for name in ("beta", "desirable_weight"):
        settings = {"beta": 1.0, name: 0.0}
        with pytest.raises(ValueError, match=f"{name}=0"):
            losses.kto_loss(log_ratios=ratios, desirable=torch.tensor([True, False]), baseline=baseline, **settings)
