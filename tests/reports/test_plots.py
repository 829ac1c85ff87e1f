"""`FitResult.plot`: the panels, curves and titles of the figures."""

from __future__ import annotations

import pickle
import subprocess
import sys

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pytest
from helpers.figures import line, panels
from helpers.strategies import EVERY_LOSS, n_out_for, target

import fastbp as fb
from fastbp.reports import plots

NET = fb.Network(3, fb.Dense(5, "tanh"), fb.Dense(1))


def net_of(n_out):
    return fb.Network(3, fb.Dense(5, "tanh"), fb.Dense(n_out))


def drawn(figure):
    """The panels, after all has been laid out once."""
    figure.draw_without_rendering()
    return panels(figure)


def titles(figure):
    return [axes.get_title() for axes in panels(figure)]


def numbers(axes):
    """The counts in a matrix, by row and column."""
    at = {text.get_position()[::-1]: text.get_text().split("\n") for text in axes.texts}
    return {place: int(parts[0].replace(",", "")) for place, parts in at.items()}


# The losses.


def test_losses_of_training_and_validation(data):
    res = fb.fit(NET, *data, epochs=40, seed=0, validation=0.25, lr=0.05)
    axes = panels(res.plot())[0]
    for label, name in (("training", "loss"), ("validation", "val_loss")):
        x, values = line(axes, label)
        assert np.array_equal(x, np.arange(1, 41))
        assert np.array_equal(values, res.history[name])
    epoch = 1 + res.history["val_loss"].argmin()
    assert line(axes, "least") == ([epoch], [res.history["val_loss"].min()])
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert labels[:2] == ["training", "validation"] and labels[2].endswith(f"in epoch {epoch}")
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("epoch", "objective")


def test_without_validation_the_least_training_loss_is_marked(data):
    res = fb.fit(NET, *data, epochs=20, seed=0, lr=0.5)
    x, least = line(panels(res.plot())[0], "least")
    assert (x[0], least[0]) == (1 + res.history["loss"].argmin(), res.history["loss"].min())


def test_full_batch_methods_have_iterations(data):
    res = fb.fit(NET, *data, method="L-BFGS-B", epochs=10, seed=0)
    axes = panels(res.plot())[0]
    assert axes.get_xlabel() == "iteration"
    assert "iteration" in axes.get_legend().get_texts()[-1].get_text()


@pytest.mark.parametrize(
    "losses, scale",
    [
        ([3.0, 2.0, 1.0], "linear"),
        ([9.0, 3.0, 1e-3], "log"),
        ([9.0, 3.0, 0.5], "log"),
        ([9.0, 3.0, 0.0], "linear"),
        ([9.0, 1.0, -3.0], "linear"),
        ([9.0, np.inf, 1e-3], "log"),
        ([np.nan], "linear"),
    ],
)
def test_logarithmic_scale_from_a_decade_of_positive_losses(data, losses, scale):
    res = fb.fit(NET, *data, epochs=1, seed=0)
    res.history["loss"] = np.array(losses)
    axes = drawn(res.plot())[0]
    assert axes.get_yscale() == scale
    finite = np.isfinite(losses)
    assert np.array_equal(np.isfinite(line(axes, "training")[1]), finite)
    ticks = [text.get_text() for text in axes.get_yticklabels()]
    assert sum(map(bool, ticks)) >= 3 or not finite.any()


def test_a_run_without_a_complete_epoch(data):
    X, y = data
    res = fb.fit(NET, X, y, method="sgd", lr=1e200, seed=0, on_divergence="return")
    assert res.nit == 0
    assert "no complete epoch" in [text.get_text() for text in drawn(res.plot())[0].texts]


# Values.


def test_predictions_and_residuals(data):
    X, y = data
    res = fb.fit(NET, X, y, epochs=50, seed=0)
    P = res.predict(X)[:, 0]
    figure = res.plot()
    _, fit, residuals, histogram = drawn(figure)
    assert np.array_equal(np.array(line(fit, "output 0")), [y, P])
    assert np.array_equal(np.array(line(residuals, "output 0")), [P, P - y])
    diagonal = next(one for one in fit.lines if one.get_label().startswith("_"))
    assert np.array_equal(diagonal.get_xdata(), diagonal.get_ydata())
    assert fit.get_aspect() == 1 and fit.get_xlim() == fit.get_ylim()
    assert sum(bar.get_width() for bar in histogram.patches) == 60
    assert histogram.get_ylim() == residuals.get_ylim()
    assert titles(figure)[1] == f"R² {res.score(X, y):.4f} on 60 rows"
    assert figure.get_suptitle() == "Network 3-5-1, loss 'mse', Adam"


