"""scikit-learn's own checks of estimators, all of them, on the fast backends."""

from unittest import SkipTest

import pytest
from sklearn import neural_network
from sklearn.utils.estimator_checks import parametrize_with_checks

from gradstep.backends import available
from gradstep.sklearn import MLPClassifier, MLPRegressor, TabularClassifier, TabularRegressor

ESTIMATORS = [
    estimator(backend=backend)
    for backend in ("cpp", "numba")
    if available()[backend] is None
    for estimator in (MLPClassifier, MLPRegressor, TabularClassifier, TabularRegressor)
]


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.SkipTestWarning")
@parametrize_with_checks(ESTIMATORS)
def test_estimators_keep_the_conventions(estimator, check):
    try:
        check(estimator)
    except SkipTest:  # only where scikit-learn's own perceptron skips as well
        theirs = type(estimator).__name__.replace("Tabular", "MLP")
        with pytest.raises(SkipTest):
            check(getattr(neural_network, theirs)())
        raise
