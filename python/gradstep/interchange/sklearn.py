"""Networks from scikit-learn's own perceptrons, with the scalers in front of them."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np

from gradstep.backends.base import Array
from gradstep.interchange import parity
from gradstep.interchange.forward import forward_of
from gradstep.layers import Dense, Input, Layer
from gradstep.network import Network
from gradstep.optimizers import Optimizer

_ACTIVATIONS = {"identity": "identity", "logistic": "sigmoid", "tanh": "tanh", "relu": "relu"}

_LOSSES = {
    "identity": "mse",
    "exp": "poisson",
    "logistic": "binary_cross_entropy",
    "softmax": "cross_entropy",
}
"""By the activation of an estimator's outputs."""


def from_sklearn(
    estimator: Any, *, optimizer: str | Optimizer = "adam", seed: int = 0, backend: str = "auto"
) -> Network:
    """A network with the coefficients of scikit-learn's MLPClassifier or MLPRegressor, and its predictions.

    `Network.predict` returns what the estimator's ``predict_proba`` does, or its ``predict`` for regression,
    always in two dimensions. Two classes become two outputs with a softmax, which gives the probabilities of
    scikit-learn's one logistic output.

    Parameters
    ----------
    estimator : sklearn.neural_network.MLPClassifier, MLPRegressor, or a Pipeline that ends with one
        Fitted. In front of it a Pipeline may have StandardScaler and MinMaxScaler, which become the
        preprocessing.
    optimizer : str or Optimizer, default "adam"
        For further training, as for `Network`; the state of scikit-learn's is not taken over, nor is alpha.
    seed : int, default 0
        For further training.
    backend : {"auto", "cpp", "numba", "numpy"}
        What computes.

    Returns
    -------
    Network
        In the dtype of the coefficients, with the names of the classes; compared with the estimator on 32
        rows.

    Raises
    ------
    TypeError
        If estimator is something else, or a Pipeline has other steps.
    ValueError
        If it is not fitted.
    ArithmeticError
        If the network does not agree with the estimator.
    ImportError
        If scikit-learn is not installed.
    """
    scalers, perceptron = _steps(estimator)
    if not hasattr(perceptron, "coefs_"):
        raise ValueError(f"estimator must be fitted, but this {type(perceptron).__name__} is not")
    coefs, intercepts = list(perceptron.coefs_), list(perceptron.intercepts_)
    is_classifier = hasattr(perceptron, "classes_")
    loss = _LOSSES[perceptron.out_activation_]
    if is_classifier and perceptron.n_outputs_ == 1:
        loss = "cross_entropy"
        coefs[-1] = np.hstack([np.zeros_like(coefs[-1]), coefs[-1]])
        intercepts[-1] = np.concatenate([np.zeros_like(intercepts[-1]), intercepts[-1]])
    hidden = _ACTIVATIONS[perceptron.activation]
    layers: list[Layer] = [Input(coefs[0].shape[0]), *(Dense(W.shape[1], hidden) for W in coefs[:-1])]
    network = Network(
        [*layers, Dense(coefs[-1].shape[1])],
        loss=loss,
        optimizer=optimizer,
        seed=seed,
        dtype=coefs[0].dtype.name,
        backend=backend,
    )
    if scalers:
        network = _with_scalers(network, scalers, backend)
    for index, (W, b) in enumerate(zip(coefs, intercepts, strict=True)):
        network.set_parameters({f"dense_{index}.W": W, f"dense_{index}.b": b})
    if is_classifier:
        network.classes = perceptron.classes_.tolist()
    _check(estimator, is_classifier, network)
    return network


def _steps(estimator: Any) -> tuple[list[Any], Any]:
    """The scalers and the perceptron, or a TypeError."""
    try:
        from sklearn.neural_network import MLPClassifier, MLPRegressor
        from sklearn.pipeline import Pipeline
        from sklearn.preprocessing import MinMaxScaler, StandardScaler
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            'from_sklearn needs the package scikit-learn: pip install "gradstep[sklearn]"'
        ) from None
    steps = [step for _, step in estimator.steps] if isinstance(estimator, Pipeline) else [estimator]
    perceptron = steps.pop()
    scalers = [step for step in steps if step is not None and step != "passthrough"]
    if not isinstance(perceptron, MLPClassifier | MLPRegressor):
        alone = ", without the steps before it" if steps else ""
        hint = f"; its to_network() makes a network{alone}" if hasattr(perceptron, "to_network") else ""
        raise TypeError(
            "estimator must be an MLPClassifier or MLPRegressor of scikit-learn, or a Pipeline with one at "
            f"its end, got {type(perceptron).__name__}{hint}"
        )
    for scaler in scalers:
        if not isinstance(scaler, StandardScaler | MinMaxScaler) or getattr(scaler, "clip", False):
            raise TypeError(
                f"the Pipeline has the step {scaler!r}, but only StandardScaler and MinMaxScaler that do not "
                "clip can become a preprocessing"
            )
    return scalers, perceptron


def _with_scalers(network: Network, scalers: list[Any], backend: str) -> Network:
    """The network with all scalers as one affine map of its inputs."""
    assert network.n_in is not None
    shift, scale = np.zeros(network.n_in), np.ones(network.n_in)
    for scaler in scalers:
        next_shift, next_scale = _affine(scaler, network.n_in)
        shift, scale = shift + next_shift / scale, scale * next_scale
    config = dict(network.config)
    config["preprocessing"] = {"mode": "standardize", "shift": shift.tolist(), "scale": scale.tolist()}
    return Network.from_config(config, backend=backend)


def _affine(scaler: Any, width: int) -> tuple[Array, Array]:
    """Shift and scale of ``(x - shift) * scale``."""
    if hasattr(scaler, "data_min_"):
        return -scaler.min_ / scaler.scale_, scaler.scale_
    shift = scaler.mean_ if scaler.with_mean else np.zeros(width)
    return shift, 1 / scaler.scale_ if scaler.with_std else np.ones(width)


def _check(estimator: Any, is_classifier: bool, network: Network) -> None:
    forward = forward_of(network)
    rows = parity.sample_rows(forward)
    with warnings.catch_warnings():
        # That it was fitted with names of columns does not matter here.
        warnings.simplefilter("ignore", UserWarning)
        outputs = estimator.predict_proba(rows) if is_classifier else estimator.predict(rows)
    parity.check("estimator", forward, rows, np.reshape(outputs, (len(rows), -1)))
