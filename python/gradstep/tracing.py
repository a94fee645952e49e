"""The chain rule written out: what `Network.trace` returns."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from gradstep.backends.base import LayerTrace
from gradstep.names import check_name


@dataclass(frozen=True, eq=False)
class Trace:
    """Loss and, layer by layer, every intermediate of back-propagation.

    ``trace[0]`` or ``trace["dense_0"]`` is the first layer; iterating gives all of them.
    """

    loss: float
    """Mean loss with the l2 penalty."""
    layers: tuple[LayerTrace, ...]
    """x, z, a, delta, dW and db of every layer, first layer first."""

    def __getitem__(self, key: int | str) -> LayerTrace:
        if isinstance(key, str):
            names = [layer.name for layer in self.layers]
            key = names.index(check_name("layer", key, names))
        return self.layers[key]

    def __iter__(self) -> Iterator[LayerTrace]:
        return iter(self.layers)

    def __len__(self) -> int:
        return len(self.layers)

    def __repr__(self) -> str:
        lines = [f"Trace(loss={self.loss:.6g})", _row("layer", "x", "z, a, delta", "dW", "db")]
        for layer in self.layers:
            lines.append(_row(layer.name, layer.x.shape, layer.z.shape, layer.dW.shape, layer.db.shape))
        return "\n".join(lines)


def _row(*cells: object) -> str:
    return "  " + "".join(f"{cell!s:<15}" for cell in cells).rstrip()
