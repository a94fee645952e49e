"""Types of the compiled engine; its arguments are described in backends/base.py."""

from collections.abc import Mapping, Sequence
from typing import Any

from numpy.typing import NDArray

_Layer = tuple[int, int, str, float, float, str, tuple[int, int, int, int], float, float]
_Layers = list[tuple[NDArray[Any], NDArray[Any]]]

isa: str
instruction_sets: list[str]
compiler: str
activations: list[str]
losses: list[str]
optimizers: list[str]

class _Engine:
    step_count: int
    takes_sparse: bool
    @property
    def state_names(self) -> list[str]: ...
    def __init__(
        self,
        layers: Sequence[_Layer],
        loss: str,
        loss_options: Mapping[str, Sequence[float]],
        optimizer: str,
        optimizer_options: Mapping[str, float],
        l2: float,
        l2_per_batch: bool,
        seed: int,
    ) -> None: ...
    def get(self, what: int) -> _Layers: ...
    def set(self, what: int, layer: int, W: NDArray[Any] | None, b: NDArray[Any] | None) -> None: ...
    def set_input_transform(self, shift: NDArray[Any] | None, scale: NDArray[Any] | None) -> None: ...
    def predict(
        self, X: NDArray[Any], y: NDArray[Any] | None, weight: NDArray[Any] | None, out: NDArray[Any] | None
    ) -> float: ...
    def try_predict(self, X: object) -> NDArray[Any] | None: ...
    def try_step(self, X: object, y: object, learning_rate: float) -> float | None: ...
    def loss_and_gradients(
        self, X: NDArray[Any], y: NDArray[Any], weight: NDArray[Any] | None, input_gradient: bool
    ) -> tuple[float, _Layers, NDArray[Any] | None]: ...
    def step(
        self, X: NDArray[Any], y: NDArray[Any], weight: NDArray[Any] | None, learning_rate: float
    ) -> float: ...
    def train(
        self,
        X: NDArray[Any],
        y: NDArray[Any],
        weight: NDArray[Any] | None,
        epochs: int,
        batch_size: int,
        learning_rates: NDArray[Any],
        seed: int,
        first_epoch: int,
        shuffle: bool,
        order: NDArray[Any] | None,
    ) -> tuple[bytes, bool, bool, bool, BaseException | None]: ...
    def profile_train(
        self,
        X: NDArray[Any],
        y: NDArray[Any],
        epochs: int,
        batch_size: int,
        learning_rates: NDArray[Any],
    ) -> dict[str, float]: ...

class EngineFloat32(_Engine): ...
class EngineFloat64(_Engine): ...

class ThreadChoice:
    def begin_step(self, operations: int, threads: int) -> int: ...
    def end_step(self, time: int) -> None: ...

def num_threads() -> int: ...
def default_num_threads() -> int: ...
def set_num_threads(n: int) -> None: ...
def fma_peak(threads: int, seconds: float = ..., isa: str | None = ..., float64: bool = ...) -> float: ...
def permutation(n: int, seed: int, epoch: int) -> NDArray[Any]: ...
