import math

import pytest

import gradstep as gs
from gradstep.backends.numpy.optimizers import OPTIMIZERS
from gradstep.optimizers import OPTIMIZER_CLASSES, as_optimizer, optimizer_from_config


def test_every_optimizer_of_the_reference_has_a_class():
    assert set(OPTIMIZER_CLASSES) == {*OPTIMIZERS, "lbfgs"}  # whose steps are SciPy's


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_defaults_are_those_of_the_reference(name):
    assert as_optimizer(name).options == dict(OPTIMIZERS[name].defaults)


@pytest.mark.parametrize(
    "optimizer",
    [
        gs.GradientDescent(0.1),
        gs.SGD(0.1, momentum=0.9, nesterov=True),
        gs.Adam(1e-2, beta1=0.8),
        gs.AdamW(1e-2, weight_decay=0.1),
    ],
)
def test_optimizers_survive_their_description(optimizer):
    assert optimizer_from_config(optimizer.to_config()) == optimizer
    assert as_optimizer(optimizer) is optimizer


def test_options_are_numbers_without_the_learning_rate():
    assert gs.SGD(0.5, 0.9, True).options == {"momentum": 0.9, "nesterov": 1.0}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: gs.Adam(-1e-3), "learning_rate must be greater than 0, got -0.001"),
        (lambda: gs.Adam(0), "learning_rate must be greater than 0"),
        (lambda: gs.SGD(math.nan), "learning_rate must be greater than 0, got nan"),
        (lambda: gs.SGD(math.inf), "learning_rate must be finite"),
        (lambda: gs.SGD(0.1, momentum=1.0), "momentum must be less than 1, got 1.0"),
        (lambda: gs.SGD(0.1, momentum=-0.1), "momentum must be at least 0"),
        (lambda: gs.Adam(beta1=1.0), "beta1 must be less than 1"),
        (lambda: gs.Adam(beta2=-1.0), "beta2 must be at least 0"),
        (lambda: gs.Adam(epsilon=0.0), "epsilon must be greater than 0"),
        (lambda: gs.AdamW(weight_decay=-1.0), "weight_decay must be at least 0"),
        (lambda: as_optimizer("adma"), "did you mean 'adam'"),
    ],
)
def test_hyperparameters_out_of_range_are_errors(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_hyperparameters_of_other_types_are_errors():
    with pytest.raises(TypeError, match=r"learning_rate must be a number, got '0.1'"):
        gs.Adam("0.1")
    with pytest.raises(TypeError, match="nesterov must be True or False"):
        gs.SGD(0.1, 0.9, nesterov=1)
    with pytest.raises(TypeError, match="optimizer must be a name"):
        as_optimizer(gs.Adam)


def test_default_batch_is_everything_for_gradient_descent_and_32_rows_for_the_others():
    assert gs.GradientDescent().default_batch_size(1000) == 1000
    assert gs.SGD().default_batch_size(1000) == gs.Adam().default_batch_size(1000) == 32
    assert gs.Adam().default_batch_size(5) == 5
