"""Layers that are not dense: gradients, agreement of the backends, running statistics, order and names."""

import copy
import pickle
from functools import cache

import numpy as np
import pytest

import gradstep as gs
import oracles
from gradstep.backends.base import KINDS
from gradstep.layers import layer_from_config, layer_plans

Dense, Norm, Act = gs.Dense, gs.LayerNorm, gs.Activation

SMALL = {
    "layer_norm": [Norm(), Dense(4), Norm(epsilon=0.1), Act("tanh"), Dense(3, "gelu"), Norm(), Dense(2)],
    "batch_norm": [
        gs.BatchNorm(),
        Dense(4),
        gs.BatchNorm(momentum=0.3, epsilon=0.1),
        Act("silu"),
        Dense(3, "gelu"),
        gs.BatchNorm(),
    ],
    "residual": [
        gs.Residual([Dense(4, "tanh"), Dense(5)]),
        Act("tanh"),
        gs.Residual([Dense(3, "elu"), Norm(), gs.Residual([Dense(3)])]),
        gs.Residual([gs.BatchNorm(), Act("tanh"), Dense(3)]),
    ],
    "scale": [gs.Scale(), Dense(4, "tanh"), gs.Scale(), Act("elu"), Dense(2)],
    "embedding": [gs.Embedding(3, 5, 2), gs.Embedding(1, 4, 3), Dense(3, "tanh"), Dense(2)],
}
LARGE = {
    "layer_norm": [Dense(90), Norm(), Act("gelu"), gs.Dropout(0.3), Dense(170, "tanh"), Norm(), Dense(2)],
    "batch_norm": [
        Dense(90),
        gs.BatchNorm(),
        Act("gelu"),
        gs.Dropout(0.3),
        Dense(170),
        gs.BatchNorm(),
        Dense(2),
    ],
    "residual": [
        Dense(100, "gelu"),
        gs.Dropout(0.2),
        gs.Residual([Dense(150, "tanh"), Norm(), Dense(100)]),
        Act("tanh"),
        gs.Residual([Dense(170, "relu"), gs.Residual([Dense(170, "tanh"), gs.Dropout(0.1)])]),
        Dense(2),
    ],
    "scale": [gs.Scale(), Dense(190, "tanh"), gs.Scale(), Dense(120), gs.Scale(), Act("elu"), Dense(2)],
    "embedding": [gs.Embedding(3, 5, 20), gs.Embedding(1, 4, 3), Dense(190, "tanh"), Dense(120), Dense(2)],
}
ALL = [(size, name) for size in ("small", "large") for name in SMALL]


def layers_of(size, name):
    return (SMALL if size == "small" else LARGE)[name]


def make_rows(rows, n_out=2, dtype="float64"):
    rng = np.random.default_rng(rows)
    X = rng.normal(size=(rows, 5))
    X[:, 1], X[:, 3] = rng.integers(0, 4, rows), rng.integers(0, 5, rows)
    weight = rng.integers(0, 4, rows) / 2
    weight[0] = 1
    return X.astype(dtype), rng.normal(size=(rows, n_out)).astype(dtype), weight.astype(dtype)


def make_network(layers, backend, dtype="float64", **options):
    """A network whose parameters are all of them moved away from where they start."""
    options = {"optimizer": gs.SGD(0.005, momentum=0.9), "l2": 0.01, "seed": 3, **options}
    net = gs.Network([gs.Input(5), *layers], backend=backend.name, dtype=dtype, **options)
    rng = np.random.default_rng(5)
    moved = {}
    for name, value in net.parameters().items():
        size = 0.5 / np.sqrt(value.shape[0]) if value.ndim == 2 else 0.2
        moved[name] = value + size * rng.normal(size=value.shape)
        if name.endswith(".variance"):
            moved[name] = np.abs(moved[name])
    net.set_parameters(moved)
    return net


