"""Causes are values that a caller can catch by kind, copy, and send to another process."""

import copy
import pickle
from concurrent.futures import ProcessPoolExecutor

import pytest

from megatron_seams import errors
from megatron_seams.errors import NoProvider, Refusal, SeamsError, TwoSeams, causes

KINDS = ("Recipe", "Manifest", "Upstream", "Resolution", "Build", "Record")


def refusal() -> Refusal:
    reasons = [
        cause(
            asked="a thing",
            found="another",
            next="do this",
            subject="it",
            file="seam.toml",
            key="seam.name",
            line=3,
            positions=(1, 7),
        )
        for cause in causes()
    ]
    reasons[0].add_note("seen on the way")
    return Refusal(reasons[1:], reasons[:1], tokens="AEMR")


def refuse() -> None:
    raise refusal()


def described(error: Refusal) -> tuple[object, ...]:
    faults = [(type(fault), fault.to_dict()) for fault in (*error.reasons, *error.findings)]
    return type(error), error.tokens, error.exit_code, str(error), faults


@pytest.mark.parametrize(
    "through",
    [copy.copy, copy.deepcopy, lambda error: pickle.loads(pickle.dumps(error))],  # noqa: S301
    ids=["copy", "deepcopy", "pickle"],
)
def test_every_cause_and_a_refusal_copy_and_pickle(through) -> None:
    error = refusal()
    made = through(error)
    assert described(made) == described(error)
    assert made.findings[0].__notes__ == ["seen on the way"]
    for fault in error.reasons:
        assert through(fault).to_dict() == fault.to_dict()


def test_a_refusal_comes_back_from_a_process_pool() -> None:
    with ProcessPoolExecutor(1) as pool, pytest.raises(Refusal) as raised:
        pool.submit(refuse).result()
    assert described(raised.value) == described(refusal())


def test_each_cause_is_of_one_of_six_kinds() -> None:
    kinds = tuple(getattr(errors, f"{kind}Error") for kind in KINDS)
    assert set(SeamsError.__subclasses__()) == set(kinds)
    for cause in causes():
        assert sum(issubclass(cause, kind) for kind in kinds) == 1, cause
    assert issubclass(NoProvider, errors.ResolutionError)


def test_a_kind_catches_its_causes() -> None:
    with pytest.raises(errors.ResolutionError):
        raise TwoSeams(asked="one", found="two", next="pin one")
