"""scikit-learn estimators on gradstep's engine; this is the only part that imports scikit-learn."""

try:
    from gradstep.sklearn.mlp import MLPClassifier, MLPRegressor
    from gradstep.sklearn.tabular import TabularClassifier, TabularRegressor
except ModuleNotFoundError as error:
    if error.name is None or error.name.partition(".")[0] not in ("sklearn", "scipy"):
        raise
    raise ModuleNotFoundError(
        'gradstep.sklearn needs the package scikit-learn: pip install "gradstep[sklearn]"', name=error.name
    ) from None

__all__ = ["MLPClassifier", "MLPRegressor", "TabularClassifier", "TabularRegressor"]
