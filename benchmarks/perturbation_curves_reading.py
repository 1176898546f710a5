# Copyright (c) monai_segshap contributors. Licensed under the Apache License, Version 2.0.
"""What stands above the tables of `perturbation_curves.py`."""

from __future__ import annotations

HOW = """
The question: from the same number of evaluated coalitions, whose attributions rank the units better? Same partition,
same region, same score, same n (the full and the empty coalition are among the n).

- **Cases**: torso phantoms, seeds from 1000 on, the bundle's network on its own windows, the largest predicted lymph
  node. Units that the region's windows do not see are left out for everybody. All scores come from the same coalitions.
- **auto**: what `KernelSHAPExplainer` computes from n coalitions by default (the table says which estimator that is);
  **kernelshap**: the package's method of that name. The explainer's early stop is off.
- **captum**: `captum.attr.KernelShap`, its own sampling and regression, each unit a feature; the game of one score as
  forward function. It needs a run for each score; all runs of a seed draw the same coalitions.
- **published**: kernel-law sizes, with replacement, unpaired, regression with the efficiency constraint; other draws.
- **random**: two random orders, each in both directions, so that their ABPC is 0 on average; the same for all scores.

Each attribution is judged on the true game: units go by attribution, largest first (MoRF) and smallest first (LeRF),
and every coalition on the way is evaluated. ABPC is the mean gap between the two curves, nABPC that over s(all) -
s(none) (`abpc_endpoint_normalized`). NAOPC places the area over MoRF between the least and the largest one; these
bounds are over all orders whose coalitions this run knows (several hundred to some thousand coalitions of the case,
those of all curves among them), not over all orders there are. *1 - sufficiency* does the same with LeRF. All four:
larger is better. nABPC is left out where s(all) - s(none) is about 0 or negative.

Means are over the cases of means over draws; in brackets the standard deviation between draws of one case. The interval
is a percentile bootstrap over cases of the paired difference; with so few cases it is rather too narrow. *Draws*: pairs
of a draw of ours and one of captum's with the same number, in which ours is at least as good.
"""

READING = """
- **Cells at 4 evaluations a unit.** nABPC of auto is above captum's in all five cases for tp (0.980 against 0.872),
  soft Dice (0.958 against 0.855) and Dice (0.932 against 0.889), in 10, 10 and 9 of 10 draws. The regression on pairs
  without a prior (`kernelshap`, one draw) has 0.933, 0.922 and 0.921: more than half of the gain comes from pairs and
  size control, the rest from the process and its positions. Draws of auto differ by 0.006 to 0.017, those of captum by
  0.04 to 0.07.
- **Organs, tp and soft Dice.** Above captum's in all five cases at 64 evaluations (0.849 against 0.765, 0.826 against
  0.745; 9 of 10 draws each). At 128 the lead is about half of that (0.869 against 0.826, 0.846 against
  0.797; 9 of 10 draws), and tp of phantom 1003 is below by 0.006. 64 of ours do a little better than 128 of
  captum's. Phantom 1001 has 22 visible organs, so auto is the process there: better than `kernelshap` but for Dice at
  128 (0.830 against 0.836).
- **Organs, Dice: not better case by case.** 3 of 5 cases at both numbers. The mean differences are +0.037 at 64 and
  +0.014 at 128, where the interval holds 0. Where ours is below, it is so by 0.002 to 0.020, about the spread between
  two draws of one method. At 128 all estimators but captum have the same mean to 0.001.
- **fp: undecided.** The fp of these regions is 0 with all units and with none, so nABPC has no normalizer and ABPC
  stands in; it is at most 0.02 on average for every method. auto is above captum in 5 of 5 cases (organs, 64), 3 of 5
  (organs, 128) and 3 of 5 (cells). With organs `published` has the largest mean.
- So "nABPC at least that of captum in every case" holds in this run for tp, soft Dice and Dice with cells, and for tp
  and soft Dice with organs but for one case by 0.006. It does not hold for Dice with organs, nor can it be asked of fp.
- The difference lies in LeRF (*1 - sufficiency*). MoRF is about the same for all sampled methods: the unit that holds
  the node comes first nearly always, the prediction is gone once it is removed, and NAOPC of tp, Dice and soft Dice is
  at or near 1. There is nothing to win there; captum is ahead by 0.004 (Dice) and 0.001 (soft Dice) with organs at 128.
- nABPC is above 1 for tp of phantom 1001 with cells: some units lower the score, and without them it is above that of
  the whole image.
- A better estimate of Shapley values need not have a better ABPC: the curves reward the ranking alone, and that by
  Shapley values need not be the best one. Errors of the values themselves are in `estimators.md`.
- captum repeats coalitions: 7 % of its evaluations with organs at 64, 12 % at 128 and 5 % with cells are of a coalition
  that it already had. They count, since it asks for them; a cache would save them.
- captum and `published` draw by the same law and solve nearly the same regression; their difference shows what other
  draws do.
- Not run: cells of 40 mm (about 240 visible units: 950 evaluations for each draw, and 480 for each pair of curves),
  hybrid units, more cases. The network is small and the phantoms are synthetic.
"""
