"""The reference backend: back-propagation as a textbook writes it, in numpy.

`activations`, `losses` and `optimizers` define every name that the library knows, with its formula; the
other backends compute the same functions faster. `layers` and `propagation` are the algorithm, `engine` the
training loop around it.
"""

from __future__ import annotations

import numpy as np

from gradstep.backends import blas_threads
from gradstep.backends.base import Backend
from gradstep.backends.numpy.activations import ACTIVATIONS
from gradstep.backends.numpy.engine import NumpyEngine
from gradstep.backends.numpy.losses import LOSSES
from gradstep.backends.numpy.optimizers import OPTIMIZERS

__all__ = ["BACKEND"]


def _describe() -> dict[str, str]:
    return {"numpy": np.__version__, "BLAS": blas_threads.describe()}


BACKEND = Backend(
    name="numpy",
    activations=tuple(ACTIVATIONS),
    losses=tuple(LOSSES),
    optimizers=tuple(OPTIMIZERS),
    make_engine=NumpyEngine,
    set_num_threads=blas_threads.set_num_threads,
    get_num_threads=blas_threads.get_num_threads,
    describe=_describe,
)
