"""The command line: ``fastbp fit``, ``predict``, ``info``, ``demo``, ``bench``, ``warmup`` ...

What a command needs is imported when it runs, so that ``fastbp --help`` answers at once.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Sequence

import click

from ..common.errors import BackendError, DivergenceError
from ..common.release import version
from ..common.terminal import printable
from .table_commands import FILE, as_json_text, describe, fit, note, plain, predict

USER_ERROR = 2
FAILED = 1
INTERRUPTED = 130  # 128 + SIGINT, as shells count


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Parameters
    ----------
    arguments : sequence of str, optional
        ``sys.argv[1:]`` by default.

    Returns
    -------
    int
        The exit status: 0; 1 if a fit diverged or the demo's backends disagree; 2 after a wrong
        argument or file, with one line on stderr; 130 after Ctrl-C.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # µ and θ, which some encodings lack
    try:
        status = commands.main(arguments, prog_name="fastbp", standalone_mode=False)
        sys.stdout.flush()
        return status if isinstance(status, int) else 0
    except (BrokenPipeError, _Unread):  # who read stdout has seen enough, such as head
        with contextlib.suppress(OSError, ValueError):  # nothing is left to be written at the end
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (click.Abort, KeyboardInterrupt):
        return _failure("interrupted", INTERRUPTED)
    except click.ClickException as error:
        return _failure(error.format_message(), USER_ERROR)
    except DivergenceError as error:
        return _failure(str(error), FAILED)
    except (BackendError, ValueError, TypeError, ImportError, OSError) as error:
        return _failure(str(error), USER_ERROR)


class _Unread(Exception):
    """Nobody reads what a command prints any more."""


class _Commands(click.Group):
    """Commands from which BrokenPipeError arrives, which click takes for a failure."""

    def invoke(self, context: click.Context) -> object:
        try:
            return super().invoke(context)
        except BrokenPipeError:
            raise _Unread from None


def _failure(message: str, status: int) -> int:
    """Print a message in one line on stderr, and return the exit status."""
    note(message)
    return status


def _print_version(context: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted:
        click.echo(f"fastbp {version()}")
        context.exit()


@click.group(
    cls=_Commands,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_print_version,
    help="Print the version.",
)
@click.pass_context
def commands(context: click.Context) -> None:
    """Fast backpropagation for small networks on the CPU."""
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


commands.add_command(fit)
commands.add_command(predict)


@commands.command()
@click.argument("model", type=FILE, required=False)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def info(model: str | None, as_json: bool) -> None:
    """Show versions, backends and instruction set, or what MODEL is.

    MODEL is a file that fastbp fit or fastbp.save wrote.
    """
    if model is None:
        from ..backends.configuration import show_config

        content = show_config(mode="dicts")
    else:
        content = describe(model)
    assert content is not None
    if as_json:
        click.echo(as_json_text(content))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(show_header=False)
    table.add_column(style="bold")
    table.add_column()
    table.add_column(overflow="fold")
    for title, section in plain(content).items():
        rows = section.items() if isinstance(section, dict) else [("", section)]
        for place, (name, value) in enumerate(rows):
            table.add_row("" if place else title, printable(name), printable(value))
        table.add_section()
    Console(highlight=False, markup=False).print(table)


@commands.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print a script that completes fastbp's commands in a shell.

    \b
    bash: eval "$(fastbp completion bash)" in ~/.bashrc
    zsh:  eval "$(fastbp completion zsh)" in ~/.zshrc
    fish: fastbp completion fish | source in ~/.config/fish/config.fish
    """
    from click.shell_completion import get_completion_class

    complete = get_completion_class(shell)
    assert complete is not None
    click.echo(complete(commands, {}, "fastbp", "_FASTBP_COMPLETE").source())


@commands.command()
@click.option(
    "--out", default="fastbp-demo", show_default=True, help="The folder for figures and demo.json."
)
@click.option(
    "--backend",
    "backends",
    multiple=True,
    metavar="NAME",
    help="c, numba or numpy; may be given several times. All that can run here by default; the "
    "NumPy reference always runs.",
)
@click.option("--quick", is_flag=True, help="Fewer epochs and repetitions.")
def demo(out: str, backends: tuple[str, ...], quick: bool) -> int:
    """Fit small networks to real data on every backend.

    Compares results and times, and draws figures. Needs scikit-learn and Matplotlib:
    pip install 'fastbp[demo]'
    """
    from .. import demo as jobs

    report = jobs.run(out, backends, quick)
    try:
        jobs.check_agreement(report)
    except BackendError as error:
        return _failure(str(error), FAILED)
    return 0


@commands.command()
@click.option("--quick", is_flag=True, help="Fewer cases and repetitions.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def bench(quick: bool, as_json: bool) -> None:
    """Time the backends beside hand-written NumPy on this machine."""
    from . import bench as benchmark

    benchmark.run(quick, as_json)


@commands.command()
@click.option(
    "--dtype",
    type=click.Choice(["both", "float64", "float32"]),
    default="both",
    show_default=True,
    help="For networks of which dtype.",
)
def warmup(dtype: str) -> None:
    """Compile ahead what the Numba backend needs, so that no fit has to wait for it."""
    from ..backends.warm_up import warmup as compile_ahead

    done = compile_ahead(dtype)
    click.echo(
        f"compiled {done.compiled} functions in {done.seconds:.1f} s, {done.found} were there "
        f"already; they are kept in {done.folder}"
    )
