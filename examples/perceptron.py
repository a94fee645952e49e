"""A 2-4-1 perceptron for a rounded binary target: plain, stochastic and momentum gradient descent.

The target is 1 where the two inputs are more than a half apart: two corners of the unit square, which
no straight line cuts off, so a hidden layer is needed.
"""

import numpy as np

import gradstep as gs

EPOCHS = 1000
LEARNING_RATE = 0.5

OPTIMIZERS = {
    "plain": gs.GradientDescent(LEARNING_RATE),
    "stochastic": gs.SGD(LEARNING_RATE),
    "momentum": gs.SGD(LEARNING_RATE, momentum=0.9),
}
BATCH_SIZES = {"plain": 100, "stochastic": 10, "momentum": 100}


def main() -> dict[str, float]:
    rng = np.random.default_rng(0)
    X = rng.random((100, 2))
    y = np.round(np.abs(X[:, :1] - X[:, 1:]))

    # The loss works on the output before its sigmoid; predict applies the sigmoid.
    models = {
        name: gs.Network(
            [gs.Dense(4, "tanh"), gs.Dense(1)],
            loss="binary_cross_entropy",
            optimizer=optimizer,
            preprocessing="standardize",
        )
        for name, optimizer in OPTIMIZERS.items()
    }

    print("epoch" + "".join(f"{name:>12}" for name in models))
    for epoch in range(100, EPOCHS + 1, 100):
        for name, model in models.items():
            model.fit(X, y, epochs=100, batch_size=BATCH_SIZES[name], verbose=0)
        print(f"{epoch:5d}" + "".join(f"{model.history.loss[-1]:12.6f}" for model in models.values()))

    accuracies = {}
    for name, model in models.items():
        probability = model.predict(X)
        accuracies[name] = float(np.mean(np.round(probability) == y))
        print(f"{name:>10}: accuracy {accuracies[name]:.2f}")
    return accuracies


if __name__ == "__main__":
    main()
