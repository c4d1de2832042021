"""Patterns and dialects: from text to one family for each layer, or a refusal."""

import tomllib

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from megatron_seams.errors import (
    AmbiguousToken,
    DialectInvalid,
    PatternSyntax,
    Refusal,
    SeamsError,
    SpecialisationInvalid,
    UnknownToken,
)
from megatron_seams.planning.plan import Plan
from megatron_seams.recipes.dialect import BUILT_IN, MEGATRON, NAM
from megatron_seams.recipes.pattern import MAX_DEPTH, parse_pattern
from megatron_seams.recipes.pipeline import written_stages
from seam_support import environment, make_seam, plan, reasons, recipe, surface

#: Builds every family that any recipe below can spell, and forbids nothing.
EVERYTHING = environment(
    make_seam("m2rnn", "recurrent"),
    make_seam("kda", "kda"),
    native=surface(exclusive=False),
)
#: Tokens that a recipe adds to either dialect in the tests below; none of them is upstream's.
ADDED = {"K": "kda", "∂": "recurrent", "d": "dsa"}


@given(main=st.text("MEAR*-", min_size=1, max_size=20), depth=st.integers(1, 300))
def test_layer_i_is_token_i_modulo_the_length_of_the_pattern(main: str, depth: int) -> None:
    read = parse_pattern(main, dialect="nam", depth=depth)
    assert read.depth == len(read.tokens) == depth
    assert all(read.tokens[i] == main[i % len(main)] for i in range(depth))
    assert read.stages == (depth,)


def test_a_pattern_without_a_depth_has_its_own_length() -> None:
    read = parse_pattern("M-M*", dialect="megatron")
    assert (read.depth, read.tokens) == (4, "M-M*")


def test_a_depth_may_cut_a_pattern_short() -> None:
    assert parse_pattern("AEMEAEMEAEMR", dialect="nam", depth=5).tokens == "AEMEA"


def test_stages_hold_the_layers_between_their_breaks() -> None:
    read = parse_pattern("M-|M*-|M", dialect="megatron", depth=6)
    assert read.tokens == "M-M*-M"
    assert read.stages == (2, 3, 1)
    assert written_stages(read).stages == (0, 0, 1, 1, 1, 2)


def test_an_mtp_suffix_is_counted_and_not_part_of_the_decoder() -> None:
    read = parse_pattern("M-|M-/*E/*E", dialect="megatron")
    assert (read.tokens, read.mtp, read.mtp_depths) == ("M-M-", "*E", 2)


@pytest.mark.parametrize(
    ("text", "stages"), [("||M*", (0, 0, 2)), ("M-||M-", (2, 0, 2)), ("|M", (0, 1)), ("M|", (1, 0))]
)
def test_a_stage_may_have_no_layer(text: str, stages: tuple[int, ...]) -> None:
    read = parse_pattern(text, dialect="megatron", depth=sum(stages))
    assert read.stages == stages
    assert read.tokens == text.replace("|", "")
    assert len(written_stages(read).stages) == read.depth


@pytest.mark.parametrize("text", ["M*M*/", "M*M*//"])
def test_separators_without_any_mtp_part_are_no_mtp(text: str) -> None:
    read = parse_pattern(text, dialect="megatron")
    assert (read.tokens, read.mtp, read.mtp_depths) == ("M*M*", "", 0)


def test_positions_are_one_based_and_in_the_order_of_appearance() -> None:
    where = parse_pattern("AEMR", dialect="nam", depth=9).positions()
    assert where == {"A": [1, 5, 9], "E": [2, 6], "M": [3, 7], "R": [4, 8]}
    assert list(where) == ["A", "E", "M", "R"]