def oracle_of(layers, parameters):
    """The oracle's network: the same parameters, found by counting the names of each kind."""
    counts = {}

    def take(kind):
        counts[kind] = counts.get(kind, -1) + 1
        prefix = f"{kind}_{counts[kind]}."
        return {name.removeprefix(prefix): v for name, v in parameters.items() if name.startswith(prefix)}

    def made(layers, width):
        result = []
        for layer, after in zip(layers, [*layers[1:], None], strict=True):
            activation = after.name if isinstance(after, Act) else "identity"
            if isinstance(layer, Dense):
                own = take("dense")
                name = activation if activation != "identity" else layer.activation
                result.append(oracles.Affine(own["W"], own["b"], name))
                width = layer.units
            elif isinstance(layer, gs.LayerNorm | gs.BatchNorm):
                over_rows = isinstance(layer, gs.BatchNorm)
                own = take("batch_norm" if over_rows else "layer_norm")
                result.append(oracles.Norm(own["gain"], own["shift"], activation, over_rows, layer.epsilon))
            elif isinstance(layer, gs.Scale):
                result.append(oracles.Gain(take("scale")["gain"], activation))
            elif isinstance(layer, gs.Embedding):
                # Columns move to the left when one before them is gone.
                gone = [before.column for before in layers[: layers.index(layer)]]
                column = layer.column - sum(c < layer.column for c in gone)
                result.append(oracles.Lookup(column, take("embedding")["W"]))
                width += layer.size - 1
            elif isinstance(layer, gs.Residual):
                inner, end = made(layer.layers, width)
                own = take("projection") if end != width else None
                projection = None if own is None else oracles.Affine(own["W"], own["b"], "identity")
                result.append(oracles.Block(inner, projection, activation))
                width = end
        return result, width

    return made(layers, 5)[0]


@cache
def truth_of(name):
    """Rows, loss and gradients of a small network, from the oracle alone."""
    layers = SMALL[name]
    net = make_network(layers, gs.backends.get("numpy"), l2=0.1)
    parameters = {key: value.copy() for key, value in net.parameters().items()}
    X, y, weight = make_rows(6, net.n_out)

    def loss():
        return oracles.loss_of_layers(oracle_of(layers, parameters), X, y, weight, 0.1)

    gradients = {
        key: oracles.finite_differences(loss, value)
        for key, value in parameters.items()
        if not key.endswith((".mean", ".variance"))
    }
    gradients["X"] = np.zeros(X.shape)
    for column in range(5):
        if name == "embedding" and column in (1, 3):
            continue  # a category has no neighbours
        gradients["X"][:, [column]] = oracles.finite_differences(loss, X[:, column : column + 1])
    return loss(), gradients


@pytest.mark.parametrize("name", SMALL)
def test_loss_and_gradients_agree_with_the_oracle(backend, name, dtype):
    loss, truth = truth_of(name)
    net = make_network(SMALL[name], backend, dtype, l2=0.1)
    X, y, weight = make_rows(6, net.n_out, dtype)
    found, gradients = net.loss_and_gradients(X, y, weight, input_gradient=True)
    tolerance = 1e-6 if dtype == "float64" else 2e-3
    assert found == pytest.approx(loss, rel=1e-12 if dtype == "float64" else 1e-5)
    assert gradients.keys() == truth.keys()
    for key, value in truth.items():
        assert gradients[key].dtype == dtype
        np.testing.assert_allclose(gradients[key], value, rtol=tolerance, atol=tolerance / 10, err_msg=key)


@pytest.mark.parametrize(("size", "name"), ALL)
@pytest.mark.parametrize("batch_size", [30, 200])
def test_trajectories_agree_with_the_reference(fast_backend, reference, size, name, batch_size):
    nets = [make_network(layers_of(size, name), backend) for backend in (fast_backend, reference)]
    X, y, weight = make_rows(230, nets[0].n_out)
    for net in nets:
        net.fit(X, y, sample_weight=weight, epochs=2, batch_size=batch_size, verbose=0)
    assert nets[0].history["loss"] == pytest.approx(nets[1].history["loss"], rel=1e-9)
    states = [{**net.parameters(), **net.optimizer_state()} for net in nets]
    assert states[0].keys() == states[1].keys()
    for key, value in states[1].items():
        np.testing.assert_allclose(states[0][key], value, rtol=1e-7, atol=1e-9, err_msg=key)
    np.testing.assert_allclose(nets[0].predict(X), nets[1].predict(X), rtol=1e-8, atol=1e-9)
    assert nets[0].evaluate(X, y, weight) == pytest.approx(nets[1].evaluate(X, y, weight), rel=1e-8)


@pytest.mark.parametrize("name", LARGE)
def test_a_batch_of_more_rows_than_a_pass_takes_agrees(fast_backend, reference, name):
    nets = [make_network(LARGE[name], backend) for backend in (fast_backend, reference)]
    X, y, _ = make_rows(4500)
    losses = [[net.step(X, y) for _ in range(2)] for net in nets]
    assert losses[0] == pytest.approx(losses[1], rel=1e-10)


