"""The three jobs of the demo: each fitted by fastbp on every backend, and by hand in NumPy.

The loops written by hand make the same updates on the same rows in the same order, and they are
written to be fast: parameters in one flat vector, results in place, rows gathered once per epoch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from importlib.resources import files
from typing import Any, NamedTuple

import numpy as np
from scipy.optimize import minimize
from sklearn.datasets import load_diabetes, load_digits
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.model_selection import train_test_split

from ..common.timing import BY_HAND, compare
from ..fitting import _fit
from ..fitting.result import FitResult
from ..networks.dense import Dense
from ..networks.network import Network
from ..reports.words import Status

SEED = 0


class Run(NamedTuple):
    """The final parameters, the loss of each epoch or iteration, and the steps or evaluations."""

    params: np.ndarray
    losses: np.ndarray
    work: int


@dataclass
class Job:
    """The results of a job, by the names of the backends and "by hand" (`scores` without this).

    `first` has the seconds of the first call, loading and compiling included, `best` those of the
    fastest later call. `unit` is what `Run.work` counts. `details` is for figures and the report.
    """

    title: str
    unit: str
    runs: dict[str, Run]
    first: dict[str, float]
    best: dict[str, float]
    score_name: str
    scores: dict[str, float]
    baseline: tuple[str, float]
    details: dict[str, Any] = field(default_factory=dict)

    def microseconds(self, name: str) -> float:
        """The time of one unit of work."""
        return 1e6 * self.best[name] / self.runs[name].work

    def speedup(self, name: str) -> float:
        """How many times faster than by hand."""
        return self.best[BY_HAND] / self.best[name]

    def differences(self, name: str) -> tuple[float, float]:
        """The largest relative differences of parameters and of losses from the reference."""
        (params, losses, _), (params0, losses0, _) = self.runs[name], self.runs["numpy"]
        n = min(len(losses), len(losses0))
        return (
            float(np.abs(params - params0).max() / np.abs(params0).max()),
            float((np.abs(losses - losses0)[:n] / np.abs(losses0[:n])).max()),
        )


def fit(*args: Any, **options: Any) -> FitResult:
    """`fastbp.fit`, but that Ctrl-C, after which it returns a result, raises here."""
    result = _fit.fit(*args, **options)
    if result.status == Status.INTERRUPTED:
        raise KeyboardInterrupt
    return result


# Classification: handwritten digits, a minibatch method.


def digits(backends: tuple[str, ...], quick: bool) -> Job:
    """1,797 handwritten digits of 8×8 pixels: 64-32-10, softmax cross-entropy, Adam."""
    X, y = load_digits(return_X_y=True)
    X, X_test, y, y_test = train_test_split(X / 16, y, test_size=0.2, stratify=y, random_state=SEED)
    epochs = 10 if quick else 30
    net = Network.mlp([64, 32, 10], activation="relu")

    def run(backend: str) -> Run:
        result = fit(
            net, X, y, loss="softmax_ce", method="adam", lr=0.003, batch_size=32,
            epochs=epochs, seed=SEED, backend=backend,
        )  # fmt: skip
        return Run(result.params, result.history["loss"], result.nfev)

    calls: dict[str, Callable[[], Run]] = {name: partial(run, name) for name in backends}
    calls[BY_HAND] = lambda: digits_by_hand(X, y, epochs, lr=0.003, batch_size=32)
    runs, first, best = compare(calls, 0.2 if quick else 4.0)
    labels = {
        name: net.forward(runs[name].params, X_test, backend=name).argmax(axis=1)
        for name in backends
    }
    linear = LogisticRegression(max_iter=1000).fit(X, y)
    return Job(
        title="Handwritten digits: 64-32-10 relu, softmax cross-entropy, Adam, batches of 32",
        unit="step",
        runs=runs,
        first=first,
        best=best,
        score_name="accuracy",
        scores={name: float(np.mean(labels[name] == y_test)) for name in backends},
        baseline=("logistic regression", float(linear.score(X_test, y_test))),
        details={"labels": labels, "y_test": y_test, "epochs": epochs},
    )


def digits_by_hand(X: np.ndarray, y: np.ndarray, epochs: int, lr: float, batch_size: int) -> Run:
    """The same training in NumPy: start and orders are drawn from the seed as `fastbp.fit` does."""
    init_seed, order_seed, _ = np.random.SeedSequence(SEED).spawn(3)
    p = Network.mlp([64, 32, 10], activation="relu").init(init_seed)
    rng = np.random.default_rng(order_seed)
    g, m, s = np.zeros((3, len(p)))
    (W1, b1), (W2, b2) = _two_layers(p, 64, 32, 10)
    (dW1, db1), (dW2, db2) = _two_layers(g, 64, 32, 10)
    n, step, losses = len(X), 0, []
    starts = range(0, n, batch_size)
    for _ in range(epochs):
        order = rng.permutation(n)
        X_epoch, y_epoch = X[order], y[order]
        total = 0.0
        for start in starts:
            xb, yb = X_epoch[start : start + batch_size], y_epoch[start : start + batch_size]
            rows = np.arange(len(xb))
            # Forward.
            A = xb @ W1
            A += b1
            np.maximum(A, 0, out=A)
            Z = A @ W2
            Z += b2
            Z -= Z.max(axis=1, keepdims=True)
            picked = Z[rows, yb]
            np.exp(Z, out=Z)
            sums = Z.sum(axis=1)
            total += (np.log(sums) - picked).sum() / len(xb)
            # Backward; Z turns into dL/dZ.
            Z /= sums[:, None]
            Z[rows, yb] -= 1
            Z /= len(xb)
            np.matmul(A.T, Z, out=dW2)
            Z.sum(axis=0, out=db2)
            dA = Z @ W2.T
            dA *= A > 0
            np.matmul(xb.T, dA, out=dW1)
            dA.sum(axis=0, out=db1)
            # Adam.
            step += 1
            m += 0.1 * (g - m)
            s += 0.001 * (g * g - s)
            rate = lr * np.sqrt(1 - 0.999**step) / (1 - 0.9**step)
            p -= rate * m / (np.sqrt(s) + 1e-8 * np.sqrt(1 - 0.999**step))
        losses.append(total / len(starts))
    return Run(p, np.array(losses), step)


def _two_layers(vector: np.ndarray, n_in: int, n_hidden: int, n_out: int) -> list[Any]:
    """Views of a flat vector as W1, b1 and W2, b2."""
    W1, b1, W2, b2 = np.split(vector, np.cumsum([n_in * n_hidden, n_hidden, n_hidden * n_out]))
    return [(W1.reshape(n_in, n_hidden), b1), (W2.reshape(n_hidden, n_out), b2)]


# Regression: progression of diabetes, a method of SciPy's.


# From 5-fold cross-validation on the training rows, over 0, 0.01, 0.03, 0.1 and 0.3.
DIABETES_L2 = 0.1


def diabetes(backends: tuple[str, ...], quick: bool) -> Job:
    """442 patients, 10 measurements: 10-16-1, mean squared error with a penalty, L-BFGS-B."""
    X, y = load_diabetes(return_X_y=True)
    X, X_test, y, y_test = train_test_split(X, y, test_size=0.2, random_state=SEED)
    linear = LinearRegression().fit(X, y).score(X_test, y_test)
    X, X_test = (X - X.mean(axis=0)) / X.std(axis=0), (X_test - X.mean(axis=0)) / X.std(axis=0)
    t = (y - y.mean()) / y.std()
    iterations = 30 if quick else 60
    net = Network.mlp([10, 16, 1], activation="tanh")

    def run(backend: str) -> Run:
        result = fit(
            net, X, t, method="L-BFGS-B", loss="mse", l2=DIABETES_L2,
            epochs=iterations, seed=SEED, backend=backend,
        )  # fmt: skip
        return Run(result.params, result.history["loss"], result.nfev)

    calls: dict[str, Callable[[], Run]] = {name: partial(run, name) for name in backends}
    calls[BY_HAND] = lambda: diabetes_by_hand(X, t, iterations)
    runs, first, best = compare(calls, 0.2 if quick else 4.0)
    predictions = {
        name: y.mean() + y.std() * net.forward(runs[name].params, X_test, backend=name)[:, 0]
        for name in backends
    }
    return Job(
        title="Progression of diabetes: 10-16-1 tanh, mean squared error with a penalty, L-BFGS-B",
        unit="evaluation",
        runs=runs,
        first=first,
        best=best,
        score_name="R²",
        scores={name: r_squared(predictions[name], y_test) for name in backends},
        baseline=("linear regression", float(linear)),
        details={
            "predictions": predictions,
            "y_test": y_test,
            "iterations": iterations,
            "objective_us": _objective_times(net, X, t, backends, 0.1 if quick else 1.0),
        },
    )


def r_squared(prediction: np.ndarray, y: np.ndarray) -> float:
    """The share of the variance of y that the prediction explains."""
    return float(1 - np.sum((prediction - y) ** 2) / np.sum((y - y.mean()) ** 2))


def diabetes_by_hand(X: np.ndarray, t: np.ndarray, iterations: int) -> Run:
    """The same fit with an objective and a gradient written in NumPy."""

    init_seed, _, _ = np.random.SeedSequence(SEED).spawn(3)
    start = Network.mlp([10, 16, 1], activation="tanh").init(init_seed)
    losses: list[float] = []

    def keep(intermediate_result: Any) -> None:
        losses.append(intermediate_result.fun)

    result = minimize(
        diabetes_objective,
        start,
        args=(X, t),
        jac=True,
        method="L-BFGS-B",
        callback=keep,
        options={"maxiter": iterations, "maxfun": 21 * iterations},
    )
    return Run(result.x, np.array(losses), result.nfev)


def diabetes_objective(
    p: np.ndarray, X: np.ndarray, t: np.ndarray, l2: float = DIABETES_L2
) -> tuple[float, np.ndarray]:
    """Mean squared error of 10-16-1 with l2/2·‖W‖², and its gradient."""
    g = np.empty_like(p)
    (W1, b1), (W2, b2) = _two_layers(p, 10, 16, 1)
    (dW1, db1), (dW2, db2) = _two_layers(g, 10, 16, 1)
    A = X @ W1
    A += b1
    np.tanh(A, out=A)
    r = A @ W2[:, 0]
    r += b2 - t
    w1, w2 = W1.ravel(), W2.ravel()
    value = (r @ r) / len(r) + 0.5 * l2 * (w1 @ w1 + w2 @ w2)
    dr = r * (2 / len(r))
    dW2[:, 0] = dr @ A
    db2[0] = dr.sum()
    dA = dr[:, None] * W2[:, 0]
    A *= A
    dA -= dA * A
    np.matmul(X.T, dA, out=dW1)
    dA.sum(axis=0, out=db1)
    dW1 += l2 * W1
    dW2 += l2 * W2
    return float(value), g


def _objective_times(
    net: Network, X: np.ndarray, t: np.ndarray, backends: tuple[str, ...], seconds: float
) -> dict[str, float]:
    """Microseconds of one objective with its gradient, without SciPy around it."""
    p = net.init(SEED)
    calls: dict[str, Callable[[], Any]] = {BY_HAND: lambda: diabetes_objective(p, X, t)}
    for name in backends:
        objective = net.objective(X, t, l2=DIABETES_L2, backend=name)
        calls[name] = partial(objective.value_and_grad, p)
    _, _, best = compare(calls, seconds)
    return {name: 1e6 * seconds for name, seconds in best.items()}


# A line through 24 points: gradient descent, conjugate gradients, least squares.


# A network of one weight and one bias; the vector holds the slope, then the intercept.
LINE = Network(1, Dense(1))
CAR_KM = 50_000


def cars_table() -> tuple[np.ndarray, np.ndarray]:
    """Kilometres and prices of the 24 used cars."""
    lines = (files(__package__) / "cars.csv").read_text(encoding="utf-8").splitlines()
    km, price = np.loadtxt(lines, delimiter=",", comments="#", skiprows=2, unpack=True)
    return km, price


def cars(backends: tuple[str, ...], quick: bool) -> Job:
    """The price of a car by its kilometres: a straight line on min-max scaled data."""
    km, price = cars_table()
    x = (km - km.min()) / np.ptp(km)
    t = (price - price.min()) / np.ptp(price)
    steps = 1000

    def run(backend: str) -> Run:
        result = fit(
            LINE, x[:, None], t, method="sgd", lr=0.1, loss="half_mse", batch_size=None,
            params=[0.0, 0.0], epochs=steps, seed=SEED, backend=backend,
        )  # fmt: skip
        return Run(result.params, result.history["loss"], result.nfev)

    calls: dict[str, Callable[[], Run]] = {name: partial(run, name) for name in backends}
    calls[BY_HAND] = lambda: line_by_hand(x, t, steps, lr=0.1)
    runs, first, best = compare(calls, 0.2 if quick else 4.0)

    solved: dict[str, dict[str, FitResult]] = {
        method: {
            name: fit(
                LINE, x[:, None], t, method=method, loss="half_mse",
                params=[0.0, 0.0], backend=name,
            )
            for name in backends
        }
        for method in ("fmincg", "trf")
    }  # fmt: skip

    exact = np.polyfit(x, t, 1)
    lines: dict[str, np.ndarray] = {"gradient descent": runs[backends[0]].params}
    lines |= {method: results[backends[0]].params for method, results in solved.items()}
    lines["numpy.polyfit"] = exact

    real = {name: _in_real_units(line, km, price) for name, line in lines.items()}
    return Job(
        title="Prices of 24 used cars: a line, half the mean squared error, gradient descent",
        unit="step",
        runs=runs,
        first=first,
        best=best,
        score_name="R²",
        scores={
            name: r_squared(runs[name].params[0] * x + runs[name].params[1], t) for name in backends
        },
        baseline=("least squares on the same rows", r_squared(exact[0] * x + exact[1], t)),
        details={
            "km": km,
            "price": price,
            "lines": lines,
            "real": real,
            "prices": {name: slope * CAR_KM + at_zero for name, (slope, at_zero) in real.items()},
            "losses": {
                "gradient descent": runs[backends[0]].losses,
                **{m: results[backends[0]].history["loss"] for m, results in solved.items()},
            },
            "least_loss": 0.5 * float(np.mean((exact[0] * x + exact[1] - t) ** 2)),
            "from_exact": {
                method: {n: float(np.abs(r.params - exact).max()) for n, r in results.items()}
                for method, results in solved.items()
            },
            "nit": {m: results[backends[0]].nit for m, results in solved.items()},
        },
    )


def _in_real_units(line: np.ndarray, km: np.ndarray, price: np.ndarray) -> tuple[float, float]:
    """Slope per kilometre and intercept for raw data, from those for min-max scaled data."""
    slope = line[0] * np.ptp(price) / np.ptp(km)
    return float(slope), float(price.min() + np.ptp(price) * line[1] - slope * km.min())


def line_by_hand(x: np.ndarray, t: np.ndarray, steps: int, lr: float) -> Run:
    """The same descent in NumPy."""
    slope = intercept = 0.0
    n, losses = len(x), []
    for _ in range(steps):
        r = slope * x
        r += intercept - t
        losses.append((r @ r) / (2 * n))
        slope -= lr * (r @ x) / n
        intercept -= lr * r.sum() / n
    return Run(np.array([slope, intercept]), np.array(losses), steps)
