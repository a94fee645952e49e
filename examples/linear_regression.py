"""Linear regression y = 3x + 2 + noise by gradient descent: plain, stochastic and with momentum.

The noise is uniform in [0, 1), so its mean of 0.5 adds to the intercept: the line to find has slope 3
and intercept 2.5.
"""

import numpy as np

import gradstep as gs

EPOCHS = 1000
LEARNING_RATE = 0.1

OPTIMIZERS = {
    "plain": gs.GradientDescent(LEARNING_RATE),
    "stochastic": gs.SGD(LEARNING_RATE),
    "momentum": gs.SGD(LEARNING_RATE, momentum=0.9),
}
BATCH_SIZES = {"plain": 100, "stochastic": 20, "momentum": 100}


def main() -> dict[str, tuple[float, float]]:
    rng = np.random.default_rng(1)
    x = 2 * rng.random((100, 1))
    y = 3 * x + 2 + rng.random((100, 1))

    # A single dense layer without an activation is the model y = w x + b.
    models = {
        name: gs.Network([gs.Dense(1)], loss="mse", optimizer=optimizer)
        for name, optimizer in OPTIMIZERS.items()
    }

    print("epoch" + "".join(f"{name:>12}" for name in models))
    for epoch in range(100, EPOCHS + 1, 100):
        for name, model in models.items():
            model.fit(x, y, epochs=100, batch_size=BATCH_SIZES[name], verbose=0)
        print(f"{epoch:5d}" + "".join(f"{model.history.loss[-1]:12.6f}" for model in models.values()))

    lines = {}
    for name, model in models.items():
        parameters = model.parameters()
        slope, intercept = parameters["dense_0.W"].item(), parameters["dense_0.b"].item()
        print(f"{name:>10}: y = {slope:.3f} x + {intercept:.3f}")
        lines[name] = slope, intercept
    return lines


if __name__ == "__main__":
    main()
