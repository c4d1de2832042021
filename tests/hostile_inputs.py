"""The process that reads every hostile input, within limits, and a good plugin beside each.

It prints what came of each, as JSON, one a line::

    python hostile_inputs.py FOLDER
"""

import contextlib
import importlib
import importlib.machinery
import json
import resource
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hostile_installed  # noqa: F401 - registers its inputs
import hostile_megatrons  # noqa: F401 - likewise
import hostile_models  # noqa: F401 - likewise
import hostile_sources  # noqa: F401 - likewise
from hostile import INPUTS, MEMORY, SECONDS, installed
from megatron_seams.errors import Refusal, SeamsError
from megatron_seams.seams.discovery import discover
from seam_support import install_plugin, manifest_table


def _too_long(*_: object) -> None:
    message = f"longer than {SECONDS} s"
    raise TimeoutError(message)


@contextlib.contextmanager
def _first(finder: Any) -> Iterator[None]:
    path, finders = [*sys.path], [*sys.meta_path]
    if finder is not None:
        sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.path[:], sys.meta_path[:] = path, finders
        sys.path_importer_cache.clear()


def run(name: str, folder: Path) -> dict[str, Any]:
    """Write an input, and read it."""
    case, site = INPUTS[name], folder / "site"
    install_plugin(site, "acme-sound", {"acme_sound": manifest_table("sound", "family_sound")})
    with _first(case.finder):
        sys.path.insert(0, str(site))
        importlib.invalidate_caches()
        place = site if case.read is installed else folder / "input"
        place = case.make(place) or place
        started = time.monotonic()
        signal.alarm(SECONDS)
        try:
            codes = case.read(place)
        except Refusal as refusal:
            codes = sorted({reason.code for reason in refusal.reasons})
        except SeamsError as fault:
            codes = [fault.code]
        except Exception as error:  # noqa: BLE001 - a failure of the test, by its name
            codes = [f"{type(error).__name__}: {error!s:.300}"]
        finally:
            signal.alarm(0)
        seconds = time.monotonic() - started
        listed = [seam.name for seam in discover().seams]
    return {"codes": codes, "seconds": seconds, "good": "sound" in listed}


def main(folder: Path) -> None:
    """Read every input, and print the results as JSON, one a line."""
    signal.signal(signal.SIGALRM, _too_long)
    sys.path[:] = [entry for entry in sys.path if entry]
    for number, name in enumerate(INPUTS):
        inner = folder / str(number)
        inner.mkdir()
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, resource.RLIM_INFINITY))
        print(json.dumps({"name": name, **run(name, inner)}), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
