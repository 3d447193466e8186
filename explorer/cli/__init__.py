"""The command line: Typer commands, a thin user of the library. The only package that prints or exits.

Exit codes: 0 done, 1 internal error, 2 bad input, 130 interrupted. Documents go to stdout, messages to stderr. Heavy
imports stand inside the commands, so that `--help` answers at once.
"""

from __future__ import annotations

import logging
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from explorer import __version__
from explorer.cli import console
from explorer.cli.data import data_app
from explorer.cli.fidelity import fidelity
from explorer.cli.network import inspect, measure, space
from explorer.cli.profile import profile
from explorer.cli.reproduce import reproduce
from explorer.cli.run import export, train
from explorer.cli.search import search
from explorer.cli.study import pareto, studies_app, table
from explorer.cli.system import doctor
from explorer.cli.verify import evaluate, verify
from explorer.errors import ExplorerError, TrialError, UserError, ran_out_of_memory


class _Boundary(TyperGroup):
    """Turns what the library raises into one readable message and an exit code; a traceback only with `--debug`."""

    def invoke(self, ctx: Any) -> Any:
        try:
            with _interruptible():
                return super().invoke(ctx)
        except UserError as error:
            self._tell(ctx, error, str(error), 2)
        except TrialError as error:
            self._tell(ctx, error, str(error), 1)
        except ExplorerError as error:
            self._tell(ctx, error, f"internal error: {type(error).__name__}: {error}", 1)
        except (KeyboardInterrupt, typer.Abort):
            console.error("interrupted; everything finished is kept, the same command goes on")
            raise typer.Exit(130) from None
        except (MemoryError, RuntimeError) as error:  # typer.Abort and Exit are RuntimeErrors too
            if not ran_out_of_memory(error):
                raise
            what = (str(error).strip() or type(error).__name__).partition("\n")[0]
            advice = "use smaller images, a smaller batch or fewer processes at once; everything finished is kept"
            self._tell(ctx, error, f"memory ran out: {what}; {advice}", 1)
        except BrokenPipeError:
            sys.stderr.close()
            raise typer.Exit(1) from None

    def _tell(self, ctx: Any, error: Exception, message: str, code: int) -> None:
        if ctx.params.get("debug"):
            raise error
        console.error(message)
        raise typer.Exit(code) from None


def _interrupt(_signal: int, _frame: object) -> None:
    raise KeyboardInterrupt


@contextmanager
def _interruptible() -> Iterator[None]:
    """SIGTERM and a closed terminal interrupt as SIGINT does, and an interrupt that Python drops comes once more.

    It drops what is raised in a weak reference's callback or a finalizer; a signal is handled at the first line of Python after
    torch's long calls, and that often is one.
    """
    main, before = threading.main_thread(), sys.unraisablehook
    if threading.current_thread() is not main:  # where signals are not ours
        yield
        return
    again: list[threading.Timer] = []

    def hear(dropped: sys.UnraisableHookArgs) -> None:
        if not issubclass(dropped.exc_type, KeyboardInterrupt):
            before(dropped)
            return
        assert main.ident is not None
        again.append(threading.Timer(0.02, signal.pthread_kill, (main.ident, signal.SIGTERM)))
        again[-1].start()

    signal.signal(signal.SIGTERM, _interrupt)
    if signal.getsignal(signal.SIGHUP) is signal.SIG_DFL:  # else nohup has it ignored
        signal.signal(signal.SIGHUP, _interrupt)
    sys.unraisablehook = hear
    try:
        yield
    finally:
        sys.unraisablehook = before
        for timer in again:
            timer.cancel()


app = typer.Typer(
    cls=_Boundary,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Find the Swin-like vision transformer that is the most accurate within your latency on your hardware.",
    epilog="Example: swinexplore search --space swinfree.yaml --trials 200",
)


def _print_version(value: bool) -> None:
    if value:
        console.document(f"swinexplore {__version__}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=_print_version, is_eager=True)
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Only results and errors.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Also what the library logs.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Tracebacks instead of messages.")] = False,
) -> None:
    """Options for all commands."""
    console.configure(quiet=quiet)
    level = logging.DEBUG if verbose else logging.ERROR if quiet else logging.WARNING
    shown = logging.StreamHandler()
    shown.setLevel(level)  # a --log-file may want more
    shown.setFormatter(logging.Formatter("%(levelname)s %(name)s: %(message)s"))
    library = logging.getLogger("explorer")
    for handler in library.handlers:
        handler.close()
    library.handlers[:] = [shown]
    library.propagate = False
    library.setLevel(level)


app.command(epilog="Example: swinexplore search --space swinfree.yaml --trials 200 --max-latency 2.0")(search)
app.command(epilog="Example: swinexplore pareto --max-latency 2.0 --plot front.png")(pareto)
app.command(epilog="Example: swinexplore verify --seeds 3")(verify)
app.command(epilog="Example: swinexplore evaluate Swin-Free-B-BR")(evaluate)
app.command(epilog="Example: swinexplore table --to front.csv")(table)
app.command(epilog="Example: swinexplore export Swin-Free-B-BR-DR14 --to runs/dr14")(export)
app.command(epilog="Example: swinexplore train runs/dr14/run.yaml --data IMAGENET_FOLDER")(train)
app.command(epilog="Example: swinexplore space swinfree.yaml")(space)
app.command(epilog="Example: swinexplore inspect Swin-Free-B-BR-DR14")(inspect)
app.command(epilog="Example: swinexplore measure Swin-T Swin-Free-T-BR --backend onnxruntime")(measure)
app.command(epilog="Example: swinexplore profile Swin-T --backend onnxruntime")(profile)
app.command(epilog="Example: swinexplore reproduce table6")(reproduce)
app.command(epilog="Example: swinexplore fidelity --seeds 3")(fidelity)
app.add_typer(studies_app, name="studies")
app.add_typer(data_app, name="data")
app.command(epilog="Example: swinexplore doctor")(doctor)