@pytest.mark.parametrize(("size", "name"), ALL)
def test_threads_do_not_change_the_bits(size, name):
    backend = gs.backends.get("cpp") if gs.backends.available()["cpp"] is None else pytest.skip("needs cpp")
    outcomes = []
    for threads in (1, 2, 3):
        gs.set_num_threads(threads)
        net = make_network(layers_of(size, name), backend, "float32", optimizer="adam")
        # Layers without products take a second thread from 1e6 operations on.
        X, y, weight = make_rows(1400, net.n_out, "float32")
        net.fit(X, y, sample_weight=weight, epochs=2, batch_size=700, verbose=0)
        outcomes.append({**net.parameters(), "loss": net.history["loss"], "out": net.predict(X)})
    gs.set_num_threads(None)
    for other in outcomes[1:]:
        for key, value in outcomes[0].items():
            np.testing.assert_array_equal(other[key], value, err_msg=key)


@pytest.mark.parametrize("name", SMALL)
def test_training_goes_on_exactly_after_a_file_a_pickle_and_a_copy(backend, name, tmp_path):
    net = make_network(SMALL[name], backend, "float32", optimizer="adam", preprocessing="standardize")
    X, y, _ = make_rows(60, net.n_out, "float32")
    net.fit(X, y, epochs=2, batch_size=20, verbose=0)
    net.save(tmp_path / "net.safetensors", optimizer=True)
    twins = [
        gs.load(tmp_path / "net.safetensors", backend=backend.name),
        pickle.loads(pickle.dumps(net)),
        copy.deepcopy(net),
    ]
    before = net.predict(X)
    net.fit(X, y, epochs=2, batch_size=20, verbose=0)
    for twin in twins:
        assert twin.layers == net.layers
        np.testing.assert_array_equal(twin.predict(X), before)
        twin.fit(X, y, epochs=2, batch_size=20, verbose=0)
        for key, value in net.parameters().items():
            np.testing.assert_array_equal(twin.parameters()[key], value, err_msg=key)


@pytest.mark.parametrize("name", SMALL)
def test_gradients_are_checked_and_traced(backend, name):
    net = make_network(SMALL[name], backend)
    X, y, weight = make_rows(9, net.n_out)
    assert gs.check_gradients(net, X, y, weight)
    trace = net.trace(X, y, weight)
    loss, gradients = net.loss_and_gradients(X, y, weight)
    assert trace.loss == pytest.approx(loss, rel=1e-12)
    assert [layer.name for layer in trace] == [layer.name for layer in net.plan.layers]
    for layer in net.plan.layers:
        for key, found in zip(
            layer.parameter_shapes(), (trace[layer.name].dW, trace[layer.name].db), strict=False
        ):
            np.testing.assert_allclose(found, gradients[f"{layer.name}.{key}"], rtol=1e-9, atol=1e-12)


def test_the_networks_here_have_every_kind():
    kinds = {plan.kind for layers in SMALL.values() for plan in layer_plans(layers, 5)}
    assert kinds == set(KINDS)


def test_penalty_and_decay_spare_gains_and_shifts(backend):
    layers = [gs.Scale(), Dense(3), Norm(), Dense(2), gs.BatchNorm()]
    X, y, _ = make_rows(20)
    gradients = [make_network(layers, backend, l2=l2).loss_and_gradients(X, y)[1] for l2 in (0.0, 0.5)]
    nets = [
        make_network(layers, backend, l2=0.0, optimizer=gs.AdamW(0.01, weight_decay=d)) for d in (0.0, 0.5)
    ]
    for net in nets:
        net.step(X, y)
    for key in gradients[0]:
        same = not key.endswith(".W")
        assert np.array_equal(gradients[0][key], gradients[1][key]) == same, key
        assert np.array_equal(nets[0].parameters()[key], nets[1].parameters()[key]) == same, key


# --------------------------------------------------------------------------------------------------
# Running statistics


def batch_net(backend, dtype="float64", **options):
    layers = [gs.Input(5), gs.BatchNorm(momentum=0.25), Dense(2)]
    return gs.Network(layers, backend=backend.name, dtype=dtype, **options)


