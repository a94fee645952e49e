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


class Gaussian(nn.Module):
    """Means as they are, then variances ``exp(s) + floor`` from their logarithms.

    Parameters
    ----------
    floor : float
        Least variance.
    """

    def __init__(self, floor: float) -> None:
        super().__init__()
        self.floor = floor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """From (n, 2 k) to (n, 2 k)."""
        means, logarithms = x.chunk(2, dim=1)
        return torch.cat([means, torch.exp(logarithms) + self.floor], dim=1)


class Residual(nn.Module):
    """``block(x) + projection(x)``.

    Parameters
    ----------
    block : torch.nn.Module
        What the inputs go through.
    projection : torch.nn.Module
        `torch.nn.Linear` where the block changes the width, else `torch.nn.Identity`.
    """

    def __init__(self, block: nn.Module, projection: nn.Module) -> None:
        super().__init__()
        self.block = block
        self.projection = projection

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """From (n, n_in) to (n, n_out)."""
        summed: torch.Tensor = self.block(x) + self.projection(x)
        return summed


class EmbedColumn(nn.Module):
    """The columns of x but one, then the vector of the category that the one holds.

    Parameters
    ----------
    n_in : int
        Number of columns.
    column : int
        The one that holds 0 to categories - 1.
    vectors : torch.Tensor, (categories, size)
        Trained on, as the weight of a `torch.nn.Embedding`.
    """

    def __init__(self, n_in: int, column: int, vectors: torch.Tensor) -> None:
        super().__init__()
        self.n_in = n_in
        self.column = column
        self.embedding = nn.Embedding.from_pretrained(vectors, freeze=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """From (n, n_in) to (n, n_in - 1 + size)."""
        others = x[:, : self.column], x[:, self.column + 1 :]
        return torch.cat([*others, self.embedding(x[:, self.column].long())], dim=1)
