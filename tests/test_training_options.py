"""l1, clipping, learning rates by layer, frozen layers, accumulation, averages and L-BFGS."""

import dataclasses

import numpy as np
import pytest

import gradstep as gs
from conftest import BACKENDS
from networks import make_data, make_engine, make_plan, train

RNG = np.random.default_rng(5)
X = RNG.normal(size=(70, 4))
Y = np.stack([np.sin(X[:, 0]) + X[:, 1], X[:, 2] * X[:, 3]], axis=1)

SETTINGS = {
    "penalties": {"l1": 0.01, "l2": 0.1},
    "clipping": {"clip_value": 0.05, "clip_norm": 0.1, "l1": 0.01, "l2": 0.1},
    "ema": {"ema_decay": 0.9},
    "ema with warmup": {"ema_decay": 0.99, "ema_warmup": True},
    "swa": {"swa_start": 2},
}


def make(backend, layers=None, **settings):
    layers = layers or [gs.Dense(8, "tanh"), gs.Dense(2)]
    settings = {"optimizer": gs.Adam(0.01), "dtype": "float64", **settings}
    return gs.Network([gs.Input(4), *layers], backend=getattr(backend, "name", backend), **settings)


def state(network):
    return {**network.parameters(), **network.optimizer_state()}


def assert_same(a, b, **tolerance):
    assert a.keys() == b.keys()
    for name, value in a.items():
        np.testing.assert_allclose(value, b[name], err_msg=name, **(tolerance or {"rtol": 0, "atol": 0}))


def _trained(backend, widths, optimizer, factors, settings):
    plan = make_plan(widths, optimizer=optimizer, dtype="float64")
    layers = [
        dataclasses.replace(layer, rate_factor=factor)
        for layer, factor in zip(plan.layers, factors, strict=False)
    ]
    plan = dataclasses.replace(plan, layers=tuple(layers), **settings)
    data = make_data(plan, 70)
    engine = make_engine(backend, plan)
    result = train(engine, data, 3, learning_rate=0.01, weight=data.weight)
    return {**engine.parameters(), **engine.optimizer_state(), "losses": np.array(result.losses)}


@pytest.mark.parametrize("factors", [(1, 1, 1), (0, 0.1, 1)], ids=["alike", "by layer"])
@pytest.mark.parametrize(
    ("widths", "optimizer"),
    [((3, 5, 2), "adamw"), ((17, 40, 40, 3), "nadam"), ((20, 150, 150, 4), "amsgrad")],
    ids=str,
)
@pytest.mark.parametrize("setting", SETTINGS)
def test_options_train_as_the_reference_does(setting, widths, optimizer, factors):
    arguments = widths, optimizer, factors, SETTINGS[setting]
    reference = _trained(BACKENDS["numpy"], *arguments)
    for name in BACKENDS.keys() - {"numpy"}:
        assert_same(_trained(BACKENDS[name], *arguments), reference, rtol=1e-9, atol=1e-11)


@pytest.mark.skipif("cpp" not in BACKENDS, reason="needs the compiled backend")
@pytest.mark.parametrize("widths", [(3, 5, 2), (20, 200, 200, 4), (64, 512, 512, 4)], ids=str)
@pytest.mark.parametrize("factors", [(1, 1, 1), (0, 0.1, 1)], ids=["alike", "by layer"])
@pytest.mark.parametrize("chosen", ["penalties", "clipping", "ema", "clipping ema"])
def test_options_have_the_same_bits_for_any_number_of_threads(chosen, factors, widths, threads):
    settings = {name: value for setting in chosen.split() for name, value in SETTINGS[setting].items()}
    found = []
    for count in (1, 2):
        threads(count)
        found.append(_trained(BACKENDS["cpp"], widths, "adamw", factors, settings))
    assert_same(*found)


@pytest.mark.skipif("cpp" not in BACKENDS, reason="needs the compiled backend")
@pytest.mark.parametrize("setting", ["penalties", "clipping"])
def test_options_of_wide_layers_train_as_the_reference_does(setting):
    arguments = (64, 512, 512, 4), "adamw", (1, 0.1, 1), SETTINGS[setting]
    assert_same(
        _trained(BACKENDS["cpp"], *arguments), _trained(BACKENDS["numpy"], *arguments), rtol=1e-9, atol=1e-11
    )


