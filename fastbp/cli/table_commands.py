"""The commands ``fastbp fit`` and ``fastbp predict``, and ``fastbp info`` of a model."""

from __future__ import annotations

import contextlib
import csv
import difflib
import io
import json
import math
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import fields, replace
from itertools import islice
from typing import TYPE_CHECKING, Any, TextIO

import click

from ..common.terminal import printable

if TYPE_CHECKING:
    import numpy as np

    from .tables.columns import Column
    from .tables.fitting import TableFit
    from .tables.model import TableModel
    from .tables.reading import Table

DATA, MODEL = "which are the data themselves", "which is the model"
# More are not printed one by one, by `fit` and by `info`.
MANY_COLUMNS, MANY_ROWS = 20, 100

# Options: their conversion, and their completion in a shell.

FILE = click.Path(exists=True, dir_okay=False)


def _names(_: click.Context, parameter: click.Parameter, text: str | None) -> tuple[str, ...]:
    """Column names, separated like the cells of a CSV file: a name with a comma is in quotes."""
    if text is None:
        return ()
    try:
        (cells,) = csv.reader([text], skipinitialspace=True, strict=True)
    except (csv.Error, ValueError):
        raise click.BadParameter(
            f"{text!r} does not name columns, expected such as a,b or '\"a, in m\",b'"
        ) from None
    return tuple(cell.strip() for cell in cells)


def _separator(_: click.Context, parameter: click.Parameter, text: str | None) -> str | None:
    return "\t" if text in ("tab", "\\t") else text


def _sizes(_: click.Context, parameter: click.Parameter, text: str) -> tuple[int, ...]:
    try:
        sizes = tuple(int(size) for size in text.split(","))
    except ValueError:
        sizes = ()
    if sizes == (0,):
        return ()
    if not sizes or min(sizes) < 1:
        raise click.BadParameter(f"{text!r} is no list of sizes such as 20 or 20,10, or 0 for none")
    return sizes


def _batch_size(_: click.Context, parameter: click.Parameter, text: str) -> int | str | None:
    if text in ("auto", "all"):
        return "auto" if text == "auto" else None
    with contextlib.suppress(ValueError):
        if int(text) >= 1:
            return int(text)
    raise click.BadParameter(f"{text!r} is neither a number of rows nor auto or all")


def _known(what: str, names: Callable[[], Iterable[str]]) -> Any:
    """A callback of click that raises for an unknown name before DATA is read."""

    def check(_: click.Context, __: click.Parameter, text: str) -> str:
        if text.lower() not in {name.lower() for name in names()}:
            from ..common.errors import unknown_name

            raise ValueError(unknown_name(what, text, names()))
        return text

    return check


def _one_of(names: Callable[[], Iterable[str]]) -> Any:
    """Completion of an option whose values are these names."""

    def complete(_: click.Context, __: click.Parameter, begun: str) -> list[str]:
        return [name for name in names() if name.startswith(begun)]

    return complete


def _activations() -> Iterable[str]:
    from ..maths.activations import NAMES

    return NAMES


def _methods() -> Iterable[str]:
    from ..fitting.full_batch import METHODS as FULL_BATCH
    from ..training.optimizers import METHODS

    return [*METHODS, *FULL_BATCH]


def _losses() -> Iterable[str]:
    from .tables.model import LOSSES

    return sum(LOSSES.values(), ())


def _complete_columns(context: click.Context, _: click.Parameter, begun: str) -> list[str]:
    """Completion of column names of DATA, after a comma of the next name."""
    from .tables.reading import open_table
    from .tables.text import Reading

    before, comma, name = begun.rpartition(",")
    with contextlib.suppress(Exception):  # a table that cannot be read has no names to complete
        # While an option lacks its value, click has DATA among the remaining arguments.
        data = context.params["data"] or context.args[0]
        with open_table(data, Reading(sep=context.params["sep"])) as table:
            return [before + comma + n for n in table.names if n and n.startswith(name)]
    return []


