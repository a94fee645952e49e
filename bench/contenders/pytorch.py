"""PyTorch: eager with the fused Adam, and with whole steps compiled into one graph."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

from cases import (
    BETA1,
    BETA2,
    CATEGORIES,
    DROPPED,
    EMA_DECAY,
    EMBEDDED,
    EPSILON,
    FLOOR,
    FOCUS,
    LABELS,
    OPTIMIZERS,
    QUANTILE,
    SMOOTHING,
    Array,
    Case,
    Weights,
    make_vectors,
)
from contenders.base import Contender, Session
from lbfgs import minimize


def _loss(case: Case) -> Any:
    import torch
    from torch.nn import functional

    def binary_cross_entropy(z: Any, t: Any) -> Any:
        return functional.binary_cross_entropy_with_logits(z, t, reduction="sum") / len(z)

    def poisson(z: Any, t: Any) -> Any:
        return (z.exp() - t * z + torch.xlogy(t, t) - t).sum() / len(z)

    def quantile(z: Any, t: Any) -> Any:
        return torch.maximum(QUANTILE * (t - z), (QUANTILE - 1) * (t - z)).mean()

    def gamma(z: Any, t: Any) -> Any:
        return (z - t.log() + t * (-z).exp() - 1).sum() / len(z)

    def gaussian_nll(z: Any, t: Any) -> Any:
        mean, s = z.chunk(2, dim=1)
        variance = s.exp() + FLOOR
        return (variance.log() + (mean - t) ** 2 / variance).sum() / (2 * len(z))

    def binary_focal(z: Any, t: Any) -> Any:
        losses = functional.binary_cross_entropy_with_logits(z, t, reduction="none")
        return ((1 - (-losses).exp()) ** FOCUS * losses).sum() / len(z)

    def binary_hinge(z: Any, t: Any) -> Any:
        return functional.relu(1 - (2 * t - 1) * z).sum() / len(z)

    def focal(z: Any, t: Any) -> Any:
        losses = functional.cross_entropy(z, t, reduction="none")
        return ((1 - (-losses).exp()) ** FOCUS * losses).mean()

    def hinge(z: Any, t: Any) -> Any:
        own = z.gather(1, t[:, None])
        others = z.scatter(1, t[:, None], -math.inf).amax(dim=1, keepdim=True)
        return functional.relu(1 + others - own).mean()

    return {
        "quantile": quantile,
        "gamma": gamma,
        "gaussian_nll": gaussian_nll,
        "binary_focal": binary_focal,
        "binary_hinge": binary_hinge,
        "focal": focal,
        "hinge": hinge,
        "smoothed_cross_entropy": partial(functional.cross_entropy, label_smoothing=SMOOTHING),
        "mse": functional.mse_loss,
        "binary_cross_entropy": binary_cross_entropy,
        "cross_entropy": functional.cross_entropy,
        "mae": functional.l1_loss,
        "huber": functional.huber_loss,
        "poisson": poisson,
    }[case.loss]


def _optimizer(torch: Any, case: Case, parameters: Any) -> Any:
    """The library's own, fused where it has that."""
    optim, rate = torch.optim, case.learning_rate
    adam = {"lr": rate, "betas": (BETA1, BETA2), "eps": EPSILON}
    options = OPTIMIZERS[case.optimizer]
    match case.optimizer:
        case "adam":
            return optim.Adam(parameters, fused=True, **adam)
        case "adamw":
            return optim.AdamW(parameters, fused=True, **adam, **options)
        case "amsgrad":
            return optim.Adam(parameters, fused=True, amsgrad=True, **adam)
        case "nadam":
            return optim.NAdam(parameters, foreach=True, **adam, **options)
        case "sgd":
            return optim.SGD(parameters, lr=rate, fused=True, **options)
        case "rmsprop":
            momentum, alpha = options["momentum"], options["decay"]
            return optim.RMSprop(parameters, rate, alpha, EPSILON, momentum=momentum, foreach=True)
        case "adagrad":
            return optim.Adagrad(parameters, rate, eps=EPSILON, fused=True)
        case "lbfgs":
            return None
    raise NotImplementedError(case.optimizer)


def _average(torch: Any, case: Case, network: Any) -> Any:
    """The library's own mean of the parameters."""
    averages = torch.optim.swa_utils
    match case.averaging:
        case "ema":
            return averages.AveragedModel(network, multi_avg_fn=averages.get_ema_multi_avg_fn(EMA_DECAY))
        case "swa":
            return averages.AveragedModel(network, multi_avg_fn=averages.get_swa_multi_avg_fn())
    return None


