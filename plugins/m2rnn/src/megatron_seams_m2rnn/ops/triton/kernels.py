# mypy: disable-error-code="import-untyped, no-untyped-def, untyped-decorator"
# Triton ships no types, and a kernel's arguments are what Triton makes of them.
"""The recurrence in Triton: what :mod:`.naive` computes, one head a program.

The rows of h are independent given W, so the chain from step to step is one small product, one tanh
and one interpolation. The state stays in registers, in float32 (float64 where an input is), from a
document's first step to its last, and the next step's inputs are loaded while this one computes.

All sums over heads and documents happen in a fixed order: no program adds to what another one
writes. Time is never a compile-time constant, and offsets are 64 bits wide.
"""

import triton
import triton.language as tl

#: Arguments that change with the batch and the sequence: a kernel is not compiled anew for them.
_RUNTIME = ("batch", "steps", "q_batch", "k_batch", "v_batch", "low", "high")


@triton.jit
def hyperbolic_tangent(x, APPROXIMATE: tl.constexpr):
    """Tanh: the GPU's own, good to 2⁻¹¹, or by exp, off by half an epsilon.

    By exp it is exact at both ends, where exp overflows to inf or vanishes.
    """
    if APPROXIMATE:
        z = tl.inline_asm_elementwise(
            "tanh.approx.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1
        )
    else:
        z = 1 - 2 / (1 + tl.exp(2 * x))
    return z


@triton.jit
def product(a, b, ROUNDED: tl.constexpr, MULTIPLIED: tl.constexpr):
    """The matrix product of ``a`` and ``b``, rounded to ROUNDED; its sums are float32 at least."""
    a, b = a.to(ROUNDED).to(MULTIPLIED), b.to(ROUNDED).to(MULTIPLIED)
    SUMS: tl.constexpr = tl.float64 if MULTIPLIED.is_fp64() else tl.float32
    return tl.dot(a, b, input_precision="ieee", out_dtype=SUMS)


@triton.jit
def inside(x, K: tl.constexpr, V: tl.constexpr):
    """``x``, and zeros beyond K rows and V columns: there 0 · Inf has left a NaN."""
    if x.shape[0] > K or x.shape[1] > V:
        in_rows, in_columns = tl.arange(0, x.shape[0]) < K, tl.arange(0, x.shape[1]) < V
        x = tl.where(in_rows[:, None] & in_columns[None, :], x, 0)
    return x


@triton.jit
def candidate(
    h,
    w,
    k_t,
    v_t,
    K: tl.constexpr,
    V: tl.constexpr,
    ROUNDED: tl.constexpr,
    MULTIPLIED: tl.constexpr,
    APPROXIMATE: tl.constexpr,
):
    """Give z = tanh(h W + k vᵀ)."""
    x = product(h, w, ROUNDED, MULTIPLIED) + inside(k_t[:, None] * v_t[None, :], K, V)
    return hyperbolic_tangent(x, APPROXIMATE)


@triton.jit
def boundaries(cumulative, d, steps, PACKED: tl.constexpr):
    """Where document ``d`` of the row starts and stops; never outside the row."""
    start, stop = tl.full((), 0, tl.int64), steps.to(tl.int64)
    if PACKED:
        start = tl.minimum(tl.maximum(tl.load(cumulative + d), 0), steps)
        stop = tl.minimum(tl.maximum(tl.load(cumulative + d + 1), start), steps)
    return start, stop


