"""The progress bar of `fit`, on stderr: on a terminal or in a notebook, and never in logs."""

from __future__ import annotations

import sys
import time
from contextlib import suppress
from typing import TYPE_CHECKING

from ..common.terminal import in_notebook, is_terminal, stderr_console

if TYPE_CHECKING:
    from rich.progress import Progress

# With "auto" a run that takes less time shows no bar.
DELAY_SECONDS = 2.0
# The time between two drawings; one takes about a millisecond.
DRAW_SECONDS = 0.1


def progress_bar(setting: bool | str, total_epochs: int) -> ProgressBar | None:
    """The bar of a run that begins now, or None if nobody could see it.

    Parameters
    ----------
    setting : {"auto", True, False}
        "auto" shows a bar on a terminal or in a notebook once the run has lasted `DELAY_SECONDS`.
        True shows it at once, and writes its last state as a line where stderr is a file.
    total_epochs : int

    Raises
    ------
    ValueError
        For another setting.
    """
    if not (isinstance(setting, bool) or (isinstance(setting, str) and setting == "auto")):
        raise ValueError(
            f"progress is {setting!r}, expected 'auto' (a bar on a terminal, if the run takes "
            f"long), True or False"
        )
    if setting is True and (sys.stderr is not None or in_notebook()):
        return ProgressBar(total_epochs, 0.0)
    if setting == "auto" and (is_terminal(sys.stderr) or in_notebook()):
        return ProgressBar(total_epochs, DELAY_SECONDS)
    return None


class ProgressBar:
    """Shows how far a run is: epochs, objectives, rate, and the time that it took and will take.

    Parameters
    ----------
    total_epochs : int
    delay : float
        Seconds before the first drawing.
    """

    def __init__(self, total_epochs: int, delay: float):
        self._total = total_epochs
        self._begun = time.perf_counter()
        self._due = self._begun + delay
        self._last: tuple[float, float, float | None, float | None] | None = None
        self._progress: Progress | None = None

    def update(self, epoch: float, loss: float, val_loss: float | None, rate: float | None) -> None:
        """Note where the run is, and draw it if the last drawing is `DRAW_SECONDS` ago.

        Parameters
        ----------
        epoch : float
            Epochs done, including the fraction of the present one.
        loss : float
            The last objective.
        val_loss, rate : float or None
            The validation's objective and the rate; None for a run without them.
        """
        self._last = epoch, loss, val_loss, rate
        if time.perf_counter() >= self._due:
            self._draw()

    def close(self) -> None:
        """Draw the last state, if anything was drawn, and leave the terminal as it was."""
        if self._progress is None:
            return
        try:
            self._draw()
        finally:
            with suppress(*_GONE):
                self._progress.stop()
            self._progress = None

    def _draw(self) -> None:
        assert self._last is not None
        epoch, loss, val_loss, rate = self._last
        text = f"{int(epoch):{len(str(self._total))}}/{self._total} loss {loss:#.3g}"
        for name, value in (("val", val_loss), ("lr", rate)):
            if value is not None:
                text += f" {name} {value:#.3g}"
        try:
            if self._progress is None:
                self._progress = _rich_progress(self._total, self._begun)
            self._progress.update(self._progress.task_ids[0], completed=epoch, text=text)
            self._progress.start()
            self._progress.refresh()
            self._due = time.perf_counter() + DRAW_SECONDS
        except _GONE:
            self._due = float("inf")


# Errors of writing once the terminal is gone or stderr closed; the run goes on without a bar.
_GONE = (OSError, ValueError)


def _rich_progress(total: int, begun: float) -> Progress:
    """Rich's display of a run of `total` epochs that began at `begun`, a time of perf_counter."""
    from rich.progress import (
        BarColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
    from rich.table import Column

    console = stderr_console()
    wide = console.width >= 80
    progress = Progress(
        *([TextColumn("{task.description}"), BarColumn()] if wide else []),
        TextColumn("{task.fields[text]}", markup=False, table_column=Column(no_wrap=wide)),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(compact=True),
        console=console,
        auto_refresh=False,
        # Else text printed meanwhile would go to stderr's terminal, wherever stdout leads.
        redirect_stdout=is_terminal(sys.stdout),
        redirect_stderr=is_terminal(sys.stderr),
        speed_estimate_period=600,  # by default iterations over 30 s would have no estimate
        get_time=time.perf_counter,
    )
    progress.add_task("fit", total=total, text="")
    progress.tasks[0].start_time = begun
    return progress
