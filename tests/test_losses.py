import pickle

import numpy as np
import pytest

import gradstep as gs
from gradstep.backends.numpy.losses import LOSSES
from gradstep.losses import as_loss


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_of_the_reference_has_its_name(name):
    loss = as_loss(name)
    assert loss.name == name
    assert loss.options == dict(LOSSES[name].defaults)
    assert gs.Loss(**loss.to_config()) == loss


def test_what_the_targets_are_follows_from_the_loss():
    kinds = {name: as_loss(name).target_kind for name in LOSSES}
    assert kinds["cross_entropy"] == kinds["focal"] == kinds["hinge"] == "labels"
    assert kinds["binary_cross_entropy"] == kinds["binary_focal"] == "probabilities"
    assert kinds["mse"] == kinds["mae"] == kinds["huber"] == kinds["quantile"] == "values"
    assert kinds["gaussian_nll"] == "values"
    assert kinds["poisson"] == "counts"
    assert kinds["gamma"] == "positive"
    assert kinds["binary_hinge"] == "signs"
    assert as_loss("cross_entropy").is_classification
    assert not as_loss("mse").is_classification
    assert not as_loss("poisson").is_classification


def test_huber_takes_its_delta_to_the_plan():
    net = gs.Network([gs.Input(1), gs.Dense(1)], loss=gs.Huber(2.5))
    assert net.plan.loss_options == {"delta": 2.5}
    assert gs.Huber().options == {"delta": 1.0}
    assert pickle.loads(pickle.dumps(gs.Huber(2.5))).options == {"delta": 2.5}


def test_quantile_takes_one_or_one_an_output():
    net = gs.Network([gs.Input(1), gs.Dense(2)], loss=gs.Quantile([0.1, 0.9]))
    assert net.plan.loss_options == {"quantile": (0.1, 0.9)}
    assert as_loss("quantile") == gs.Quantile(0.5)
    assert gs.Loss(**gs.Quantile([0.1, 0.9]).to_config()) == gs.Quantile((0.1, 0.9))
    with pytest.raises(ValueError, match=r"must have one value for each of the 3 output\(s\), got 2"):
        gs.Network([gs.Dense(3)], loss=gs.Quantile([0.1, 0.9]))
    with pytest.raises(ValueError, match=r"quantile must be less than 1, got 1\.5"):
        gs.Quantile(1.5)
    with pytest.raises(ValueError, match="quantile must have a value"):
        gs.Quantile([])


def test_bad_losses_are_one_sentence():
    with pytest.raises(ValueError, match="did you mean 'cross_entropy'"):
        as_loss("crossentropy")
    with pytest.raises(ValueError, match="delta must be greater than 0, got -1"):
        gs.Huber(-1)
    with pytest.raises(ValueError, match="unknown option of the loss 'mse' 'delta'"):
        gs.Loss("mse", {"delta": 1.0})
    with pytest.raises(TypeError, match="loss must be a name"):
        as_loss(None)


# --------------------------------------------------------------------------------------------------
# Options and targets


def test_options_of_the_classification_losses_reach_the_plan():
    for loss, options in [
        (gs.CrossEntropy(0.1), {"label_smoothing": 0.1}),
        (gs.BinaryCrossEntropy(0.1), {"label_smoothing": 0.1}),
        (gs.Focal(1.5), {"gamma": 1.5}),
        (gs.BinaryFocal(), {"gamma": 2.0}),
        (gs.GaussianNLL(1e-3), {"floor": 1e-3}),
    ]:
        net = gs.Network([gs.Input(1), gs.Dense(2)], loss=loss, backend="numpy")
        assert net.plan.loss_options == options
        again = gs.Network.from_config(net.config, backend="numpy").loss
        assert again == loss
        assert type(again) is type(loss)


def test_bad_options_are_one_sentence():
    with pytest.raises(ValueError, match="label_smoothing must be less than 1, got 1"):
        gs.CrossEntropy(1.0)
    with pytest.raises(ValueError, match="gamma must be at least 0, got -1"):
        gs.Focal(-1)
    with pytest.raises(TypeError, match="gamma must be a number"):
        gs.Loss("focal", {"gamma": [1.0, 2.0]})
    with pytest.raises(TypeError, match="got the class Focal"):
        as_loss(gs.Focal)


def fitted(loss, y, units=1, X=None, **options):
    X = np.random.default_rng(0).normal(size=(len(y), 2)) if X is None else X
    net = gs.Network([gs.Dense(units)], loss=loss, backend="numpy")
    net.fit(X, y, epochs=1, verbose=0, **options)
    return net


