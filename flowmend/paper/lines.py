"""JSON-lines files: one result a line, added as it is measured, never rewritten."""

import json
import os
from pathlib import Path

from ..errors import FlowmendError
from ..files import writing

__all__ = ["append", "read"]


def append(path: Path, rows: list[dict]) -> None:
    """Adds rows at the end, in one write; a line that a crash cut off goes first."""
    text = "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows)
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_file():
            whole = path.read_bytes()
            if whole and not whole.endswith(b"\n"):
                os.truncate(path, whole.rfind(b"\n") + 1)
        with path.open("a") as file:
            file.write(text)


def read(path: Path) -> list[dict]:
    """All rows; none where there is no file. A line that a crash cut off is left out.

    Raises:
        FlowmendError: If a line before the last is not JSON.
    """
    if not path.is_file():
        return []
    rows = []
    lines = path.read_text().splitlines()
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            if number == len(lines):
                break
            raise FlowmendError(
                f"Line {number} of '{path}' is not a result: delete that line."
            ) from error
        rows.append(row)
    return rows
