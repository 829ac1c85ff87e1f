"""The progress bar of `fit`: for people who watch, on stderr, and nothing in logs."""

from __future__ import annotations

import sys
import time
from contextlib import suppress
from typing import TYPE_CHECKING

from ..common.terminal import in_notebook, is_terminal, stderr_console

if TYPE_CHECKING:
    from rich.progress import Progress

# A run of fewer seconds shows no bar under "auto".
DELAY_SECONDS = 2.0
# Between two drawings; one takes about a millisecond.
DRAW_SECONDS = 0.1


def bar(setting: bool | str, total_epochs: int) -> Bar | None:
    """The bar of a run that begins now, or None if nothing of it could ever be seen.

    Parameters
    ----------
    setting : {"auto", True, False}
        "auto" shows a bar on a terminal or in a notebook once the run has lasted `DELAY_SECONDS`;
        True at once, and where stderr is a file its last state as a line.
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
        return Bar(total_epochs, 0.0)
    if setting == "auto" and (is_terminal(sys.stderr) or in_notebook()):
        return Bar(total_epochs, DELAY_SECONDS)
    return None


class Bar:
    """How far a run is: epochs, objectives, rate, and the time that it took and will take.

    Parameters
    ----------
    total_epochs : int
    delay : float
        Seconds before the bar is drawn first.
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
            Epochs done, the fraction of the present one included.
        loss : float
            The last objective.
        val_loss, rate : float, optional
        """
        self._last = epoch, loss, val_loss, rate
        if time.perf_counter() >= self._due:
            self._draw()

    def close(self) -> None:
        """Draw the last state, if anything was drawn, and hand the terminal back."""
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
                self._progress = _progress(self._total, self._begun)
            self._progress.update(self._progress.task_ids[0], completed=epoch, text=text)
            self._progress.start()
            self._progress.refresh()
            self._due = time.perf_counter() + DRAW_SECONDS
        except _GONE:
            self._due = float("inf")


# What writing raises once the terminal is gone or stderr closed; the run goes on without a bar.
_GONE = (OSError, ValueError)


def _progress(total: int, begun: float) -> Progress:
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
        # Else what is printed meanwhile would go to stderr's terminal, wherever stdout leads.
        redirect_stdout=is_terminal(sys.stdout),
        redirect_stderr=is_terminal(sys.stderr),
        speed_estimate_period=600,  # by default iterations over 30 s would never have one
        get_time=time.perf_counter,
    )
    progress.add_task("fit", total=total, text="")
    progress.tasks[0].start_time = begun
    return progress