class TorchSession(Session):
    """Data as tensors, and the loop over epochs and batches."""

    def __init__(self, case: Case, data: tuple[Array, Array], weights: Weights, threads: int) -> None:
        import torch

        torch.set_num_threads(threads)
        torch.manual_seed(0)
        self.torch, self.case = torch, case
        self.X, self.y = (torch.from_numpy(array) for array in data)
        if case.loss in LABELS:
            self.y = self.y.long()
        # nn.Linear stores (n_out, n_in)
        self.initial = [torch.tensor(array.T.copy()) for pair in weights for array in pair]
        self.reset()

    def reset(self) -> None:
        """Copy the initial weights into new tensors."""
        raise NotImplementedError

    def step(self, rows: Any) -> Any:
        """One step on the rows given, or on all rows if None; returns the loss, detached."""
        raise NotImplementedError

    def run(self, epochs: int, orders: Array | None = None) -> float:
        """Whole epochs in Python; the losses are only looked at in the end."""
        for epoch in range(epochs):
            losses = self._epoch(None if orders is None else self.torch.from_numpy(orders[epoch]))
        return float(sum(float(loss) * size for loss, size in losses)) / self.case.rows

    def _epoch(self, order: Any) -> list[tuple[Any, int]]:
        if self.case.is_full_batch:
            return [(self.step(None), self.case.rows)]
        if order is None:
            order = self.torch.randperm(self.case.rows)
        return [(self.step(rows), len(rows)) for rows in order.split(self.case.batch)]