def test_of_other_rows(data, rng):
    res = fb.fit(NET, *data, epochs=2, seed=0)
    X = rng.standard_normal((7, 3))
    _, fit, *_ = panels(res.plot(X, np.arange(7)))
    assert np.array_equal(line(fit, "output 0")[0], np.arange(7))


def test_outputs_have_colours_and_names(rng):
    X, y = rng.standard_normal((50, 3)), rng.standard_normal((50, 4))
    _, fit, residuals, histogram = panels(fb.fit(net_of(4), X, y, epochs=2, seed=0).plot())
    for axes in (fit, residuals):
        colors = [one.get_color() for one in axes.lines if one.get_label().startswith("output")]
        assert colors == list(plots.COLORS[:4])
    names = [text.get_text() for text in fit.get_legend().get_texts()]
    assert names == [f"output {j}" for j in range(4)]
    assert sum(bar.get_width() for bar in histogram.patches) == 200


def test_many_outputs_share_a_colour(rng):
    X, y = rng.standard_normal((50, 3)), rng.standard_normal((50, 20))
    _, fit, _, histogram = panels(fb.fit(net_of(20), X, y, epochs=2, seed=0).plot())
    colors = {one.get_color() for one in fit.lines if one.get_label().startswith("output")}
    assert colors == {plots.BLUE}
    assert fit.get_legend() is None
    assert sum(bar.get_width() for bar in histogram.patches) == 1000


def test_outputs_of_different_size_are_standardised(rng):
    X, y = rng.standard_normal((50, 3)), rng.standard_normal((50, 3))
    y = y * [1, 1000, 0] + [0, 5000, 2]  # the last one is constant
    res = fb.fit(net_of(3), X, y, epochs=2, seed=0)
    _, fit, residuals, _ = panels(res.plot())
    assert fit.get_xlabel() == "true (standardised)"
    true, predicted = line(fit, "output 1")
    assert np.allclose([true.mean(), true.std()], [0, 1], rtol=0, atol=1e-12)
    expected = (res.predict(X)[:, 1] - y[:, 1].mean()) / y[:, 1].std()
    assert np.allclose(predicted, expected, rtol=1e-12)
    assert np.allclose(line(residuals, "output 1")[1], predicted - true, rtol=1e-12)
    assert np.array_equal(line(fit, "output 2")[0], np.zeros(50))


def test_many_points_are_thinned_and_all_counted(rng):
    X = rng.standard_normal((9000, 3))
    res = fb.fit(net_of(2), X, X[:, :2], epochs=1, seed=0, batch_size=900)
    _, fit, residuals, histogram = panels(res.plot())
    true, _ = line(fit, "output 1")
    assert len(true) == plots.MAX_POINTS // 2
    assert len(set(true)) == len(true) and set(true) <= set(X[:, 1])
    assert residuals.get_title() == "Residuals of 2,500 of the rows"
    assert sum(bar.get_width() for bar in histogram.patches) == 18000


def test_counts_are_compared_with_rates(rng):
    X, y = rng.standard_normal((50, 3)), rng.integers(5, size=50)
    res = fb.fit(NET, X, y, loss="poisson", epochs=5, seed=0)
    _, fit, *_ = panels(res.plot())
    assert np.allclose(line(fit, "output 0")[1], np.exp(res.predict(X)[:, 0]), rtol=1e-14)


def test_residuals_of_a_normal_likelihood_are_in_predicted_deviations(data):
    X, y = data
    res = fb.fit(net_of(2), X, y, loss="gaussian_nll", epochs=5, seed=0)
    mean, log_variance = res.predict(X).T
    _, fit, residuals, _ = panels(res.plot())
    assert np.array_equal(line(fit, "output 0")[1], mean)
    expected = (mean - y) / np.sqrt(np.exp(log_variance))
    assert np.allclose(line(residuals, "output 0")[1], expected, rtol=1e-12)
    assert "predicted deviation" in residuals.get_ylabel()


def test_outputs_that_overflow_are_left_out(data):
    X, y = data
    res = fb.fit(NET, X, y, epochs=2, seed=0)
    res.params[-1] = np.inf
    _, fit, _, histogram = drawn(res.plot(X, y))
    assert len(line(fit, "output 0")[0]) == 0
    assert sum(bar.get_width() for bar in histogram.patches) == 0


