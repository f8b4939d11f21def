"""The command-line program and its one place for errors."""

import sys

import typer
from rich.console import Console

from ..errors import FlowmendError
from . import train as train_command

__all__ = ["app", "main"]

app = typer.Typer(
    name="flowmend",
    help="Restore images with one pre-trained generative flow, whatever was done to them.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
app.command("train")(train_command.train)


@app.callback()
def _program() -> None:
    """Restore images with one pre-trained generative flow, whatever was done to them."""


def main(arguments: list[str] | None = None) -> None:
    """Runs the program; an error a user can put right is one sentence and a non-zero exit code."""
    console = Console(stderr=True)
    try:
        app(arguments)
    except FlowmendError as error:
        console.print(f"[bold red]flowmend:[/] {error}", highlight=False, soft_wrap=True)
        sys.exit(1)
    except KeyboardInterrupt:
        console.print("[bold red]flowmend:[/] stopped; what was finished is kept.")
        sys.exit(130)
