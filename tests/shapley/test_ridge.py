# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
from __future__ import annotations

import numpy as np
import pytest
from shapley_oracles import DividendGame, errors_of

from monai_segshap.shapley import exact_shapley, plan_coalitions, solve
from monai_segshap.shapley.process import distance_prior
from monai_segshap.shapley.ridge import LENGTHS, STRENGTHS, ridge_values


def local_game(n_units: int, seed: int) -> tuple[DividendGame, np.ndarray]:
    """A game whose groups gather around the middle of a square of units, and the distances of the units from it."""
    rng = np.random.default_rng(seed)
    distances = np.linalg.norm(rng.random((n_units, 2)) - 0.5, axis=1) * n_units**0.5 * 10.0
    near = np.exp(-distances / 8.0) + 1e-3
    groups = [
        tuple(int(u) for u in rng.choice(n_units, size=size, replace=False, p=near / near.sum()))
        for size in (1, 1, 2, 3, 5)
        for _ in range(20)
    ]
    return DividendGame(n_units, groups, rng.random(len(groups))), distances


def case(n_units: int = 14, budget: int = 80, seed: int = 0):
    """Masks, outputs (K, 2), distances and weights."""
    game, distances = local_game(n_units, seed)
    plan = plan_coalitions(n_units, max(budget, 3 * n_units), "kernelshap", seed)
    rows, weights = plan.rows[: 2 + budget], plan.weights[: budget // 2]
    other = np.random.default_rng(seed).normal(size=n_units)
    return rows, np.hstack([game(rows), np.tanh(rows @ other)[:, None]]), distances, weights


def dense(masks, outputs, prior, weights):
    """The model by definition: design on values and columns, covariance of the prior given the sum."""
    n_units = masks.shape[1]
    design = np.where(masks[2::2], 1.0, -1.0)
    u = design.mean(axis=1, keepdims=True)
    target = outputs[2::2] - outputs[3::2] - np.outer(design @ prior, outputs[0] - outputs[1])
    columns = np.hstack([u**3 - u, u**5 - u, u**7 - u])[:, : (n_units - 1) // 2]
    covariance = np.diag(prior) - np.outer(prior, prior)
    return design, target, columns, covariance, np.diag(weights.mean() / weights)


def by_kriging(masks, outputs, prior, weights, strength):
    """Posterior mean and covariance (for unit prior variance) with a flat prior on the columns."""
    design, target, columns, covariance, noise = dense(masks, outputs, prior, weights)
    inverse = np.linalg.inv(design @ covariance @ design.T + strength * noise)
    flat = columns @ np.linalg.solve(columns.T @ inverse @ columns, columns.T @ inverse)
    gain = covariance @ design.T @ inverse @ (np.eye(len(target)) - flat)
    mean = np.outer(prior, outputs[0] - outputs[1]) + gain @ target
    return mean, covariance - gain @ design @ covariance


def gcv(masks, outputs, prior, weights, strength) -> np.ndarray:
    """Generalized cross validation and noise variance by the hat matrix of the rows without the columns."""
    design, target, columns, covariance, noise = dense(masks, outputs, prior, weights)
    root = 1.0 / np.sqrt(np.diag(noise))
    basis = np.linalg.svd(root[:, None] * columns)[0][:, np.linalg.matrix_rank(columns) :]
    seen = basis.T @ (root[:, None] * design)
    signal = seen @ covariance @ seen.T
    left_over = np.eye(len(seen)) - signal @ np.linalg.inv(signal + strength * np.eye(len(seen)))
    squares = ((left_over @ (basis.T @ (root[:, None] * target))) ** 2).sum(axis=0)
    free = np.trace(left_over)
    return np.stack([len(seen) * squares / free**2, squares / free])


@pytest.mark.parametrize("n_units", [3, 4, 5, 6])
def test_with_all_pairs_and_no_penalty_the_values_are_exact(n_units):
    table = np.random.default_rng(n_units).normal(size=(2**n_units, 2))
    plan = plan_coalitions(n_units, 2**n_units - 2, "kernelshap")
    outputs = table[plan.rows @ (1 << np.arange(n_units))]
    distances = np.random.default_rng(1).random(n_units) * 30.0
    for where in (None, distances):
        values, _, _ = ridge_values(plan.rows, outputs, where, 10.0, plan.weights, strengths=(1e-10,))
        np.testing.assert_allclose(values, exact_shapley(table), atol=1e-6)


@pytest.mark.parametrize("n_units", [2, 7, 40])
def test_values_sum_to_the_total_at_any_strength(n_units):
    masks, outputs, distances, weights = case(n_units, 2 if n_units == 2 else 4 * n_units) if n_units > 5 else two()
    for strengths in (STRENGTHS, (1e-8,), (1e4,)):
        values, covariances, _ = ridge_values(masks, 1e3 * outputs, distances, 10.0, weights, strengths)
        np.testing.assert_allclose(covariances.sum(axis=(1, 2)), 0.0, atol=1e-9 * max(covariances.max(), 1e-9))
        np.testing.assert_allclose(values.sum(axis=0), 1e3 * (outputs[0] - outputs[1]), rtol=1e-12, atol=1e-10)


def two():
    masks = np.array([[1, 1], [0, 0], [1, 0], [0, 1]], bool)
    return masks, np.array([[5.0], [1.0], [3.0], [2.0]]), np.array([0.0, 9.0]), np.ones(1)


def test_a_very_strong_prior_shares_the_total_as_it_says():
    masks, outputs, distances, weights = case()
    values, _, diagnostics = ridge_values(masks, outputs, distances, 10.0, weights, strengths=(1e12,))
    prior = distance_prior(distances, 14, diagnostics["length_mm"][0] or np.inf)
    np.testing.assert_allclose(values[:, 0], prior * (outputs[0, 0] - outputs[1, 0]), atol=1e-9)


@pytest.mark.parametrize("strength", [0.01, 1.0, 30.0])
@pytest.mark.parametrize(("n_units", "budget"), [(14, 80), (14, 400), (40, 102), (40, 50)])
def test_values_and_errors_are_those_of_the_posterior(n_units, budget, strength):
    masks, outputs, distances, weights = case(n_units, budget)
    values, covariances, diagnostics = ridge_values(masks, outputs, distances, 10.0, weights, strengths=(strength,))
    for output, length in enumerate(x or np.inf for x in diagnostics["length_mm"]):
        prior = distance_prior(distances, n_units, length)
        mean, covariance = by_kriging(masks, outputs, prior, weights, strength)
        noise = gcv(masks, outputs, prior, weights, strength)[1, output]
        np.testing.assert_allclose(values[:, output], mean[:, output], atol=1e-9)
        np.testing.assert_allclose(covariances[output], noise / strength * covariance, rtol=1e-6, atol=1e-9 * noise)


@pytest.mark.parametrize(("n_units", "budget"), [(14, 80), (40, 102)])
def test_length_and_strength_minimize_generalized_cross_validation_for_each_output(n_units, budget):
    masks, outputs, distances, weights = case(n_units, budget)
    _, _, diagnostics = ridge_values(masks, outputs, distances, 10.0, weights)
    lengths = [10.0 * share for share in LENGTHS]
    strengths = STRENGTHS[12:]
    table = np.array(
        [
            [gcv(masks, outputs, distance_prior(distances, n_units, a), weights, s)[0] for s in strengths]
            for a in lengths
        ]
    )
    for output in range(2):
        a, s = np.unravel_index(table[:, :, output].argmin(), table.shape[:2])
        assert (diagnostics["length_mm"][output] or np.inf) == lengths[a]
        assert diagnostics["strength"][output] == strengths[s]


def test_relabelling_the_units_relabels_the_values():
    masks, outputs, distances, weights = case()
    order = np.random.default_rng(5).permutation(14)
    plain = ridge_values(masks, outputs, distances, 10.0, weights)
    moved = ridge_values(masks[:, order], outputs, distances[order], 10.0, weights)
    np.testing.assert_allclose(moved[0], plain[0][order], atol=1e-10)
    np.testing.assert_allclose(moved[1], plain[1][:, order][:, :, order], atol=1e-10)


def test_which_member_of_a_pair_comes_first_does_not_matter():
    masks, outputs, distances, weights = case()
    swapped = np.arange(len(masks))
    swapped[6], swapped[7], swapped[20], swapped[21] = 7, 6, 21, 20
    plain = ridge_values(masks, outputs, distances, 10.0, weights)
    turned = ridge_values(masks[swapped], outputs[swapped], distances, 10.0, weights)
    np.testing.assert_allclose(turned[0], plain[0], atol=1e-10)


def test_even_games_and_bent_answers_to_the_size_change_nothing():
    masks, outputs, distances, weights = case()
    u = 2.0 * masks.mean(axis=1, keepdims=True) - 1.0
    added = 7.0 + 5.0 * (u**3 - u) - 8.0 * (u**7 - u) + 3.0 * u**2
    plain = ridge_values(masks, outputs, distances, 10.0, weights)
    curved = ridge_values(masks, outputs + added, distances, 10.0, weights)
    np.testing.assert_allclose(curved[0], plain[0], atol=1e-8)
    np.testing.assert_allclose(curved[1], plain[1], atol=1e-8)


def test_values_scale_with_the_game_and_not_with_the_weights():
    masks, outputs, distances, weights = case()
    plain = ridge_values(masks, outputs, distances, 10.0, weights)
    scaled = ridge_values(masks, -4.0 * outputs, distances, 10.0, 100.0 * weights)
    np.testing.assert_allclose(scaled[0], -4.0 * plain[0], atol=1e-9)
    np.testing.assert_allclose(scaled[1], 16.0 * plain[1], atol=1e-9)


def test_outputs_are_solved_independently():
    masks, outputs, distances, weights = case()
    both = ridge_values(masks, outputs, distances, 10.0, weights)
    alone = ridge_values(masks, outputs[:, 1:], distances, 10.0, weights)
    np.testing.assert_allclose(both[0][:, 1:], alone[0], atol=1e-10)
    np.testing.assert_allclose(both[1][1:], alone[1], atol=1e-10)


def test_additive_games_are_recovered_though_they_are_not_local():
    rows = plan_coalitions(30, 200, "kernelshap").rows
    effects = np.random.default_rng(0).normal(size=(30, 1))
    values, covariances, _ = ridge_values(rows, 2.0 + rows @ effects, np.arange(30.0), 5.0, np.ones(100))
    np.testing.assert_allclose(values, effects, atol=1e-6)
    assert errors_of(covariances).max() < 1e-4


def test_a_constant_output_has_no_values_and_no_errors():
    masks, outputs, distances, weights = case()
    values, covariances, _ = ridge_values(masks, np.full_like(outputs, 3.0), distances, 10.0, weights)
    np.testing.assert_allclose(values, 0.0, atol=1e-12)
    np.testing.assert_allclose(covariances, 0.0, atol=1e-12)


def local_errors(seed: int) -> tuple[float, float, float]:
    """Relative errors of the regression and of the ridge, and the share of values in the 95 % interval."""
    game, distances = local_game(100, seed)
    plan = plan_coalitions(100, 400, "kernelshap", seed)
    outputs, exact = game(plan.rows), game.shapley
    regression = solve(plan, outputs).values[:, 0]
    values, covariances, _ = ridge_values(plan.rows, outputs, distances, 10.0, plan.weights)
    norm = np.linalg.norm(exact)
    inside = np.abs(values[:, 0] - exact) <= 1.96 * errors_of(covariances)[:, 0]
    return np.linalg.norm(regression - exact) / norm, np.linalg.norm(values[:, 0] - exact) / norm, inside.mean()


def test_a_local_game_is_known_better_than_by_the_regression_and_intervals_cover():
    found = np.array([local_errors(seed) for seed in range(6)])
    assert (found[:, 1] < found[:, 0]).all()
    assert np.median(found[:, 0] / found[:, 1]) > 1.3
    assert found[:, 2].mean() > 0.9


def test_below_one_pair_a_unit_the_ridge_answers_with_a_warning():
    game, distances = local_game(100, seed=3)
    plan = plan_coalitions(100, 400, "kernelshap", seed=3)
    few = plan.rows[:82]
    values, covariances, diagnostics = ridge_values(few, game(few), distances, 10.0, plan.weights[:40])
    assert np.linalg.norm(values[:, 0] - game.shapley) < 0.8 * np.linalg.norm(game.shapley)
    assert (errors_of(covariances) > 0).all()
    assert any("40 pairs for 100 units" in w for w in diagnostics["warnings"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m, o, d, w: (m[1:], o[1:], d, w), "the full coalition, the empty one, and then pairs"),
        (lambda m, o, d, w: (m[:-1], o[:-1], d, w), "the full coalition, the empty one, and then pairs"),
        (lambda m, o, d, w: (np.vstack([m[:3], m[2:3], m[4:]]), o, d, w), "then pairs of complements"),
        (lambda m, o, d, w: (m, o[:-2], d, w), r"expected finite numbers of shape \(82, O\)"),
        (lambda m, o, d, w: (m, o * np.nan, d, w), "expected finite numbers"),
        (lambda m, o, d, w: (m, o, d[1:], w), r"expected \(14,\)"),
        (lambda m, o, d, w: (m, o, d, w[1:]), "one for each pair"),
        (lambda m, o, d, w: (m, o, d, 0 * w), "positive"),
    ],
)
def test_refuses_what_does_not_fit(change, message):
    masks, outputs, distances, weights = change(*case())
    with pytest.raises(ValueError, match=message):
        ridge_values(masks, outputs, distances, 10.0, weights)
