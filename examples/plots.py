"""Every plot on one page: a classifier of handwritten digits, and a regression.

    python examples/plots.py docs/images/plots.png

writes the picture of the guide. Needs the extras plot and sklearn.
"""

import sys

import numpy as np
from matplotlib.figure import Figure
from sklearn.datasets import load_digits

import gradstep as gs


def classifier(axes):
    """Draw all that concerns classification; returns the accuracy on the validation rows."""
    X, y = load_digits(return_X_y=True)
    train, validation = (X[:1300], y[:1300]), (X[1300:], y[1300:])
    net = gs.Network(
        [gs.Dense(64, "relu"), gs.Dense(32, "tanh"), gs.Dense(10)],
        loss="cross_entropy",
        preprocessing="standardize",
    )
    found = gs.find_learning_rate(net, *train)
    net.learning_rate = found.suggestion
    history = net.fit(*train, epochs=30, validation_data=validation, verbose=0)

    found.plot(axes[0])
    history.plot(axes[1])
    gs.plot.activations(net, train[0][:300], axes[2])
    gs.plot.gradients(net, train[0][:300], train[1][:300], axes[3])
    gs.plot.confusion_matrix(validation[1], net.predict(validation[0]), axes[4])
    return net.evaluate(*validation)["accuracy"]


def regression(ax):
    """Draw predictions of unseen rows; returns their r2."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(2000, 4))
    y = np.sin(X[:, 0]) + X[:, 1] * X[:, 2] + 0.1 * rng.normal(size=2000)
    net = gs.Network([gs.Dense(64, "tanh"), gs.Dense(1)], optimizer=gs.Adam(1e-2))
    net.fit(X[:1500], y[:1500], epochs=40, verbose=0)
    gs.plot.predicted_against_true(y[1500:], net.predict(X[1500:]), ax)
    return net.evaluate(X[1500:], y[1500:])["r2"]


def main(path):
    """Write the picture; returns accuracy and r2."""
    figure = Figure(figsize=(13, 8), layout="constrained")
    axes = figure.subplots(2, 3).ravel()
    scores = classifier(axes[:5]), regression(axes[5])
    figure.savefig(path, dpi=75)
    print(f"{path}: accuracy {scores[0]:.3f}, r2 {scores[1]:.3f}")
    return scores


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "plots.png")
