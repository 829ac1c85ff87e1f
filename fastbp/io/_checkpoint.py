"""`checkpoint`: a callback of `fit` that saves the network during the run."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..common.arrays import whole_number
from .files import save

if TYPE_CHECKING:
    from ..training.callbacks import Epoch


@dataclass(frozen=True)
class checkpoint:
    """A callback of `fastbp.fit` that saves network, parameters and state every few epochs.

    The file is always complete, the old or the new one, even if the process is killed while it is
    written: after ``saved = fb.load(path)``, ``fb.fit(..., state=saved.state)`` continues the run
    with the same results as without the interruption.

    Parameters
    ----------
    path : str or os.PathLike
        The file, as `fastbp.save` takes it.
    every : int, default 1
        Save after each epoch whose number is a multiple of this.

    Raises
    ------
    ValueError, TypeError
        If `every` is not a positive whole number.

    Examples
    --------
    >>> import numpy as np, fastbp as fb
    >>> X = np.linspace(-1, 1, 50).reshape(-1, 1)
    >>> net, y = fb.Network(1, fb.Dense(1)), 3 * X[:, 0] - 1
    >>> saver = fb.checkpoint("line.safetensors", every=10)
    >>> whole = fb.fit(net, X, y, epochs=30, seed=0, callbacks=saver)
    >>> saved = fb.load("line.safetensors")
    >>> saved.meta["epoch"]
    30
    >>> resumed = fb.fit(net, X, y, epochs=50, state=saved.state)
    >>> np.array_equal(resumed.params, fb.fit(net, X, y, epochs=50, seed=0).params)
    True
    """

    path: str | os.PathLike[str]
    every: int = 1

    def __post_init__(self) -> None:
        if not isinstance(self.path, str | bytes | os.PathLike):
            raise TypeError(
                f"path is {self.path!r}, expected the name of a file; callbacks="
                f"fastbp.checkpoint(path)"
            )
        object.__setattr__(self, "every", whole_number("every", self.every))

    def __call__(self, epoch: Epoch) -> None:
        """Save the network if it is time to."""
        if epoch.epoch % self.every == 0:
            save(
                self.path, epoch.net, epoch.params, epoch.state, epoch=epoch.epoch, loss=epoch.loss
            )
