"""What all commands share: how results, progress and errors are shown, and the exit codes."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import re
import signal
import sys
import threading
import traceback
import warnings
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from pfl_mobile.errors import ConfigError, PflError, UserCodeError, shown
from pfl_mobile.files.plain_json import json_text

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from types import FrameType

    from rich.progress import TaskID

OK, FAILED, WRONG, UNFORESEEN, INTERRUPTED = 0, 1, 2, 70, 130
EXIT_CODES = (
    "Exit codes: 0 fine, 1 a check failed, 2 wrong input or environment (the message says how to mend it), "
    "70 a fault of pfl-mobile itself, 130 interrupted."
)

#: Of the commands that train studies: they end, but some users failed and are in none of the figures.
SOME_FAILED = 3

STUDY_EXIT_CODES = (
    "Exit codes: 0 fine, 1 training failed: more than 20 % of the users failed, or it diverged, so there is no "
    "verdict, 2 wrong input or environment (the message says how to mend it), 3 done, but some users "
    "failed (they are named) and are in none of the figures, 130 interrupted."
)
#: Set to 1, shows the traceback of a fault of pfl-mobile itself, as the option ``--debug`` does.
DEBUG = "PFL_DEBUG"


Json = Annotated[
    bool, typer.Option("--json", help="Print one JSON value on standard output and nothing else.")
]

_USAGE_ERROR: type[Exception] = next(c for c in typer.BadParameter.__mro__ if c.__name__ == "ClickException")


def console(*, error: bool = False, file: TextIO | None = None) -> Console:
    """A console on the present standard output or error, or on a file."""
    return Console(stderr=error, file=file, highlight=False, soft_wrap=True)


def run(app: typer.Typer, name: str, arguments: Sequence[str] | None = None) -> int:
    """Run a command line and return its exit code.

    An exception that nobody foresaw is told in a few lines, with how to report it; its traceback is shown with
    ``--debug`` anywhere on the line, or ``PFL_DEBUG=1``.
    """
    args = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in args or os.environ.get(DEBUG, "") not in ("", "0")
    args = [arg for arg in args if arg != "--debug"]
    as_json = "--json" in args
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a name may hold what the terminal's encoding has not
            stream.reconfigure(errors="backslashreplace")
    logging.getLogger("torch.utils._pytree").addFilter(_not_of_torchao)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"torch\.")  # nothing in them is for who runs a command
        warnings.showwarning = _show_warning
        return _run(app, name, args, as_json, debug)


def _not_of_torchao(record: logging.LogRecord) -> bool:
    """Drops what PyTorch says at the import of torchao, which ExecuTorch brings, of how torchao is written."""
    return "'KernelPreference'> is an Enum subclass" not in record.getMessage()


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """Show a warning: one of ours as a note, others as Python does."""
    package = Path(__file__).parents[1]
    if category is UserWarning and Path(filename).is_relative_to(package):
        console(error=True).print(f"note: {message}", markup=False)
    else:
        text = warnings.formatwarning(message, category, filename, lineno, line)
        print(text, end="", file=file or sys.stderr)


#: The command that an app with all its groups is. Making it reads the signature of every function, so it is made once
#: where one process runs many command lines.
command_of = cache(typer.main.get_command)


def _run(app: typer.Typer, name: str, args: list[str], as_json: bool, debug: bool) -> int:
    try:
        code = command_of(app).main(args, prog_name=name, standalone_mode=False)
    except PflError as error:
        return _show(error, as_json)
    except typer.Abort:
        return INTERRUPTED
    except KeyboardInterrupt:
        return INTERRUPTED
    except _USAGE_ERROR as error:
        error.show()  # type: ignore[attr-defined]
        if as_json:
            mend = f"run: {name} --help"
            print_json({"error": {"type": "UsageError", "message": _usage(error), "mend": mend}})
        return int(getattr(error, "exit_code", WRONG))
    except BrokenPipeError:
        return _nobody_reads()
    except Exception as error:
        return _unforeseen(error, name, as_json, debug)
    return code if isinstance(code, int) else OK


def _nobody_reads() -> int:
    """Whoever read the output went away (``pfl ... | head``): end quietly, as other commands do."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(
            os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno()
        )  # so that Python's last flush fails no more
    return FAILED


def _unforeseen(error: Exception, name: str, as_json: bool, debug: bool) -> int:
    """Tell of a fault of this program: what, where, and how to report it."""
    out = console(error=True)
    if debug:
        out.print(escape("".join(traceback.format_exception(error))), style="dim")
    ours = [frame for frame in traceback.extract_tb(error.__traceback__) if "pfl_" in frame.filename]
    where = f" ({Path(ours[-1].filename).name}, line {ours[-1].lineno}, in {ours[-1].name})" if ours else ""
    said = shown(str(error)).strip().splitlines()
    message = f"{type(error).__name__}: {said[0][:300] if said else 'no message'}{where}"
    mend = (
        f"this is a fault of {name} or of what it runs: run the same command with --debug, and report all of its "
        "output with the versions that `pip freeze` shows"
    )
    out.print(f"[bold red]unforeseen error[/] {escape(message)}")
    out.print(f"[bold]mend:[/] {escape(mend)}")
    if as_json:
        print_json({"error": {"type": "UnforeseenError", "message": message, "mend": mend}})
    return UNFORESEEN


def _usage(error: Exception) -> str:
    return str(getattr(error, "format_message", lambda: str(error))())


