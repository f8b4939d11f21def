"""The command-line program and its one place for errors."""

import sys

import typer

from ..errors import FlowmendError
from .console import complain, tell
from .convert import convert
from .degrade import degrade
from .demo import demo
from .inspect import info, sample, score
from .paper import paper
from .restore import restore
from .train import train

__all__ = ["app", "main"]

UsageError, ClickException = typer.BadParameter.__mro__[1:3]
"""What typer raises for a wrong command line, wherever its version keeps it."""
INTERRUPTED = 130
"""Exit code after Ctrl-C."""

app = typer.Typer(
    name="flowmend",
    help="Restore images with one pre-trained generative flow, whatever was done to them.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
for _command in (restore, degrade, train, sample, score, info, convert, demo, paper):
    app.command()(_command)


@app.callback()
def _program() -> None:
    """Restore images with one pre-trained generative flow, whatever was done to them."""


def main(arguments: list[str] | None = None) -> None:
    """Runs the program; an error a user can put right is one sentence and a non-zero exit code."""
    try:
        code = app(arguments, standalone_mode=False) or 0
    except ClickException as error:
        if error.format_message():
            complain(error.format_message())
            tell(_hint(error))
        code = 2
    except FlowmendError as error:
        complain(str(error))
        code = 1
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and "memory" not in str(error):
            raise
        complain(
            "There is not enough memory for this: take fewer or smaller images, or a smaller "
            "prior."
        )
        code = 1
    if code == INTERRUPTED:
        complain("stopped; what was finished is kept.")
    sys.exit(code)


def _hint(error: ClickException) -> str:
    context = getattr(error, "ctx", None)
    command = context.command_path if context is not None else "flowmend"
    return f"Try '{command} --help'."
