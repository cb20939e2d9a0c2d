"""Logistic regression as one linear layer: the head of a probe, and the pixel baseline."""

from __future__ import annotations

import warnings

import numpy as np
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits

_ITERATIONS = 2000


def fit_logistic(
    features: NDArray[np.float64], targets: NDArray[np.int64] | NDArray[np.float32], classes: int, strength: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Fit logistic regression (L-BFGS, L2), whatever classes occur among the targets.

    Args:
        features: (N, F), standardised.
        targets: int64 (N,), or indicators (N, K) for multi-label: a regression a class.
        classes: K.
        strength: sklearn's C.

    Returns:
        weight (K, F) and bias (K,) of a linear layer that gives logits.
    """
    weight, bias = np.zeros((classes, features.shape[1])), np.zeros(classes)
    if targets.ndim == 2:
        for column in range(classes):
            positive = targets[:, column] > 0.5
            if positive.all() or not positive.any():
                share = (positive.sum() + 0.5) / (len(positive) + 1.0)
                bias[column] = np.log(share / (1.0 - share))
                continue
            fitted = _regression(features, positive.astype(np.int64), strength)
            weight[column], bias[column] = fitted.coef_[0], fitted.intercept_[0]
        return weight, bias
    present = np.unique(targets)
    if len(present) == 1:
        bias[:] = -np.log(2.0 * len(targets) + 1.0)
        bias[present[0]] = 0.0
        return weight, bias
    fitted = _regression(features, targets.astype(np.int64), strength)
    if len(present) == 2:
        # One row for the second class: half of it to each side gives the same probabilities.
        coefficients = np.concatenate([-fitted.coef_, fitted.coef_]) / 2.0
        intercepts = np.concatenate([-fitted.intercept_, fitted.intercept_]) / 2.0
    else:
        coefficients, intercepts = fitted.coef_, fitted.intercept_
    # A class that the train split lacks is as unlikely as half a tile among all.
    bias[:] = intercepts.min() - np.log(2.0 * len(targets) + 1.0)
    weight[present], bias[present] = coefficients, intercepts
    return weight, bias


def _regression(features: NDArray[np.float64], targets: NDArray[np.int64], strength: float) -> LogisticRegression:
    # One thread: the products are small, and threads that wait for each other on a busy machine cost twenty times more.
    # The last bits do not depend on the number of cores then, either.
    with warnings.catch_warnings(), threadpool_limits(limits=1):
        # A head that has not converged is judged on the validation split like the others.
        warnings.simplefilter("ignore", ConvergenceWarning)
        return LogisticRegression(C=strength, max_iter=_ITERATIONS).fit(features, targets)
