"""Four ranks of which one is odd, by two roads: prints how every rank ended, and its message.

``python scripts/agreement_drill.py [--case TEXT]`` starts four processes with torchrun for each
case: upstream's own loading of ``--spec`` over gloo, and ``registry smoke``. It exits with 1 if a
case with an odd rank lets any rank end well, or takes longer than 30 s from the first rank's
arrival; the control has to end well.
"""

import argparse
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

import megatron_releases  # noqa: E402  # beside the tests, which fetch releases too
from agreement_drill import SMOKE, TRAINER, drill, lay_out  # noqa: E402

#: Seconds from the arrival of the first rank to the end of the last, for a case with an odd one.
LONGEST = 30.0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--case", default="", help="only cases with this text in their name")
    asked = parser.parse_args()
    wrong = 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        lay_out(folder)
        site = str(folder / "site")
        cases = {
            "control: all alike": {},
            "rank 1 has another plugin version": {1: [str(folder / "other")]},
            "rank 2 lacks the plugin": {2: []},
            "rank 3 has another Megatron": {3: [site, str(megatron_releases.installation("0.18"))]},
            "rank 1 sleeps": {1: ["sleep"]},
            "rank 1 lacks megatron-seams": {1: [str(folder / "absent"), site]},
        }
        for road, of in (("trainer", TRAINER), ("smoke", SMOKE)):
            for case, odd in cases.items():
                if asked.case not in case or (of == SMOKE and "megatron-seams" in case):
                    continue  # without the package the command itself ends at once
                ended = drill(folder, of, odd)
                good = [code == 0 for code in ended.codes]
                text = next(filter(None, map(ended.refusal, range(4))), "")
                # Two steps teach nothing: the control of `registry smoke` exits with 1 for it.
                well = not text if of == SMOKE else all(good)
                failed = not well if not odd else any(good) or not text
                failed = failed or bool(odd and ended.stopped and ended.stopped > LONGEST)
                wrong += failed
                after = "" if ended.stopped is None else f", {ended.stopped:.1f} s from arrival"
                print(
                    f"{road:8} {case:34} codes {ended.codes} {ended.seconds:5.1f} s from launch"
                    f"{after}{'  WRONG' if failed else ''}"
                )
                print(
                    f"         {text.splitlines()[1].strip()[:400] if text else '-'}",
                    flush=True,
                )
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
