"""What the program says on stderr: plain text, never read as markup."""

from rich.console import Console
from rich.text import Text

__all__ = ["complain", "tell", "warn"]


def _print(*parts: str | tuple[str, str]) -> None:
    Console(stderr=True).print(Text.assemble(*parts), highlight=False, soft_wrap=True)


def complain(message: str) -> None:
    """The one sentence before the program stops."""
    _print(("flowmend:", "bold red"), " ", message)


def warn(subject: str, message: str) -> None:
    """Something that went wrong on the way, for example with one file of many."""
    _print((f"{subject}:", "yellow"), " ", message)


def tell(message: str) -> None:
    """A plain line."""
    _print(message)
