# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""Values of processes, scalar and by blocks, on games whose values are known."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from shapley_oracles import VoxelGame, relative_error

from monai_segshap.shapley import BlockTable, Locality, all_coalitions, exact_shapley, plan_coalitions, solve
from monai_segshap.shapley.process import distance_prior, fit_surrogate
from monai_segshap.shapley.process_estimate import process_estimate
from monai_segshap.shapley.regression import constrained_regression
from monai_segshap.shapley.tuning import choose_hyperparameters

TP, FP, DICE, SOFT = range(4)


def only(table: BlockTable, score: int) -> BlockTable:
    """The same blocks for one score."""
    return replace(table, linear=table.linear[[score]], compose=lambda sums: table.compose(sums)[:, [score]])


@pytest.fixture(scope="module")
def local():
    """A local game of 16 units, its coalitions, scores, blocks, and the estimates without and with blocks."""
    game = VoxelGame.local((4, 2, 2), 50, seed=0)
    game.reference[::5] = False
    rows = plan_coalitions(16, 100, "gaussian_process").rows
    scores, table = game(rows), game.table(rows)
    return {
        "game": game,
        "rows": rows,
        "scores": scores,
        "table": table,
        "scalar": process_estimate(rows, scores, game.locality),
        "blocks": process_estimate(rows, scores, game.locality, table),
    }


@pytest.mark.parametrize("how", ["scalar", "blocks"])
def test_values_sum_to_full_minus_empty(local, how):
    total = local["scores"][0] - local["scores"][1]
    np.testing.assert_allclose(local[how].values.sum(axis=0), total, rtol=0, atol=1e-14)


def test_scores_that_are_sums_of_others_add_exactly_by_blocks(local):
    values = local["blocks"].values
    np.testing.assert_allclose(values[:, SOFT], values[:, TP] + values[:, FP], rtol=0, atol=1e-15)


def test_errors_without_blocks_are_inflated_posterior_ones(local):
    found = local["scalar"]
    for t, (details, surrogate) in enumerate(zip(found.diagnostics["processes"], found.surrogates, strict=True)):
        assert details["inflation"] >= 0.8
        expected = details["inflation"] ** 2 * surrogate.covariance()[0]
        np.testing.assert_allclose(found.covariances[t], expected, rtol=2e-3, atol=1e-12)


