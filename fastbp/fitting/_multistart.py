"""`multistart`: fits of a network from many initial parameters, the best of them first."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from ..common.arrays import whole_number
from ..common.terminal import progress_shown
from ..maths.losses import loss as loss_of
from ..networks.network import Network
from ..optimize.minima import Ending, MultistartResult, collected, tolerance
from ..optimize.starts import Halt, one_at_a_time, run, seed_of, spawned
from ..optimize.symmetry import canonical
from ..reports.words import Status
from ..training.callbacks import INTERRUPTION, Epoch
from ..training.data import FitData, Samples, prepare
from ..training.progress import progress_bar
from ._fit import HELD_OUT, INITIAL, _callbacks, _child, _require_finite_target, fit
from .result import FitResult


def multistart(
    net: Network,
    X: Any,
    y: Any,
    n_starts: int = 32,
    *,
    seed: int | None = None,
    threads: int = 1,
    max_time: float | None = None,
    progress: bool | str = "auto",
    rtol: float = 1e-3,
    atol: float = 1e-8,
    **fit_options: Any,
) -> MultistartResult:
    """Fit a network from many initial parameters, and tell the minima apart.

    Parameters
    ----------
    net : Network
    X, y : array_like
        As `fit` takes them; checked and converted once.
    n_starts : int, default 32
    seed : int, optional
        Of it come the starts' own seeds, the same however many there are; each draws what `fit`
        draws. By default a new one, kept in the result.
    threads : int, default 1
        How many fits run at once; each is one thread's work. The results do not depend on it.
        Methods whose loop is in the backend gain most: in SciPy's, Python's part is one thread's
        at a time.
    max_time : float, optional
        Seconds for all fits together. Those that run then end with what they have, those that have
        not begun are left out.
    progress : {"auto", True, False}
        A bar that counts the fits, as that of `fit`.
    rtol, atol : float
        Objectives f <= g belong to one cluster if g - f <= rtol·|f| + atol, f being its lowest.
        Parameters there are the same point if none differs by more than sqrt(rtol) of its size,
        the order and signs of hidden units apart.
    **fit_options
        Those of `fit`: ``method``, ``loss``, ``epochs``, ... Callbacks are called one at a time;
        the argument's ``start`` is the number of the start, and returning True stops that one.

    Returns
    -------
    MultistartResult
        Of `FitResult`, the lowest ``fun`` first, those that diverged last; also after Ctrl-C, with
        what had been reached. ``fb.fit(net, X, y, seed=ms.seeds[k], **fit_options)`` gives
        ``ms[k]`` again, bit for bit (with ``on_divergence="return"`` if it diverged).

    Raises
    ------
    ShapeError, TypeError, ValueError, NonFiniteError
        As `fit`. Also for `params` and `state`, which are of one start, and for a fraction as
        `validation`: each start would hold out other rows, and their objectives could not be
        compared.

    Notes
    -----
    A start that raises an exception does not end the others; if all do, the first one's is raised.
    A cluster runs away if its starts did not come to one point, and their parameters have become
    over 1000 times as large as the starts', or 10 times and the larger the lower the objective is.

    Examples
    --------
    >>> import numpy as np, fastbp as fb
    >>> X = np.linspace(-1, 1, 50).reshape(-1, 1)
    >>> y = np.sin(4 * X)
    >>> net = fb.Network(1, fb.Dense(3, "tanh"), fb.Dense(1))
    >>> ms = fb.multistart(net, X, y, 8, method="L-BFGS-B", epochs=300, seed=0)
    >>> len(ms), ms.params.shape, bool(ms.best.fun == ms.fun.min())
    (8, (8, 10), True)
    >>> again = fb.fit(net, X, y, method="L-BFGS-B", epochs=300, seed=ms.seeds[3])
    >>> np.array_equal(again.params, ms.params[3])
    True
    """
    n_starts, threads = whole_number("n_starts", n_starts), whole_number("threads", threads)
    clustering = {"rtol": tolerance("rtol", rtol), "atol": tolerance("atol", atol)}
    halt, seed = Halt(max_time), seed_of(seed)
    options = _options(net, X, y, fit_options)
    data = _prepared(net, X, y, options)
    X, y = data.raw.problem.X, data.raw.targets
    seeds = spawned(seed, n_starts)
    told = [one_at_a_time(callback) for callback in _callbacks(options["callbacks"])]
    same = {"on_divergence": "return"} | fit_options

    def one(k: int) -> FitResult:
        INTERRUPTION.set(halt.interrupted)
        own = {
            "seed": seeds[k],
            "max_time": max(halt.seconds_left, 1e-9),
            "callbacks": [partial(_call, callback, k) for callback in told],
        }
        with progress_shown(progress):
            res = fit(net, X, y, progress=False, **same | own)
        if res.status == Status.INTERRUPTED:
            halt.interrupted.set()
        return res

    outcomes, status = run(
        one, n_starts, threads, halt, progress_bar(progress, n_starts), lambda res: res.fun
    )
    return collected(
        outcomes,
        lambda res: Ending(res.fun, res.params, res.message, res.status == Status.DIVERGED),
        np.array([data.to_raw(net.init(_child(child, INITIAL))) for child in seeds]),
        seeds,
        partial(canonical, net),
        **clustering,
        **status,
        seed=seed,
        method=str(options["method"]),
    )


def _options(net: Network, X: Any, y: Any, given: dict[str, Any]) -> dict[str, Any]:
    """All arguments of `fit`, checked as far as they are about many starts."""
    if not isinstance(net, Network):
        raise TypeError(
            f"net is {type(net).__name__}, expected fastbp.Network; multistart(net, X, y)"
        )
    bound = inspect.signature(fit).bind(net, X, y, **given)
    bound.apply_defaults()
    options = bound.arguments
    if options["params"] is not None:
        raise ValueError(
            "params are where one fit starts, and multistart draws the starts from its seed; leave "
            "params out, or pass fastbp.optimize.multistart an objective and an array of starts"
        )
    if options["state"] is not None:
        raise ValueError("state is of one run; go on from it with fastbp.fit(..., state=state)")
    validation = options["validation"]
    if not (validation is None or isinstance(validation, tuple | list)):
        raise ValueError(
            f"validation is {validation!r}, of which each start would hold out other rows, so that "
            f"their objectives could not be compared; pass the same rows to all, as a tuple "
            f"(X, y) or (X, y, sample_weight)"
        )
    return options


def _prepared(net: Network, X: Any, y: Any, options: dict[str, Any]) -> FitData:
    """The data as each fit will see them; raises for them what `fit` would."""
    loss = loss_of(options["loss"])
    if loss.target != "values":
        _require_finite_target(y)
    terms = {name: options[name] for name in ("l2", "l1", "group", "threads", "backend")}
    return prepare(
        net,
        Samples(X, y, options["sample_weight"]),
        loss,
        validation=options["validation"],
        seed=lambda: _child(0, HELD_OUT),
        scale=options["scale"],
        scalers=None,
        terms=terms,
    )


def _call(callback: Callable[[Epoch], Any], k: int, epoch: Epoch) -> Any:
    """Tell a callback of an epoch of the k-th start."""
    epoch.start = k
    return callback(epoch)