def test_running_statistics_follow_the_batches(backend):
    net = batch_net(backend)
    X, y, weight = make_rows(12)
    net.step(X, y)
    np.testing.assert_allclose(net.parameters()["batch_norm_0.mean"], X.mean(axis=0) / 4, rtol=1e-12)
    variance = 0.75 + X.var(axis=0, ddof=1) / 4
    np.testing.assert_allclose(net.parameters()["batch_norm_0.variance"], variance, rtol=1e-12)

    net = batch_net(backend)
    net.step(X, y, weight)
    mean = np.average(X, axis=0, weights=weight)
    biased = np.average((X - mean) ** 2, axis=0, weights=weight)
    freedom = 1 - np.sum((weight / weight.sum()) ** 2)
    np.testing.assert_allclose(net.parameters()["batch_norm_0.mean"], mean / 4, rtol=1e-12)
    np.testing.assert_allclose(
        net.parameters()["batch_norm_0.variance"], 0.75 + biased / freedom / 4, rtol=1e-12
    )


def test_statistics_of_large_numbers_keep_their_accuracy(backend):
    rng = np.random.default_rng(0)
    X = (1000 + rng.normal(size=(3000, 5))).astype(np.float32)
    net = batch_net(backend, "float32")
    net.step(X, np.zeros((3000, 2), np.float32))
    exact = X.astype(np.float64)
    np.testing.assert_allclose(net.parameters()["batch_norm_0.mean"], exact.mean(axis=0) / 4, rtol=2e-7)
    variance = 0.75 + exact.var(axis=0, ddof=1) / 4
    np.testing.assert_allclose(net.parameters()["batch_norm_0.variance"], variance, rtol=1e-5)


def test_one_row_moves_the_mean_alone(backend):
    net = batch_net(backend)
    X, y, _ = make_rows(3)
    net.step(X[:1], y[:1])
    np.testing.assert_allclose(net.parameters()["batch_norm_0.mean"], X[0] / 4, rtol=1e-12)
    np.testing.assert_array_equal(net.parameters()["batch_norm_0.variance"], np.ones(5))


def test_a_batch_without_weight_moves_no_statistics(backend):
    net = batch_net(backend, optimizer=gs.SGD(0.1))
    X, y, weight = make_rows(20)
    weight[10:] = 0
    twin = copy.deepcopy(net)
    net.fit(X, y, sample_weight=weight, epochs=1, batch_size=10, shuffle=False, verbose=0)
    twin.step(X[:10], y[:10], weight[:10])
    for key, value in twin.parameters().items():
        np.testing.assert_array_equal(net.parameters()[key], value, err_msg=key)


def test_whole_weights_mean_repetition(backend):
    net = make_network(SMALL["batch_norm"], backend)
    X, y, _ = make_rows(8, net.n_out)
    counts = np.array([0, 1, 2, 3, 1, 0, 2, 1])
    weighted, gradients = net.loss_and_gradients(X, y, counts)
    repeated, expected = net.loss_and_gradients(X.repeat(counts, axis=0), y.repeat(counts, axis=0))
    assert weighted == pytest.approx(repeated, rel=1e-12)
    for key, value in expected.items():
        np.testing.assert_allclose(gradients[key], value, rtol=1e-9, atol=1e-12)


def test_predictions_take_the_running_statistics_wherever_the_normalisation_stands(backend):
    layers = [gs.BatchNorm(), Dense(6), gs.BatchNorm(), Act("tanh"), Dense(3, "tanh"), gs.BatchNorm()]
    net = make_network(layers, backend)
    X, _, _ = make_rows(7)
    for _ in range(2):  # what was prepared for the first predictions does not outlive the parameters
        p = net.parameters()

        def normalised(x, name, p=p):
            scaled = (x - p[f"{name}.mean"]) / np.sqrt(p[f"{name}.variance"] + 1e-5)
            return scaled * p[f"{name}.gain"] + p[f"{name}.shift"]

        hidden = np.tanh(
            normalised(normalised(X, "batch_norm_0") @ p["dense_0.W"] + p["dense_0.b"], "batch_norm_1")
        )
        expected = normalised(np.tanh(hidden @ p["dense_1.W"] + p["dense_1.b"]), "batch_norm_2")
        np.testing.assert_allclose(net.predict(X), expected, rtol=1e-10, atol=1e-12)
        net.set_parameters({"batch_norm_1.mean": np.arange(6.0), "batch_norm_2.variance": [2.0, 3.0, 4.0]})