def without_each_pair(noisy, target, rows, scale):
    """Errors of odd differences by refitting without each pair, and their stated variance."""
    errors, variances = [], []
    for pair in range((len(rows) - 2) // 2):
        out = np.array([2 + 2 * pair, 3 + 2 * pair])
        rest = np.setdiff1d(np.arange(len(rows)), out)
        gain = noisy[np.ix_(out, rest)] @ np.linalg.inv(noisy[np.ix_(rest, rest)])
        error = target[out] - gain @ target[rest]
        covariance = noisy[np.ix_(out, out)] - gain @ noisy[np.ix_(rest, out)]
        errors.append(error[0] - error[1])
        variances.append(scale * np.array([1, -1]) @ covariance @ np.array([1, -1]))
    return np.array(errors), np.array(variances)


def test_inflation_is_that_of_refitting_without_each_pair(local):
    rows, scores, surrogate = local["rows"], local["scores"][:, SOFT], local["scalar"].surrogates[SOFT]
    factor = np.tril(surrogate.factor[0])
    errors, variances = without_each_pair(factor @ factor.T, scores - scores[1], rows, surrogate.variance[0])
    expected = max(0.8, np.sqrt(np.mean(errors**2 / variances)))
    assert local["scalar"].diagnostics["processes"][SOFT]["inflation"] == pytest.approx(expected, abs=6e-4)


def test_errors_by_blocks_are_those_of_the_sum_inflated_by_what_the_sum_misses(local):
    rows, locality, outputs = local["rows"], local["game"].locality, local["table"].outputs
    lively = np.flatnonzero(np.ptp(outputs[:, :, TP], axis=0) > 0)
    distances = locality.block_distances_mm[lively]
    chosen = choose_hyperparameters(rows, outputs[:, lively, TP], list(distances), locality.unit_size_mm)
    errors = variances = covariance = 0.0
    for block, distance in zip(lively, distances, strict=True):
        prior = distance_prior(distance, rows.shape[1], chosen.length_mm)
        fit = fit_surrogate(rows, outputs[:, [block], TP], prior, chosen, keep_factor=True)
        factor = np.tril(fit.factor[0])
        target = outputs[:, block, TP] - outputs[1, block, TP]
        missed, spread = without_each_pair(factor @ factor.T, target, rows, fit.variance[0])
        errors, variances, covariance = errors + missed, variances + spread, covariance + fit.covariance()[0]
    inflation = max(0.8, np.sqrt(np.mean(errors**2 / variances)))
    found, alone = local["blocks"], local["scalar"]
    details = found.diagnostics["processes"]
    assert len(lively) > 3
    assert details[TP]["block_inflation"] == pytest.approx(inflation, abs=6e-4)
    np.testing.assert_allclose(found.covariances[TP], inflation**2 * covariance, rtol=1e-6, atol=1e-15)
    assert np.trace(found.covariances[TP]) < np.trace(alone.covariances[TP])
    # a ratio keeps the errors of its scalar process
    assert details[DICE]["block_inflation"] is None
    np.testing.assert_array_equal(found.covariances[DICE], alone.covariances[DICE])


@pytest.mark.parametrize("with_blocks", [False, True])
def test_constant_scores_have_exactly_no_value_and_no_error(local, with_blocks):
    scores = local["scores"].copy()
    scores[:, FP], scores[:, DICE] = 0.0, 0.7
    outputs = local["table"].outputs.copy()
    outputs[:, :, FP] = 0.0
    table = replace(local["table"], outputs=outputs) if with_blocks else None
    found = process_estimate(local["rows"], scores, local["game"].locality, table)
    for t in (FP, DICE):
        assert not found.values[:, t].any()
        assert not found.covariances[t].any()
        assert found.surrogates[t] is None
        details = found.diagnostics["processes"][t]
        assert (details["hyperparameters"], details["inflation"], details.get("block_inflation")) == (None, 1.0, None)
    assert found.values[:, TP].any()


def test_one_block_without_distances_is_the_scalar_process(local):
    rows, scores = local["rows"], local["scores"][:, [TP]]
    table = only(local["table"], TP)
    table = replace(table, outputs=table.outputs.sum(axis=1, keepdims=True))
    nowhere = Locality(None, 10.0, None)
    one = process_estimate(rows, scores, nowhere)
    other = process_estimate(rows, scores, nowhere, table)
    # the search uses fewer rows for several outputs, not for one
    np.testing.assert_allclose(other.values, one.values, rtol=0, atol=1e-12)


def test_blocks_without_distances_share_one_process(local):
    table = only(local["table"], TP)
    found = process_estimate(local["rows"], local["scores"][:, [TP]], Locality(None, 10.0, None), table)
    exact = local["game"].shapley[:, [TP]]
    assert relative_error(found.values, exact) < 0.2


def test_no_block_leaves_the_scalar_values(local):
    table = replace(local["table"], outputs=local["table"].outputs[:, :0])
    found = process_estimate(local["rows"], local["scores"], local["game"].locality, table)
    np.testing.assert_array_equal(found.values, local["scalar"].values)


def test_the_same_question_has_the_same_answer(local):
    again = process_estimate(local["rows"], local["scores"], local["game"].locality, local["table"])
    np.testing.assert_array_equal(again.values, local["blocks"].values)
    np.testing.assert_array_equal(again.covariances, local["blocks"].covariances)


@pytest.mark.parametrize("score", [DICE, SOFT])
def test_blocks_bring_scores_closer_to_the_truth(score):
    every, errors = all_coalitions(16), []
    for seed in range(3):
        game = VoxelGame.local((4, 4, 1), 100, seed, n_own=8)
        exact = exact_shapley(game(every)[:, [score]])
        rows = plan_coalitions(16, 120, "gaussian_process", seed).rows
        scores, table = game(rows)[:, [score]], only(game.table(rows), score)
        found = [process_estimate(rows, scores, game.locality, blocks).values for blocks in (None, table)]
        errors.append([relative_error(values, exact) for values in found])
    scalar, blocks = np.mean(errors, axis=0)
    assert blocks < 0.95 * scalar
    assert blocks < 0.1


def test_games_that_are_not_local_are_known_far_better_than_by_plain_regression():
    errors = []
    for seed in range(5):
        game, plan = VoxelGame.anywhere(64, 100, seed), plan_coalitions(64, 512, "gaussian_process", seed)
        scores, exact = game(plan.rows)[:, [SOFT]], game.shapley[:, [2]]
        process = process_estimate(plan.rows, scores, Locality()).values
        difference, total = scores[2::2] - scores[3::2], scores[0] - scores[1]
        plain = constrained_regression(plan.regressors, difference, total, plan.weights, plan.inclusion, None)[0]
        errors.append([relative_error(process, exact), relative_error(plain, exact)])
    process, plain = np.median(errors, axis=0)
    assert process <= 0.6 * plain


def test_four_hundred_units_are_known_from_sixteen_hundred_coalitions():
    game = VoxelGame.local((10, 8, 5), 300, seed=0)
    rows = plan_coalitions(400, 1600, "gaussian_process").rows
    outputs = game.table(rows).outputs[:, :, [TP, FP]]
    table = BlockTable(outputs, np.ones((1, 2)), lambda sums: sums)
    found = process_estimate(rows, game(rows)[:, [SOFT]], game.locality, table)
    assert relative_error(found.values, game.shapley[:, [2]]) <= 0.1


def test_the_order_of_pairs_and_of_their_members_changes_nothing():
    game, plan = VoxelGame.local((4, 3, 3), 40, seed=3), plan_coalitions(36, 600, "gaussian_process", seed=3)
    scores, rng = game(plan.rows)[:, [0, 3]], np.random.default_rng(0)
    pairs, swapped = rng.permutation(300), rng.random(300) < 0.5
    first, second = 2 + 2 * pairs + swapped, 3 + 2 * pairs - swapped
    order = np.concatenate([[0, 1], np.stack([first, second], axis=1).ravel()])
    shuffled = replace(plan, rows=plan.rows[order], weights=plan.weights[pairs], inclusion=plan.inclusion[pairs])
    one, other = solve(plan, scores, game.locality), solve(shuffled, scores[order], game.locality)
    np.testing.assert_allclose(other.values, one.values, rtol=0, atol=1e-10)
    np.testing.assert_allclose(other.standard_errors, one.standard_errors, rtol=1e-6)
