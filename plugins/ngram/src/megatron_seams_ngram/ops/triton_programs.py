# mypy: disable-error-code="import-untyped, no-untyped-def, untyped-decorator"
# Triton ships no types, and a kernel's arguments are what Triton makes of them.
"""The kernels of the tables in Triton; :mod:`.triton_kernels` launches them.

Gradients are added without atomics: places are sorted by their row first, then one program adds all
of a row's gradients in the order of the positions. So two runs have the same bits, and they are
those of a loop over the positions. Lengths are never compile-time constants, and addresses have 64
bits.
"""

import triton
import triton.language as tl

#: Arguments that change with batch, sequence and rank: a kernel is not compiled anew for them.
_RUNTIME = ("positions", "length", "starts_row", "first", "rows", "row_step", "token_step")
_LOW_63 = tl.constexpr(2**63 - 1)
_MOST = tl.constexpr(2**64 - 1)


@triton.jit
def row_and_token(position, length):
    """Where a position of [b, s] lies; it has 32 bits, or the indices would fit in no memory."""
    position = position.to(tl.int32)
    return (position // length).to(tl.int64), (position % length).to(tl.int64)


@triton.jit
def remainder(n, divisor):
    """``n`` mod ``divisor``, of 64 bits and not below 0, by one division for all of ``n``.

    With m = ⌊(2⁶⁴ - 1) / d⌋ the high half of n · m is the quotient or one less, because
    2⁶⁴ / d - m <= 1 and n < 2⁶⁴.
    """
    n, d = n.to(tl.uint64), divisor.to(tl.uint64)
    most = tl.full((), _MOST, tl.uint64)
    rest = n - tl.umulhi(n, (most // d) + tl.zeros_like(n)) * d
    return tl.where(rest >= d, rest - d, rest).to(tl.int64)


@triton.jit(do_not_specialize=_RUNTIME)
def hash_and_gather(
    ids,  # [b, s] int64
    starts,  # [b, s] or [1, s] int64, read if HAS_STARTS
    multipliers,  # [hashes, HIGHEST] int64, and so on: the rule's constants
    biases,
    hash_of,
    primes,
    offsets,
    pad_id,
    table,  # [rows, WIDTH], rows `first` and on of all tables; read if GATHERS
    indices,  # [b, s, TABLES] int64
    out,  # [b, s, TABLES, WIDTH] with strides; written if GATHERS
    positions,  # b * s
    length,  # s
    starts_row,  # from a row's starts to the next one's: s or 0
    first,
    rows,
    row_step,  # from a row to the next one in out, and from a token: in tokens
    token_step,
    TABLES: tl.constexpr,
    WIDTH: tl.constexpr,
    HIGHEST: tl.constexpr,
    HAS_STARTS: tl.constexpr,
    GATHERS: tl.constexpr,
    BLOCK: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Hash some positions for one table, and look their rows up."""
    program = tl.program_id(0).to(tl.int64)
    table_number = program % TABLES
    at = program // TABLES * BLOCK + tl.arange(0, BLOCK)
    there = at < positions
    row, t = row_and_token(at, length)
    start = tl.zeros((BLOCK,), tl.int64)
    if HAS_STARTS:
        start = tl.load(starts + row * starts_row + t, mask=there, other=0)
    number = tl.load(hash_of + table_number)
    hashed = tl.zeros((BLOCK,), tl.int64) + tl.load(biases + number)
    pad = tl.load(pad_id)
    for p in tl.static_range(HIGHEST):
        within = t - p >= start
        token = tl.load(ids + at - p, mask=there & within, other=0)
        token = tl.where(within, token, pad)
        hashed ^= token * tl.load(multipliers + number * HIGHEST + p)
    index = remainder(hashed & _LOW_63, tl.load(primes + table_number))
    index += tl.load(offsets + table_number)
    tl.store(indices + at * TABLES + table_number, index, mask=there)
    if GATHERS:
        here = index - first
        mine = there & (here >= 0) & (here < rows)
        column = tl.arange(0, COLUMNS)
        real = (column < WIDTH)[None, :]
        found = tl.load(
            table + here[:, None] * WIDTH + column[None, :], mask=mine[:, None] & real, other=0
        )
        place = ((row * row_step + t * token_step) * TABLES + table_number) * WIDTH
        tl.store(out + place[:, None] + column[None, :], found, mask=there[:, None] & real)


@triton.jit(do_not_specialize=("places", "first", "rows"))
def gather(
    table,  # [rows, WIDTH]
    indices,  # [places] int64
    out,  # [places, WIDTH]
    places,
    first,
    rows,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Look rows up: zeros for those that are not here."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    there = at < places
    here = tl.load(indices + at, mask=there, other=-1) - first
    mine = there & (here >= 0) & (here < rows)
    column = tl.arange(0, COLUMNS)
    real = (column < WIDTH)[None, :]
    found = tl.load(
        table + here[:, None] * WIDTH + column[None, :], mask=mine[:, None] & real, other=0
    )
    tl.store(out + at[:, None] * WIDTH + column[None, :], found, mask=there[:, None] & real)


@triton.jit(do_not_specialize=("places", "first", "rows"))
def sort_keys(
    indices,  # [places] int64
    keys,  # [places], int32 or int64
    places,
    first,
    rows,
    BLOCK: tl.constexpr,
):
    """The row of each place in this part, and `rows`, which sorts last, where it is in another."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    there = at < places
    here = tl.load(indices + at, mask=there, other=-1) - first
    here = tl.where((here >= 0) & (here < rows), here, rows)
    tl.store(keys + at, here.to(keys.dtype.element_ty), mask=there)


@triton.jit
def gradient_of(place, length, row_step, token_step, TABLES: tl.constexpr, WIDTH: tl.constexpr):
    """Where the gradient of a place in [b, s, TABLES] begins, in elements."""
    row, t = row_and_token(place // TABLES, length)
    return ((row * row_step + t * token_step) * TABLES + place % TABLES) * WIDTH


@triton.jit
def add_rows(
    at,  # [BLOCK]: where rows begin among the sorted places
    key,  # [BLOCK]: these rows
    mine,  # [BLOCK]: which of them to add to
    keys,  # as in add_short, and so on
    order,
    gradients,
    table,
    places,
    length,
    row_step,
    token_step,
    TABLES: tl.constexpr,
    WIDTH: tl.constexpr,
    AHEAD: tl.constexpr,  # gradients of a row that are under way from memory at a time
    COLUMNS: tl.constexpr,
):
    """Add all gradients of some rows to them, each row's in the order of its places."""
    SUM: tl.constexpr = tl.float64 if table.dtype.element_ty.is_fp64() else tl.float32
    column = tl.arange(0, COLUMNS)
    real = (column < WIDTH)[None, :]
    row = table + key[:, None] * WIDTH + column[None, :]
    total = tl.load(row, mask=mine[:, None] & real, other=0).to(SUM)
    more = mine
    k = 0
    while tl.max(more.to(tl.int32), axis=0) > 0:
        for ahead in tl.static_range(AHEAD):
            # Keys ascend: one that is the row's has only the row's between.
            later = at + k + ahead
            within = mine & (later < places)
            goes = tl.load(keys + later, mask=within, other=-1) == key
            # Not masked by `goes`: it need not wait for it, and Triton 3.6 fails where it does.
            place = tl.load(order + later, mask=within, other=0)
            place = gradient_of(place, length, row_step, token_step, TABLES, WIDTH)
            added = tl.load(
                gradients + place[:, None] + column[None, :], mask=goes[:, None] & real, other=0
            )
            # Chosen, not added as zero, which would take the sign from a zero of the row.
            total = tl.where(goes[:, None], total + added.to(SUM), total)
        k += AHEAD
        more = tl.load(keys + at + k, mask=mine & (at + k < places), other=-1) == key
    tl.store(row, total.to(table.dtype.element_ty), mask=mine[:, None] & real)


@triton.jit(do_not_specialize=("places", "length", "rows", "row_step", "token_step"))
def add_short(
    keys,  # [places], ascending
    order,  # [places] int64: the place in [b, s, TABLES] that each key belongs to
    gradients,  # [b, s, TABLES, WIDTH] with strides
    table,  # [rows, WIDTH], added to
    places,
    length,  # s
    rows,
    row_step,  # from a row to the next one in gradients, and from a token: in tokens
    token_step,
    TABLES: tl.constexpr,
    WIDTH: tl.constexpr,
    LONG: tl.constexpr,
    BLOCK: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Add the gradients of the rows that have at most LONG of them, and begin in this block."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    there = at < places
    key = tl.load(keys + at, mask=there, other=0).to(tl.int64)
    before = tl.load(keys + at - 1, mask=there & (at > 0), other=-1)
    after = tl.load(keys + at + LONG, mask=at + LONG < places, other=-1)
    mine = there & (key < rows) & (key != before) & (key != after)
    add_rows(
        at, key, mine, keys, order, gradients, table, places, length, row_step, token_step,
        TABLES, WIDTH, 4, COLUMNS,
    )  # fmt: skip


@triton.jit(do_not_specialize=("places", "length", "rows", "row_step", "token_step"))
def add_long(
    keys,  # as in add_short
    order,
    gradients,
    table,
    places,
    length,
    rows,
    row_step,
    token_step,
    TABLES: tl.constexpr,
    WIDTH: tl.constexpr,
    LONG: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Add the gradients of one row that has more than LONG of them.

    The program's own place is a multiple of LONG, which lies in such a row's stretch of the sorted
    places at least once; the first that lies in it does the work.
    """
    here = tl.program_id(0).to(tl.int64) * LONG + tl.arange(0, 1)
    key = tl.load(keys + here).to(tl.int64)
    earlier = here - LONG + tl.arange(0, LONG)
    same = tl.load(keys + earlier, mask=earlier >= 0, other=-1) == key
    run = tl.sum(same.to(tl.int64), axis=0)
    at = here - run
    last = tl.load(keys + at + LONG, mask=at + LONG < places, other=-1)
    mine = (key < rows) & (at > here - LONG) & (last == key)
    add_rows(
        at, key, mine, keys, order, gradients, table, places, length, row_step, token_step,
        TABLES, WIDTH, 16, COLUMNS,
    )  # fmt: skip


#: Whether ``TRITON_INTERPRET=1`` makes this process interpret its kernels, on the CPU.
INTERPRETED: bool = not isinstance(gather, triton.JITFunction)