def test_l1_is_part_of_the_loss_and_of_its_gradient(backend):
    net = make(backend, l1=0.3)
    plain = make(backend)
    weights = sum(np.abs(W).sum() for name, W in net.parameters().items() if name.endswith(".W"))
    assert net.loss_and_gradients(X, Y)[0] == pytest.approx(plain.loss_and_gradients(X, Y)[0] + 0.3 * weights)
    assert gs.check_gradients(net, X, Y)
    zero = {"dense_1.W": np.zeros((8, 2))}
    net.set_parameters(zero)
    plain.set_parameters(zero)
    gradients = [n.loss_and_gradients(X, Y)[1]["dense_1.W"] for n in (net, plain)]
    np.testing.assert_array_equal(*gradients)


@pytest.mark.parametrize("width", [8, 200])
def test_a_frozen_layer_does_not_move(backend, width):
    layers = [gs.Dense(width, "tanh", trainable=False), gs.Dense(width, "relu"), gs.Dense(2, trainable=False)]
    net = make(backend, layers, optimizer=gs.AdamW(0.01, weight_decay=0.1), l1=0.1, l2=0.1)
    before = state(net)
    net.fit(X, Y, epochs=3, verbose=0)
    net.step(X, Y)
    after = state(net)
    for name, value in after.items():
        if name.startswith("dense_"):
            assert np.array_equal(value, before[name]) == (not name.startswith("dense_1")), name


def test_accumulated_batches_are_one_larger_batch(backend):
    weight = RNG.integers(1, 4, size=len(X))
    accumulated, larger = make(backend), make(backend)
    accumulated.fit(X, Y, sample_weight=weight, epochs=3, batch_size=8, accumulate=3, verbose=0)
    larger.fit(X, Y, sample_weight=weight, epochs=3, batch_size=24, verbose=0)
    assert_same(state(accumulated), state(larger))
    assert accumulated.optimizer_state()["step"] == 9  # 24 + 24 + 22 rows an epoch


def test_ema_follows_every_update_and_predicts(backend):
    decay = 0.8
    net, plain = make(backend, averaging=gs.EMA(decay)), make(backend)
    mean = None
    for _ in range(6):
        plain.step(X, Y)
        net.step(X, Y)
        theta = plain.parameters()
        mean = theta if mean is None else {n: decay * mean[n] + (1 - decay) * theta[n] for n in mean}
    assert_same(net.parameters(), mean, rtol=1e-12, atol=1e-14)
    assert_same({n: net.optimizer_state()[f"{n}.trained"] for n in theta}, theta)
    plain.set_parameters(mean)
    np.testing.assert_allclose(net.predict(X), plain.predict(X), rtol=1e-10)
    assert net.evaluate(X, Y)["loss"] == pytest.approx(plain.evaluate(X, Y)["loss"])