# Classes.


def confusion(true, predicted, k):
    return {(i, j): int(np.sum((true == i) & (predicted == j))) for i in range(k) for j in range(k)}


@pytest.mark.parametrize("k, shares", [(3, True), (8, True), (15, False)])
def test_confusion_matrix(rng, k, shares):
    X, y = rng.standard_normal((200, 3)), rng.integers(k, size=200)
    res = fb.fit(net_of(k), X, y, loss="softmax_ce", epochs=5, seed=0)
    figure = res.plot()
    axes = drawn(figure)[1]
    expected = confusion(y, res.predict(X).argmax(axis=1), k)
    assert numbers(axes) == {place: n for place, n in expected.items() if n or k <= 3}
    assert titles(figure)[1] == f"{res.score(X, y):.1%} of 200 rows right"
    for text in axes.texts:
        j, i = text.get_position()
        share = f"{expected[i, j] / np.sum(y == i):.0%}"
        assert text.get_text().split("\n")[1:] == ([share] if shares else [])
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("predicted", "true")


def test_colours_are_shares_of_the_true_class(rng):
    X, y = rng.standard_normal((90, 3)), rng.integers(30, size=90)
    y[y == 7] = 8  # a class without rows
    res = fb.fit(net_of(30), X, y, loss="softmax_ce", epochs=5, seed=0)
    _, axes, bar = panels(res.plot())
    image = axes.images[0].get_array()
    assert np.allclose(image.sum(axis=1), np.isin(np.arange(30), y))
    assert not axes.texts
    assert bar.get_ylabel() == "share of the true class"


def test_rows_of_probabilities_count_as_their_likeliest_class(rng):
    X, y = rng.standard_normal((40, 3)), rng.random((40, 3))
    y /= y.sum(axis=1, keepdims=True)
    res = fb.fit(net_of(3), X, y, loss="softmax_ce", epochs=2, seed=0)
    predicted = res.predict(X).argmax(axis=1)
    assert numbers(panels(res.plot())[1]) == confusion(y.argmax(axis=1), predicted, 3)


@pytest.mark.parametrize("loss, n_out", [("softmax_ce", 2), ("bce_logits", 1)])
def test_classes_have_the_names_that_are_given(rng, loss, n_out):
    X, y = rng.standard_normal((40, 3)), rng.integers(2, size=40)
    res = fb.fit(net_of(n_out), X, y, loss=loss, epochs=2, seed=0)
    axes = drawn(res.plot(classes=["blossom of an apple", "blossom of a pear"]))[1]
    for labels in (axes.get_xticklabels(), axes.get_yticklabels()):
        assert [text.get_text() for text in labels] == ["blossom of an apple", "blossom of a pear"]
    assert axes.get_xticklabels()[0].get_rotation() == 90  # long ones side by side would overlap


@pytest.mark.parametrize(
    "loss, border, names",
    [("bce", 0.5, "01"), ("bce_logits", 0.0, "01"), ("hinge", 0.0, ("-1", "1"))],
)
def test_two_classes(rng, loss, border, names):
    X = rng.standard_normal((80, 3))
    y = (X[:, 0] > 0).astype(float)
    net = fb.Network(3, fb.Dense(1, "sigmoid" if loss == "bce" else "linear"))
    res = fb.fit(net, X, 2 * y - 1 if loss == "hinge" else y, loss=loss, epochs=3, seed=0)
    axes = drawn(res.plot())[1]
    assert numbers(axes) == confusion(y, res.predict(X)[:, 0] > border, 2)
    assert [text.get_text() for text in axes.get_yticklabels()] == list(names)


@pytest.mark.parametrize("width", [2, 3, 4, 5, 6])
def test_several_outputs_of_two_classes_have_a_matrix_each(rng, width):
    X, y = rng.standard_normal((70, 3)), rng.integers(2, size=(70, width))
    res = fb.fit(net_of(width), X, y, loss="bce_logits", epochs=3, seed=0)
    matrices = panels(res.plot())[1:]
    assert len(matrices) == width
    for j, axes in enumerate(matrices):
        predicted = res.predict(X)[:, j] > 0
        assert numbers(axes) == confusion(y[:, j], predicted, 2)
        assert axes.get_title() == f"output {j}: {np.mean(predicted == y[:, j]):.1%}"