def test_divergence_puts_the_statistics_back(backend):
    net = batch_net(backend, "float32", optimizer=gs.SGD(1e-3))
    X, y, _ = make_rows(40, dtype="float32")
    net.fit(X, y, epochs=2, batch_size=10, verbose=0)
    before = net.parameters()
    net.learning_rate = 1e30
    with pytest.raises(gs.DivergenceError):
        net.fit(X, y, epochs=3, batch_size=10, verbose=0)
    for key, value in before.items():
        np.testing.assert_array_equal(net.parameters()[key], value, err_msg=key)


def test_gradients_move_no_statistics(backend):
    net = batch_net(backend)
    X, y, _ = make_rows(10)
    net.loss_and_gradients(X, y)
    net.evaluate(X, y)
    net.trace(X, y)
    assert not net.parameters()["batch_norm_0.mean"].any()


def test_a_negative_variance_is_an_error(backend):
    with pytest.raises(ValueError, match=r"batch_norm_0.variance must not be negative, got -1"):
        batch_net(backend).set_parameters({"batch_norm_0.variance": [1, 1, -1, 1, 1]})


# --------------------------------------------------------------------------------------------------
# PyTorch


@pytest.mark.parametrize("name", ["layer_norm", "batch_norm"])
def test_trajectories_agree_with_pytorch(backend, name):
    torch = pytest.importorskip("torch")
    make = {"layer_norm": gs.LayerNorm, "batch_norm": gs.BatchNorm}[name]
    other = {"layer_norm": torch.nn.LayerNorm, "batch_norm": torch.nn.BatchNorm1d}[name]
    layers = [Dense(20), make(), Act("tanh"), Dense(10), make(), Act("tanh"), Dense(2)]
    net = gs.Network([gs.Input(5), *layers], optimizer=gs.Adam(1e-2), backend=backend.name, dtype="float64")
    twin = torch.nn.Sequential(
        *(torch.nn.Linear(5, 20), other(20), torch.nn.Tanh()),
        *(torch.nn.Linear(20, 10), other(10), torch.nn.Tanh(), torch.nn.Linear(10, 2)),
    ).double()
    start = net.parameters()
    with torch.no_grad():
        for index, module in enumerate((twin[0], twin[3], twin[6])):
            module.weight.copy_(torch.tensor(start[f"dense_{index}.W"].T))
            module.bias.copy_(torch.tensor(start[f"dense_{index}.b"]))
    optimizer = torch.optim.Adam(twin.parameters(), lr=1e-2)
    X, y, _ = make_rows(50)
    for _ in range(20):
        optimizer.zero_grad()
        loss = torch.nn.functional.mse_loss(twin(torch.tensor(X)), torch.tensor(y))
        loss.backward()
        optimizer.step()
        assert net.step(X, y) == pytest.approx(loss.item(), rel=1e-6)
    found = net.parameters()
    for index, module in enumerate((twin[1], twin[4])):
        np.testing.assert_allclose(found[f"{name}_{index}.gain"], module.weight.detach(), rtol=1e-6)
        if name == "batch_norm":
            np.testing.assert_allclose(found[f"{name}_{index}.variance"], module.running_var, rtol=1e-6)
    twin.eval()
    np.testing.assert_allclose(net.predict(X), twin(torch.tensor(X)).detach(), rtol=1e-6)


# --------------------------------------------------------------------------------------------------
# Embeddings


def test_only_the_categories_of_the_batch_get_gradients(backend):
    net = make_network([gs.Embedding(1, 9, 3), Dense(2)], backend, l2=0.0)
    X, y, _ = make_rows(30)
    gradient = net.loss_and_gradients(X, y)[1]["embedding_0.W"]
    assert gradient.shape == (9, 3)
    assert gradient[:4].all()
    assert not gradient[4:].any()


def test_categories_are_exempt_from_preprocessing(backend):
    X, y, _ = make_rows(50)
    net = gs.Network([gs.Embedding(3, 5, 2), Dense(2)], preprocessing="standardize", backend=backend.name)
    net.fit(X, y, epochs=1, verbose=0)
    trace = net.trace(X, y)
    np.testing.assert_array_equal(trace[0].x[:, 3], X[:, 3])
    assert trace[0].x[:, 0].std() == pytest.approx(1, rel=1e-5)
    assert net.n_in == 5
    assert trace[0].z.shape == (50, 6)