def test_layers_and_targets_that_do_not_fit_the_loss_are_one_sentence():
    with pytest.raises(ValueError, match="two units for each target, for its mean and its variance"):
        gs.Network([gs.Dense(3)], loss="gaussian_nll")
    with pytest.raises(ValueError, match="use 'binary_hinge' for a single output"):
        gs.Network([gs.Dense(1)], loss="hinge")
    with pytest.raises(ValueError, match=r"identity.*'hinge', which takes decision values, got 'relu'"):
        gs.Network([gs.Dense(3, "relu")], loss="hinge")
    with pytest.raises(ValueError, match=r"y must be positive for gamma .*, but y\[1, 0\] = 0"):
        fitted("gamma", [1.0, 0.0])
    with pytest.raises(
        ValueError, match=r"y must hold -1 and 1, or 0 and 1, for binary_hinge, but y\[2, 0\]"
    ):
        fitted("binary_hinge", [1.0, -1.0, 0.0])


def test_signs_may_be_zero_and_one():
    y = np.array([0, 1, 1, 0])
    nets = [fitted("binary_hinge", given) for given in (y, 2 * y - 1)]
    np.testing.assert_array_equal(nets[0].parameters()["dense_0.W"], nets[1].parameters()["dense_0.W"])


@pytest.mark.parametrize(("loss", "units"), [("binary_hinge", 1), ("hinge", 3), ("focal", 3)])
def test_classes_that_can_be_told_apart_are_learnt(backend, loss, units):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(300, 2))
    y = np.digitize(X[:, 0], [0.0] if units == 1 else [-0.5, 0.5])
    net = gs.Network([gs.Dense(units)], loss=loss, optimizer=gs.Adam(0.05), backend=backend.name)
    net.fit(X, y, epochs=60, verbose=0)
    assert net.evaluate(X, y)["accuracy"] > 0.95
    decisions = net.predict(X)
    chosen = decisions[:, 0] > 0 if units == 1 else decisions.argmax(axis=1)
    assert np.mean(chosen == y) == pytest.approx(net.evaluate(X, y)["accuracy"])


@pytest.mark.parametrize("target_preprocessing", ["none", "standardize"])
def test_gaussian_nll_learns_means_and_variances(backend, target_preprocessing):
    rng = np.random.default_rng(0)
    X = rng.uniform(-1, 1, size=(4000, 1))
    deviation = np.where(X > 0, 2.0, 0.5)
    y = 5 + 3 * X + deviation * rng.normal(size=X.shape)
    net = gs.Network(
        [gs.Dense(16, "tanh"), gs.Dense(2)],
        loss="gaussian_nll",
        optimizer=gs.Adam(0.02),
        target_preprocessing=target_preprocessing,
        backend=backend.name,
    )
    net.fit(X, y, epochs=40, batch_size=200, verbose=0)
    mean, variance = net.predict(np.array([[-0.6], [0.6]])).T
    np.testing.assert_allclose(mean, [3.2, 6.8], atol=0.3)
    np.testing.assert_allclose(np.sqrt(variance), [0.5, 2.0], rtol=0.15)
    result = net.evaluate(X, y)
    error = net.predict(X)[:, :1] - y
    assert result["rmse"] == pytest.approx(np.sqrt(np.mean(error**2)), rel=1e-5)


def test_gaussian_nll_has_the_means_first(backend):
    net = gs.Network([gs.Dense(4)], loss=gs.GaussianNLL(0.25), backend=backend.name, dtype="float64")
    net.prepare(np.zeros((1, 1)))
    net.set_parameters({"dense_0.W": np.zeros((1, 4)), "dense_0.b": [1.0, 2.0, 0.0, np.log(2)]})
    np.testing.assert_allclose(net.predict([[0.0]]), [[1, 2, 1.25, 2.25]], rtol=1e-12)
    expected = (np.log(1.25) + 1 / 1.25 + np.log(2.25) + 9 / 2.25) / 2
    assert net.evaluate([[0.0]], [[2.0, 5.0]])["loss"] == pytest.approx(expected, rel=1e-12)


def test_deviances_are_half_those_of_scikit_learn(backend):
    metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(50, 2)), rng.gamma(2.0, size=50)
    for loss, deviance in [
        ("gamma", metrics.mean_gamma_deviance),
        ("poisson", metrics.mean_poisson_deviance),
    ]:
        net = gs.Network([gs.Dense(1)], loss=loss, backend=backend.name, dtype="float64")
        net.fit(X, y, epochs=5, verbose=0)
        assert net.evaluate(X, y)["loss"] == pytest.approx(deviance(y, net.predict(X).ravel()) / 2, rel=1e-10)