@pytest.mark.parametrize(
    ("text", "depth", "says"),
    [
        ("", None, "no layer"),
        ("", 4, "no layer"),
        ("|", None, "no layer"),
        ("/M", None, "no layer"),
        ("/", None, "no layer"),
        ("||", None, "no layer"),
        ("M -", None, "white space"),
        ("M-\n", None, "white space"),
        ("M\u00a0M", None, "white space"),
        ("M-/ *", None, "white space"),
        ("M-|M-", 8, "its stages hold 4 layers and the depth is 8"),
        ("M", 0, f"the depth is 0, and not from 1 to {MAX_DEPTH}"),
        ("M", -3, "the depth is -3"),
        ("M", MAX_DEPTH + 1, f"the depth is {MAX_DEPTH + 1}"),
        ("M-//*E", None, "an MTP part after '/' has no layer"),
        ("M-/*E/", None, "an MTP part after '/' has no layer"),
        ("M-/*|E", None, "an MTP part contains '|'"),
        ("M-/*E/*-", None, "its MTP parts differ: *E, *-"),
    ],
)
def test_a_pattern_that_cannot_be_read_says_what_is_wrong(
    text: str, depth: int | None, says: str
) -> None:
    with pytest.raises(PatternSyntax) as caught:
        parse_pattern(text, dialect="megatron", depth=depth)
    assert says in caught.value.found
    assert repr(text) in caught.value.asked


def test_the_dialects_spell_what_the_contract_says() -> None:
    assert dict(MEGATRON.tokens) == {
        "M": "mamba",
        "G": "gdn",
        "*": "attention",
        "D": "dsa",
        "+": "mla",
        "-": "mlp",
        "E": "moe",
    }
    assert dict(NAM.tokens) == {
        "A": "attention",
        "M": "mamba",
        "G": "gdn",
        "E": "moe",
        "F": "mlp",
        "R": "recurrent",
    }


def test_the_d_of_the_nam_dialect_is_ambiguous_until_a_recipe_settles_it() -> None:
    (fault,) = reasons(recipe("AEDE", dialect="nam"), EVERYTHING)
    assert isinstance(fault, AmbiguousToken)
    assert fault.positions == (3,)
    settled = plan(recipe("AEDE", dialect="nam", tokens={"D": "dsa"}), EVERYTHING)
    assert [layer.family for layer in settled.layers] == ["attention", "moe", "dsa", "moe"]


def test_an_unknown_token_is_refused_with_its_positions_and_never_the_nearest_one() -> None:
    (fault,) = reasons(recipe("mMm", dialect="megatron"), EVERYTHING)
    assert isinstance(fault, UnknownToken)
    assert (fault.subject, fault.positions) == ("m", (1, 3))


@pytest.mark.parametrize("token", ['"', "\\", "?", "é", "Q", "7", "\x1b"])
def test_the_advice_for_an_unknown_token_is_toml_that_can_be_pasted(token: str) -> None:
    (fault,) = reasons(recipe(token), EVERYTHING)
    advice = fault.next.partition("[dialect.tokens] ")[2].replace("<family>", "kda")
    assert fault.next.isprintable()
    assert tomllib.loads(advice) == {token: "kda"}


def test_a_token_of_the_other_dialect_is_unknown_in_this_one() -> None:
    assert isinstance(reasons(recipe("AE", dialect="megatron"), EVERYTHING)[0], UnknownToken)
    assert isinstance(reasons(recipe("*E", dialect="nam"), EVERYTHING)[0], UnknownToken)


def test_an_unknown_dialect_is_refused_together_with_an_unreadable_pattern() -> None:
    found = reasons(recipe("", dialect="klingon"), EVERYTHING)
    assert [type(fault) for fault in found] == [DialectInvalid, PatternSyntax]


@pytest.mark.parametrize(
    ("token", "family", "says"),
    [
        ("KK", "kda", "one visible character"),
        ("", "kda", "one visible character"),
        (" ", "kda", "one visible character"),
        ("\x1b", "kda", "one visible character"),
        ("|", "kda", "separates"),
        ("/", "kda", "separates"),
        ("K", "KDA", "a family is named like"),
        ("M", "kda", "already spells 'mamba'"),
    ],
)
def test_a_dialect_entry_that_cannot_hold_is_refused(token: str, family: str, says: str) -> None:
    found = reasons(recipe("M", tokens={token: family}), EVERYTHING)
    assert [type(fault) for fault in found] == [DialectInvalid]
    assert says in found[0].found


def test_repeating_what_a_dialect_says_is_no_contradiction() -> None:
    assert plan(recipe("M", tokens={"M": "mamba"}), EVERYTHING).layers[0].family == "mamba"


