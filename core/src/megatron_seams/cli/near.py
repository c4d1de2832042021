"""Files that are not there, and those that are nearly of their name."""

import difflib
from pathlib import Path
from typing import Final

from megatron_seams.errors import ReceiptUnreadable, RecipeInvalid, Refusal

#: A folder with more entries is not searched.
_MOST: Final = 10_000
#: How much of two names is the same, from 0 to 1, where one may be meant by the other.
_ALIKE: Final = 0.75


def near_file(path: Path) -> Path | None:
    """The file of the same kind that the name most likely means, there or in ``recipes``."""
    for folder in (path.parent, Path("recipes")):
        try:
            names = [entry.name for _, entry in zip(range(_MOST), folder.iterdir(), strict=False)]
        except OSError:
            continue
        alike = (name for name in names if Path(name).suffix == path.suffix)
        # Without links that lead nowhere, of which one may be the file that was named.
        stems = [Path(name).stem for name in alike if (folder / name).exists()]
        near = [path.stem] if path.stem in stems else []
        near = near or difflib.get_close_matches(path.stem, stems, n=1, cutoff=_ALIKE)
        if near:
            return folder / f"{near[0]}{path.suffix}"
    return None


def refuse_missing_model(path: Path) -> None:
    """Refuse a recipe or a configuration that is not there.

    Raises:
        Refusal: It is not.
    """
    if not _is_missing(path):
        return
    near = near_file(path)
    raise Refusal(
        [
            RecipeInvalid(
                asked="a model that can be read",
                found=_absence(path),
                next=f"did you mean {near}?" if near else "correct the path",
                file=str(path),
            )
        ]
    )


def refuse_missing_receipt(path: Path) -> None:
    """Refuse a receipt that is not there.

    Raises:
        ReceiptUnreadable: It is not.
    """
    if not _is_missing(path):
        return
    near = near_file(path)
    raise ReceiptUnreadable(
        asked="a receipt that can be read",
        found=_absence(path),
        next=f"did you mean {near}?" if near else "correct the path, or write it from its recipe",
        file=str(path),
    )


def _absence(path: Path) -> str:
    if path.is_symlink():
        return f"it is a link to {path.readlink()}, which is not there"
    return "there is no such file"


def _is_missing(path: Path) -> bool:
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return True
    except (OSError, ValueError):  # there, or no path: whoever reads it says what is wrong
        return False
    return False
