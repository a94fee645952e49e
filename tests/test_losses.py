import pickle

import pytest

import gradstep as gs
from gradstep.backends.numpy import LOSSES
from gradstep.losses import as_loss


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_of_the_reference_has_its_name(name):
    loss = as_loss(name)
    assert loss.name == name
    assert loss.options == dict(LOSSES[name].defaults)
    assert gs.Loss(**loss.to_config()) == loss


def test_what_the_targets_are_follows_from_the_loss():
    kinds = {name: as_loss(name).target_kind for name in LOSSES}
    assert kinds["cross_entropy"] == "labels"
    assert kinds["binary_cross_entropy"] == "probabilities"
    assert kinds["mse"] == kinds["mae"] == kinds["huber"] == kinds["quantile"] == "values"
    assert kinds["poisson"] == "counts"
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