@triton.jit(do_not_specialize=_RUNTIME)
def forward(
    # [B, S, Nx, K or V], heads and their elements side by side; [B, S, Nf]; [Nw, V, V]
    q,
    k,
    v,
    f,
    W,
    h0,  # [D, B, N, K, V], read if HAS_H0
    cumulative,  # [D + 1] int64: documents are cumulative[d] … cumulative[d + 1]; read if PACKED
    y,  # [B, S, N, V]
    last,  # [D, B, N, K, V]
    kept,  # [(S - 1) // C, B, N, K, V]: the state before each step that is a multiple of C, if KEEP
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
    PACKED: tl.constexpr,
    KEEP: tl.constexpr,
    C: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_V: tl.constexpr,
    ROUNDED: tl.constexpr,
    MULTIPLIED: tl.constexpr,
    APPROXIMATE: tl.constexpr,
):
    """Run one head through one document: y, the last state, and the states that backward wants."""
    STATE: tl.constexpr = last.dtype.element_ty
    program = tl.program_id(0).to(tl.int64)
    n, b, d = program % N, program // N % batch, program // N // batch
    start, stop = boundaries(cumulative, d, steps, PACKED)

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
    f_row = f + b * steps * (N // F_SHARE) + n // F_SHARE
    w = tl.load(W + n // W_SHARE * V * V + w_element, mask=in_w, other=0).to(STATE)
    h = tl.zeros((BLOCK_K, BLOCK_V), STATE)
    if HAS_H0:
        h = tl.load(h0 + head * K * V + element, mask=in_state, other=0).to(STATE)

    first = tl.minimum(start, steps - 1)  # an empty document at the row's end reads no further
    q_t = tl.load(q_row + first * q_step, mask=in_rows, other=0)
    k_t = tl.load(k_row + first * k_step, mask=in_rows, other=0)
    v_t = tl.load(v_row + first * v_step, mask=in_columns, other=0)
    f_t = tl.load(f_row + first * (N // F_SHARE))
    for chunk in range(start // C, (stop + C - 1) // C):
        t0, t1 = tl.maximum(chunk * C, start), tl.minimum(chunk * C + C, stop)
        if KEEP and chunk * C > start:
            slot = ((chunk - 1) * batch + b) * N + n
            tl.store(kept + slot * K * V + element, h, mask=in_state)
        for t in range(t0, t1):
            ahead = tl.minimum(t + 1, stop - 1)
            q_next = tl.load(q_row + ahead * q_step, mask=in_rows, other=0)
            k_next = tl.load(k_row + ahead * k_step, mask=in_rows, other=0)
            v_next = tl.load(v_row + ahead * v_step, mask=in_columns, other=0)
            f_next = tl.load(f_row + ahead * (N // F_SHARE))
            z = candidate(
                h, w, k_t.to(STATE), v_t.to(STATE), K, V, ROUNDED, MULTIPLIED, APPROXIMATE
            )
            gate = f_t.to(STATE)
            h = gate * h + (1 - gate) * z
            y_t = tl.sum(q_t.to(STATE)[:, None] * h, axis=0).to(y.dtype.element_ty)
            tl.store(y + ((b * steps + t) * N + n) * V + columns, y_t, mask=in_columns)
            q_t, k_t, v_t, f_t = q_next, k_next, v_next, f_next
    tl.store(last + head * K * V + element, h, mask=in_state)


@triton.jit(do_not_specialize=_RUNTIME)
def backward(
    q,
    k,
    v,
    f,
    W,
    h0,
    cumulative,
    kept,
    document,  # [S] int32: the document of each step; read if PACKED
    dy,  # [B, S, N, V]
    carry,  # [D, B, N, K, V]: the gradient of each state from the steps after it; in and out
    states,  # scratch, [C, B, N, BLOCK_K, BLOCK_V]: h before each step of a chunk
    slopes,  # scratch, likewise: z, and then dx
    # what each head of the state asks of its inputs: of a shared head [B, high - low, N, K, K, V,
    # none], of the segment alone; of one that is not shared the gradient, [B, S, N, ...]
    dq,
    dk,
    dv,
    df,
    dW,  # [B, N, V, V], in and out
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
    N: tl.constexpr,
    K: tl.constexpr,
    V: tl.constexpr,
    Q_SHARE: tl.constexpr,
    K_SHARE: tl.constexpr,
    V_SHARE: tl.constexpr,
    W_SHARE: tl.constexpr,
    F_SHARE: tl.constexpr,
    HAS_H0: tl.constexpr,
    PACKED: tl.constexpr,
    HAS_DY: tl.constexpr,
    WANTS_Q: tl.constexpr,
    WANTS_K: tl.constexpr,
    WANTS_V: tl.constexpr,
    WANTS_F: tl.constexpr,
    WANTS_W: tl.constexpr,
    C: tl.constexpr,
    CLIP: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_V: tl.constexpr,
    ROUNDED: tl.constexpr,
    MULTIPLIED: tl.constexpr,
):
    """Take the gradient of one head back through the steps low … high, document by document.

    Chunk by chunk from the last: compute the chunk's states and z anew from the state that is kept,
    go back through its steps, and take dW from all of them at once.
    """
    STATE: tl.constexpr = carry.dtype.element_ty
    program = tl.program_id(0).to(tl.int64)
    n, b = program % N, program // N

    rows, columns = tl.arange(0, BLOCK_K), tl.arange(0, BLOCK_V)
    in_rows, in_columns = rows < K, columns < V
    in_state = in_rows[:, None] & in_columns[None, :]
    element = rows[:, None] * V + columns[None, :]
    in_w = in_columns[:, None] & in_columns[None, :]
    w_element = columns[:, None] * V + columns[None, :]

    q_row = q + b * q_batch + n // Q_SHARE * K + rows
    k_row = k + b * k_batch + n // K_SHARE * K + rows
    v_row = v + b * v_batch + n // V_SHARE * V + columns
    f_row = f + b * steps * (N // F_SHARE) + n // F_SHARE
    w = tl.load(W + n // W_SHARE * V * V + w_element, mask=in_w, other=0).to(STATE)
    w_sum = tl.zeros((BLOCK_V, BLOCK_V), STATE)
    if WANTS_W:
        w_sum = tl.load(dW + program * V * V + w_element, mask=in_w, other=0)

    h_here = states + program * BLOCK_K * BLOCK_V + rows[:, None] * BLOCK_V + columns[None, :]
    x_here = slopes + program * BLOCK_K * BLOCK_V + rows[:, None] * BLOCK_V + columns[None, :]
    step = batch.to(tl.int64) * N * BLOCK_K * BLOCK_V

    d_first, d_last = tl.full((), 0, tl.int64), tl.full((), 0, tl.int64)
    if PACKED:
        d_first = tl.load(document + low).to(tl.int64)
        d_last = tl.load(document + high - 1).to(tl.int64)
    for before_last in range(d_last - d_first + 1):
        d = d_last - before_last
        start, stop = boundaries(cumulative, d, steps, PACKED)
        head = (d * batch + b) * N + n
        G = tl.load(carry + head * K * V + element, mask=in_state, other=0)
        first = tl.maximum(start, low) // C
        # An empty document has no chunk, and its carry stays as it is.
        chunks = tl.maximum(0, (tl.minimum(stop, high) + C - 1) // C - first)
        for i in range(chunks):
            chunk = first + chunks - 1 - i
            t0, t1 = tl.maximum(chunk * C, start), tl.minimum(chunk * C + C, stop)

            h = tl.zeros((BLOCK_K, BLOCK_V), STATE)
            if chunk * C > start:
                slot = ((chunk - 1) * batch + b) * N + n
                h = tl.load(kept + slot * K * V + element, mask=in_state, other=0)
            elif HAS_H0:
                h = tl.load(h0 + head * K * V + element, mask=in_state, other=0).to(STATE)
            at = tl.minimum(t0, steps - 1)  # an empty document at the row's end reads no further
            k_next = tl.load(k_row + at * k_step, mask=in_rows, other=0)
            v_next = tl.load(v_row + at * v_step, mask=in_columns, other=0)
            f_next = tl.load(f_row + at * (N // F_SHARE))
            for t in range(t0, t1):
                k_t, v_t, f_t = k_next.to(STATE), v_next.to(STATE), f_next.to(STATE)
                at = tl.minimum(t + 1, t1 - 1)
                k_next = tl.load(k_row + at * k_step, mask=in_rows, other=0)
                v_next = tl.load(v_row + at * v_step, mask=in_columns, other=0)
                f_next = tl.load(f_row + at * (N // F_SHARE))
                z = candidate(h, w, k_t, v_t, K, V, ROUNDED, MULTIPLIED, False)
                tl.store(h_here + (t - t0) * step, h)
                tl.store(x_here + (t - t0) * step, z)
                h = f_t * h + (1 - f_t) * z
            tl.debug_barrier()  # what one warp wrote, another may read

            at = tl.maximum(t1 - 1, 0)
            q_next = tl.load(q_row + at * q_step, mask=in_rows, other=0)
            k_next = tl.load(k_row + at * k_step, mask=in_rows, other=0)
            v_next = tl.load(v_row + at * v_step, mask=in_columns, other=0)
            f_next = tl.load(f_row + at * (N // F_SHARE))
            for back in range(t1 - t0):
                t = t1 - 1 - back
                before = tl.load(h_here + (t - t0) * step)
                z = tl.load(x_here + (t - t0) * step)
                q_t, k_t = q_next.to(STATE), k_next.to(STATE)
                v_t, f_t = v_next.to(STATE), f_next.to(STATE)
                at = tl.maximum(t - 1, t0)
                q_next = tl.load(q_row + at * q_step, mask=in_rows, other=0)
                k_next = tl.load(k_row + at * k_step, mask=in_rows, other=0)
                v_next = tl.load(v_row + at * v_step, mask=in_columns, other=0)
                f_next = tl.load(f_row + at * (N // F_SHARE))

                if CLIP is not None:  # comparisons and not tl.clamp: a NaN stays, in float64 too
                    G = tl.where(G > CLIP, CLIP, tl.where(G < -CLIP, -CLIP, G))
                if HAS_DY:
                    dy_row = dy + ((b * steps + t) * N + n) * V + columns
                    dy_t = tl.load(dy_row, mask=in_columns, other=0).to(STATE)
                    G += q_t[:, None] * dy_t[None, :]
                G = inside(G, K, V)
                dx = (1 - f_t) * G * (1 - z * z)
                here = (b * (high - low) + t - low) * N + n  # in the segment, and in the row
                in_row = (b * steps + t) * N + n
                if WANTS_Q:
                    to = dq + (here if Q_SHARE > 1 else in_row) * K + rows
                    dq_t = tl.zeros((BLOCK_K,), STATE)
                    if HAS_DY:
                        h = f_t * before + (1 - f_t) * z
                        dq_t = tl.sum(h * dy_t[None, :], axis=1)
                    tl.store(to, dq_t.to(dq.dtype.element_ty), mask=in_rows)
                if WANTS_K:
                    to = dk + (here if K_SHARE > 1 else in_row) * K + rows
                    dk_t = tl.sum(dx * v_t[None, :], axis=1)
                    tl.store(to, dk_t.to(dk.dtype.element_ty), mask=in_rows)
                if WANTS_V:
                    to = dv + (here if V_SHARE > 1 else in_row) * V + columns
                    dv_t = tl.sum(dx * k_t[:, None], axis=0)
                    tl.store(to, dv_t.to(dv.dtype.element_ty), mask=in_columns)
                if WANTS_F:
                    to = df + (here if F_SHARE > 1 else in_row)
                    tl.store(to, tl.sum(tl.sum((before - z) * G, axis=1), axis=0))
                if WANTS_W:
                    tl.store(x_here + (t - t0) * step, dx)
                G = f_t * G + product(dx, tl.trans(w), ROUNDED, MULTIPLIED)
            tl.debug_barrier()

            if WANTS_W:
                for t in range(t1 - t0):
                    before, dx = tl.load(h_here + t * step), tl.load(x_here + t * step)
                    w_sum += product(tl.trans(before), dx, ROUNDED, MULTIPLIED)
                tl.debug_barrier()  # the next chunk writes where this one still reads
        tl.store(carry + head * K * V + element, G, mask=in_state)
    if WANTS_W:
        tl.store(dW + program * V * V + w_element, w_sum, mask=in_w)


#: Whether this process interprets kernels on the CPU instead of compiling them for a GPU. Triton
#: decides that where a kernel is defined.
INTERPRETED = not isinstance(forward, triton.JITFunction)
