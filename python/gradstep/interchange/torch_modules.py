"""The parts of a network for which PyTorch has no module; this module needs PyTorch to be imported."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn


class Preprocess(nn.Module):
    """``(x - shift) * scale`` per column; statistics of the training rows, no parameters.

    Parameters
    ----------
    shift, scale : sequence of float, (n_columns,)
        Kept as buffers.
    dtype : torch.dtype
        Of the buffers.
    """

    def __init__(self, shift: Sequence[float], scale: Sequence[float], dtype: torch.dtype) -> None:
        super().__init__()
        self.register_buffer("shift", torch.tensor(shift, dtype=dtype))
        self.register_buffer("scale", torch.tensor(scale, dtype=dtype))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """From the columns' own units to those of the network, (n, n_columns)."""
        return (x - self.shift) * self.scale


class TargetUnits(nn.Module):
    """``x / scale + shift`` per output: from the network's units to those of y, in the buffers' dtype.

    Parameters
    ----------
    shift, scale : sequence of float, (n_outputs,)
        Kept as buffers of float64, as `Network.predict` computes; ``module.float()`` changes that.
    """

    def __init__(self, shift: Sequence[float], scale: Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("shift", torch.tensor(shift, dtype=torch.float64))
        self.register_buffer("scale", torch.tensor(scale, dtype=torch.float64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Predictions in the units of y, (n, n_outputs)."""
        return x.to(self.scale.dtype) / self.scale + self.shift


class Exp(nn.Module):
    """``exp(x)``: from logarithms of rates to rates."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Elementwise."""
        return torch.exp(x)
