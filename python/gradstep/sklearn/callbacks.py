"""What happens around the epochs of a fit: the user's functions, and scikit-learn's callback protocol."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from gradstep.sklearn.model import Coefficients
from gradstep.sklearn.settings import Settings

if TYPE_CHECKING:
    from gradstep.sklearn.base import Perceptron

Method = TypeVar("Method", bound=Callable[..., Any])

Read = Callable[[], Coefficients]
"""Reads the coefficients as they are now."""

try:
    from sklearn.callback import CallbackSupportMixin, with_callbacks
except ImportError:  # scikit-learn before 1.9 has no callbacks

    class CallbackSupportMixin:  # type: ignore[no-redef]
        """Nothing."""

    def with_callbacks(method: Method) -> Method:
        """The method as it is."""
        return method


__all__ = ["CallbackSupportMixin", "EpochHooks", "with_callbacks"]


class EpochHooks:
    """Tells everyone who asked about the epochs of one fit.

    Parameters
    ----------
    estimator
        Its coefficients are brought up to date before anyone is told.
    settings
        Of the fit; holds the user's functions.
    """

    def __init__(self, estimator: Perceptron, settings: Settings) -> None:
        self.estimator = estimator
        self.functions = settings.callbacks

    @property
    def watched(self) -> bool:
        """Whether anyone asked."""
        return bool(self.functions)

    def epoch_begins(self) -> None:
        """Before an epoch."""

    def epoch_ended(self, read: Read) -> bool:
        """After an epoch; whether someone wants to stop."""
        if not self.functions:
            return False
        read().give_to(self.estimator)
        answers = [bool(function(self.estimator)) for function in self.functions]  # all are called
        return any(answers)


class FitHooks(EpochHooks):
    """As `EpochHooks`, and with the callbacks that `set_callbacks` set.

    Parameters
    ----------
    estimator, settings
        As there.
    X, y, metadata
        What `fit` was given.
    """

    def __init__(
        self, estimator: Perceptron, settings: Settings, X: Any, y: Any, metadata: Mapping[str, Any]
    ) -> None:
        super().__init__(estimator, settings)
        self.data = {"X": X, "y": y, "metadata": dict(metadata)}
        self.fit = estimator._init_callback_context(max_subtasks=settings.max_iter)
        self.fit.call_on_fit_task_begin(estimator=estimator, **self.data)
        self.epoch: Any = None

    @property
    def watched(self) -> bool:
        """Whether anyone asked."""
        return True

    def epoch_begins(self) -> None:
        """Before an epoch."""
        self.epoch = self.fit.subcontext(task_name="epoch")
        self.epoch.call_on_fit_task_begin(estimator=self.estimator, **self.data)

    def epoch_ended(self, read: Read) -> bool:
        """After an epoch; whether someone wants to stop."""
        stop = super().epoch_ended(read)

        def attributes() -> dict[str, Any]:
            return read().attributes()

        ended = self.epoch.call_on_fit_task_end(
            estimator=self.estimator, reconstruction_attributes=attributes, **self.data
        )
        return bool(ended) or stop

    def fit_ended(self) -> None:
        """After the last epoch."""

        def attributes() -> dict[str, Any]:
            return Coefficients.of(self.estimator).attributes()

        self.fit.call_on_fit_task_end(
            estimator=self.estimator, reconstruction_attributes=attributes, **self.data
        )
