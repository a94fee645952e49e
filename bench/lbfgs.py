"""L-BFGS for contenders that bring their own gradients: SciPy's, which gradstep takes, too."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from cases import OPTIMIZERS, Array, Case


def minimize(
    case: Case, function: Callable[[Array], tuple[float, Array]], theta: Array, iterations: int
) -> tuple[Array, list[float]]:
    """The parameters after so many iterations, and the loss after each.

    Parameters
    ----------
    case
        Its optimizer's options say how many steps are remembered.
    function
        Loss and gradient of parameters, float64 (n,).
    theta
        Where to begin.
    """
    from scipy import optimize

    losses: list[float] = []

    def record(intermediate_result: Any) -> None:
        losses.append(float(intermediate_result.fun))

    options = {
        "maxiter": iterations,
        "maxfun": np.iinfo(np.int32).max,
        "maxcor": OPTIMIZERS[case.optimizer]["history_size"],
        "gtol": 0.0,
        "ftol": 64 * np.finfo(np.float64).eps,
    }
    found = optimize.minimize(function, theta, method="L-BFGS-B", jac=True, callback=record, options=options)
    if len(losses) < iterations:
        raise RuntimeError(f"L-BFGS ended after {len(losses)} of {iterations} iterations: {found.message}")
    return found.x, losses