@pytest.mark.parametrize(("value", "shown"), [(5, "5"), (-1, "-1"), (1.5, "1.5")])
def test_what_is_no_category_is_an_error_everywhere(backend, value, shown):
    X, y, _ = make_rows(10)
    net = make_network([gs.Embedding(3, 5, 2), Dense(2)], backend)
    X[4, 3] = value
    message = f"column 3 of X must hold categories 0 to 4, got {shown} in row 4"
    for call in (lambda: net.predict(X), lambda: net.step(X, y), lambda: net.fit(X, y, verbose=0)):
        with pytest.raises(ValueError, match=message):
            call()


def test_embedded_columns_must_be_there_once():
    with pytest.raises(ValueError, match="must be one of the 2 column"):
        gs.Network([gs.Input(2), gs.Embedding(2, 3, 4), Dense(1)])
    with pytest.raises(ValueError, match="X must have a column 2, which is embedded, got 2 column"):
        gs.Network([gs.Embedding(2, 3, 4), Dense(1)]).fit(np.zeros((5, 2)), np.zeros(5))


# --------------------------------------------------------------------------------------------------
# Descriptions


def test_blocks_are_taken_apart_and_projected_where_the_width_changes():
    layers = [Dense(4, "relu"), gs.Residual([Dense(4)]), Act("relu"), gs.Residual([Dense(3, "tanh")])]
    plans = layer_plans(layers, 9)
    assert [(p.name, p.n_in, p.n_out, p.activation) for p in plans] == [
        ("dense_0", 9, 4, "relu"),
        ("dense_1", 4, 4, "identity"),
        ("sum_0", 4, 4, "relu"),
        ("dense_2", 4, 3, "tanh"),
        ("projection_0", 4, 3, "identity"),
        ("sum_1", 3, 3, "identity"),
    ]


def test_the_table_counts_all_parameters():
    layers = [
        gs.Embedding(0, 10, 3),
        Dense(8),
        Norm(),
        Act("relu"),
        gs.Residual([Dense(8)]),
        gs.Scale(),
        Dense(2),
    ]
    lines = repr(gs.Network([gs.Input(4), *layers])).splitlines()
    assert [line.split()[0] for line in lines[2:]] == [
        *("embedding_0", "dense_0", "layer_norm_0", "dense_1", "sum_0", "scale_0", "dense_2", "total")
    ]
    assert lines[-1].split()[-1] == str(30 + 7 * 8 + 16 + 72 + 0 + 8 + 18)
    unknown = repr(gs.Network(layers)).splitlines()
    assert unknown[2].split()[1:] == ["identity", "?", "->", "?", "?"]
    assert unknown[-1].split()[-1] == "?"
    assert "+ input or its projection" in repr(gs.Network([gs.Residual([Dense(3)]), Dense(1)]))


@pytest.mark.parametrize(
    "layer", [*SMALL["residual"], *SMALL["batch_norm"], gs.Scale(), gs.Embedding(1, 2, 3)]
)
def test_layers_survive_their_description(layer):
    assert layer_from_config(layer.to_config()) == layer


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ([Act("relu"), Dense(1)], "Activation must stand right behind"),
        ([Dense(1, "relu"), Act("relu")], "Activation must stand right behind"),
        ([Dense(4), gs.Dropout(0.1), Act("relu"), Dense(1)], "Activation must stand right behind"),
        ([Dense(4), gs.Embedding(0, 2, 2), Dense(1)], "Embedding can only stand in front"),
        ([gs.Scale()], "at least one Dense"),
        ([Dense(4), Norm(), gs.Dropout(0.1)], "Dropout must stand behind a layer"),
    ],
)
def test_an_order_that_makes_no_network_is_an_error(layers, message):
    with pytest.raises(ValueError, match=message):
        gs.Network(layers)


def test_bad_options_are_errors():
    with pytest.raises(ValueError, match="momentum must be less than 1"):
        gs.BatchNorm(momentum=1.0)
    with pytest.raises(ValueError, match="epsilon must be greater than 0"):
        gs.LayerNorm(epsilon=0)
    with pytest.raises(ValueError, match="size must be at least 1"):
        gs.Embedding(0, 2, 0)
    with pytest.raises(ValueError, match="layers of Residual must be at least one layer"):
        gs.Residual([])
    with pytest.raises(ValueError, match="layers of Residual must not hold Input"):
        gs.Residual([gs.Input(2), Dense(2)])
    with pytest.raises(
        ValueError, match="the last layer must have activation 'identity' for the loss 'cross_entropy'"
    ):
        gs.Network([Dense(3), gs.BatchNorm(), Act("relu")], loss="cross_entropy")
