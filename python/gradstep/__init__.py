"""Back-propagation for dense networks on CPUs: a small compiled engine with a thin Python API."""

from gradstep.backends import get_num_threads, set_backend, set_num_threads
from gradstep.callbacks import Callback, EarlyStopping, TrainingState
from gradstep.gradients import GradientReport, check_gradients
from gradstep.history import History
from gradstep.info import Info, info
from gradstep.layers import Dense, Input
from gradstep.losses import Huber, Loss
from gradstep.network import Network
from gradstep.optimizers import SGD, Adam, AdamW, GradientDescent, Optimizer
from gradstep.tracing import Trace
from gradstep.training import DivergenceError
from gradstep.version import __version__

__all__ = [
    "SGD",
    "Adam",
    "AdamW",
    "Callback",
    "Dense",
    "DivergenceError",
    "EarlyStopping",
    "GradientDescent",
    "GradientReport",
    "History",
    "Huber",
    "Info",
    "Input",
    "Loss",
    "Network",
    "Optimizer",
    "Trace",
    "TrainingState",
    "__version__",
    "check_gradients",
    "get_num_threads",
    "info",
    "set_backend",
    "set_num_threads",
]
