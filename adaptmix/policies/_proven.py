"""Weights of "transfer" from estimates: what rows can tell, and domains whose help is proven."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from adaptmix._checks import FloatArray
from adaptmix.solvers import TransferSolution, transfer_weights

# A smaller weight is none.
_NONE = 1e-3
# The part of the target's own squared error that a bias must exceed. Gaussian gradients in 20
# directions make measured biases of one and a half standard deviations of their noise from it.
_TELLING = 0.5
# The bias that is told depends on the weights, and they on it; a second round changes little.
_ROUNDS = 2


def proven_weights(
    gram: FloatArray,
    variance: FloatArray,
    *,
    importance: FloatArray,
    sizes: FloatArray,
    draws: float,
    gram_error: FloatArray,
    doubt: float,
) -> tuple[FloatArray, FloatArray]:
    """Return (K,) weights of the objective, and how much each domain helps.

    ``transfer_weights`` takes its Gram matrix for the truth. Two things are added for estimates.

    Few rows of the domains that count have a mean gradient which is off by s = Σ (α − π)² v²/n,
    squared. A squared bias U below s/2 can hardly be told from none, and pooling has the smaller
    error then: U counts as 0 there, and as U − (s/2)²/U beyond, so that little is taken off a bias
    that is sure.

    The least of many noisy values is one that is noisy, so a domain that is far from the rest, by
    more than s, must prove its help. It is dropped where going without it costs less than
    ``doubt`` · s, which is what fitting noise in one of 1 / ``doubt`` directions seems to bring.

    Args:
        gram: (K, K) inner products of mean gradients, grad².
        variance: (K,) v², grad².
        importance: (K,) π on the simplex; what has none must prove its help.
        sizes: (K,) n.
        draws: N, as for ``transfer_weights``.
        gram_error: (K,) as for ``transfer_weights``.
        doubt: ≥ 0.

    Source:
        Ours. U − s²/U: Breiman, Better subset regression using the nonnegative garrote, 1995. The
        cost of noise in one direction: Mallows, Some comments on C_p, 1973.
    """
    own = variance / sizes
    here, lenience, rounds = np.arange(importance.size), 0.0, 0
    while True:
        products = gram[np.ix_(here, here)]
        solution = transfer_weights(
            products - np.diag(lenience * own[here]),
            variance[here],
            importance=importance[here],
            sizes=sizes[here],
            draws=draws,
            gram_error=gram_error[here],
        )
        alpha, counts = solution.objective, importance[here] > 0.0
        # An indefinite matrix of estimates is made definite as a whole: the noise of a domain that
        # is far away would count against those that are near. So what gets no weight is left out.
        stays = (alpha > _NONE) | counts
        if stays.all():
            away = alpha - importance[here]
            untold = float(away**2 @ own[here])
            if rounds < _ROUNDS:
                lenience, rounds = _lenience(float(away @ products @ away), untold), rounds + 1
                continue
            total = products + np.diag(own[here] + gram_error[here])
            total += np.outer(*[np.sqrt(variance[here] / draws)] * 2)
            stays = _proven(alpha, products, total, untold, doubt) | counts
        if stays.all():
            return _spread(solution, here, importance.size)
        here = here[stays]


def _lenience(bias_sq: float, untold: float) -> float:
    """Return what is taken off a measured squared bias, as a part of what cannot be told, s."""
    least = _TELLING * untold
    if not least > 0.0:
        return 0.0
    return _TELLING * (least / bias_sq if bias_sq > least else 1.0)


def _proven(
    alpha: FloatArray, products: FloatArray, total: FloatArray, untold: float, doubt: float
) -> NDArray[np.bool_]:
    """Return (K,) whether domains are near the rest, or it costs much to go without them.

    Of those that are neither, the half that costs least is named, for without these the others may
    be needed.
    """
    distance, curvature = _to_the_rest(alpha, products), _to_the_rest(alpha, total)
    cost = alpha**2 * curvature
    unproven = np.flatnonzero((distance > untold) & (cost < doubt * untold))
    cheapest = unproven[np.argsort(cost[unproven], kind="stable")]
    proven = np.ones(alpha.size, dtype=np.bool_)
    proven[cheapest[: (cheapest.size + 1) // 2]] = False
    return proven


def _to_the_rest(alpha: FloatArray, matrix: FloatArray) -> FloatArray:
    """Return (K,) dᵀ M d, d from what the other domains make, by their weights, to each one."""
    mixed, own = matrix @ alpha, np.diagonal(matrix)
    rest = np.maximum(1.0 - alpha, _NONE)
    with_rest = (mixed - alpha * own) / rest
    among_rest = (alpha @ mixed - 2.0 * alpha * mixed + alpha**2 * own) / rest**2
    lengths: FloatArray = own - 2.0 * with_rest + among_rest
    return lengths


def _spread(
    solution: TransferSolution, here: NDArray[np.intp], size: int
) -> tuple[FloatArray, FloatArray]:
    """Return the solution for all domains, of which some were left out."""
    objective, helps = np.zeros(size), np.zeros(size)
    objective[here], helps[here] = solution.objective, solution.helps
    return objective, helps
