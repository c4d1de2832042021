"""Upstream's real parser and dataclasses, for comparison: run with a Megatron on the path.

``python real_parser.py FILE`` prints as JSON what argparse and dataclasses say of them, and the
values of each command line of the JSON list in FILE.
"""

import argparse
import dataclasses
import enum
import inspect
import json
import sys
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

# 0.17 and 0.18 import it where they read configuration files, which nothing here does.
sys.modules.setdefault("yaml", MagicMock())

from megatron.core.transformer.transformer_config import MLATransformerConfig  # noqa: E402
from megatron.training.arguments import add_megatron_arguments  # noqa: E402

try:
    from megatron.core.models.hybrid.hybrid_model import HybridModel
except ImportError:  # its name before 0.18
    from megatron.core.models.mamba.mamba_model import MambaModel as HybridModel


def plain(value: Any) -> Any:
    """A value as JSON; what has no plain form is a word in brackets that no default is."""
    if isinstance(value, list | tuple):
        return [plain(part) for part in value]
    if isinstance(value, enum.Enum):
        return f"<{value.name}>"
    known = isinstance(value, str | int | float | bool | None)
    return value if known else "<unread>"


def flags(parser: argparse.ArgumentParser) -> list[dict[str, Any]]:
    return [
        {
            "names": sorted(action.option_strings),
            "dest": action.dest,
            "nargs": action.nargs,
            "sets": constants(action),
            "default": plain(action.default),
            "choices": None if action.choices is None else plain(list(action.choices)),
        }
        for action in parser._actions
    ]


def constants(action: argparse.Action) -> dict[str, Any]:
    if isinstance(action, argparse.BooleanOptionalAction):
        return {name: not name.startswith("--no-") for name in action.option_strings}
    return dict.fromkeys(action.option_strings, action.const) if action.nargs == 0 else {}


def main() -> None:
    parser = add_megatron_arguments(argparse.ArgumentParser(allow_abbrev=False))
    described = {
        "flags": flags(parser),
        "fields": fields(),
        "arguments": list(inspect.signature(HybridModel.__init__).parameters)[1:],
    }
    lines = json.loads(Path(sys.argv[1]).read_text())
    parsed = [vars(parser.parse_args(words)) for words in lines]
    values = [{key: plain(part) for key, part in one.items()} for one in parsed]
    print(json.dumps({"described": described, "parsed": values}))


def fields() -> dict[str, Any]:
    return {
        field.name: plain(field.default)
        if field.default is not dataclasses.MISSING
        else plain(field.default_factory())
        if field.default_factory is not dataclasses.MISSING
        else "<unread>"
        for field in dataclasses.fields(MLATransformerConfig)
    }


if __name__ == "__main__":
    main()
