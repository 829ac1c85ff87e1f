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
from typing import TYPE_CHECKING, Any, TextIO

import click

if TYPE_CHECKING:
    import numpy as np

    from .tables.fitting import TableFit
    from .tables.model import TableModel
    from .tables.reading import Table

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


def _delimiter(_: click.Context, parameter: click.Parameter, text: str) -> str:
    delimiter = "\t" if text in ("tab", "\\t") else text
    if len(delimiter) != 1 or delimiter in '\r\n"':
        raise click.BadParameter(f"{text!r} is not one character such as ';', or tab")
    return delimiter


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

    before, comma, name = begun.rpartition(",")
    with contextlib.suppress(Exception):  # a table that cannot be read has no names to complete
        # While an option lacks its value, click has DATA among the remaining arguments.
        data = context.params["data"] or context.args[0]
        with open_table(data, context.params["delimiter"]) as table:
            return [before + comma + n for n in table.names if n and n.startswith(name)]
    return []


_delimiter_option = click.option(
    "--delimiter",
    default=",",
    show_default=True,
    callback=_delimiter,
    is_eager=True,
    help="What separates the cells of DATA; 'tab' for a tab.",
)


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
@_delimiter_option
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
    """Fit a network to a CSV file.

    DATA has a header with the columns' names. Columns of texts become one input per text, which
    the model knows as the categories of the column.
    """
    from ..reports.words import Status
    from .tables.fitting import fit_table

    _require_place(out, "--out", data)
    if plot is not None:
        _require_place(plot, "--plot", data)
        _require_figures(plot)
    options["scale"] = None if options["scale"] == "none" else options["scale"]
    options = {k: v for k, v in options.items() if v is not None or k == "batch_size"}
    table_fit = fit_table(data, **options)
    interrupted = table_fit.result.status == Status.INTERRUPTED
    if interrupted and not table_fit.result.nfev:
        raise KeyboardInterrupt
    table_fit.model.save(out)
    files = {"model": out}
    if plot is not None:
        X, y = table_fit.held_out if len(table_fit.held_out[0]) else (None, None)
        table_fit.result.plot(X, y, classes=table_fit.model.target.classes).savefig(plot)
        files["plot"] = plot
    if as_json:
        history = {name: losses.tolist() for name, losses in table_fit.result.history.items()}
        click.echo(as_json_text(files | _sections(table_fit.model) | {"history": history}))
    else:
        _print_fit(table_fit, files)
    if interrupted:
        raise KeyboardInterrupt


def _require_place(path: str, option: str, data: str) -> None:
    """Raise ValueError if a file of this path could not be written, or would replace the data."""
    folder = os.path.dirname(os.path.abspath(path))
    if not os.path.isdir(folder):
        raise ValueError(f"{option}: there is no folder {folder}; make it first")
    if os.path.exists(path) and os.path.samefile(path, data):
        raise ValueError(f"{option} is {path}, which are the data themselves; name another file")


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
    click.echo(f"target    {', '.join(target.names)}: {_task(model)}")
    click.echo(f"features  {', '.join(field.name for field in model.features)}")
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
    for kind, path in files.items():
        click.echo(f"wrote the {kind} to {path}")


def _task(model: TableModel) -> str:
    classes = model.target.classes
    if classes is None:
        return model.target.task
    return f"{model.target.task}, {len(classes)} classes: {', '.join(map(str, classes))}"


def _curve(history: dict[str, np.ndarray]) -> Iterator[str]:
    """The lines of a table of losses, of epochs 1, 2, 5, 10, 20, 50, ... and the last one."""
    n = len(history["loss"])
    shown = {e for k in range(len(str(n))) for e in (10**k, 2 * 10**k, 5 * 10**k) if e < n} | {n}
    titles = {"loss": "loss", "val_loss": "validation"}
    yield "epoch" + "".join(f"{titles[name]:>12}" for name in history)
    for epoch in sorted(shown - {0}):
        yield f"{epoch:5}" + "".join(f"{losses[epoch - 1]:12.4g}" for losses in history.values())


@click.command()
@click.argument("model", type=FILE)
@click.argument("data", type=FILE)
@_delimiter_option
@click.option(
    "--out", type=click.Path(dir_okay=False), help="Where the predictions go.  [default: stdout]"
)
def predict(model: str, data: str, delimiter: str, out: str | None) -> None:
    """Predict the target for the rows of a CSV file.

    MODEL is a file that fastbp fit wrote. DATA has its features under the same names, in any order.
    Prints CSV: the values, or for classes the most probable one and all probabilities. If DATA has
    the target too, prints the score on stderr.
    """
    import numpy as np

    from .tables.model import TableModel
    from .tables.reading import encode, open_table

    if out is not None:
        _require_place(out, "--out", data)
    table_model = TableModel.load(model)
    target = table_model.target
    with open_table(data, delimiter) as table:
        _require_features(table, table_model)
        known = {field.name for field in table_model.features} | set(target.names)
        _note_ignored([name for name in table.names if name and name not in known])
        columns = table_model.columns()
        target_columns = target.columns() if {*target.names} <= {*table.names} else []
        n = table.read([*columns, *target_columns])
    (X,) = encode(columns, [np.arange(n)], table_model.net.dtype)
    predictions = table_model.predict(X)
    with _output(out) as file:
        _write(file, table_model, predictions)
    if target_columns:
        _note_score(table_model, predictions, target_columns)


def _require_features(table: Table, model: TableModel) -> None:
    """Raise ValueError, with the nearest names, if the table lacks features of the model."""
    missing = [field.name for field in model.features if field.name not in table.names]
    if not missing:
        return
    names = []
    for name in missing:
        near = difflib.get_close_matches(name.lower(), [n.lower() for n in table.names], n=1)
        nearest = next((n for n in table.names if near and n.lower() == near[0]), None)
        names.append(repr(name) + (f" (it has {nearest!r})" if nearest else ""))
    raise ValueError(
        f"{table.path} lacks {', '.join(names)}; expected the columns that the model was fitted to"
    )


def _note_ignored(names: Sequence[str]) -> None:
    if names:
        _note(f"the model does not take {', '.join(map(repr, names))}: ignored")


def _note_score(model: TableModel, predictions: np.ndarray, columns: Sequence[Any]) -> None:
    """Print on stderr the score of the predictions, or why the target columns give none."""
    target = model.target
    try:
        for column in columns:
            if column.fault:
                raise ValueError(column.fault)
        y = target.values(columns)
    except ValueError as error:
        _note(f"no score: {error}")
        return
    _note(f"{target.score_name} {target.score(predictions, y):.4g} on {len(y)} rows")


def _note(text: str) -> None:
    click.echo(f"fastbp: {text}", err=True)


@contextlib.contextmanager
def _output(path: str | None) -> Iterator[TextIO]:
    """The file to write to; stdout without a path."""
    if path is not None:
        with open(path, "w", encoding="utf-8", newline="") as file:
            yield file
        return
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8", newline="")  # as the file of the model
    yield sys.stdout


def _write(file: TextIO, model: TableModel, predictions: np.ndarray) -> None:
    """Write predictions (n, n_columns) or probabilities (n, n_classes) as CSV."""
    target = model.target
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(target.prediction_names)
    if target.classes is None:
        writer.writerows(predictions)
    else:
        for row, label in zip(predictions, predictions.argmax(axis=1), strict=True):
            writer.writerow([target.classes[label], *row])


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
    return {
        "network": _network(model.net),
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


def as_json_text(content: Any) -> str:
    """The content as JSON; NaN and infinity, which JSON does not have, become null."""
    return json.dumps(_finite(content), indent=1)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(entry) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
