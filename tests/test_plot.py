"""Pictures: what is drawn, where, and what happens without matplotlib."""

import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest

import gradstep as gs

matplotlib = pytest.importorskip("matplotlib")
matplotlib.use("Agg")
from matplotlib import pyplot  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402

SVG = "{http://www.w3.org/2000/svg}"
X = np.random.default_rng(0).normal(size=(120, 4))
Y = np.sin(X[:, 0]) + X[:, 1]


@pytest.fixture(autouse=True)
def _close():
    yield
    pyplot.close("all")


@pytest.fixture(scope="module")
def net():
    net = gs.Network([gs.Dense(8, "relu"), gs.Dense(6, "tanh"), gs.Dense(1)], preprocessing="standardize")
    net.fit(X[:80], Y[:80], epochs=4, validation_data=(X[80:], Y[80:]), verbose=0)
    return net


DRAWN = {
    "learning_curves": lambda net, ax: gs.plot.learning_curves(net.history, ax),
    "learning_rate_range": lambda net, ax: gs.plot.learning_rate_range(gs.find_learning_rate(net, X, Y), ax),
    "activations": lambda net, ax: gs.plot.activations(net, X, ax),
    "gradients": lambda net, ax: gs.plot.gradients(net, X, Y, ax),
    "confusion_matrix": lambda net, ax: gs.plot.confusion_matrix([0, 1, 2], [0, 1, 1], ax),
    "predicted_against_true": lambda net, ax: gs.plot.predicted_against_true(Y, net.predict(X), ax),
}


def test_every_plot_is_tested():
    assert {*DRAWN, "network"} == set(gs.plot.__all__)


@pytest.mark.parametrize("name", DRAWN)
def test_a_given_ax_is_drawn_on_and_pyplot_left_alone(net, name):
    ax = Figure().subplots()
    before = pyplot.get_fignums()
    assert DRAWN[name](net, ax) is ax
    assert pyplot.get_fignums() == before
    assert ax.get_title()
    assert ax.get_xlabel()
    ax.figure.canvas.draw()


@pytest.mark.parametrize("name", DRAWN)
def test_without_ax_a_new_figure_is_made(net, name):
    first, second = DRAWN[name](net, None), DRAWN[name](net, None)
    assert first.figure is not second.figure
    assert len(pyplot.get_fignums()) == 2


@pytest.mark.parametrize("name", DRAWN)
def test_something_else_than_an_ax_is_refused(net, name):
    with pytest.raises(TypeError, match="ax must be a matplotlib Axes, got str"):
        DRAWN[name](net, "here")


def _texts(ax):
    return [text.get_text() for text in ax.texts if text.get_text()]


