"""Pictures of training and of networks: each function draws on an Axes and returns it (extra ``plot``).

Without ``ax`` a function makes a new figure of a fitting size, as scikit-learn's displays do; with ``ax`` it
draws there and leaves pyplot and the figure alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from gradstep.backends.base import Array
from gradstep.diagram import Svg, network_svg
from gradstep.history import History
from gradstep.metrics import check_metrics
from gradstep.validation import as_numbers, numeric_array

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from gradstep.learning_rate import LearningRateRange
    from gradstep.network import Network

__all__ = [
    "activations",
    "confusion_matrix",
    "gradients",
    "learning_curves",
    "learning_rate_range",
    "network",
    "predicted_against_true",
]

BINS = 80
"""Bars of a distribution."""

OVERLAP = 0.85
"""Height of the highest bar, in distances between two layers."""

TAIL = 0.1
"""Percent of the activations of a layer that may lie beyond either end of the picture."""

DECADES = 12
"""Most orders of magnitude of gradients that are shown."""

NUMBERED_CLASSES = 20
"""Most classes whose cells show their numbers."""

NAMED_CLASSES = 40
"""Most classes that are all named at the edge."""

POINTS = 2000
"""Points that are drawn almost solid; more are drawn fainter and smaller."""


def _axes(ax: Axes | None, width: float, height: float) -> Axes:
    """The Axes given, or that of a new figure of this size in inches."""
    if ax is not None:
        if not hasattr(ax, "get_xlim"):
            raise TypeError(f"ax must be a matplotlib Axes, got {type(ax).__name__}")
        return ax
    try:
        from matplotlib import pyplot
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != "matplotlib":
            raise
        raise ModuleNotFoundError(
            'gradstep.plot needs the package matplotlib: pip install "gradstep[plot]"', name=error.name
        ) from None
    return pyplot.subplots(figsize=(width, height), layout="constrained")[1]


# --------------------------------------------------------------------------------------------------
# Training.


def learning_curves(history: History, ax: Axes | None = None, *, metric: str = "loss") -> Axes:
    """Draw a loss or metric against the epochs, of the training and of the validation rows.

    Parameters
    ----------
    history : History
        What `Network.fit` returned.
    ax : matplotlib Axes, optional
        Where to draw; a new figure by default.
    metric : str, default "loss"
        A name in the history without "val_", such as "accuracy", "rmse" or "r2".

    Returns
    -------
    matplotlib Axes
        With one line for each of ``metric`` and ``val_<metric>`` that the history has. The best epoch on the
        validation rows is marked.

    Raises
    ------
    TypeError, ValueError
        If history is no History with an epoch, or has no such metric.
    """
    if not isinstance(history, History):
        raise TypeError(f"history must be a History, such as fit returns, got {history!r}")
    names = [name for name in (metric, f"val_{metric}") if name in history]
    if not names:
        known = sorted({name.removeprefix("val_") for name in history})
        raise ValueError(f"metric must be one that the history has ({', '.join(known)}), got {metric!r}")
    if not len(history):
        raise ValueError("history must have at least one epoch, got one without any")
    ax = _axes(ax, 6.4, 4.0)
    for name in names:
        label = "validation" if name.startswith("val_") else "training"
        marker = "o" if len(history) == 1 else None
        (line,) = ax.plot(history.epochs, history[name], label=label, marker=marker)
        if label == "validation":
            _mark_best(ax, history, name, line.get_color())
    _whole_numbers(ax)
    ax.set(xlabel="epoch", ylabel=metric, title=f"{metric} by epoch")
    ax.legend()
    return ax


def _mark_best(ax: Axes, history: History, name: str, color: Any) -> None:
    values = np.asarray(history[name])
    if np.isnan(values).all():
        return
    largest = name in ("val_accuracy", "val_r2")
    best = int(np.nanargmax(values) if largest else np.nanargmin(values))
    label = f"best: {values[best]:.4g} in epoch {history.epochs[best]}"
    ax.plot(history.epochs[best], values[best], "o", color=color, label=label)


def _whole_numbers(ax: Axes) -> None:
    from matplotlib.ticker import MaxNLocator

    ax.xaxis.set_major_locator(MaxNLocator(integer=True))


def learning_rate_range(result: LearningRateRange, ax: Axes | None = None) -> Axes:
    """Draw what `find_learning_rate` found: the loss of every update against its learning rate.

    Parameters
    ----------
    result : LearningRateRange
        What `find_learning_rate` returned.
    ax : matplotlib Axes, optional
        Where to draw; a new figure by default.

    Returns
    -------
    matplotlib Axes
        With the losses of the batches, the smoothed loss, and a line at the suggestion. Losses far above the
        first ones are cut off.
    """
    ax = _axes(ax, 6.4, 4.0)
    (dots,) = ax.plot(result.learning_rates, result.losses, ".", alpha=0.35, label="batches")
    ax.plot(result.learning_rates, result.smoothed, color=dots.get_color(), linewidth=2, label="smoothed")
    if result.suggestion is not None:
        label = f"suggestion: {result.suggestion:.2g}"
        ax.axvline(result.suggestion, color="C1", linestyle="--", label=label)
    low = min(0.0, float(result.losses.min()))
    first = result.losses[: max(1, len(result.losses) // 2)]
    high = 1.15 * max(float(first.max()), float(result.smoothed[0]))
    if result.losses.max() > high > low:
        ax.set_ylim(low - 0.03 * (high - low), high)
    ax.set_xscale("log")
    ax.set(xlabel="learning rate", ylabel="loss", title="learning-rate range test")
    ax.legend()
    return ax


# --------------------------------------------------------------------------------------------------
# Networks.


def network(net: Network) -> Svg:
    """Draw the layers with their sizes, activations and numbers of parameters, as SVG.

    Parameters
    ----------
    net : Network
        Any network; the number of columns of X is shown as "?" while it is not known.

    Returns
    -------
    str
        The text of the picture, which notebooks show as one: ``Path("net.svg").write_text(svg)`` keeps it.
        matplotlib is not needed. Of layers wider than ten units, the first and the last three are drawn.
    """
    return network_svg(net.layers, net.n_in)


def activations(net: Network, X: Any, ax: Axes | None = None) -> Axes:
    """Draw the distribution of every layer's activations.

    Layers whose outputs all lie where their activation is flat learn slowly; relu units that are zero for all
    rows do not learn at all. Beside every layer stands how many of its outputs are exactly zero, and how many
    units are so for every row.

    Parameters
    ----------
    net : Network
        A network that knows its input width and preprocessing.
    X : array_like, (n, n_in)
        Some rows, as for `Network.predict`; a few hundred are enough.
    ax : matplotlib Axes, optional
        Where to draw; a new figure by default.

    Returns
    -------
    matplotlib Axes
        One distribution a layer, the first layer on top, each as high as the others. Exact zeros are left
        out, and of each layer 0.1 % at either end may lie outside.

    Raises
    ------
    TypeError, ValueError
        If X is not as above, or the network is not complete.
    """
    n = len(net.predict(X))
    y = np.zeros(n) if net.loss.target_kind == "labels" else np.zeros((n, net.n_out))
    layers = net.trace(X, y).layers
    planned = net.plan.layers
    rows = [
        _Ridge(f"{layer.name}\n{plan.activation}", layer.a[layer.a != 0], _zeros(layer.a))
        for layer, plan in zip(layers, planned, strict=True)
    ]
    kept = [np.percentile(row.values, [TAIL, 100 - TAIL]) for row in rows if row.values.size]
    low, high = (np.min(kept), np.max(kept)) if kept else (-1.0, 1.0)
    if low == high:
        low, high = low - 0.5, high + 0.5
    ax = _axes(ax, 6.4, _ridge_height(rows))
    _draw_ridges(ax, rows, np.linspace(low, high, BINS + 1))
    ax.set(xlabel="activation", title="activations by layer")
    return ax


def gradients(net: Network, X: Any, y: Any, ax: Axes | None = None, *, sample_weight: Any = None) -> Axes:
    """Draw the distribution of the gradient's entries for every layer's weights or gains, on a log axis.

    Where they shrink or grow from layer to layer by orders of magnitude, gradients vanish or explode.

    Parameters
    ----------
    net : Network
        A network that knows its preprocessing.
    X, y
        Some rows, as for `Network.fit`; a few hundred are enough.
    ax : matplotlib Axes, optional
        Where to draw; a new figure by default.
    sample_weight : array_like, (n,), optional
        Their weights.

    Returns
    -------
    matplotlib Axes
        One distribution of abs(dJ/dW) a layer, the first layer on top, each as high as the others. Beside it
        stands how many entries are zero, which have no place on the axis.

    Raises
    ------
    TypeError, ValueError
        If an argument is not as `Network.fit` needs it, or the network is not complete.
    """
    layers = [layer for layer in net.trace(X, y, sample_weight).layers if layer.dW.size]
    sizes = [np.abs(np.atleast_2d(layer.dW).astype(np.float64)) for layer in layers]
    rows = [
        _Ridge(layer.name, size[size > 0], _zeros(size)) for layer, size in zip(layers, sizes, strict=True)
    ]
    largest = max((float(row.values.max()) for row in rows if row.values.size), default=1.0)
    smallest = min((float(row.values.min()) for row in rows if row.values.size), default=0.1)
    smallest = min(max(smallest, largest * 10.0**-DECADES), largest / 10)
    ax = _axes(ax, 6.4, _ridge_height(rows))
    _draw_ridges(ax, rows, np.geomspace(smallest, largest * 1.0001, BINS + 1))
    ax.set_xscale("log")
    ax.set(xlabel="absolute value of dJ/dW", title="gradients by layer")
    return ax


class _Ridge(NamedTuple):
    """One distribution of several above each other."""

    label: str
    values: Array
    note: str


def _zeros(values: Array) -> str:
    """How much of (n, units) is exactly zero."""
    share = float(np.mean(values == 0))
    if share == 0:
        return ""
    always, units = int((values == 0).all(axis=0).sum()), values.shape[1]
    percent = f"{100 * share:.0f} % zero" if share >= 0.005 else "below 1 % zero"
    return percent if not always else f"{percent}, {always} of {units} unit{'s' * (units > 1)} always"


def _ridge_height(rows: Sequence[_Ridge]) -> float:
    return min(1.4 + 0.6 * len(rows), 40.0)


def _draw_ridges(ax: Axes, rows: Sequence[_Ridge], edges: Array) -> None:
    for index, row in enumerate(rows):
        bottom = float(-index)
        counts = np.histogram(row.values, edges)[0]
        heights = bottom + OVERLAP * counts / max(counts.max(), 1)
        color = f"C{index % 10}"
        ax.stairs(heights, edges, baseline=bottom, fill=True, color=color, alpha=0.5)
        ax.stairs(heights, edges, baseline=bottom, color=color)
        ax.text(
            0.99,
            bottom + 0.5,
            row.note,
            transform=ax.get_yaxis_transform(),
            horizontalalignment="right",
            verticalalignment="center",
            fontsize="small",
            bbox={"facecolor": ax.get_facecolor(), "edgecolor": "none", "alpha": 0.7, "pad": 1.0},
        )
    ax.set_yticks([0.45 - index for index in range(len(rows))], [row.label for row in rows])
    ax.tick_params(axis="y", length=0)
    ax.set_ylim(-len(rows) + 0.8, 1.0)


# --------------------------------------------------------------------------------------------------
# Predictions.


def confusion_matrix(
    y_true: Any,
    y_pred: Any,
    ax: Axes | None = None,
    *,
    labels: Sequence[object] | None = None,
    normalize: bool = False,
) -> Axes:
    """Draw how often rows of every class were taken for which class.

    Parameters
    ----------
    y_true : array_like
        Labels (n,), or one-hot rows (n, n_classes).
    y_pred : array_like
        What `Network.predict` returns: probabilities (n, n_classes), of which the largest counts, or (n, 1)
        of the second of two classes; or labels (n,).
    ax : matplotlib Axes, optional
        Where to draw; a new figure by default.
    labels : sequence, optional
        Names of the classes in their order, such as ``net.classes``. Labels may be these names, or count them
        from 0. By default the labels found.
    normalize : bool, default False
        Show shares of the rows of a class instead of numbers.

    Returns
    -------
    matplotlib Axes
        True classes from top to bottom, predicted ones from left to right. Up to 20 classes have their
        numbers in the cells.

    Raises
    ------
    TypeError, ValueError
        If the lengths differ, or a label is not one of the classes.

    Examples
    --------
    >>> gs.plot.confusion_matrix(y, net.predict(X), labels=net.classes)
    """
    true, predicted, names = _classified(y_true, y_pred, labels)
    size = len(names)
    counts = np.zeros((size, size))
    np.add.at(counts, (true, predicted), 1)
    accuracy = float(np.trace(counts) / counts.sum())
    if normalize:
        counts = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    inches = float(np.clip(2.2 + 0.35 * size, 3.2, 8.0))
    ax = _axes(ax, inches + 0.6, inches)
    top = 1.0 if normalize else max(float(counts.max()), 1.0)
    image = ax.imshow(counts, cmap="Blues", vmin=0.0, vmax=top)
    if size <= NUMBERED_CLASSES:
        _write_cells(ax, counts, top, normalize)
    else:
        ax.figure.colorbar(image, ax=ax, label="share of the class" if normalize else "rows", shrink=0.8)
    _name_classes(ax, names)
    ax.set(xlabel="predicted", ylabel="true", title=f"accuracy {accuracy:.3g}")
    return ax


def _write_cells(ax: Axes, counts: Array, top: float, normalize: bool) -> None:
    crowded = len(counts) > 10 or (not normalize and counts.max() >= 10000)
    for (row, column), value in np.ndenumerate(counts):
        text = f"{value:.2f}" if normalize else f"{value:.0f}"
        ax.text(
            column,
            row,
            text,
            horizontalalignment="center",
            verticalalignment="center",
            color="white" if value > 0.55 * top else "#1a1a1a",
            fontsize="x-small" if crowded else "medium",
        )


def _name_classes(ax: Axes, names: Sequence[str]) -> None:
    every = -(-len(names) // NAMED_CLASSES)
    places = range(0, len(names), every)
    shown = [names[place] for place in places]
    turned = len(shown) > 1 and max(map(len, shown)) > 3
    ax.set_xticks(places, shown, rotation=45 if turned else 0, ha="right" if turned else "center")
    if turned:
        for label in ax.get_xticklabels():
            label.set_rotation_mode("anchor")
    ax.set_yticks(places, shown)
    if len(names) > NUMBERED_CLASSES:
        ax.tick_params(labelsize="x-small")


def _classified(y_true: Any, y_pred: Any, labels: Sequence[object] | None) -> tuple[Array, Array, list[str]]:
    """Positions of true and predicted classes, and the names of the classes."""
    true, predicted = np.asarray(y_true), np.asarray(y_pred)
    if true.ndim == 0 or predicted.ndim == 0 or len(true) != len(predicted) or not len(true):
        shapes = f"{true.shape} and {predicted.shape}"
        raise ValueError(f"y_true and y_pred must have as many rows each, and one at least, got {shapes}")
    if true.ndim == 2 and true.shape[1] > 1:
        true = numeric_array("y_true", true).argmax(axis=1)
    true = true.ravel()
    codes, classes = _most_probable(predicted)
    known = list(range(classes)) if labels is None and classes else labels
    if known is None:
        known = sorted({*true.tolist(), *codes.tolist()})
    if classes and len(known) != classes:
        raise ValueError(f"labels must name the {classes} classes of y_pred, got {len(known)} names")
    if not classes:
        codes = _positions("y_pred", codes, known)
    return _positions("y_true", true, known), codes, [_name(label) for label in known]


def _most_probable(predicted: Array) -> tuple[Array, int]:
    """The most probable class of every row and the number of classes, or labels as they are and 0."""
    if predicted.ndim == 2 and predicted.shape[1] > 1:
        return numeric_array("y_pred", predicted).argmax(axis=1), predicted.shape[1]
    predicted = predicted.ravel()
    if predicted.dtype.kind != "f":
        return predicted, 0
    whole = numeric_array("y_pred", predicted) == np.floor(predicted)
    if whole.all():
        return predicted, 0
    if predicted.min() < 0 or predicted.max() > 1:
        raise ValueError("y_pred must hold labels or probabilities, got fractions beyond 0 and 1")
    return (predicted > 0.5).astype(np.int64), 2


def _name(label: object) -> str:
    return str(int(label)) if isinstance(label, float) and label.is_integer() else str(label)


def _positions(argument: str, values: Array, known: Sequence[object]) -> Array:
    """Where the values stand among the classes: they are their names, or count from 0."""
    position = {label: index for index, label in enumerate(known)}
    listed = values.tolist()
    if not all(value in position for value in listed):
        position = {index: index for index in range(len(known))}
    for row, value in enumerate(listed):
        if value not in position:
            raise ValueError(f"{argument} must hold the {len(known)} classes, but row {row} is {value!r}")
    return np.array([position[value] for value in listed], np.int64)


def predicted_against_true(
    y_true: Any, y_pred: Any, ax: Axes | None = None, *, labels: Sequence[object] | None = None
) -> Axes:
    """Draw predictions against what they should have been, with the diagonal where they would be right.

    Parameters
    ----------
    y_true : array_like, (n,) or (n, n_out)
        Targets.
    y_pred : array_like, as many
        What `Network.predict` returns.
    ax : matplotlib Axes, optional
        Where to draw; a new figure by default.
    labels : sequence, optional
        Names of the outputs, for the legend.

    Returns
    -------
    matplotlib Axes
        With one color for each output, and r2 and rmse as `Network.evaluate` computes them.

    Raises
    ------
    TypeError, ValueError
        If the values are not finite numbers, or their shapes do not match.

    Examples
    --------
    >>> gs.plot.predicted_against_true(y, net.predict(X))
    """
    true, predicted = (
        numeric_array(name, as_numbers(name, values), "float64")
        for name, values in (("y_true", y_true), ("y_pred", y_pred))
    )
    true, predicted = (values.reshape(-1, 1) if values.ndim == 1 else values for values in (true, predicted))
    if true.shape != predicted.shape or true.ndim != 2:
        raise ValueError(
            f"y_true and y_pred must have the same shape, got {true.shape} and {predicted.shape}"
        )
    outputs = true.shape[1]
    if labels is not None and len(labels) != outputs:
        raise ValueError(f"labels must name the {outputs} output(s), got {len(labels)} names")
    ax = _axes(ax, 5.0, 5.0)
    share = min(1.0, POINTS / true.size)
    for output in range(outputs):
        ax.plot(
            true[:, output],
            predicted[:, output],
            "o",
            markersize=5 * max(share, 0.02) ** 0.25,
            alpha=max(0.6 * share**0.5, 0.05),
            markeredgewidth=0,
            rasterized=true.size > 10 * POINTS,
            label=str(labels[output]) if labels is not None else f"output {output}",
        )
    _draw_diagonal(ax, true, predicted)
    measured = check_metrics(("r2", "rmse"), "values", outputs, weighted=False)
    values = {metric.name: metric.measure(true, predicted, None) for metric in measured}
    ax.set(xlabel="true", ylabel="predicted", title=f"r2 {values['r2']:.3g}, rmse {values['rmse']:.3g}")
    if labels is not None or 1 < outputs <= 10:
        for handle in ax.legend().legend_handles:
            if handle is not None:
                handle.set_alpha(1.0)
    return ax


def _draw_diagonal(ax: Axes, true: Array, predicted: Array) -> None:
    from matplotlib import rcParams

    low = float(min(true.min(), predicted.min()))
    high = float(max(true.max(), predicted.max()))
    room = 0.04 * (high - low) or 0.5
    ax.axline((low, low), slope=1.0, color=rcParams["text.color"], linewidth=1, alpha=0.7)
    ax.set(xlim=(low - room, high + room), ylim=(low - room, high + room))
    ax.set_aspect("equal", adjustable="box")