@pytest.mark.parametrize(
    ("loss", "units", "columns"),
    [
        ("gaussian_nll", 2, ["prediction", "variance"]),
        ("gaussian_nll", 4, ["prediction_0", "prediction_1", "variance_0", "variance_1"]),
        ("hinge", 3, ["prediction"]),
        ("focal", 2, ["prediction", "probability_0", "probability_1"]),
    ],
)
def test_the_command_line_names_the_columns_of_predictions(loss, units, columns):
    pytest.importorskip("typer")
    from gradstep.commands.predict import result_columns

    net = gs.Network([gs.Input(2), gs.Dense(units)], loss=loss, backend="numpy")
    assert list(result_columns(net, net.predict(np.zeros((5, 2))))) == columns


# --------------------------------------------------------------------------------------------------
# PyTorch's


def torch_loss(torch, name):
    functional = torch.nn.functional

    def focal(z, y):
        p = torch.softmax(z, dim=1)[torch.arange(len(y)), y]
        return (-((1 - p) ** 2) * p.log()).mean()

    return {
        "cross_entropy": lambda z, y: functional.cross_entropy(z, y, label_smoothing=0.2),
        "gaussian_nll": lambda z, y: (
            2 * functional.gaussian_nll_loss(z[:, :2], y, z[:, 2:].exp() + 1e-6, eps=1e-12)
        ),
        "focal": focal,
    }[name]


@pytest.mark.parametrize(
    "loss", [gs.CrossEntropy(0.2), gs.GaussianNLL(), gs.Focal()], ids=lambda loss: loss.name
)
def test_losses_are_those_of_pytorch(backend, loss):
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    X = rng.normal(size=(20, 3))
    y = rng.normal(size=(20, 2)) if loss.name == "gaussian_nll" else rng.integers(0, 4, 20)
    net = gs.Network([gs.Input(3), gs.Dense(4)], loss=loss, backend=backend.name, dtype="float64")
    W = torch.tensor(net.parameters()["dense_0.W"], requires_grad=True)
    value = torch_loss(torch, loss.name)(torch.tensor(X) @ W, torch.tensor(y))
    value.backward()
    mine, gradients = net.loss_and_gradients(X, y)
    assert mine == pytest.approx(value.item(), rel=1e-10)
    np.testing.assert_allclose(gradients["dense_0.W"], W.grad.numpy(), rtol=1e-8, atol=1e-12)


# --------------------------------------------------------------------------------------------------
# Extremes


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("size", [1e-3, 20.0, 90.0, 3e4])
def test_focal_losses_are_exact_for_sure_and_wrong_predictions(backend, gamma, dtype, size):
    """Of logits +-size / 2: u = 1 - p is far below the rounding unit where the prediction is right."""
    for loss, units in ((gs.Focal(gamma), 2), (gs.BinaryFocal(gamma), 1)):
        net = gs.Network([gs.Input(1), gs.Dense(units)], loss=loss, backend=backend.name, dtype=dtype)
        weights = np.array([[-0.5, 0.5]]) if units == 2 else np.ones((1, 1))
        net.set_parameters({"dense_0.W": weights})
        for sign in (1, -1):
            z = sign * float(np.asarray(size, dtype))
            loss_, gradients = net.loss_and_gradients([[z]], [1])
            u = 1 / (1 + np.exp(z)) if z < 700 else 0.0
            minus_log_p = np.logaddexp(0, -z)
            expected = u**gamma * minus_log_p
            slope = -(u**gamma) * (u + gamma * (1 - u) * minus_log_p)
            tolerance = {"rtol": 2e-5 if dtype == "float32" else 1e-11, "atol": 1e-17}
            np.testing.assert_allclose(loss_, expected, **tolerance)
            np.testing.assert_allclose(gradients["dense_0.b"][-1], slope, **tolerance)


def test_gaussian_nll_stays_finite_for_extreme_variances(backend):
    net = gs.Network([gs.Input(1), gs.Dense(2)], loss="gaussian_nll", backend=backend.name)
    for s in (-1e4, -100.0, 60.0):
        net.set_parameters({"dense_0.W": np.zeros((1, 2)), "dense_0.b": [0.0, s]})
        value, gradients = net.loss_and_gradients([[1.0]], [1.0])
        v = max(np.exp(s), 1e-6)
        assert value == pytest.approx((np.log(v) + 1 / v) / 2, rel=1e-4)
        assert all(np.isfinite(gradient).all() for gradient in gradients.values())
        assert np.isfinite(net.predict([[1.0]])).all()


@pytest.mark.parametrize(("loss", "units"), [("hinge", 2), ("binary_hinge", 1)])
def test_decision_values_have_no_log_loss(loss, units):
    X, y = np.random.default_rng(0).normal(size=(40, 2)), np.arange(40) % 2
    net = gs.Network([gs.Dense(units)], loss=loss, backend="numpy")
    net.fit(X, y, epochs=1, verbose=0, metrics=["balanced_accuracy"])
    with pytest.raises(ValueError, match="log_loss needs probabilities"):
        net.evaluate(X, y, metrics=["log_loss"])
