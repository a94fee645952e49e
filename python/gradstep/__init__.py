"""Back-propagation for dense networks on CPUs: a small compiled engine with a thin Python API."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from gradstep.backends import get_num_threads, set_backend, set_num_threads
from gradstep.callbacks import Callback, EarlyStopping, ReduceOnPlateau, TrainingState
from gradstep.gradients import GradientReport, check_gradients
from gradstep.history import History
from gradstep.info import Info, info
from gradstep.layers import (
    Activation,
    BatchNorm,
    Dense,
    Dropout,
    Embedding,
    Input,
    LayerNorm,
    Residual,
    Scale,
)
from gradstep.losses import Huber, Loss, Quantile
from gradstep.network import Network
from gradstep.optimizers import (
    SGD,
    Adagrad,
    Adam,
    AdamW,
    AMSGrad,
    GradientDescent,
    Lion,
    NAdam,
    Optimizer,
    RMSprop,
)
from gradstep.schedules import (
    Cosine,
    ExponentialDecay,
    InverseScaling,
    LinearWarmup,
    OneCycle,
    Schedule,
    StepDecay,
)
from gradstep.tracing import Trace
from gradstep.training import DivergenceError
from gradstep.version import __version__

if TYPE_CHECKING:
    from gradstep.io import load
    from gradstep.tables import TableEncoder

__all__ = [
    "SGD",
    "AMSGrad",
    "Activation",
    "Adagrad",
    "Adam",
    "AdamW",
    "BatchNorm",
    "Callback",
    "Cosine",
    "Dense",
    "DivergenceError",
    "Dropout",
    "EarlyStopping",
    "Embedding",
    "ExponentialDecay",
    "GradientDescent",
    "GradientReport",
    "History",
    "Huber",
    "Info",
    "Input",
    "InverseScaling",
    "LayerNorm",
    "LinearWarmup",
    "Lion",
    "Loss",
    "NAdam",
    "Network",
    "OneCycle",
    "Optimizer",
    "Quantile",
    "RMSprop",
    "ReduceOnPlateau",
    "Residual",
    "Scale",
    "Schedule",
    "StepDecay",
    "TableEncoder",
    "Trace",
    "TrainingState",
    "__version__",
    "check_gradients",
    "get_num_threads",
    "info",
    "load",
    "set_backend",
    "set_num_threads",
]

# What most programs do not need at once, and what takes as long to import as all the rest.
_LATER = {"load": "gradstep.io", "TableEncoder": "gradstep.tables"}


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module 'gradstep' has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_LATER[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_LATER})
