# mypy: disable-error-code="import-untyped, no-untyped-def, untyped-decorator"
# Triton ships no types, and a kernel's arguments are what Triton makes of them.
"""The recurrence of :mod:`..naive` in Triton; a program runs one head of one document.

The rows of h are independent given W, so the chain from step to step is one small product, one tanh
and one interpolation, with a warp for every 16 rows and nothing to wait for between them. The state
stays in registers, in float32 (float64 where an input is), from the first step of a document to its
last.

All sums over heads, documents and rows happen after the kernels, in a fixed order: no program adds
to what another one writes. Time is never a compile-time constant, and offsets are 64 bits wide.
"""

import triton
import triton.language as tl

#: Arguments that change with the batch and the sequence: a kernel is not compiled anew for them.
_RUNTIME = ("batch", "steps", "q_batch", "k_batch", "v_batch", "low", "high", "document")


@triton.jit
def hyperbolic_tangent(x):
    """The tanh of ``x``: exact where exp is inf or 0, within half an epsilon in between."""
    return 1 - 2 / (1 + tl.exp(2 * x))


@triton.jit
def product(a, b, ROUNDED: tl.constexpr, MULTIPLIED: tl.constexpr):
    """The matrix product of ``a`` and ``b``, rounded to ROUNDED; its sums are float32 at least."""
    a, b = a.to(ROUNDED).to(MULTIPLIED), b.to(ROUNDED).to(MULTIPLIED)
    SUMS: tl.constexpr = tl.float64 if MULTIPLIED.is_fp64() else tl.float32
    return tl.dot(a, b, input_precision="ieee", out_dtype=SUMS)


@triton.jit
def candidate(h, w, k_t, v_t, ROUNDED: tl.constexpr, MULTIPLIED: tl.constexpr):
    """The candidate state z = tanh(h W + k vᵀ)."""
    x = product(h, w, ROUNDED, MULTIPLIED) + k_t[:, None] * v_t[None, :]
    return hyperbolic_tangent(x)