def _show(error: PflError, as_json: bool) -> int:
    out = console(error=True)
    if isinstance(error, UserCodeError) and error.__cause__ is not None:
        found = traceback.TracebackException.from_exception(error.__cause__)
        ours = ("<frozen importlib", "pfl_exporters", "user_code.py")
        found.stack = traceback.StackSummary.from_list(
            [frame for frame in found.stack if not any(name in frame.filename for name in ours)]
        )
        for line in found.format(chain=True):
            out.print(escape(line), end="", style="dim")
    out.print(f"[bold red]error[/] ({error.code}): {escape(error.message)}")
    out.print(f"[bold]mend:[/] {escape(error.mend)}")
    if as_json:
        print_json({"error": {"type": error.code, "message": error.message, "mend": error.mend}})
    return error.exit_code


def print_json(value: Any) -> None:
    """Print a JSON value; numbers that JSON does not have (NaN, infinity) become null."""
    print(json_text(value, indent=2), flush=True)


def show_left_out(counts: Mapping[str, int] | None) -> None:
    """Say how many messages were left out, by reason; nothing where none was, or nobody counted."""
    from pfl_mobile.data.usertext import said_left_out

    if counts:
        console().print(f"left out: {said_left_out(counts)}", markup=False)


def table(
    columns: Sequence[str], rows: Iterable[Sequence[object]], *, title: str = "", right: Iterable[int] = ()
) -> Table:
    """A plain table; ``right`` are the indexes of the columns with numbers."""
    found = Table(title=title or None, title_justify="left", box=None, pad_edge=False, header_style="bold")
    for index, column in enumerate(columns):
        found.add_column(column, justify="right" if index in set(right) else "left", overflow="fold")
    for row in rows:
        found.add_row(*(escape("-" if cell is None else str(cell)) for cell in row))
    return found


def bytes_of(text: str) -> int:
    """Bytes of a size as people write it: ``200MB``, ``1.5 GB``, ``64MiB``, or a number of bytes.

    Raises:
        ConfigError: it is none.
    """
    found = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?) ?(?:([kMG])(i?))?B?", text.strip(), re.IGNORECASE)
    if found is None or not float(found[1]):
        raise ConfigError(f"{text!r} is no size", mend="write it like 200MB, 1.5GB or 64MiB")
    base = 1024 if found[3] else 1000
    return int(float(found[1]) * base ** (1 + "kmg".index(found[2].lower()) if found[2] else 0))


def size(count: float | None) -> str:
    """Bytes for people: ``1.5 MB`` (powers of 1000)."""
    if count is None:
        return "-"
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"


class Reporter:
    """Shows what is being done on standard error: a bar with the time left on a terminal, else a line a step.

    Calls take a line of text and, where it is known, the fraction that is done.

    Args:
        file: to write to, by default the present standard error.
    """

    def __init__(self, file: TextIO | None = None) -> None:
        """Nothing is shown before the first call."""
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

        self._console = console(error=True, file=file)
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TimeElapsedColumn(),
            TextColumn("[dim]left"),
            TimeRemainingColumn(),
            console=self._console,
            transient=True,
        )
        self._task: TaskID | None = None
        self._last = ""
        self._quarter = 0

    def __enter__(self) -> Reporter:
        """Use it in a ``with`` block, so that the bar goes away at the end."""
        return self

    def __exit__(self, *exc: object) -> None:
        """Remove the bar."""
        if self._task is not None:
            self._progress.stop()

    def note(self, text: str) -> None:
        """Say something on a line of its own, above the bar."""
        self._console.print(escape(text))

    def __call__(self, text: str, fraction: float | None = None) -> None:
        """Say what is being done, and how much of it is (0 to 1)."""
        if not self._console.is_terminal:
            # a log gets a line for a new step and for each quarter of a long one
            head = text.split(",")[0]  # figures behind a comma change all the time
            quarter = int(4 * (fraction or 0.0))
            if head != self._last or quarter > self._quarter:
                share = "" if fraction is None else f" ({100 * fraction:.0f} %)"
                self._console.print(escape(text + share))
            self._last, self._quarter = head, quarter
            return
        if self._task is None:
            self._progress.start()
            self._task = self._progress.add_task("", total=None)
        if text.split(",")[0] != self._last:
            self._progress.reset(self._task, total=None)
        self._last = text.split(",")[0]
        total = None if fraction is None else 1.0
        self._progress.update(self._task, description=escape(text), total=total, completed=fraction or 0.0)


@contextlib.contextmanager
def interruptible(report: Reporter) -> Iterator[threading.Event]:
    """An event that the first Ctrl-C sets; the second one ends the process as usual."""
    event = threading.Event()

    def on_interrupt(_number: int, _frame: FrameType | None) -> None:
        event.set()
        signal.signal(signal.SIGINT, before)
        report.note("stopping after this step; press Ctrl-C again to stop at once")

    if threading.current_thread() is not threading.main_thread():
        yield event  # only the main thread may set handlers
        return
    before = signal.getsignal(signal.SIGINT)
    signal.signal(signal.SIGINT, on_interrupt)
    try:
        yield event
    finally:
        signal.signal(signal.SIGINT, before)


def percent(metrics: Mapping[str, float], name: str) -> str:
    """A metric for people: recalls in percent, others with four digits."""
    if name not in metrics:
        return "-"
    value = metrics[name]
    from pfl_mobile.local.results import is_recall

    return f"{100 * value:.1f} %" if is_recall(name) else f"{value:.4f}"
