"""Tests on a GPU with Transformer Engine, skipped elsewhere: ``pytest tests/gpu``."""

import importlib.util

import pytest


def lacks() -> str:
    """The parts this machine lacks; empty if none."""
    import torch

    if not torch.cuda.is_available():
        return "no GPU"
    if importlib.util.find_spec("transformer_engine") is None:
        return "no Transformer Engine"
    return ""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what lies here where there is no GPU."""
    mine = [item for item in items if "tests/gpu/" in item.path.as_posix()]
    reason = lacks() if mine else ""
    for item in mine:
        if reason:
            item.add_marker(pytest.mark.skip(reason=reason))