def _hidden_layers(torch: Any, case: Case, n_in: int, linear: Any, activation: Any) -> list[Any]:
    nn, n_out, dtype = torch.nn, linear.out_features, linear.weight.dtype

    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block = nn.Sequential(linear, activation)

        def forward(self, x: Any) -> Any:
            return x + self.block(x)

    class Scale(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gain = nn.Parameter(torch.ones(n_in, dtype=dtype))

        def forward(self, x: Any) -> Any:
            return x * self.gain

    match case.block:
        case "layer_norm":
            return [linear, nn.LayerNorm(n_out, dtype=dtype), activation]
        case "batch_norm":
            return [linear, nn.BatchNorm1d(n_out, dtype=dtype), activation]
        case "residual":
            return [Residual()]
        case "scale":
            return [Scale(), linear, activation]
        case "dropout":
            return [linear, activation, nn.Dropout(DROPPED)]
    return [linear, activation]


def _embedding(torch: Any, case: Case) -> Any:
    class Front(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            vectors = torch.from_numpy(make_vectors(case))
            self.embedding = torch.nn.Embedding(CATEGORIES, EMBEDDED, _weight=vectors)

        def forward(self, x: Any) -> Any:
            return torch.cat([x[:, 1:], self.embedding(x[:, 0].long())], dim=1)

    return Front()


class EagerSession(TorchSession):
    """An `nn.Sequential` with the optimizers of `torch.optim`."""

    def reset(self) -> None:
        """Build a new network."""
        nn = self.torch.nn
        activation = {"identity": nn.Identity, "relu": nn.ReLU, "tanh": nn.Tanh}[self.case.activation]
        modules, dtype = [], self.X.dtype
        if self.case.block == "embedding":
            modules.append(_embedding(self.torch, self.case))
        for n_in, n_out in self.case.layers[:-1]:
            linear = nn.Linear(n_in, n_out, dtype=dtype)
            modules += _hidden_layers(self.torch, self.case, n_in, linear, activation())
        self.network = nn.Sequential(*modules, nn.Linear(*self.case.layers[-1], dtype=dtype))
        linears = [module for module in self.network.modules() if isinstance(module, nn.Linear)]
        parameters = [parameter for module in linears for parameter in module.parameters()]
        with self.torch.no_grad():
            for parameter, value in zip(parameters, self.initial, strict=True):
                parameter.copy_(value)
        self.loss = _loss(self.case)
        self.optimizer = _optimizer(self.torch, self.case, self.network.parameters())
        self.mean = _average(self.torch, self.case, self.network)

    def step(self, rows: Any) -> Any:
        """One step as the tutorials write it."""
        x, y = (self.X, self.y) if rows is None else (self.X[rows], self.y[rows])
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.loss(self.network(x), y)
        loss.backward()
        self.optimizer.step()
        if self.case.averaging == "ema":
            self.mean.update_parameters(self.network)
        return loss.detach()

    def _epoch(self, order: Any) -> list[tuple[Any, int]]:
        losses = super()._epoch(order)
        if self.case.averaging == "swa":
            self.mean.update_parameters(self.network)
        return losses

    def average(self) -> Weights:
        """That of its `AveragedModel`."""
        arrays = [parameter.detach().numpy() for parameter in self.mean.parameters()]
        return [(W.T, b) for W, b in zip(arrays[::2], arrays[1::2], strict=True)]


class LbfgsSession(EagerSession):
    """Eager gradients under SciPy's L-BFGS; PyTorch's own takes other steps to another loss."""

    def run(self, epochs: int, orders: Array | None = None) -> float:
        """So many iterations."""
        torch, parameters = self.torch, list(self.network.parameters())
        vector = torch.nn.utils.parameters_to_vector(parameters).detach().numpy()

        def function(theta: Array) -> tuple[float, Array]:
            torch.nn.utils.vector_to_parameters(torch.from_numpy(theta), parameters)
            loss = self.loss(self.network(self.X), self.y)
            gradients = torch.autograd.grad(loss, parameters)
            return float(loss), torch.cat([g.reshape(-1) for g in gradients]).numpy()

        theta, losses = minimize(self.case, function, vector, epochs)
        torch.nn.utils.vector_to_parameters(torch.from_numpy(theta), parameters)
        return losses[-1]


class CompiledSession(TorchSession):
    """Gather, forward, loss, backward and Adam in one graph of `torch.compile`.

    One graph a step is 2 to 5 times faster on small networks than compiling the module alone, because
    it enters compiled code once.
    """

    def __init__(self, case: Case, data: tuple[Array, Array], weights: Weights, threads: int) -> None:
        super().__init__(case, data, weights, threads)
        self.compiled = self.torch.compile(self._make_step(), fullgraph=True, dynamic=False)

    def reset(self) -> None:
        """Copy the initial weights, in place so that the compiled graph stays valid."""
        if not hasattr(self, "parameters"):
            self.parameters = [value.clone() for value in self.initial]
            self.m = [value.clone() for value in self.initial]
            self.v = [value.clone() for value in self.initial]
            # one element, not none: torch 2.13 drops in-place changes of float64 scalars in a graph
            self.corrections = [self.torch.zeros(1, dtype=self.X.dtype) for _ in range(2)]
        for parameter, value in zip(self.parameters, self.initial, strict=True):
            parameter.copy_(value)
        for state in self.m + self.v + self.corrections:
            state.zero_()

    def _make_step(self) -> Callable[..., Any]:
        torch, loss, rate = self.torch, _loss(self.case), self.case.learning_rate
        activation = {"identity": lambda z: z, "relu": torch.relu, "tanh": torch.tanh}[self.case.activation]

        def network_loss(parameters: Any, x: Any, y: Any) -> Any:
            for layer in range(0, len(parameters) - 2, 2):
                x = activation(torch.nn.functional.linear(x, parameters[layer], parameters[layer + 1]))
            return loss(torch.nn.functional.linear(x, parameters[-2], parameters[-1]), y)

        gradient = torch.func.grad_and_value(network_loss)

        def step(parameters: Any, m_all: Any, v_all: Any, corrections: Any, X: Any, y: Any, rows: Any) -> Any:
            x, t = (X, y) if rows is None else (X[rows], y[rows])
            gradients, value = gradient(parameters, x, t)
            # 1 - beta^t by recurrence: taking beta^t from 1 would cost float32 four digits
            corrections[0].mul_(BETA1).add_(1 - BETA1)
            corrections[1].mul_(BETA2).add_(1 - BETA2)
            scale, correction = rate / corrections[0], corrections[1].rsqrt()
            for p, g, m, v in zip(parameters, gradients, m_all, v_all, strict=True):
                m.lerp_(g, 1 - BETA1)
                v.lerp_(g * g, 1 - BETA2)
                p.sub_(scale * m / (v.sqrt() * correction + EPSILON))
            return value

        return step

    def step(self, rows: Any) -> Any:
        """One call of the compiled graph."""
        return self.compiled(self.parameters, self.m, self.v, self.corrections, self.X, self.y, rows)


class PytorchEager(Contender):
    """PyTorch as most people run it, with the fastest optimizer it has."""

    name = "pytorch"
    packages = ("torch",)

    def supports(self, case: Case) -> bool:
        """All but lion."""
        return case.optimizer != "lion"

    def prepare(self, case: Case, data: tuple[Array, Array], weights: Weights, threads: int) -> Session:
        """Build a module."""
        session = LbfgsSession if case.optimizer == "lbfgs" else EagerSession
        return session(case, data, weights, threads)


class PytorchCompiled(Contender):
    """PyTorch through `torch.compile`; Adam alone, which is written into the graph."""

    name = "pytorch-compiled"
    packages = ("torch",)

    def supports(self, case: Case) -> bool:
        """Adam, and dense layers."""
        return case.is_plain

    def environment(self, threads: int) -> dict[str, str]:
        """Compile in the worker itself instead of in processes that stay beside it."""
        return {**super().environment(threads), "TORCHINDUCTOR_COMPILE_THREADS": "1"}

    def prepare(self, case: Case, data: tuple[Array, Array], weights: Weights, threads: int) -> Session:
        """Compile the step by running an epoch."""
        session = CompiledSession(case, data, weights, threads)
        if not math.isfinite(session.run(1)):
            raise FloatingPointError(f"the first epoch of {case.name} has no finite loss")
        return session
