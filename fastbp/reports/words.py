"""Words that results, summaries and figures share: the status of a fit, messages, counts."""

from __future__ import annotations

from enum import IntEnum


class Status(IntEnum):
    """How a fit ended: `FitResult.status`."""

    FINISHED = 0  # all epochs done, converged, goal met, or no progress within the patience
    LIMIT = 1  # of time, or of the number of iterations
    STUCK = 2  # no step of the method lowers the objective
    DIVERGED = 3
    INTERRUPTED = 4  # Ctrl-C
    STOPPED = 5  # by a callback

    @property
    def word(self) -> str:
        """The status as a summary names it."""
        return {0: "success", 1: "limit reached", 3: "divergence"}.get(self, self.name.lower())


ALL_DONE = "the maximum number of iterations (epochs) has been reached"

AT_START = (
    " at the initial parameters, or its gradient overflows; scale X and y to about unit size, or "
    "start from smaller parameters"
)


def counted(number: int, noun: str) -> str:
    """A number with its noun, such as "1 row" and "2 rows"."""
    return f"{number} {noun}" + ("s" if number != 1 else "")


def no_progress(patience: int, noun: str, nit: int, lowest: float) -> str:
    """The message of a fit that its patience has ended.

    Parameters
    ----------
    patience : int
        How many epochs or iterations passed without progress.
    noun : {"epoch", "iteration"}
    nit : int
        How many there were in total.
    lowest : float
        The lowest value of what was watched.
    """
    return (
        f"no progress in {counted(patience, noun)} beyond {lowest:.6g}: stopped after "
        f"{counted(nit, noun)}"
    )