def _legend(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


def _shapes(ax):
    return [patch for patch in ax.patches if patch.get_fill()]


# --------------------------------------------------------------------------------------------------
# Training


def test_learning_curves_show_training_validation_and_the_best_epoch(net):
    history = gs.History(metrics={"loss": [3.0, 2.0, 1.0], "val_loss": [3.0, 1.5, 2.0]}, first_epoch=5)
    ax = history.plot()
    assert _legend(ax) == ["training", "validation", "best: 1.5 in epoch 6"]
    np.testing.assert_array_equal(ax.lines[0].get_xydata(), [[5, 3], [6, 2], [7, 1]])
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("epoch", "loss")
    assert net.history.plot(metric="r2").get_ylabel() == "r2"


def test_the_best_accuracy_is_the_largest():
    history = gs.History(metrics={"loss": [3.0, 2.0], "val_accuracy": [0.9, float("nan")]})
    assert "best: 0.9 in epoch 1" in _legend(history.plot(metric="accuracy"))


def test_a_single_epoch_is_visible():
    (line,) = gs.plot.learning_curves(gs.History(metrics={"loss": [1.0]})).lines
    assert line.get_marker() == "o"


@pytest.mark.parametrize(
    ("history", "metric", "message"),
    [
        (None, "loss", "history must be a History, such as fit returns, got None"),
        (gs.History(metrics={"loss": [1.0]}), "rmse", r"metric must be one that the history has \(loss\)"),
        (gs.History(), "loss", "history must have at least one epoch"),
    ],
)
def test_histories_that_cannot_be_drawn_are_named(history, metric, message):
    with pytest.raises((TypeError, ValueError), match=message):
        gs.plot.learning_curves(history, metric=metric)
    assert not pyplot.get_fignums()


def test_the_range_test_shows_its_suggestion(net):
    found = gs.find_learning_rate(gs.Network([gs.Dense(8, "tanh"), gs.Dense(1)]), X, Y)
    ax = found.plot()
    assert ax.get_xscale() == "log"
    assert f"suggestion: {found.suggestion:.2g}" in _legend(ax)
    np.testing.assert_array_equal(ax.lines[0].get_ydata(), found.losses)


# --------------------------------------------------------------------------------------------------
# Networks


def test_every_layer_has_its_distribution(net):
    for ax in (gs.plot.activations(net, X), gs.plot.gradients(net, X, Y)):
        labels = [label.get_text().split("\n")[0] for label in ax.get_yticklabels()]
        assert labels == ["dense_0", "dense_1", "dense_2"]
        assert len(_shapes(ax)) == 3


def test_gradients_are_drawn_where_they_are(net):
    ax = gs.plot.gradients(net, X, Y)
    counts = np.histogram(np.abs(net.trace(X, Y)["dense_1"].dW), _shapes(ax)[1].get_data().edges)[0]
    heights = _shapes(ax)[1].get_data().values - _shapes(ax)[1].get_data().baseline
    np.testing.assert_allclose(heights / heights.max(), counts / counts.max(), atol=1e-12)
    assert ax.get_xscale() == "log"


def test_zeros_and_dead_units_are_counted():
    net = gs.Network([gs.Input(4), gs.Dense(8, "relu"), gs.Dense(1)])
    b = np.zeros(8)
    b[:2] = -100.0
    net.set_parameters({"dense_0.b": b})
    (text,) = _texts(gs.plot.activations(net, X))
    assert text.endswith("% zero, 2 of 8 units always")


@pytest.mark.parametrize("loss", ["poisson", "binary_cross_entropy", "cross_entropy"])
def test_activations_need_no_targets(loss):
    net = gs.Network([gs.Input(4), gs.Dense(8, "relu"), gs.Dense(3)], loss=loss)
    assert len(_shapes(gs.plot.activations(net, X))) == 2


def test_networks_without_any_gradient_are_drawn():
    net = gs.Network([gs.Input(4), gs.Dense(3, "relu"), gs.Dense(1)], dtype="float64")
    net.set_parameters({name: np.zeros_like(values) for name, values in net.parameters().items()})
    ax = gs.plot.gradients(net, X, np.zeros(120))
    assert _texts(ax) == ["100 % zero, 3 of 3 units always", "100 % zero, 1 of 1 unit always"]
    gs.plot.activations(net, X).figure.canvas.draw()
    ax.figure.canvas.draw()


# --------------------------------------------------------------------------------------------------
# Predictions


def test_confusion_counts_true_rows_and_predicted_columns():
    ax = gs.plot.confusion_matrix([0, 0, 1, 2], [0, 1, 1, 1])
    assert _texts(ax) == list("110010010")
    assert (ax.get_ylabel(), ax.get_xlabel(), ax.get_title()) == ("true", "predicted", "accuracy 0.5")


def test_confusion_can_show_shares_and_classes_without_rows():
    ax = gs.plot.confusion_matrix([0, 0], [0, 2], labels=["a", "b", "c"], normalize=True)
    assert _texts(ax)[:4] == ["0.50", "0.00", "0.50", "0.00"]


@pytest.mark.parametrize(
    ("y_true", "y_pred", "labels"),
    [
        ([0, 1, 1], [[0.9, 0.1], [0.2, 0.8], [0.6, 0.4]], None),
        ([[1, 0], [0, 1], [0, 1]], [[0.9, 0.1], [0.2, 0.8], [0.6, 0.4]], None),
        ([0.0, 1.0, 1.0], [[0.1], [0.8], [0.4]], None),
        (["0", "1", "1"], [[0.1], [0.8], [0.4]], ["0", "1"]),
        (["0", "1", "1"], ["0", "1", "0"], None),
        ([0, 1, 1], [0.0, 1.0, 0.0], ["0", "1"]),
        (np.array([False, True, True]), np.array([False, True, False]), ["0", "1"]),
    ],
)
def test_confusion_takes_probabilities_and_labels(y_true, y_pred, labels):
    ax = gs.plot.confusion_matrix(y_true, y_pred, labels=labels)
    assert _texts(ax) == list("1011")
    assert [label.get_text() for label in ax.get_yticklabels()] == ["0", "1"]


def test_many_classes_have_a_colorbar_instead_of_numbers():
    classes = np.arange(60)
    ax = gs.plot.confusion_matrix(classes, classes)
    assert not _texts(ax)
    assert len(ax.figure.axes) == 2
    assert len(ax.get_yticklabels()) == 30


@pytest.mark.parametrize(
    ("arguments", "labels", "message"),
    [
        (([0, 1], [0]), None, "must have as many rows each, and one at least"),
        (([], []), None, "must have as many rows each, and one at least"),
        (([0, 3], [[0.5, 0.5], [0.5, 0.5]]), None, "y_true must hold the 2 classes, but row 1 is 3"),
        (([0, 1], [0, 1]), ["a"], "y_true must hold|y_pred must hold the 1 classes, but row 1 is 1"),
        (([0, 1], [[0.5, 0.5], [0.5, 0.5]]), ["a"], "labels must name the 2 classes of y_pred, got 1"),
        (([0, 1], [0.5, 2.5]), None, "y_pred must hold labels or probabilities"),
    ],
)
def test_labels_that_do_not_fit_are_refused(arguments, labels, message):
    with pytest.raises(ValueError, match=message):
        gs.plot.confusion_matrix(*arguments, labels=labels)
    assert not pyplot.get_fignums()


def test_predictions_are_drawn_over_the_targets_with_equal_axes():
    ax = gs.plot.predicted_against_true([1.0, 2.0, 3.0], [[1.0], [2.0], [4.0]])
    np.testing.assert_array_equal(ax.lines[0].get_xydata(), [[1, 1], [2, 2], [3, 4]])
    assert ax.get_xlim() == ax.get_ylim()
    assert ax.get_title() == "r2 0.5, rmse 0.577"
    assert ax.get_legend() is None


def test_several_outputs_are_named():
    ax = gs.plot.predicted_against_true(X[:, :2], X[:, :2], labels=["width", "height"])
    assert _legend(ax) == ["width", "height"]
    with pytest.raises(ValueError, match=r"labels must name the 2 output\(s\), got 1 names"):
        gs.plot.predicted_against_true(X[:, :2], X[:, :2], labels=["width"])
    with pytest.raises(ValueError, match="y_true and y_pred must have the same shape"):
        gs.plot.predicted_against_true(X[:, :2], X[:, 0])


# --------------------------------------------------------------------------------------------------
# The diagram


def test_the_diagram_is_xml_that_names_every_layer(net):
    svg = gs.plot.network(net)
    texts = [element.text for element in ElementTree.fromstring(svg).iter(f"{SVG}text")]
    assert texts[:6] == ["input", "4 columns", "dense_0", "8 units", "relu", "40 parameters"]
    assert texts[6:10] == ["dense_1", "6 units", "tanh", "54 parameters"]
    assert texts[10:] == ["dense_2", "1 unit", "identity", "7 parameters"]
    assert svg._repr_svg_() == svg
    assert isinstance(svg, str)
    assert repr(svg) == f"<Svg of {len(svg)} characters>"


def test_wide_layers_are_cut_and_dropout_is_noted():
    net = gs.Network([gs.Input(784), gs.Dense(4096, "relu"), gs.Dropout(0.25), gs.Dense(10)])
    root = ElementTree.fromstring(gs.plot.network(net))
    radii = [element.get("r") for element in root.iter(f"{SVG}circle")]
    assert radii.count("8") == 6 + 6 + 10
    assert "dropout 0.25" in [element.text for element in root.iter(f"{SVG}text")]
    assert len(gs.plot.network(net)) < 10_000


def test_labels_fit_into_the_diagram_and_do_not_meet():
    net = gs.Network([gs.Input(100_000), gs.Dense(100_000, "leaky_relu"), gs.Dense(1)])
    root = ElementTree.fromstring(gs.plot.network(net))
    texts = list(root.iter(f"{SVG}text"))
    places = sorted({float(text.get("x")) for text in texts})
    longest = max(len(text.text) for text in texts)
    assert min(np.diff(places)) > 6.8 * longest
    assert places[-1] + 3.4 * longest < float(root.get("width"))
    assert max(float(text.get("y")) for text in texts) < float(root.get("height"))


def test_an_unknown_input_width_is_a_question_mark():
    net = gs.Network([gs.Dense(5), gs.Dense(2)])
    for text in (gs.plot.network(net), net._repr_html_()):
        assert "? columns" in text
        assert "? parameters" in text


def test_html_has_table_and_diagram_and_escapes_names():
    net = gs.Network([gs.Input(3), gs.Dense(2)], loss="cross_entropy")
    net.classes = ["<script>", "a & b"]
    html = net._repr_html_()
    root = ElementTree.fromstring(html)
    cells = [cell.text for cell in root.iter("td")]
    assert cells == ["dense_0", "identity", "3 → 2", "8", "total", None, None, "8"]
    assert root.find(f".//{SVG}svg") is not None
    assert "<script>" not in html
    assert "classes &lt;script&gt;, a &amp; b" in html


def test_html_shows_some_of_many_classes():
    net = gs.Network([gs.Input(3), gs.Dense(12)], loss="cross_entropy")
    net.classes = [f"c{index}" for index in range(12)]
    assert "c9, and 2 more" in net._repr_html_()


def test_html_takes_its_colors_from_the_page():
    net = gs.Network([gs.Input(3), gs.Dense(2)])
    assert "#222222" in gs.plot.network(net)
    assert "#222222" not in net._repr_html_()


# --------------------------------------------------------------------------------------------------
# Without matplotlib


def test_without_matplotlib_one_sentence_names_the_extra():
    code = (
        "import sys; sys.modules['matplotlib'] = None\n"
        "import gradstep as gs\n"
        "print(len(gs.plot.network(gs.Network([gs.Input(2), gs.Dense(1)]))) > 0)\n"
        "try:\n"
        "    gs.plot.learning_curves(gs.History(metrics={'loss': [1.0]}))\n"
        "except ModuleNotFoundError as error:\n"
        "    print(error)\n"
    )
    path = {"PYTHONPATH": str(Path(gs.__file__).parents[1])}
    command = [sys.executable, "-c", code]
    output = subprocess.run(command, env=path, capture_output=True, text=True, check=True)
    assert output.stdout.splitlines() == [
        "True",
        'gradstep.plot needs the package matplotlib: pip install "gradstep[plot]"',
    ]
