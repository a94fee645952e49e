import pytest

from gradstep.names import check_name

NAMES = ("relu", "leaky_relu", "binary_cross_entropy")


def test_a_valid_name_is_returned():
    assert check_name("activation", "relu", NAMES) == "relu"


@pytest.mark.parametrize(
    ("given", "meant"),
    [("rleu", "relu"), ("ReLU", "relu"), ("leaky-relu", "leaky_relu"), ("binary crossentropy", NAMES[2])],
)
def test_an_unknown_name_is_answered_with_the_nearest(given, meant):
    with pytest.raises(ValueError, match=f"unknown activation '{given}', did you mean '{meant}'"):
        check_name("activation", given, NAMES)


def test_a_name_like_no_other_gets_the_list_alone():
    with pytest.raises(ValueError) as error:
        check_name("activation", "xyz", NAMES)
    assert "did you mean" not in str(error.value)
    assert all(name in str(error.value) for name in NAMES)


def test_something_else_than_a_string_is_a_type_error():
    with pytest.raises(TypeError, match="activation must be a name"):
        check_name("activation", 3, NAMES)