def _text(alphabet: str) -> st.SearchStrategy[str]:
    """Patterns that are mostly the dialect's own, and text of any other kind."""
    own = st.text(alphabet + "|", min_size=1, max_size=12)
    with_mtp = st.builds(lambda main, mtp, n: main + f"/{mtp}" * n, own, own, st.integers(0, 2))
    return st.one_of(
        own, with_mtp, st.text(max_size=12), st.text(alphabet + "/| \x00é", max_size=12)
    )


def _cases() -> st.SearchStrategy[tuple[str, dict[str, str], str]]:
    dialects = st.sampled_from(sorted(BUILT_IN))
    added = st.dictionaries(st.sampled_from(sorted(ADDED)), st.just(""), max_size=3)

    def case(
        dialect: str, chosen: dict[str, str]
    ) -> st.SearchStrategy[tuple[str, dict[str, str], str]]:
        tokens = {token: ADDED[token] for token in chosen}
        alphabet = "".join(BUILT_IN[dialect].tokens) + "".join(tokens)
        return st.tuples(st.just(dialect), st.just(tokens), _text(alphabet))

    return st.tuples(dialects, added).flatmap(lambda pair: case(*pair))


def _resolved(asked: object) -> Plan | Refusal:
    try:
        return plan(asked, EVERYTHING)  # type: ignore[arg-type]  # a Recipe; built by the callers
    except Refusal as refused:
        return refused


@given(_cases(), st.none() | st.integers(1, 40))
@example(("nam", {}, "AEMEAEMEAEMR"), 52)
@example(("megatron", {"K": "kda"}, "MK|MK/*/*"), None)
@example(("megatron", {}, "MMé"), None)
def test_a_layers_family_is_its_tokens_or_the_plan_is_refused(
    case: tuple[str, dict[str, str], str], depth: int | None
) -> None:
    dialect, tokens, text = case
    spelled = {**BUILT_IN[dialect].tokens, **tokens}
    outcome = _resolved(recipe(text, dialect=dialect, depth=depth, tokens=tokens))
    if isinstance(outcome, Refusal):
        assert outcome.reasons
        assert all(isinstance(reason, SeamsError) for reason in outcome.reasons)
        return
    main, *suffixes = text.split("/")
    tile = main.replace("|", "")
    assert len(outcome.layers) == (depth or len(tile))
    for index, layer in enumerate(outcome.layers):
        assert layer.position == index + 1
        assert layer.token == tile[index % len(tile)]
        assert layer.family == spelled[layer.token]
    assert [layer.family for layer in outcome.mtp] == [
        spelled[token] for token in (suffixes[0] if suffixes else "")
    ]


@given(_cases())
def test_a_pattern_of_known_tokens_alone_is_not_refused(
    case: tuple[str, dict[str, str], str],
) -> None:
    """The property above would hold of a planner that refuses everything; this one would not."""
    dialect, tokens, text = case
    spelled = {**BUILT_IN[dialect].tokens, **tokens}
    known = "".join(character for character in text if character in spelled)
    if known:
        outcome = _resolved(recipe(known, dialect=dialect, tokens=tokens))
        assert isinstance(outcome, Plan), outcome


@given(
    text=st.text("AMER", min_size=1, max_size=16),
    families=st.dictionaries(
        st.sampled_from(["attention", "mamba", "moe", "recurrent"]),
        st.sampled_from(["mla", "gdn", "kda", "mlp"]),
    ),
    positions=st.sets(st.integers(1, 16), max_size=4),
)
def test_families_are_specialised_as_the_recipe_says_and_only_so(
    text: str, families: dict[str, str], positions: set[int]
) -> None:
    spelled = {NAM.tokens[token] for token in text}
    families = {family: target for family, target in families.items() if family in spelled}
    chosen = sorted(at for at in positions if at <= len(text))
    tables = {"layers": [{"positions": chosen, "family": "dsa"}]} if chosen else {}
    made = plan(recipe(text, dialect="nam", families=families, **tables), EVERYTHING)
    for layer in made.layers:
        base = NAM.tokens[layer.token]
        expected = "dsa" if layer.position in chosen else families.get(base, base)
        assert layer.family == expected


def test_a_specialisation_of_a_family_that_no_token_spells_is_refused() -> None:
    (fault,) = reasons(recipe("MM", families={"attention": "mla"}), EVERYTHING)
    assert isinstance(fault, SpecialisationInvalid)
    assert fault.key == "families.attention"
