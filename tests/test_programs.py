"""Upstream's programs are followed on their source, whatever that is."""

import time

from megatron_seams.upstream.config_fields import UNREAD, ClassReader
from megatron_seams.upstream.programs.interpreter import Interpreter
from megatron_seams.upstream.source import MegatronSource
from megatron_seams.upstream.trainer import CONFIG, Trainer


def reader(text: str, path: str = CONFIG) -> ClassReader:
    return ClassReader(MegatronSource(origin="here", read={path: text.encode()}.get))


def test_a_function_in_the_place_of_the_configuration_checks_nothing() -> None:
    trainer = Trainer(reader=reader("def TransformerConfig(**fields):\n    assert False\n"))
    outcome = trainer.of_fields({"hidden_size": 8}, latent=False)
    assert outcome.fields["hidden_size"].value == 8
    assert outcome.faults == ()


def test_a_number_that_takes_long_to_compute_or_write_is_not_known() -> None:
    program = Interpreter(
        reader(
            "SMALL = 2 ** 32\nROOT = 2 ** 0.5\nLARGE = 10 ** 10 ** 9\n"
            "SUM = [sum(range(10 ** 12))][0]\nEACH = [x for x in range(10 ** 12)]\n"
            "COUNTS = [len(range(3)), len(range(10 ** 30))]\n"
            "SOME = [2 * x for x in range(3)]\n"
            f"LONG = 0x{'f' * 5000}\nMESSAGE = f'{{LONG}} and {{SMALL}}'\n"
        )
    )
    started = time.process_time()
    assert program.top_level(CONFIG, "SMALL") == 2**32
    assert program.top_level(CONFIG, "ROOT") == 2**0.5
    assert program.top_level(CONFIG, "LARGE") is UNREAD
    assert program.top_level(CONFIG, "MESSAGE") == "LONG and 4294967296"
    assert program.top_level(CONFIG, "SUM") is UNREAD
    assert program.top_level(CONFIG, "EACH") is UNREAD
    assert program.top_level(CONFIG, "SOME") == [0, 2, 4]
    assert program.top_level(CONFIG, "COUNTS") == [3, UNREAD]
    assert time.process_time() - started < 5
