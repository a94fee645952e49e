"""Back-propagation for dense networks on CPUs: a small compiled engine with a thin Python API."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from gradstep.averaging import EMA, SWA
from gradstep.backends import get_num_threads, set_backend, set_num_threads
from gradstep.callbacks import Callback, EarlyStopping, ReduceOnPlateau, TimeBudget, TrainingState
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
from gradstep.losses import (
    BinaryCrossEntropy,
    BinaryFocal,
    CrossEntropy,
    CustomLoss,
    Focal,
    GaussianNLL,
    Huber,
    Loss,
    Quantile,
)
from gradstep.network import Network
from gradstep.optimizers import (
    LBFGS,
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
from gradstep.sources import ArraySource, ParquetSource, Piece, Source
from gradstep.tracing import Trace
from gradstep.training import DivergenceError
from gradstep.version import __version__

if TYPE_CHECKING:
    from gradstep import plot
    from gradstep.checkpoint import Checkpoint, load_checkpoint
    from gradstep.gradients import GradientReport, check_gradients
    from gradstep.interchange.c import export_c
    from gradstep.interchange.onnx import export_onnx
    from gradstep.interchange.sklearn import from_sklearn
    from gradstep.interchange.torch import from_torch, to_torch
    from gradstep.io import load
    from gradstep.learning_rate import LearningRateRange, find_learning_rate
    from gradstep.logs import CSVLog, JSONLinesLog, TensorBoard
    from gradstep.schedules import (
        Cosine,
        ExponentialDecay,
        InverseScaling,
        LinearWarmup,
        OneCycle,
        Schedule,
        StepDecay,
    )
    from gradstep.tables import TableEncoder

__all__ = [
    "EMA",
    "LBFGS",
    "SGD",
    "SWA",
    "AMSGrad",
    "Activation",
    "Adagrad",
    "Adam",
    "AdamW",
    "ArraySource",
    "BatchNorm",
    "BinaryCrossEntropy",
    "BinaryFocal",
    "CSVLog",
    "Callback",
    "Checkpoint",
    "Cosine",
    "CrossEntropy",
    "CustomLoss",
    "Dense",
    "DivergenceError",
    "Dropout",
    "EarlyStopping",
    "Embedding",
    "ExponentialDecay",
    "Focal",
    "GaussianNLL",
    "GradientDescent",
    "GradientReport",
    "History",
    "Huber",
    "Info",
    "Input",
    "InverseScaling",
    "JSONLinesLog",
    "LayerNorm",
    "LearningRateRange",
    "LinearWarmup",
    "Lion",
    "Loss",
    "NAdam",
    "Network",
    "OneCycle",
    "Optimizer",
    "ParquetSource",
    "Piece",
    "Quantile",
    "RMSprop",
    "ReduceOnPlateau",
    "Residual",
    "Scale",
    "Schedule",
    "Source",
    "StepDecay",
    "TableEncoder",
    "TensorBoard",
    "TimeBudget",
    "Trace",
    "TrainingState",
    "__version__",
    "check_gradients",
    "export_c",
    "export_onnx",
    "find_learning_rate",
    "from_sklearn",
    "from_torch",
    "get_num_threads",
    "info",
    "load",
    "load_checkpoint",
    "plot",
    "set_backend",
    "set_num_threads",
    "to_torch",
]

# What most programs do not need at once, and what takes as long to import as all the rest.
_LATER = {
    "CSVLog": "gradstep.logs",
    "Checkpoint": "gradstep.checkpoint",
    "Cosine": "gradstep.schedules",
    "ExponentialDecay": "gradstep.schedules",
    "GradientReport": "gradstep.gradients",
    "InverseScaling": "gradstep.schedules",
    "JSONLinesLog": "gradstep.logs",
    "LearningRateRange": "gradstep.learning_rate",
    "LinearWarmup": "gradstep.schedules",
    "OneCycle": "gradstep.schedules",
    "Schedule": "gradstep.schedules",
    "StepDecay": "gradstep.schedules",
    "TableEncoder": "gradstep.tables",
    "TensorBoard": "gradstep.logs",
    "check_gradients": "gradstep.gradients",
    "find_learning_rate": "gradstep.learning_rate",
    "load": "gradstep.io",
    "load_checkpoint": "gradstep.checkpoint",
    "export_c": "gradstep.interchange.c",
    "export_onnx": "gradstep.interchange.onnx",
    "from_sklearn": "gradstep.interchange.sklearn",
    "from_torch": "gradstep.interchange.torch",
    "to_torch": "gradstep.interchange.torch",
}


def __getattr__(name: str) -> Any:
    if name == "plot":
        return import_module("gradstep.plot")
    if name not in _LATER:
        raise AttributeError(f"module 'gradstep' has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_LATER[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_LATER, "plot"})