READING = (
    click.option(
        "--sep",
        "--delimiter",
        callback=_separator,
        is_eager=True,
        help="What separates the cells of DATA; 'tab' for a tab.  [default: found out]",
    ),
    click.option("--decimal", metavar="POINT", help="The decimal point of numbers.  [default: .]"),
    click.option("--thousands", help="What separates groups of three digits.  [default: nothing]"),
    click.option(
        "--header/--no-header",
        default=None,
        help="Whether row 1 has the columns' names; without them they are c1, c2, ...  [default: "
        "yes, unless it holds a number, which is an error]",
    ),
    click.option(
        "--comment",
        metavar="PREFIX",
        help="Lines that begin with this are left out.  [default: # and a blank, above the header]",
    ),
    click.option("--encoding", help="Such as cp1252.  [default: UTF-8, or UTF-16 if found]"),
    click.option(
        "--missing",
        type=click.Choice(["error", "drop", "mean", "category"]),
        help="What to do with gaps (empty, NA, nan, null, ?): leave out their rows, put the mean "
        "there, or add an input that is 1 there.  [default: error]",
    ),
)


def _reading_options(command: Any) -> Any:
    """Give a command the options of `Reading`."""
    for option in reversed(READING):
        command = option(command)
    return command


def _reading(options: dict[str, Any]) -> dict[str, Any]:
    """Take the options of `Reading` that were given out of all options."""
    from .tables.text import Reading

    taken = {field.name: options.pop(field.name) for field in fields(Reading)}
    return {name: value for name, value in taken.items() if value is not None}


def _columns_option(name: str, help: str) -> Any:
    return click.option(
        name, metavar="COLS", callback=_names, shell_complete=_complete_columns, help=help
    )


# Fitting and predicting.


