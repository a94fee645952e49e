"""scikit-learn's MLPClassifier and MLPRegressor through `fit`."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np

from cases import BETA1, BETA2, EPSILON, Array, Case, Weights
from contenders.base import Contender, Session


class GivenOrders(np.random.RandomState):
    """A random state whose shuffles make scikit-learn visit the rows in given orders.

    `fit` applies a new shuffle to the result of the last one, so each shuffle must be the given order
    seen from the order before it.
    """

    def __init__(self, orders: Array) -> None:
        super().__init__(0)
        self.orders = iter(orders)
        self.inverse = np.arange(orders.shape[1])

    def shuffle(self, x: Any) -> None:
        """Overwrite x instead of permuting it."""
        order = next(self.orders)
        x[:] = self.inverse[order]
        self.inverse[order] = np.arange(len(order))


class SklearnSession(Session):
    """An estimator that starts from given weights."""

    def __init__(self, case: Case, data: tuple[Array, Array], weights: Weights) -> None:
        self.case, self.weights = case, weights
        self.X, y = data
        self.y = y.ravel() if y.ndim == 2 and y.shape[1] == 1 else y
        if case.loss == "binary_cross_entropy":
            self.y = self.y.astype(np.int32)
        self.reset()

    def reset(self) -> None:
        """Make an estimator that is handed its initial weights instead of drawing them."""
        from sklearn.neural_network import MLPClassifier, MLPRegressor

        is_regression = self.case.loss == "mse"
        # The gradient is that of half the sum over outputs, which Adam does not feel but for epsilon.
        gradient_scale = self.case.widths[-1] / 2 if is_regression else 1
        self.model: Any = (MLPRegressor if is_regression else MLPClassifier)(
            hidden_layer_sizes=self.case.widths[1:-1],
            activation=self.case.activation,
            solver="adam",
            alpha=0.0,
            batch_size=self.case.batch,
            learning_rate_init=self.case.learning_rate,
            beta_1=BETA1,
            beta_2=BETA2,
            epsilon=EPSILON * gradient_scale,
            shuffle=not self.case.is_full_batch,
            random_state=0,
            tol=0.0,
            n_iter_no_change=np.inf,
        )
        layers = ((W.copy(), b.copy()) for W, b in self.weights)
        self.model._init_coef = lambda fan_in, fan_out, dtype: next(layers)

    def run(self, epochs: int, orders: Array | None = None) -> float:
        """One call of `fit`; the loss of mse has a factor of 1/2 there."""
        self.model.set_params(max_iter=epochs, random_state=0 if orders is None else GivenOrders(orders))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that training stopped before it converged
            self.model.fit(self.X, self.y)
        return float(self.model.loss_) * (2 if self.case.loss == "mse" else 1)


class ScikitLearn(Contender):
    """scikit-learn."""

    name = "scikit-learn"
    packages = ("scikit-learn",)

    def prepare(self, case: Case, data: tuple[Array, Array], weights: Weights, threads: int) -> Session:
        """Make an estimator."""
        return SklearnSession(case, data, weights)