@triton.jit(do_not_specialize=_RUNTIME)
def forward(
    # [B, S, Nx, K or V], heads and their elements side by side; [B, S, Nf]; [Nw, V, V]
    q,
    k,
    v,
    f,
    W,
    h0,  # [D, B, N, K, V], read if HAS_H0
    bounds,  # [D + 1] int64: documents are bounds[d] … bounds[d + 1]
    y,  # [B, S, N, V]
    last,  # [D, B, N, K, V]
    kept,  # [(S - 1) // C, B, N, K, V]: the state before each step that is a multiple of C
    batch,
    steps,
    q_batch,  # strides, in elements
    q_step,
    k_batch,
    k_step,
    v_batch,
    v_step,
    N: tl.constexpr,
    K: tl.constexpr,
    V: tl.constexpr,
    Q_SHARE: tl.constexpr,  # heads of the state that a head of q serves
    K_SHARE: tl.constexpr,
    V_SHARE: tl.constexpr,
    W_SHARE: tl.constexpr,
    F_SHARE: tl.constexpr,
    HAS_H0: tl.constexpr,
    C: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_V: tl.constexpr,
    ROUNDED: tl.constexpr,
    MULTIPLIED: tl.constexpr,
):
    """Run one head through one document: y, the last state, and the states that backward wants."""
    STATE: tl.constexpr = last.dtype.element_ty
    program = tl.program_id(0).to(tl.int64)
    n, b, d = program % N, program // N % batch, program // N // batch
    start, stop = tl.load(bounds + d), tl.load(bounds + d + 1)

    rows, columns = tl.arange(0, BLOCK_K), tl.arange(0, BLOCK_V)
    in_rows, in_columns = rows < K, columns < V
    in_state = in_rows[:, None] & in_columns[None, :]
    element = rows[:, None] * V + columns[None, :]
    in_w = in_columns[:, None] & in_columns[None, :]
    w_element = columns[:, None] * V + columns[None, :]
    head = (d * batch + b) * N + n

    q_row = q + b * q_batch + n // Q_SHARE * K + rows
    k_row = k + b * k_batch + n // K_SHARE * K + rows
    v_row = v + b * v_batch + n // V_SHARE * V + columns
    w = tl.load(W + n // W_SHARE * V * V + w_element, mask=in_w, other=0).to(STATE)
    h = tl.zeros((BLOCK_K, BLOCK_V), STATE)
    if HAS_H0:
        h = tl.load(h0 + head * K * V + element, mask=in_state, other=0).to(STATE)

    for chunk in range(start // C, (stop + C - 1) // C):
        t0, t1 = tl.maximum(chunk * C, start), tl.minimum(chunk * C + C, stop)
        if chunk * C > start:
            slot = ((chunk - 1) * batch + b) * N + n
            tl.store(kept + slot * K * V + element, h, mask=in_state)
        for t in range(t0, t1):
            q_t = tl.load(q_row + t * q_step, mask=in_rows, other=0).to(STATE)
            k_t = tl.load(k_row + t * k_step, mask=in_rows, other=0).to(STATE)
            v_t = tl.load(v_row + t * v_step, mask=in_columns, other=0).to(STATE)
            f_t = tl.load(f + (b * steps + t) * (N // F_SHARE) + n // F_SHARE).to(STATE)
            z = candidate(h, w, k_t, v_t, ROUNDED, MULTIPLIED)
            h = f_t * h + (1 - f_t) * z
            y_t = tl.sum(q_t[:, None] * h, axis=0).to(y.dtype.element_ty)
            tl.store(y + ((b * steps + t) * N + n) * V + columns, y_t, mask=in_columns)
    tl.store(last + head * K * V + element, h, mask=in_state)


@triton.jit(do_not_specialize=_RUNTIME)
def backward(
    q,
    k,
    v,
    f,
    W,
    h0,
    bounds,
    kept,
    dy,  # [B, S, N, V]
    carry,  # [D, B, N, K, V]: the gradient of each state from the steps after it; in and out
    room,  # [documents here] int64: where each one's scratch begins, in steps
    states,  # scratch, [steps, B, N, BLOCK_K, BLOCK_V]: h before each step of a chunk
    slopes,  # scratch, likewise: z, and then dx
    # [B, high - low, N, K, K, V, none]: each state head's gradient of its inputs
    part_q,
    part_k,
    part_v,
    part_f,
    part_w,  # [documents here, B, N, V, V]
    batch,
    steps,
    q_batch,
    q_step,
    k_batch,
    k_step,
    v_batch,
    v_step,
    low,  # steps low … high of the row, low a multiple of C
    high,
    document,  # the first one that has steps there
    N: tl.constexpr,
    K: tl.constexpr,
    V: tl.constexpr,
    Q_SHARE: tl.constexpr,
    K_SHARE: tl.constexpr,
    V_SHARE: tl.constexpr,
    W_SHARE: tl.constexpr,
    F_SHARE: tl.constexpr,
    HAS_H0: tl.constexpr,
    C: tl.constexpr,
    CLIP: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_V: tl.constexpr,
    ROUNDED: tl.constexpr,
    MULTIPLIED: tl.constexpr,
):
    """Take the gradient of one head back through one document's steps in low … high.

    Chunk by chunk from the last: compute the chunk's states and z anew from the state that is kept,
    go back through its steps, and take dW from all of them at once.
    """
    STATE: tl.constexpr = carry.dtype.element_ty
    program = tl.program_id(0).to(tl.int64)
    n, b, here = program % N, program // N % batch, program // N // batch
    d = document + here
    start, stop = tl.load(bounds + d), tl.load(bounds + d + 1)

    rows, columns = tl.arange(0, BLOCK_K), tl.arange(0, BLOCK_V)
    in_rows, in_columns = rows < K, columns < V
    in_state = in_rows[:, None] & in_columns[None, :]
    element = rows[:, None] * V + columns[None, :]
    in_w = in_columns[:, None] & in_columns[None, :]
    w_element = columns[:, None] * V + columns[None, :]
    head = (d * batch + b) * N + n

    q_row = q + b * q_batch + n // Q_SHARE * K + rows
    k_row = k + b * k_batch + n // K_SHARE * K + rows
    v_row = v + b * v_batch + n // V_SHARE * V + columns
    w = tl.load(W + n // W_SHARE * V * V + w_element, mask=in_w, other=0).to(STATE)
    dW = tl.zeros((BLOCK_V, BLOCK_V), STATE)

    scratch = (tl.load(room + here) * batch + b) * N + n  # in whole states; a step is batch · N on
    h_here = states + scratch * BLOCK_K * BLOCK_V + rows[:, None] * BLOCK_V + columns[None, :]
    x_here = slopes + scratch * BLOCK_K * BLOCK_V + rows[:, None] * BLOCK_V + columns[None, :]
    step = batch.to(tl.int64) * N * BLOCK_K * BLOCK_V

    G = tl.load(carry + head * K * V + element, mask=in_state, other=0)
    first = tl.maximum(start, low) // C
    chunks = (tl.minimum(stop, high) + C - 1) // C - first
    for i in range(chunks):
        chunk = first + chunks - 1 - i
        t0, t1 = tl.maximum(chunk * C, start), tl.minimum(chunk * C + C, stop)

        h = tl.zeros((BLOCK_K, BLOCK_V), STATE)
        if chunk * C > start:
            slot = ((chunk - 1) * batch + b) * N + n
            h = tl.load(kept + slot * K * V + element, mask=in_state, other=0)
        elif HAS_H0:
            h = tl.load(h0 + head * K * V + element, mask=in_state, other=0).to(STATE)
        for t in range(t0, t1):
            k_t = tl.load(k_row + t * k_step, mask=in_rows, other=0).to(STATE)
            v_t = tl.load(v_row + t * v_step, mask=in_columns, other=0).to(STATE)
            f_t = tl.load(f + (b * steps + t) * (N // F_SHARE) + n // F_SHARE).to(STATE)
            z = candidate(h, w, k_t, v_t, ROUNDED, MULTIPLIED)
            tl.store(h_here + (t - t0) * step, h)
            tl.store(x_here + (t - t0) * step, z)
            h = f_t * h + (1 - f_t) * z
        tl.debug_barrier()  # what one warp wrote, another may read

        for back in range(t1 - t0):
            t = t1 - 1 - back
            q_t = tl.load(q_row + t * q_step, mask=in_rows, other=0).to(STATE)
            k_t = tl.load(k_row + t * k_step, mask=in_rows, other=0).to(STATE)
            v_t = tl.load(v_row + t * v_step, mask=in_columns, other=0).to(STATE)
            f_t = tl.load(f + (b * steps + t) * (N // F_SHARE) + n // F_SHARE).to(STATE)
            dy_row = dy + ((b * steps + t) * N + n) * V + columns
            dy_t = tl.load(dy_row, mask=in_columns, other=0).to(STATE)
            before = tl.load(h_here + (t - t0) * step)
            z = tl.load(x_here + (t - t0) * step)

            if CLIP is not None:  # a NaN stays
                limit = tl.full((BLOCK_K, BLOCK_V), CLIP, STATE)
                G = tl.clamp(G, -limit, limit, propagate_nan=tl.PropagateNan.ALL)
            G += q_t[:, None] * dy_t[None, :]
            dx = (1 - f_t) * G * (1 - z * z)
            h = f_t * before + (1 - f_t) * z
            part = (b * (high - low) + t - low) * N + n
            tl.store(part_q + part * K + rows, tl.sum(h * dy_t[None, :], axis=1), mask=in_rows)
            tl.store(part_k + part * K + rows, tl.sum(dx * v_t[None, :], axis=1), mask=in_rows)
            tl.store(
                part_v + part * V + columns, tl.sum(dx * k_t[:, None], axis=0), mask=in_columns
            )
            tl.store(part_f + part, tl.sum(tl.sum((before - z) * G, axis=1), axis=0))
            tl.store(x_here + (t - t0) * step, dx)
            G = f_t * G + product(dx, tl.trans(w), ROUNDED, MULTIPLIED)
        tl.debug_barrier()

        for t in range(t1 - t0):
            before, dx = tl.load(h_here + t * step), tl.load(x_here + t * step)
            dW += product(tl.trans(before), dx, ROUNDED, MULTIPLIED)
        tl.debug_barrier()  # the next chunk writes where this one still reads
    tl.store(carry + head * K * V + element, G, mask=in_state)
    written = ((here * batch + b) * N + n) * V * V + w_element
    tl.store(part_w + written, dW, mask=in_w)


#: Whether this process interprets kernels on the CPU instead of compiling them for a GPU. Triton
#: decides that where a kernel is defined.
INTERPRETED = not isinstance(forward, triton.JITFunction)
