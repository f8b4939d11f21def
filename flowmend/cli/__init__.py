"""The command line: ``flowmend restore | degrade | train | sample | score | info | demo``."""

from .main import main

__all__ = ["main"]