@click.command()
@click.argument("data", type=FILE)
@_columns_option("--target", "The column to predict, or several numbers: a,b.")
@_columns_option("--features", "The columns to predict it from.  [default: all others]")
@_columns_option("--drop", "Columns to leave out.")
@_columns_option("--categorical", "Columns to read as texts, though they hold numbers.")
@_reading_options
@click.option(
    "--task",
    type=click.Choice(["auto", "regression", "classification"]),
    default="auto",
    show_default=True,
    help="Numbers or classes. A target of texts, or of at most 10 different whole numbers (two "
    "rows each on average), is taken for classes.",
)
@click.option(
    "--hidden",
    default="20",
    show_default=True,
    metavar="SIZES",
    callback=_sizes,
    help="Units of the hidden layers, such as 20,10; 0 for none.",
)
@click.option(
    "--activation",
    default="tanh",
    show_default=True,
    callback=_known("activation", _activations),
    shell_complete=_one_of(_activations),
    help="Of the hidden layers.",
)
@click.option(
    "--loss",
    shell_complete=_one_of(_losses),
    help="mse, mae, huber:1.0, quantile:0.9, ...  [default: mse, or softmax_ce for classes]",
)
@click.option(
    "--method",
    default="adam",
    show_default=True,
    callback=_known("method", _methods),
    shell_complete=_one_of(_methods),
)
@click.option("--lr", type=float, help="The method's rate.  [default: the method's]")
@click.option("--epochs", type=int, default=100, show_default=True)
@click.option(
    "--batch-size",
    default="auto",
    show_default=True,
    callback=_batch_size,
    metavar="N",
    help="Rows of a step, or 'all'; auto is 32 for the first-order methods.",
)
@click.option("--l2", type=float, default=0.0, help="Penalty l2/2·‖W‖² on the weights.")
@click.option("--l1", type=float, default=0.0, help="Penalty l1·Σ|w| on the weights.")
@click.option(
    "--scale",
    type=click.Choice(["standard", "minmax", "none"]),
    default="standard",
    show_default=True,
    help="Scale the columns inside; the model takes them as they are.",
)
@click.option(
    "--test",
    type=float,
    default=0.2,
    show_default=True,
    metavar="SHARE",
    help="Of the rows, held out and scored at the end.",
)
@click.option(
    "--validation",
    type=float,
    default=0.0,
    show_default=True,
    metavar="SHARE",
    help="Of the rows, watched during the training.",
)
@click.option("--patience", type=int, metavar="N", help="Stop after N epochs without progress.")
@click.option("--max-time", type=float, metavar="SECONDS", help="Stop after so long.")
@click.option("--seed", type=click.IntRange(min=0), help="Of all that is drawn.  [default: new]")
@click.option(
    "--dtype", type=click.Choice(["float64", "float32"]), default="float64", show_default=True
)
@click.option("--threads", type=int, default=1, show_default=True)
@click.option("--backend", help="c, numba or numpy.")
@click.option(
    "--out",
    type=click.Path(dir_okay=False),
    default="model.safetensors",
    show_default=True,
    help="Where the model goes.",
)
@click.option("--plot", type=click.Path(dir_okay=False), help="Draw the fit into this file.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def fit(data: str, out: str, plot: str | None, as_json: bool, **options: Any) -> None:
    """Fit a network to a table.

    DATA is a file of text such as CSV, may be packed (gz, bz2, xz, zip), or is Parquet. Columns of
    texts become one input per text, which the model knows as the categories of the column.
    """
    from ..reports.words import Status
    from .tables.fitting import fit_table
    from .tables.text import Reading

    _require_place(out, "--out", {data: DATA})
    if plot is not None:
        _require_place(plot, "--plot", {data: DATA, out: MODEL})
        _require_figures(plot)
    reading = Reading(**_reading(options))
    options["scale"] = None if options["scale"] == "none" else options["scale"]
    options = {k: v for k, v in options.items() if v is not None or k == "batch_size"}
    table_fit = fit_table(
        data, reading=reading, warn=lambda text: note(f"warning: {text}"), **options
    )
    interrupted = table_fit.result.status == Status.INTERRUPTED
    if interrupted and not table_fit.result.nfev:
        raise KeyboardInterrupt
    table_fit.model.save(out)
    files = {"model": out}
    if plot is not None:
        _draw(table_fit, plot)
        files["plot"] = plot
    if as_json:
        history = {name: losses.tolist() for name, losses in table_fit.result.history.items()}
        table = {
            "read": table_fit.read,
            "columns": table_fit.columns,
            "warnings": table_fit.warnings,
            "advice": table_fit.advice or None,
        }
        sections = _sections(table_fit.model) | {"table": table, "history": history}
        click.echo(as_json_text(files | sections))
    else:
        _print_fit(table_fit, files)
    if interrupted:
        raise KeyboardInterrupt


def _draw(table_fit: TableFit, path: str) -> None:
    from ..common.files import replacing

    X, y = table_fit.held_out if len(table_fit.held_out[0]) else (None, None)
    figure = table_fit.result.plot(X, y, classes=table_fit.model.target.classes)
    with replacing(path) as file:
        figure.savefig(file, format=os.path.splitext(path)[1][1:])


def _require_place(path: str, option: str, taken: dict[str, str]) -> None:
    """Raise ValueError if a file of this path could not be written, or would replace one of these.

    `taken` says of each path what it is.
    """
    folder = os.path.dirname(os.path.abspath(path))
    if not os.path.isdir(folder):
        raise ValueError(f"{option}: there is no folder {folder}; make it first")
    for other, what in taken.items():
        if os.path.isfile(path) and os.path.isfile(other):
            same = os.path.samefile(path, other)
        else:
            same = not os.path.exists(path) and os.path.abspath(path) == os.path.abspath(other)
        if same:
            raise ValueError(f"{option} is {path}, {what}; name another file")


def _require_figures(path: str) -> None:
    """Raise ImportError without Matplotlib, ValueError if it cannot write this kind of file."""
    from ..common.errors import unknown_name

    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ImportError(
            "--plot needs Matplotlib; install it with: pip install 'fastbp[demo]'"
        ) from None
    kind, known = os.path.splitext(path)[1][1:], Figure().canvas.get_supported_filetypes()
    if kind.lower() not in known:
        raise ValueError(f"--plot: {unknown_name('kind of file', kind, known)}")


def _print_fit(table_fit: TableFit, files: dict[str, str]) -> None:
    model, result = table_fit.model, table_fit.result
    target, training = model.target, model.training
    rows, score = training["rows"], training["score"]
    click.echo(f"table     {table_fit.read}")
    click.echo(printable(f"target    {', '.join(target.names)}: {_task(model)}"))
    for line in _column_lines(table_fit.columns):
        click.echo(printable(line))
    click.echo(f"network   {model.net.sizes}, {model.net.dtype}, {model.net.n_params} parameters")
    click.echo(f"method    {result.method}, loss {target.loss}, backend {result.backend}")
    counts = ", ".join(f"{count} {name}" for name, count in rows.items() if count)
    click.echo(f"rows      {counts}; drawn with seed {training['seed']}\n")
    for line in _curve(result.history):
        click.echo(line)
    click.echo(f"\n{result.message} in {training['seconds']:.3g} s")
    if "best" in training:
        best = training["best"]
        click.echo(f"best validation loss {best['val_loss']:.4g} in epoch {best['epoch']}")
    value = "not defined for one row" if score["value"] is None else f"{score['value']:.4g}"
    unscaled = " in unscaled units" if target.classes is None else ""
    click.echo(
        f"{score['name']} on the {score['rows']} rows: {value} (loss {score['loss']:.4g}{unscaled})"
    )
    if table_fit.advice:
        click.echo(table_fit.advice)
    for kind, path in files.items():
        click.echo(printable(f"wrote the {kind} to {path}"))


def _column_lines(columns: dict[str, str]) -> Iterator[str]:
    """A line for each column; of a wide table for those that are not plain numbers."""
    shown = columns
    if len(columns) > MANY_COLUMNS:
        unusual = {name: words for name, words in columns.items() if words != "numbers"}
        shown = dict(islice(unusual.items(), MANY_COLUMNS))
        others = f", {len(unusual)} of them not plain" if unusual else ", all of numbers"
        yield f"columns   {len(columns)}{others}"
    width = min(24, max(map(len, shown), default=0))
    for place, (name, words) in enumerate(shown.items()):
        title = "columns" if shown is columns and not place else ""
        yield f"{title:10}{name:{width}}  {words}"


def _task(model: TableModel) -> str:
    classes = model.target.classes
    if classes is None:
        return model.target.task
    more = ", ..." if len(classes) > MANY_COLUMNS else ""
    shown = ", ".join(map(str, classes[:MANY_COLUMNS]))
    return f"{model.target.task}, {len(classes)} classes: {shown}{more}"


def _curve(history: dict[str, np.ndarray]) -> Iterator[str]:
    """The lines of a table of losses, of epochs 1, 2, 5, 10, 20, 50, ... and the last one."""
    n = len(history["loss"])
    shown = {e for k in range(len(str(n))) for e in (10**k, 2 * 10**k, 5 * 10**k) if e < n} | {n}
    titles = {"loss": "loss", "val_loss": "validation"}
    curves = {title: history[name] for name, title in titles.items() if name in history}
    yield "epoch" + "".join(f"{title:>12}" for title in curves)
    for epoch in sorted(shown - {0}):
        yield f"{epoch:5}" + "".join(f"{losses[epoch - 1]:12.4g}" for losses in curves.values())


@click.command()
@click.argument("model", type=FILE)
@click.argument("data", type=FILE)
@_reading_options
@click.option(
    "--out", type=click.Path(dir_okay=False), help="Where the predictions go.  [default: stdout]"
)
def predict(model: str, data: str, out: str | None, **options: Any) -> None:
    """Predict the target for the rows of a table.

    MODEL is a file that fastbp fit wrote. DATA has its features under the same names, in any order,
    and is read as the fit read its table, unless options say otherwise. Prints CSV, a line for each
    row: the values, or for classes the most probable one and all probabilities; under --missing
    drop empty cells for a row with gaps. If DATA has the target too, prints the score on stderr.
    """
    import numpy as np

    from .tables.columns import encode, gaps_of
    from .tables.model import TableModel
    from .tables.reading import open_table

    if out is not None:
        _require_place(out, "--out", {data: DATA, model: MODEL})
        if is_model(out):
            raise ValueError(f"--out is {out}, which is a model; name another file")
    if not is_model(model) and is_model(data):
        raise ValueError(
            f"{model} is no model, and {data} is; swap them: fastbp predict MODEL DATA"
        )
    table_model = TableModel.load(model)
    target = table_model.target
    reading = replace(table_model.reading, **_reading(options))
    with open_table(data, reading) as table:
        _require_features(table, table_model)
        known = {field.name for field in table_model.features} | set(target.names)
        _note_ignored([name for name in table.names if name and name not in known])
        columns = table_model.columns(reading)
        target_columns = target.columns(reading) if {*target.names} <= {*table.names} else []
        n = table.read([*columns, *target_columns])
    rows = np.arange(n)
    if reading.missing == "drop":
        rows = np.flatnonzero(~gaps_of(columns))
    (X,) = encode(columns, table_model.features, [rows], table_model.net.dtype)
    predictions = table_model.predict(X)
    _note_gaps(columns, reading.missing, n - len(rows))
    with _output(out) as file:
        _write(file, table_model, predictions, rows, n)
    if target_columns:
        _note_score(table_model, predictions, target_columns, rows)


def is_model(path: str) -> bool:
    """Whether there is a file of this path that begins like one of `fastbp.save`."""
    if not os.path.isfile(path):
        return False
    with open(path, "rb") as file:
        return file.read(9)[8:] == b"{"


def _note_gaps(columns: Sequence[Column], missing: str, left_out: int) -> None:
    """Print on stderr what became of gaps."""
    gaps = sum(column.n_gaps for column in columns)
    if left_out:
        note(f"{left_out} rows have gaps and no prediction (--missing drop)")
    elif gaps:
        note(f"{gaps} gaps are filled as the fit did (--missing {missing})")


def _require_features(table: Table, model: TableModel) -> None:
    """Raise ValueError, with the nearest names, if the table lacks features of the model."""
    wanted, present = [field.name for field in model.features], set(table.names)
    missing = [name for name in wanted if name not in present]
    if not missing:
        table.require("feature", wanted)
        return
    names = []
    for name in missing[:10]:
        near = difflib.get_close_matches(name.lower(), [n.lower() for n in table.names], n=1)
        nearest = next((n for n in table.names if near and n.lower() == near[0]), None)
        names.append(repr(name) + (f" (it has {nearest!r})" if nearest else ""))
    more = " ..." if len(missing) > 10 else ""
    raise ValueError(
        f"{table.path} lacks {', '.join(names)}{more}; expected the columns that the model was "
        f"fitted to"
    )


def _note_ignored(names: Sequence[str]) -> None:
    if names:
        more = f" and {len(names) - 20} more" if len(names) > 20 else ""
        note(f"the model does not take {', '.join(map(repr, names[:20]))}{more}: ignored")


def _note_score(
    model: TableModel, predictions: np.ndarray, columns: Sequence[Any], rows: np.ndarray
) -> None:
    """Print on stderr the score of the predictions, or why the target columns give none."""
    target = model.target
    try:
        for column in columns:
            if column.fault:
                raise ValueError(column.fault)
        y = target.values(columns, rows)
    except ValueError as error:
        note(f"no score: {error}")
        return
    note(f"{target.score_name} {target.score(predictions, y):.4g} on {len(y)} rows")


def note(text: str) -> None:
    """Print one line on stderr."""
    click.echo(printable(f"fastbp: {' '.join(text.split())}"), err=True)


@contextlib.contextmanager
def _output(path: str | None) -> Iterator[TextIO]:
    """The file to write to; stdout without a path."""
    if path is not None:
        from ..common.files import replacing

        with replacing(path) as binary:
            file = io.TextIOWrapper(binary, encoding="utf-8", newline="")
            yield file
            file.flush()
            file.detach()
        return
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8", newline="")  # as the file of the model
    yield sys.stdout


def _write(
    file: TextIO, model: TableModel, predictions: np.ndarray, rows: np.ndarray, n: int
) -> None:
    """Write predictions (rows, n_columns) or probabilities (rows, n_classes) of n rows as CSV."""
    target = model.target
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(target.prediction_names)
    lines: Iterable[Any] = predictions
    if (classes := target.classes) is not None:
        labels = predictions.argmax(axis=1)
        lines = ([classes[k], *row] for k, row in zip(labels, predictions, strict=True))
    if len(rows) < n:
        predicted = dict(zip(rows.tolist(), lines, strict=True))
        nothing = [""] * len(target.prediction_names)
        lines = (predicted.get(k, nothing) for k in range(n))
    writer.writerows(lines)


# The description of a model.


def describe(path: str) -> dict[str, Any]:
    """What `fastbp info` prints of a file of `fastbp.save`, in sections."""
    from ..io import load
    from .tables.model import KIND, TableModel

    net, _, state, meta = load(path)
    if meta.get("kind") == KIND:
        return {"model": path} | _sections(TableModel.load(path))
    sections = {"model": path, "network": _network(net), "meta": meta}
    return sections | ({} if state is None else {"state": list(state)})


def _sections(model: TableModel) -> dict[str, Any]:
    target = model.target
    asked = {
        field.name: value
        for field in fields(model.reading)
        if (value := getattr(model.reading, field.name)) != field.default
    }
    return {
        "network": _network(model.net),
        **({"reading": asked} if asked else {}),
        "features": {
            field.name: "numbers" if field.levels is None else list(field.levels)
            for field in model.features
        },
        "target": {
            "columns": list(target.names),
            "task": target.task,
            "classes": None if target.classes is None else list(target.classes),
            "loss": target.loss,
        },
        "training": model.training,
    }


def _network(net: Any) -> dict[str, Any]:
    layers = {f"layer {k}": repr(layer) for k, layer in enumerate(net.layers)}
    size = {"sizes": net.sizes, "dtype": net.dtype.name, "parameters": net.n_params}
    return size | layers


def plain(content: dict[str, Any]) -> dict[str, Any]:
    """What `describe` or `fastbp.show_config` returned, its values as texts for people."""
    sections: dict[str, Any] = {}
    for title, section in content.items():
        if title == "training" and "score" in section:
            section = _training_words(section)
        if isinstance(section, dict):
            known = [(name, value) for name, value in section.items() if value is not None]
            rows = {name: _words(value) for name, value in known[:MANY_ROWS]}
            left_out = len(known) - len(rows)
            sections[title] = rows | ({"...": f"{left_out} more, see --json"} if left_out else {})
        else:
            sections[title] = _words(section)
    return sections


def _training_words(record: dict[str, Any]) -> dict[str, Any]:
    """The record of a fit with its status and score in words."""
    from ..reports.words import Status

    score = record["score"]
    value = "not defined" if score["value"] is None else f"{score['value']:.4g}"
    words = {
        "status": Status(record["status"]).word,
        "score": f"{score['name']} {value} on the {score['rows']} rows, loss {score['loss']:.4g}",
    }
    return record | words


def _words(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_words(entry)}" for name, entry in value.items())
    if isinstance(value, list):
        return " | ".join(map(_words, value))
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def as_json_text(content: Any) -> str:
    """The content as JSON; NaN and infinity, which JSON does not have, become null."""
    return json.dumps(_finite(content), indent=1)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(entry) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