def test_many_outputs_of_two_classes_have_their_accuracies(rng):
    X, y = rng.standard_normal((70, 3)), rng.integers(2, size=(70, 12))
    res = fb.fit(net_of(12), X, y, loss="bce_logits", epochs=3, seed=0)
    axes = drawn(res.plot())[1]
    right = np.mean((res.predict(X) > 0) == y, axis=0)
    assert np.array_equal([bar.get_height() for bar in axes.patches], right)
    ones = y.mean(axis=0)
    assert np.array_equal(line(axes, "always")[1], np.maximum(ones, 1 - ones))


# Losses without targets.


def test_pairs_are_counted_by_their_difference(rng):
    X = rng.standard_normal((60, 3))
    X[::2, 0] += 1
    res = fb.fit(NET, X, None, loss=fb.margin_ranking(0.5), epochs=5, seed=0)
    figure = res.plot()
    axes = panels(figure)[1]
    Y = res.predict(X)[:, 0]
    differences = Y[::2] - Y[1::2]
    edges = [bar.get_x() for bar in axes.patches]
    assert np.allclose([edges[0], edges[-1] + axes.patches[-1].get_width()],
                       [differences.min(), differences.max()])  # fmt: skip
    assert sum(bar.get_height() for bar in axes.patches) == 30
    assert list(line(axes, "margin")[0]) == [0.5, 0.5]
    assert titles(figure)[1] == f"{np.mean(differences > 0):.1%} of 30 pairs right"


def test_distribution_of_outputs_without_targets(rng):
    X = rng.standard_normal((40, 3))
    res = fb.fit(net_of(4), X, None, loss="gaussian_kl", epochs=3, seed=0)
    _, means, logs = panels(res.plot())
    assert (means.get_xlabel(), logs.get_xlabel()) == ("means", "logarithms of variances")
    for axes, values in ((means, res.predict(X)[:, :2]), (logs, res.predict(X)[:, 2:])):
        assert sum(bar.get_height() for bar in axes.patches) == 80
        assert np.isclose(axes.patches[0].get_x(), values.min())


# Every figure.


@pytest.mark.parametrize("loss", EVERY_LOSS, ids=str)
def test_every_loss_is_drawn(rng, loss):
    n_out = n_out_for(loss, 2)
    X, y = rng.standard_normal((2, 3)), target(rng, loss, 2, n_out, "float32")
    net = net_of(n_out).astype("float32")
    res = fb.fit(net, X, y, loss=loss, epochs=2, seed=0, backend="numpy")
    figure = res.plot()
    assert len(drawn(figure)) >= 2
    assert repr(res.loss_function) in figure.get_suptitle()


def test_a_single_row_has_no_r2(data):
    X, y = data
    res = fb.fit(NET, X, y, epochs=2, seed=0)
    assert titles(res.plot(X[:1], y[:1]))[1] == "1 row"


def test_wrong_data_raise(data):
    X, y = data
    res = fb.fit(NET, X, y, epochs=2, seed=0)
    with pytest.raises(fb.ShapeError):
        res.plot(X, y[:-1])
    with pytest.raises(ValueError, match="y is None"):
        res.plot(X)
    with pytest.raises(fb.ShapeError, match="at least one row"):
        res.plot(X[:0], y[:0])


def test_a_pickled_result_needs_the_data(data):
    X, y = data
    res = pickle.loads(pickle.dumps(fb.fit(NET, X, y, epochs=2, seed=0)))
    with pytest.raises(ValueError, match="pass X and y"):
        res.plot()
    assert len(panels(res.plot(X, y))) == 4


def test_matplotlib_s_state_is_left_alone(data):
    before, figures = dict(matplotlib.rcParams), plt.get_fignums()
    fb.fit(NET, *data, epochs=2, seed=0).plot()
    assert dict(matplotlib.rcParams) == before
    assert plt.get_fignums() == figures


def test_pyplot_is_not_loaded_and_notebooks_show_the_figure():
    program = (
        "import sys, numpy as np, fastbp as fb\n"
        "X = np.linspace(-1, 1, 30).reshape(-1, 1)\n"
        "figure = fb.fit(fb.Network(1, fb.Dense(1)), X, X, epochs=2, seed=0).plot()\n"
        "assert figure._repr_png_().startswith(b'\\x89PNG')\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_without_matplotlib_the_message_says_what_to_install(data, monkeypatch):
    res = fb.fit(NET, *data, epochs=2, seed=0)
    monkeypatch.delitem(sys.modules, "fastbp.reports.plots")
    monkeypatch.delattr(fb, "plots", raising=False)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"pip install 'fastbp\[demo\]'"):
        res.plot()
