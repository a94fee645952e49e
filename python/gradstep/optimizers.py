"""Optimizers: small frozen dataclasses of hyperparameters; the update rules are in the backends."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar

from gradstep.names import check_name
from gradstep.validation import check_flag, check_integer, check_real

MINI_BATCH = 32
"""Rows of a batch where neither `fit` nor the optimizer says otherwise."""


_CLIPS = ("clip_value", "clip_norm")


@dataclass(frozen=True)
class Optimizer:
    """What all optimizers have in common.

    Parameters
    ----------
    learning_rate : float
        Size of a step, positive.
    clip_value : float, optional
        Largest absolute value of an entry of the gradient: larger ones are cut to it. By keyword only.
    clip_norm : float, optional
        Largest norm of the whole gradient, of all layers but frozen ones: a larger gradient is multiplied by
        ``clip_norm / (norm + 1e-6)``, as by PyTorch's ``clip_grad_norm_``. By keyword only.

    Notes
    -----
    Clipped is what the optimizer would see: the mean gradient of the batch with that of l1 and l2, without
    decoupled decay; by value first, then by norm. Source: Pascanu, Mikolov and Bengio, "On the difficulty of
    training recurrent neural networks", ICML 2013.
    """

    name: ClassVar[str]
    full_batch: ClassVar[bool] = False
    """Whether `fit` takes all rows as one batch unless told otherwise; 32 rows if not."""

    learning_rate: float = 0.01
    clip_value: float | None = field(default=None, kw_only=True)
    clip_norm: float | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        self._keep_real("learning_rate", above=0.0)
        for name in _CLIPS:
            if getattr(self, name) is not None:
                self._keep_real(name, above=0.0)

    def _keep_real(
        self,
        name: str,
        *,
        above: float | None = None,
        minimum: float | None = None,
        below: float | None = None,
    ) -> None:
        """Check a hyperparameter, and keep it as a float whatever type of number was given."""
        number = check_real(name, getattr(self, name), above=above, minimum=minimum, below=below)
        object.__setattr__(self, name, number)

    def _keep_shares(self, *names: str) -> None:
        """Check hyperparameters in [0, 1)."""
        for name in names:
            self._keep_real(name, minimum=0.0, below=1.0)

    @property
    def engine_name(self) -> str:
        """What the backend is asked for."""
        return self.name

    @property
    def options(self) -> dict[str, float]:
        """All hyperparameters but the learning rate and clipping, as numbers."""
        common = ("learning_rate", *_CLIPS)
        return {option: float(value) for option, value in asdict(self).items() if option not in common}

    @property
    def clipping(self) -> dict[str, float]:
        """clip_value and clip_norm; 0 where there is none."""
        return {name: getattr(self, name) or 0.0 for name in _CLIPS}

    def default_batch_size(self, n: int) -> int:
        """Rows of a batch where `fit` is not told."""
        return n if self.full_batch else min(MINI_BATCH, n)

    def to_config(self) -> dict[str, Any]:
        """Plain JSON values."""
        values = {key: value for key, value in asdict(self).items() if key not in _CLIPS or value is not None}
        return {"name": self.name, **values}


@dataclass(frozen=True)
class GradientDescent(Optimizer):
    """Plain gradient descent on all rows at once: ``theta <- theta - lr g``.

    `fit` uses the full batch unless its batch_size says otherwise.

    Parameters
    ----------
    learning_rate : float, default 0.01
        Size of a step, positive.
    clip_value, clip_norm : float, optional
        Limits of the gradient, see `Optimizer`. By keyword only.
    """

    name: ClassVar[str] = "gradient_descent"
    full_batch: ClassVar[bool] = True


@dataclass(frozen=True)
class SGD(Optimizer):
    """Mini-batch gradient descent with momentum: ``v <- mu v - lr g; theta <- theta + v``.

    With ``nesterov``: ``theta <- theta + mu v - lr g`` with the new v, as in scikit-learn and PyTorch.
    Source: Sutskever, Martens, Dahl and Hinton, ICML 2013.

    Parameters
    ----------
    learning_rate : float, default 0.01
        Size of a step, positive.
    momentum : float, default 0.0
        mu, in [0, 1).
    nesterov : bool, default False
        Use Nesterov's momentum.
    clip_value, clip_norm : float, optional
        Limits of the gradient, see `Optimizer`. By keyword only.
    """

    name: ClassVar[str] = "sgd"

    momentum: float = 0.0
    nesterov: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self._keep_shares("momentum")
        object.__setattr__(self, "nesterov", check_flag("nesterov", self.nesterov))


@dataclass(frozen=True)
class Adam(Optimizer):
    """Adaptive moments: ``theta <- theta - lr m_hat / (sqrt(v_hat) + epsilon)``.

    ``m <- beta1 m + (1 - beta1) g``, ``v <- beta2 v + (1 - beta2) g^2``; m_hat and v_hat are divided by
    1 - beta^t. Source: Kingma and Ba, "Adam: a method for stochastic optimization", ICLR 2015.

    Parameters
    ----------
    learning_rate : float, default 0.001
        Size of a step, positive.
    beta1, beta2 : float, default 0.9 and 0.999
        Decay of the first and second moment, in [0, 1).
    epsilon : float, default 1e-8
        Added to the root of the second moment, positive.
    epsilon_hat : bool, default False
        Add epsilon before the second moment's bias is corrected: ``sqrt(v) + epsilon`` takes the place of
        ``sqrt(v_hat) + epsilon``, with ``sqrt(1 - beta2^t)`` in the learning rate. It is the epsilon hat at
        the end of Kingma and Ba's section 2, and scikit-learn's and TensorFlow's; PyTorch's is the other.
    clip_value, clip_norm : float, optional
        Limits of the gradient, see `Optimizer`. By keyword only.
    """

    name: ClassVar[str] = "adam"

    learning_rate: float = 0.001
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8
    epsilon_hat: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self._keep_shares("beta1", "beta2")
        self._keep_real("epsilon", above=0.0)
        object.__setattr__(self, "epsilon_hat", check_flag("epsilon_hat", self.epsilon_hat))


@dataclass(frozen=True)
class AdamW(Adam):
    """Adam with decoupled weight decay: ``W <- (1 - lr weight_decay) W`` before each update of Adam.

    Biases do not decay. Source: Loshchilov and Hutter, "Decoupled weight decay regularization", ICLR 2019.

    Parameters
    ----------
    learning_rate : float, default 0.001
        Size of a step, positive.
    beta1, beta2 : float, default 0.9 and 0.999
        Decay of the first and second moment, in [0, 1).
    epsilon : float, default 1e-8
        Added to the root of the second moment, positive.
    epsilon_hat : bool, default False
        Add epsilon before the second moment's bias is corrected, see `Adam`.
    weight_decay : float, default 0.01
        Decay per unit of the learning rate, at least 0.
    clip_value, clip_norm : float, optional
        Limits of the gradient, see `Optimizer`. By keyword only.
    """

    name: ClassVar[str] = "adamw"

    weight_decay: float = 0.01

    def __post_init__(self) -> None:
        super().__post_init__()
        self._keep_real("weight_decay", minimum=0.0)


@dataclass(frozen=True)
class AMSGrad(Optimizer):
    """Adam whose second moment never falls: ``theta <- theta - lr m_hat / (sqrt(max v) / c + epsilon)``.

    c is sqrt(1 - beta2^t), as in PyTorch. Source: Reddi, Kale and Kumar, "On the convergence of Adam and
    beyond", ICLR 2018.

    Parameters
    ----------
    learning_rate : float, default 0.001
        Size of a step, positive.
    beta1, beta2 : float, default 0.9 and 0.999
        Decay of the first and second moment, in [0, 1).
    epsilon : float, default 1e-8
        Added to the root of the second moment, positive.
    clip_value, clip_norm : float, optional
        Limits of the gradient, see `Optimizer`. By keyword only.
    """

    name: ClassVar[str] = "amsgrad"

    learning_rate: float = 0.001
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8

    def __post_init__(self) -> None:
        super().__post_init__()
        self._keep_shares("beta1", "beta2")
        self._keep_real("epsilon", above=0.0)


@dataclass(frozen=True)
class NAdam(Optimizer):
    """Adam with Nesterov's momentum, whose strength ``mu_t = beta1 (1 - 0.96^(t decay) / 2)`` grows.

    ``theta <- theta - lr ((1 - mu_t) / (1 - p_t) g + mu_{t+1} / (1 - p_{t+1}) m) / (sqrt(v_hat) + epsilon)``
    with p_t the product of mu_1 to mu_t, as in PyTorch. Source: Dozat, "Incorporating Nesterov momentum into
    Adam", ICLR 2016 workshop.

    Parameters
    ----------
    learning_rate : float, default 0.002
        Size of a step, positive.
    beta1, beta2 : float, default 0.9 and 0.999
        Decay of the first and second moment, in [0, 1).
    epsilon : float, default 1e-8
        Added to the root of the second moment, positive.
    momentum_decay : float, default 0.004
        How fast mu grows, positive.
    clip_value, clip_norm : float, optional
        Limits of the gradient, see `Optimizer`. By keyword only.
    """

    name: ClassVar[str] = "nadam"

    learning_rate: float = 0.002
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8
    momentum_decay: float = 0.004

    def __post_init__(self) -> None:
        super().__post_init__()
        self._keep_shares("beta1", "beta2")
        self._keep_real("epsilon", above=0.0)
        self._keep_real("momentum_decay", above=0.0)


@dataclass(frozen=True)
class RMSprop(Optimizer):
    """Steps over the root mean square: ``m <- mu m + g / (sqrt(v) + epsilon); theta <- theta - lr m``.

    ``v <- decay v + (1 - decay) g^2``, as in PyTorch. Source: Hinton, "Neural networks for machine learning",
    lecture 6e, 2012.

    Parameters
    ----------
    learning_rate : float, default 0.01
        Size of a step, positive.
    decay : float, default 0.99
        Of the mean square, in [0, 1).
    momentum : float, default 0.0
        mu, in [0, 1).
    epsilon : float, default 1e-8
        Added to the root, positive.
    clip_value, clip_norm : float, optional
        Limits of the gradient, see `Optimizer`. By keyword only.
    """

    name: ClassVar[str] = "rmsprop"

    decay: float = 0.99
    momentum: float = 0.0
    epsilon: float = 1e-8

    def __post_init__(self) -> None:
        super().__post_init__()
        self._keep_shares("decay", "momentum")
        self._keep_real("epsilon", above=0.0)


@dataclass(frozen=True)
class Adagrad(Optimizer):
    """Steps over the root of the summed squares: ``theta <- theta - lr g / (sqrt(v) + epsilon)``.

    ``v <- v + g^2``. Source: Duchi, Hazan and Singer, "Adaptive subgradient methods for online learning and
    stochastic optimization", JMLR 12, 2011.

    Parameters
    ----------
    learning_rate : float, default 0.01
        Size of a step, positive.
    epsilon : float, default 1e-10
        Added to the root, positive.
    clip_value, clip_norm : float, optional
        Limits of the gradient, see `Optimizer`. By keyword only.
    """

    name: ClassVar[str] = "adagrad"

    epsilon: float = 1e-10

    def __post_init__(self) -> None:
        super().__post_init__()
        self._keep_real("epsilon", above=0.0)


@dataclass(frozen=True)
class Lion(Optimizer):
    """Signs of a mean: ``theta <- theta - lr (sign(beta1 m + (1 - beta1) g) + weight_decay theta)``.

    Then ``m <- beta2 m + (1 - beta2) g``; biases do not decay. Source: Chen et al., "Symbolic discovery of
    optimization algorithms", NeurIPS 2023.

    Parameters
    ----------
    learning_rate : float, default 0.0001
        Size of a step, positive.
    beta1, beta2 : float, default 0.9 and 0.99
        Weight of the mean in the step, and its decay, in [0, 1).
    weight_decay : float, default 0.0
        Decay per unit of the learning rate, at least 0.
    clip_value, clip_norm : float, optional
        Limits of the gradient, see `Optimizer`. By keyword only.
    """

    name: ClassVar[str] = "lion"

    learning_rate: float = 0.0001
    beta1: float = 0.9
    beta2: float = 0.99
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self._keep_shares("beta1", "beta2")
        self._keep_real("weight_decay", minimum=0.0)


@dataclass(frozen=True)
class LBFGS(Optimizer):
    """Limited-memory BFGS on all rows at once, SciPy's L-BFGS-B (extra ``lbfgs``): for `fit` only.

    An epoch is an iteration, and the history holds the loss after each. `fit` ends early, with
    ``history.stopped == "converged"``, when the gradient is small or no step improves the loss; called again,
    it begins without the curvature of the last call. SciPy computes in float64; a float32 network rounds what
    it is given, so that float64 converges further. Clipping, l1, averaging, dropout, schedules, factors of
    the learning rate and smaller batches are refused. Source: Liu and Nocedal, "On the limited memory BFGS
    method for large scale optimization", Mathematical Programming 45, 1989.

    Parameters
    ----------
    learning_rate : float, default 1.0
        Not used: a line search finds the size of a step.
    history_size : int, default 10
        Past steps from which the curvature is estimated, at least 1.
    tolerance : float, default 1e-5
        Converged when no entry of the gradient is larger, at least 0.
    clip_value, clip_norm : None
        Not for this optimizer.
    """

    name: ClassVar[str] = "lbfgs"
    full_batch: ClassVar[bool] = True

    learning_rate: float = 1.0
    history_size: int = 10
    tolerance: float = 1e-5

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "history_size", check_integer("history_size", self.history_size, minimum=1))
        self._keep_real("tolerance", minimum=0.0)
        for name in _CLIPS:
            if getattr(self, name) is not None:
                raise ValueError(f"{name} must be None for LBFGS, got {getattr(self, name)!r}")

    @property
    def engine_name(self) -> str:
        """An optimizer without states: SciPy keeps them."""
        return "gradient_descent"

    @property
    def options(self) -> dict[str, float]:
        """The engine has none."""
        return {}


OPTIMIZER_CLASSES: dict[str, type[Optimizer]] = {
    cls.name: cls
    for cls in (GradientDescent, SGD, Adam, AdamW, AMSGrad, NAdam, RMSprop, Adagrad, Lion, LBFGS)
}


def as_optimizer(optimizer: object) -> Optimizer:
    """An optimizer from a name, with default hyperparameters, or from an `Optimizer`."""
    if isinstance(optimizer, Optimizer) and type(optimizer) is not Optimizer:
        return optimizer
    return OPTIMIZER_CLASSES[check_name("optimizer", optimizer, OPTIMIZER_CLASSES)]()


def optimizer_from_config(config: Mapping[str, Any]) -> Optimizer:
    """Rebuild an optimizer from its `to_config`."""
    options = {key: value for key, value in config.items() if key != "name"}
    return OPTIMIZER_CLASSES[check_name("optimizer", config.get("name"), OPTIMIZER_CLASSES)](**options)
