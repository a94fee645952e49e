"""Class weights are the sample weights that they stand for."""

import numpy as np
import pytest

import gradstep as gs

RNG = np.random.default_rng(0)
X = RNG.normal(size=(60, 3))
Y = RNG.choice(4, size=60, p=[0.5, 0.3, 0.2, 0.0])  # nobody is in class 3
OWN = RNG.uniform(0.5, 2.0, 60)


def parameters(y, loss="cross_entropy", units=4, names=None, **options):
    net = gs.Network([gs.Dense(units)], loss=loss, backend="numpy")
    net.classes = names
    net.fit(X, y, epochs=2, verbose=0, **options)
    return net.parameters()["dense_0.W"]


@pytest.mark.parametrize("own", [None, OWN])
def test_a_dict_stands_for_sample_weights(own):
    factors = np.array([1.0, 3.0, 0.0, 1.0])[Y]
    expected = parameters(Y, sample_weight=factors if own is None else factors * own)
    for weights in ({1: 3.0, 2: 0.0}, {np.int64(1): 3, 2: 0}):
        np.testing.assert_array_equal(parameters(Y, sample_weight=own, class_weight=weights), expected)
    one_hot = np.eye(4)[Y]
    np.testing.assert_array_equal(
        parameters(one_hot, sample_weight=own, class_weight={1: 3.0, 2: 0.0}), expected
    )


def test_classes_may_be_named():
    expected = parameters(Y, class_weight={1: 3.0})
    np.testing.assert_array_equal(
        parameters(Y, names=["a", "b", "c", "d"], class_weight={"b": 3.0}), expected
    )


def test_balanced_gives_every_class_that_there_is_the_same_sum():
    counts = np.bincount(Y)
    assert len(counts) == 3
    expected = parameters(Y, sample_weight=(60 / (3 * counts))[Y])
    np.testing.assert_array_equal(parameters(Y, class_weight="balanced"), expected)


@pytest.mark.parametrize("loss", ["binary_cross_entropy", "binary_focal", "binary_hinge"])
def test_one_output_has_two_classes(loss):
    y = (Y > 0).astype(int)
    expected = parameters(y, loss, 1, sample_weight=np.where(y, 1.0, 5.0))
    np.testing.assert_array_equal(parameters(y, loss, 1, class_weight={0: 5.0}), expected)
    if loss == "binary_hinge":
        np.testing.assert_array_equal(parameters(2 * y - 1, loss, 1, class_weight={-1: 5.0}), expected)


def test_validation_rows_keep_their_own_weights():
    nets = [gs.Network([gs.Dense(4)], loss="cross_entropy", backend="numpy") for _ in range(2)]
    nets[0].fit(X, Y, epochs=1, verbose=0, validation_data=(X, Y), class_weight={0: 5.0})
    factors = np.where(Y == 0, 5.0, 1.0)
    nets[1].fit(X, Y, epochs=1, verbose=0, validation_data=(X, Y), sample_weight=factors)
    assert nets[0].history.val_loss == nets[1].history.val_loss


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"class_weight": {9: 1.0}}, ValueError, "has the class 9, but the classes are 0, 1, 2, 3"),
        ({"class_weight": {0: -1.0}}, ValueError, r"class_weight\[0\] must be at least 0, got -1"),
        ({"class_weight": "even"}, ValueError, "must be 'balanced' or a dict, got 'even'"),
        ({"class_weight": [1, 2]}, TypeError, "must be 'balanced' or a dict, got list"),
        ({"class_weight": {0: 0, 1: 0, 2: 0}}, ValueError, "times class_weight must not be all zero"),
        ({"loss": "mse", "units": 1, "class_weight": "balanced"}, ValueError, "needs a loss for classes"),
    ],
)
def test_bad_class_weights_are_one_sentence(arguments, error, message):
    with pytest.raises(error, match=message):
        parameters(Y, **arguments)


def test_targets_between_no_and_yes_have_no_class():
    with pytest.raises(ValueError, match="needs targets that are 0 or 1"):
        parameters(np.full(60, 0.5), "binary_cross_entropy", 1, class_weight="balanced")
    with pytest.raises(ValueError, match="several yes-or-no outputs"):
        parameters(np.ones((60, 2)), "binary_cross_entropy", 2, class_weight="balanced")
