import dataclasses
import pickle

import numpy as np
import pytest

import gradstep as gs
from gradstep.backends.numpy.activations import ACTIVATIONS
from gradstep.initializers import INITIALIZERS, default_initializer, initial_weights
from gradstep.layers import check_layers, layer_from_config, layer_plans


def _rng_weights(name, n_in=300, n_out=200):
    return initial_weights(name, 0, 0, n_in, n_out)


def test_layers_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        gs.Dense(3).units = 4


def test_layers_compare_by_value():
    assert gs.Dense(3, "relu") == gs.Dense(3, "relu") != gs.Dense(3, "tanh")
    weights = np.arange(6.0).reshape(2, 3)
    assert gs.Dense(3, initializer=weights) == gs.Dense(3, initializer=weights.tolist())
    assert gs.Dense(3, initializer=weights) != gs.Dense(3, initializer=weights + 1)
    assert gs.Input(2) == gs.Input(2)


def test_layers_can_be_dictionary_keys_and_pickled():
    layer = gs.Dense(3, initializer=np.ones((2, 3)))
    assert {layer: 1}[gs.Dense(3, initializer=np.ones((2, 3)))] == 1
    assert pickle.loads(pickle.dumps(layer)) == layer


@pytest.mark.parametrize("make", [gs.Dense, gs.Input])
def test_units_must_be_a_positive_integer(make):
    with pytest.raises(ValueError, match="units must be at least 1, got 0"):
        make(0)
    for wrong in (2.0, True, "3", None):
        with pytest.raises(TypeError, match="units must be an integer"):
            make(wrong)
    assert make(np.int64(3)).units == 3


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_activation_of_the_reference_is_a_layer(activation):
    assert gs.Dense(3, activation).activation == activation


def test_unknown_names_are_answered_with_the_nearest():
    with pytest.raises(ValueError, match="did you mean 'tanh'"):
        gs.Dense(3, "tahn")
    with pytest.raises(ValueError, match="did you mean 'he_normal'"):
        gs.Dense(3, initializer="henormal")
    with pytest.raises(ValueError, match="unknown bias_initializer 'ones'"):
        gs.Dense(3, bias_initializer="ones")


def test_given_arrays_need_the_right_number_of_dimensions():
    with pytest.raises(ValueError, match=r"initializer must have 2 dimension\(s\), got shape \(3,\)"):
        gs.Dense(3, initializer=[1.0, 2.0, 3.0])
    with pytest.raises(ValueError, match="initializer must be finite"):
        gs.Dense(1, initializer=[[np.nan]])


@pytest.mark.parametrize(
    ("name", "variance"),
    [
        ("glorot_uniform", 2 / 500),
        ("glorot_normal", 2 / 500),
        ("he_uniform", 2 / 300),
        ("he_normal", 2 / 300),
    ],
)
def test_initializers_have_their_variance(name, variance):
    weights = _rng_weights(name)
    assert weights.shape == (300, 200)
    assert weights.var() == pytest.approx(variance, rel=0.02)
    assert abs(weights.mean()) < 4 * np.sqrt(variance / weights.size)
    if name.endswith("uniform"):
        limit = np.sqrt(3 * variance)
        assert 0.99 * limit < np.abs(weights).max() <= limit


def test_zeros_are_zero():
    assert not _rng_weights("zeros").any()


@pytest.mark.parametrize("name", [name for name in INITIALIZERS if name != "zeros"])
def test_weights_depend_on_seed_and_layer_alone(name):
    first = initial_weights(name, 1, 0, 4, 3)
    np.testing.assert_array_equal(first, initial_weights(name, 1, 0, 4, 3))
    assert not np.array_equal(first, initial_weights(name, 2, 0, 4, 3))
    assert not np.array_equal(first, initial_weights(name, 1, 1, 4, 3))


def test_default_initializer_follows_the_activation():
    assert default_initializer("relu") == default_initializer("gelu") == "he_uniform"
    assert default_initializer("tanh") == default_initializer("identity") == "glorot_uniform"
    relu = gs.Network([gs.Input(5), gs.Dense(4, "relu")], seed=7).parameters()["dense_0.W"]
    np.testing.assert_array_equal(relu, initial_weights("he_uniform", 7, 0, 5, 4).astype(np.float32))


def test_biases_start_at_zero():
    assert not gs.Network([gs.Input(5), gs.Dense(4, "relu")]).parameters()["dense_0.b"].any()


def test_given_arrays_become_the_parameters():
    weights, bias = [[1.0, 2.0]], [3.0, 4.0]
    net = gs.Network([gs.Input(1), gs.Dense(2, initializer=weights, bias_initializer=bias)])
    np.testing.assert_array_equal(net.parameters()["dense_0.W"], weights)
    np.testing.assert_array_equal(net.parameters()["dense_0.b"], bias)


def test_given_arrays_of_another_shape_are_an_error():
    net = gs.Network([gs.Input(2), gs.Dense(2, initializer=[[1.0, 2.0]])])
    with pytest.raises(ValueError, match=r"initializer of dense_0 must have shape \(2, 2\), got \(1, 2\)"):
        net.parameters()
    net = gs.Network([gs.Input(2), gs.Dense(2, bias_initializer=[1.0])])
    with pytest.raises(ValueError, match=r"bias_initializer of dense_0 must have shape \(2,\), got \(1,\)"):
        net.parameters()


def test_a_given_array_is_copied():
    weights = np.zeros((1, 1))
    layer = gs.Dense(1, initializer=weights)
    weights[:] = 5
    assert gs.Network([gs.Input(1), layer]).parameters()["dense_0.W"] == 0


def test_the_list_of_layers_is_checked():
    with pytest.raises(ValueError, match="at least one Dense"):
        check_layers([gs.Input(3)])
    with pytest.raises(ValueError, match=r"layers\[1\] is Input\(units=3\), but Input can only be the first"):
        check_layers([gs.Dense(2), gs.Input(3)])
    with pytest.raises(TypeError, match=r"layers\[0\] must be a layer such as Dense\(8\), got 3"):
        check_layers([3])
    with pytest.raises(TypeError, match="layers must be a list of layers, got Dense"):
        check_layers(gs.Dense(3))


def test_plans_chain_the_widths():
    plans = layer_plans([gs.Input(9), gs.Dense(4, "relu"), gs.Dense(2)], 9)
    assert [(plan.name, plan.n_in, plan.n_out, plan.activation) for plan in plans] == [
        ("dense_0", 9, 4, "relu"),
        ("dense_1", 4, 2, "identity"),
    ]


@pytest.mark.parametrize("layer", [gs.Input(3), gs.Dense(4, "mish", "he_normal"), gs.Dense(1)])
def test_layers_survive_their_description(layer):
    assert layer_from_config(layer.to_config()) == layer
