"""Compare the gradients of a network with finite differences."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from gradstep.backends.base import Array, Parameters
from gradstep.network import Network
from gradstep.validation import check_integer, check_real

STEP = 6e-6
"""Near the cube root of the rounding unit, where rounding and truncation of a central difference meet."""

SHRINKING = (1.0, 0.1, 0.01)
"""Steps tried, in parts of `STEP`: a smaller one does not reach a kink that the first one crossed."""

NEGLIGIBLE = 1e-3
"""Entries below this part of the largest gradient are measured against it: their differences are noise."""


@dataclass(frozen=True)
class GradientReport:
    """Result of `check_gradients`; true if all gradients agree."""

    errors: dict[str, float]
    """Largest relative error of every parameter by name."""
    checked: dict[str, int]
    """Number of entries compared, by name."""
    tolerance: float
    """Largest relative error that counts as agreement."""

    @property
    def largest_error(self) -> float:
        """Largest relative error of all parameters."""
        return float(np.max(list(self.errors.values())))

    def __bool__(self) -> bool:
        return self.largest_error <= self.tolerance

    def __repr__(self) -> str:
        verdict = "agree" if self else "DISAGREE"
        lines = [f"gradients {verdict} with finite differences (tolerance {self.tolerance:g})"]
        width = max(len(name) for name in self.errors)
        for name, error in self.errors.items():
            mark = "" if error <= self.tolerance else "  <-- too large"
            entries = self.checked[name]
            lines.append(f"  {name:<{width}}  largest relative error {error:.1e} in {entries} entries{mark}")
        return "\n".join(lines)


def check_gradients(
    network: Network,
    X: Any,
    y: Any,
    sample_weight: Any = None,
    *,
    tolerance: float = 1e-5,
    entries: int = 20,
) -> GradientReport:
    """Compare `Network.loss_and_gradients` with central differences, in float64.

    For every entry theta_i of a random choice, ``(J(theta_i + h) - J(theta_i - h)) / 2 h`` is compared
    with the gradient. Networks of float32 are compared through a float64 copy on the same backend; the
    network itself does not change.

    Parameters
    ----------
    network : Network
        A network with any losses and layers.
    X, y, sample_weight
        A few rows, as for `Network.fit`.
    tolerance : float, default 1e-5
        Largest relative error that counts as agreement.
    entries : int, default 20
        Entries compared per parameter, chosen at random but the same every time.

    Returns
    -------
    GradientReport
        True in a condition if all agree: ``assert check_gradients(net, X, y)``. Prints as a table.

    Raises
    ------
    TypeError, ValueError
        If an argument is not as `Network.fit` needs it.

    Notes
    -----
    At a kink, as relu has at 0, both may rightly differ; where a step crosses one, smaller steps are tried.
    Entries so small that rounding of the loss hides them, as in a network trained to its end, are not told
    apart.
    """
    check_real("tolerance", tolerance, above=0.0)
    check_integer("entries", entries, minimum=1)
    network.loss_and_gradients(X, y, sample_weight)  # also gives a new network its input width
    twin = _float64_twin(network)

    def value() -> float:
        return twin.loss_and_gradients(X, y, sample_weight)[0]

    loss, gradients = twin.loss_and_gradients(X, y, sample_weight)
    largest = max(float(np.abs(g).max()) for g in gradients.values())
    floor = max(NEGLIGIBLE * largest, 1e-7 * abs(loss), _rounding(twin, X, y, sample_weight) / tolerance)
    parameters = twin.parameters()
    rng = np.random.default_rng(0)
    errors: dict[str, float] = {}
    checked: dict[str, int] = {}
    for name, gradient in gradients.items():
        chosen = rng.permutation(gradient.size)[:entries]
        difference = _difference(twin, parameters, name, value)
        pairs = [(float(gradient.flat[i]), difference, int(i)) for i in chosen]
        # np.max, unlike max, keeps NaN.
        errors[name] = float(np.max([_relative_error(*pair, floor) for pair in pairs]))
        checked[name] = len(chosen)
        twin.set_parameters({name: parameters[name]})
    return GradientReport(errors, checked, tolerance)


def _rounding(twin: Network, X: Any, y: Any, sample_weight: Any) -> float:
    """What rounding alone puts into a difference: the loss comes of numbers as large as layers' outputs."""
    layers = twin.trace(X, y, sample_weight).layers
    magnitude = max(1.0, *(float(np.abs(layer.z).max()) for layer in layers))
    return float(np.finfo(np.float64).eps) * magnitude / (2 * STEP)


def _float64_twin(network: Network) -> Network:
    config = {**network.config, "dtype": "float64"}
    twin = Network.from_config(config, backend=network.backend, loss=network.loss)
    twin.set_parameters(network.parameters())
    twin.encoder = network.encoder
    return twin


def _difference(
    twin: Network, parameters: Parameters, name: str, loss: Callable[[], float]
) -> Callable[[int, float], float]:
    """A function of a flat index and a step: the central difference there."""
    values: Array = parameters[name]

    def at(index: int, theta: float) -> float:
        moved = values.copy()
        moved.flat[index] = theta
        twin.set_parameters({name: moved})
        return loss()

    def difference(index: int, h: float) -> float:
        theta = float(values.flat[index])
        up, down = theta + h, theta - h
        return (at(index, up) - at(index, down)) / (up - down)

    return difference


def _relative_error(
    analytic: float, difference: Callable[[int, float], float], index: int, floor: float
) -> float:
    errors = []
    for part in SHRINKING:
        numeric = difference(index, part * STEP)
        errors.append(abs(analytic - numeric) / max(abs(analytic), abs(numeric), floor))
        if errors[-1] < 1e-6:
            break
    return min(errors)
