"""What a history says of epochs that were added in bulk."""

import copy
import pickle
from array import array

import pytest

import gradstep as gs
from gradstep.history import BULK

MANY = [float(epoch) for epoch in range(BULK, 0, -1)]


@pytest.fixture
def history():
    """Losses that are in the list, and losses that nobody has asked for."""
    grown = gs.History(first_epoch=3)
    grown.extend([2000.0])
    grown.extend(array("d", MANY))
    grown.extend([0.5])
    return grown


LOSSES = [2000.0, *MANY, 0.5]


def test_losses_added_in_bulk_are_one_list_of_numbers(history):
    assert history.loss == LOSSES
    assert type(history.loss) is list
    assert all(type(value) is float for value in history.loss)
    assert history["loss"] is history.loss is history.metrics["loss"]


def test_epochs_are_counted_before_their_losses_are_asked_for(history):
    assert len(history) == len(LOSSES)
    assert history.epochs == list(range(3, 3 + len(LOSSES)))
    assert set(history) == {"loss"}
    assert "loss" in history


def test_the_newest_values_are_known_without_the_list(history):
    assert history.last == {"loss": 0.5}
    history.append({"val_loss": 7.0})
    assert history.last == {"loss": 0.5, "val_loss": 7.0}
    assert history.loss[-1] == 0.5
    assert history.last == {"loss": 0.5, "val_loss": 7.0}
    assert gs.History().last == {}


def test_losses_asked_for_between_two_calls_are_not_added_twice(history):
    assert len(history.loss) == len(LOSSES)
    history.extend(MANY)
    history.extend([0.25])
    assert history.loss == [*LOSSES, *MANY, 0.25]
    assert len(history) == len(history.loss)


def test_a_list_that_is_held_sees_the_epochs_of_every_short_call():
    history = gs.History()
    held = history.loss
    for epoch in range(3):
        history.extend([float(epoch)])
        assert held == [float(value) for value in range(epoch + 1)]


@pytest.mark.parametrize(
    "copied", [copy.copy, copy.deepcopy, lambda history: pickle.loads(pickle.dumps(history))]
)
def test_a_copy_has_the_losses_that_nobody_asked_for_and_is_equal(history, copied):
    other = copied(history)
    assert other == history
    assert other.loss == LOSSES
    other.metrics = {"loss": [1.0]}
    assert history.loss == LOSSES
    assert other != history


class ReadAgain(list):
    """A list whose owner's losses are read whenever they are put into it, as by a handler of a signal."""

    def __setitem__(self, at, values):
        super().__setitem__(at, values)
        owner, self.owner = self.owner, None
        if owner is not None:
            assert owner.loss == LOSSES


def test_reading_while_the_list_is_made_loses_nothing():
    listed = ReadAgain()
    history = gs.History(metrics={"loss": listed})
    listed.owner = history
    history.extend(LOSSES)
    assert history.loss == LOSSES
    history.extend([0.25])
    assert history.loss == [*LOSSES, 0.25]


def test_attributes_of_a_users_own_survive_a_copy(history):
    history.note = "mine"
    assert copy.copy(history).note == "mine"


def test_a_long_call_of_the_engine_gives_every_loss(backend):
    network = gs.Network([gs.Dense(1)], backend=backend.name, seed=0)
    history = network.fit([[0.0], [1.0]], [1.0, 2.0], epochs=BULK + 5, verbose=0)
    assert len(history) == BULK + 5
    assert history.last["loss"] == history.loss[-1]
    assert len(history.loss) == BULK + 5


def test_metrics_that_are_set_replace_what_was_added(history):
    history.metrics = {"loss": [1.0], "val_loss": [2.0]}
    assert history.loss == [1.0]
    assert history.val_loss == [2.0]
    assert len(history) == 1


def test_the_other_metrics_are_padded_where_training_was_interrupted(history):
    history.append({"val_loss": 1.0})
    history.pad()
    assert {len(history[name]) for name in history} == {len(LOSSES)}
