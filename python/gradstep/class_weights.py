"""Weights of classes, and the sample weights that they stand for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gradstep.backends.base import Array
from gradstep.losses import TargetKind
from gradstep.validation import as_numbers, check_real, check_weight, check_weight_part

_PRODUCT = "sample_weight times class_weight"


@dataclass(frozen=True, eq=False, repr=False)
class Classes:
    """The classes that validated targets stand for.

    Parameters
    ----------
    kind
        What y holds.
    n_out
        Outputs of the network.
    names
        Of the classes, or None.

    Raises
    ------
    ValueError
        If the loss has no classes, or a row may have several.
    """

    kind: TargetKind
    n_out: int
    names: Sequence[str] | None

    def __post_init__(self) -> None:
        if self.kind not in ("labels", "probabilities", "signs"):
            raise ValueError("class_weight needs a loss for classes: give sample_weight instead")
        if self.kind != "labels" and self.n_out > 1:
            raise ValueError(
                "class_weight needs one class for each row, but the network has several yes-or-no outputs"
            )

    @property
    def count(self) -> int:
        """How many there are."""
        return self.n_out if self.kind == "labels" else 2

    def labels(self, y: Array) -> Array:
        """Numbers of the rows' classes, (n,); a ValueError for targets between two."""
        if self.kind == "labels":
            return y
        column = y[:, 0]
        if self.kind == "probabilities" and not ((column == 0) | (column == 1)).all():
            raise ValueError("class_weight needs targets that are 0 or 1: give sample_weight instead")
        return (column > 0).astype(np.int64)

    def count_rows(self, y: Array) -> Array:
        """Rows of every class, (classes,)."""
        return np.bincount(self.labels(y), minlength=self.count)

    def name_of(self, number: int) -> str:
        """What the user calls a class."""
        if self.kind == "signs":
            return ("-1", "1")[number]
        return str(self._own_names()[number]) if self._own_names() else str(number)

    def _own_names(self) -> Sequence[str]:
        """A name for every class, or none."""
        return self.names if self.names is not None and len(self.names) == self.count else ()

    def numbers(self) -> dict[Any, int]:
        """Numbers of the classes by all that they may be called."""
        numbers: dict[Any, int] = {number: number for number in range(self.count)}
        numbers.update({name: number for number, name in enumerate(self._own_names())})
        if self.kind == "signs":
            numbers[-1] = 0
        return numbers


class ClassWeights:
    """The weight of every class.

    Parameters
    ----------
    class_weight
        By number or name of the class, or "balanced".
    classes
        What they are.
    count_rows
        Counts the rows of every class, where that is needed.

    Attributes
    ----------
    by_class : numpy.ndarray, (classes,)
        The weights.

    Raises
    ------
    TypeError, ValueError
        If class_weight is not as above.
    """

    def __init__(
        self, class_weight: Mapping[Any, float] | str, classes: Classes, count_rows: Callable[[], Array]
    ) -> None:
        self._classes = classes
        self._is_counted: Array | None = None
        """Of every class: whether it had rows; None where nobody counted."""
        if isinstance(class_weight, str):
            if class_weight != "balanced":
                raise ValueError(f"class_weight must be 'balanced' or a dict, got {class_weight!r}")
            rows = count_rows()
            self.by_class: Array = rows.sum() / max(np.count_nonzero(rows), 1) / np.maximum(rows, 1)
            self._is_counted = rows > 0
            return
        if not isinstance(class_weight, Mapping):
            raise TypeError(f"class_weight must be 'balanced' or a dict, got {type(class_weight).__name__}")
        numbers = classes.numbers()
        self.by_class = np.ones(classes.count)
        for key, value in class_weight.items():
            if key not in numbers:
                known = ", ".join(str(name) for name in classes.names or range(classes.count))
                raise ValueError(f"class_weight has the class {key!r}, but the classes are {known}")
            self.by_class[numbers[key]] = check_real(f"class_weight[{key!r}]", value, minimum=0.0)
        if not self.by_class.any():
            raise ValueError("class_weight must not be all zero")

    def sample_weight(self, y: Array, sample_weight: Any, dtype: str) -> Array:
        """Sample weights of all rows, (n,) in dtype: their own, or None, times those of their classes.

        Raises
        ------
        ValueError
            If all of them are zero, or some too small for the others.
        """
        weight = check_weight(self._product(y, sample_weight), dtype, len(y), _PRODUCT)
        assert weight is not None
        return weight

    def part_weight(self, y: Array, sample_weight: Any, dtype: str) -> Array:
        """As `sample_weight`, of a part of the rows: as they are, maybe all zero.

        Raises
        ------
        ValueError
            If a class had no rows when they were counted, or a weight is too small or large for a part.
        """
        weight = check_weight_part(self._product(y, sample_weight), dtype, len(y), _PRODUCT)
        assert weight is not None
        return weight

    def _product(self, y: Array, sample_weight: Any) -> Array:
        labels = self._classes.labels(y)
        if self._is_counted is not None and not self._is_counted[labels].all():
            number = int(labels[~self._is_counted[labels]][0])
            name = self._classes.name_of(number)
            raise ValueError(f"y has the class {name}, which had no rows when the classes were counted")
        factors = self.by_class[labels]
        if sample_weight is None:
            return factors
        return factors * as_numbers("sample_weight", sample_weight).astype(np.float64)
