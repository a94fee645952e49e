"""Warnings that point at the line of the user's program."""

from __future__ import annotations

import sys
import warnings

_PASSED_ON = ("gradstep", "sklearn")
"""Packages whose functions pass a call on: a pipeline's line says nothing to its user."""


def warn(message: str, category: type[Warning] = UserWarning) -> None:
    """Warn at the innermost line outside of gradstep and scikit-learn."""
    frame, level = sys._getframe(1), 2
    while frame.f_back is not None:
        frame, level = frame.f_back, level + 1
        if frame.f_globals.get("__name__", "").partition(".")[0] not in _PASSED_ON:
            break
    warnings.warn(message, category, stacklevel=level)