def test_swa_is_the_equal_mean_of_epochs(backend):
    net, plain = make(backend, averaging=gs.SWA(3)), make(backend)
    ends = []
    for _ in range(5):
        plain.fit(X, Y, epochs=1, verbose=0)
        ends.append(plain.parameters())
    net.fit(X, Y, epochs=2, verbose=0)
    assert_same(net.parameters(), ends[1])
    net.fit(X, Y, epochs=3, verbose=0)
    mean = {name: np.mean([end[name] for end in ends[2:]], axis=0) for name in ends[0]}
    assert_same(net.parameters(), mean, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("averaging", [gs.EMA(0.9, warmup=True), gs.SWA(2)])
def test_training_resumes_bit_for_bit(backend, averaging, tmp_path):
    layers = [gs.Dense(8, "tanh", learning_rate_factor=0.5), gs.Dense(2)]
    options = {"optimizer": gs.AMSGrad(0.01, clip_norm=0.5), "averaging": averaging, "l1": 0.01}
    whole, half = (make(backend, layers, **options) for _ in range(2))
    whole.fit(X, Y, epochs=6, verbose=0)
    half.fit(X, Y, epochs=3, verbose=0)
    half.save(tmp_path / "net.safetensors", optimizer=True)
    again = gs.load(tmp_path / "net.safetensors", backend=backend.name)
    assert again.config == half.config
    again.fit(X, Y, epochs=3, verbose=0)
    assert_same(state(again), state(whole))


def test_a_divergence_goes_back_with_the_average(backend):
    net = make(backend, averaging=gs.EMA(0.5), optimizer=gs.SGD(0.01))
    net.fit(X, Y, epochs=3, verbose=0)
    before = state(net)
    net.learning_rate = 1e200
    with pytest.raises(gs.DivergenceError):
        net.fit(X, Y, epochs=3, verbose=0)
    assert_same(state(net), before)


def test_lbfgs_reaches_the_least_squares_solution(backend):
    pytest.importorskip("scipy")
    net = make(backend, [gs.Dense(2)], optimizer=gs.LBFGS(tolerance=1e-10))
    history = net.fit(X, Y, epochs=200, verbose=0)
    assert history.stopped == "converged"
    assert all(a >= b for a, b in zip(history.loss, history.loss[1:], strict=False))
    design = np.column_stack([X, np.ones(len(X))])
    solution = np.linalg.lstsq(design, Y, rcond=None)[0]
    np.testing.assert_allclose(net.parameters()["dense_0.W"], solution[:4], atol=1e-7)
    np.testing.assert_allclose(net.parameters()["dense_0.b"], solution[4], atol=1e-7)
    assert net.epochs_trained == len(history) < 200


def test_lbfgs_takes_the_steps_of_scipy():
    optimize = pytest.importorskip("scipy.optimize")
    net = make("numpy", optimizer=gs.LBFGS(), l2=0.01)
    twin = make("numpy", l2=0.01)
    names = ["dense_0.W", "dense_1.W", "dense_0.b", "dense_1.b"]
    start = twin.parameters()

    def function(theta):
        parts = np.split(theta, np.cumsum([start[n].size for n in names])[:-1])
        twin.set_parameters({n: part.reshape(start[n].shape) for n, part in zip(names, parts, strict=True)})
        loss, gradients = twin.loss_and_gradients(X, Y)
        return loss, np.concatenate([gradients[n].ravel() for n in names])

    found = optimize.minimize(
        function,
        np.concatenate([start[n].ravel() for n in names]),
        method="L-BFGS-B",
        jac=True,
        options={"maxiter": 20},
    )
    history = net.fit(X, Y, epochs=20, verbose=0)
    assert len(history) == 20
    assert history.stopped == "finished"
    assert history.loss[-1] == pytest.approx(found.fun, rel=1e-6)


def test_lbfgs_leaves_frozen_layers_and_obeys_callbacks():
    pytest.importorskip("scipy")

    class Third(gs.Callback):
        def on_epoch_end(self, state):
            return state.epoch == 3

    net = make("numpy", [gs.Dense(8, "tanh", trainable=False), gs.Dense(2)], optimizer="lbfgs")
    before = net.parameters()
    history = net.fit(X, Y, epochs=20, validation_data=(X, Y), callbacks=[Third()], verbose=0)
    assert (len(history), history.stopped, len(history.val_loss)) == (3, "callback", 3)
    np.testing.assert_array_equal(net.parameters()["dense_0.W"], before["dense_0.W"])
    assert net.evaluate(X, Y)["loss"] == pytest.approx(history.loss[-1])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: gs.EMA(1.0), "decay must be less than 1"),
        (lambda: gs.SWA(0), "start must be at least 1"),
        (lambda: gs.Adam(clip_norm=0.0), "clip_norm must be greater than 0"),
        (lambda: gs.LBFGS(clip_norm=1.0), "clip_norm must be None for LBFGS"),
        (lambda: gs.Dense(2, learning_rate_factor=0.0), "learning_rate_factor must be greater than 0"),
        (lambda: make("numpy", l1=-1.0), "l1 must be at least 0"),
        (lambda: make("numpy", optimizer="lbfgs", l1=1.0), "LBFGS cannot be combined with l1"),
        (lambda: make("numpy", optimizer="lbfgs").step(X, Y), "step cannot be used with the optimizer LBFGS"),
        (lambda: make("numpy", optimizer="lbfgs").fit(X, Y, batch_size=8), "LBFGS takes all rows at once"),
        (lambda: make("numpy", averaging=gs.SWA(1)).step(X, Y), "step makes no epochs"),
        (lambda: make("numpy").fit(X, Y, accumulate=0), "accumulate must be at least 1"),
    ],
)
def test_values_out_of_range_are_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_averaging_of_another_type_is_an_error():
    with pytest.raises(TypeError, match=r"averaging must be EMA\(...\), SWA\(...\) or None, got 'ema'"):
        make("numpy", averaging="ema")
