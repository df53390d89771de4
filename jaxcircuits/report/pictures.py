"""Files of pictures."""

import os
from pathlib import Path

PICTURES = (".png", ".svg", ".pdf")


def picture_path(path: str | os.PathLike) -> Path:
    """The path of a picture to draw. Raises ValueError for another ending than those of `PICTURES`."""
    path = Path(path)
    if path.suffix not in PICTURES:
        raise ValueError(f"{path}: expected a picture ending in .png, .svg or .pdf")
    return path
