// What one launch works on, field by field as recurrence.py's Call, and who has which part of it.
#ifndef M2RNN_CALL
#define M2RNN_CALL
#include "warp.cuh"

// K, V: rows and columns of a state. T: what q, k, v and y are of. TW: what W is of.
#ifndef M2RNN_K
#error "M2RNN_K, M2RNN_V, M2RNN_T and M2RNN_W are given on the command line"
#endif
constexpr int K = M2RNN_K, V = M2RNN_V;
using T = M2RNN_T;
static_assert(K % 16 == 0 && K <= 128 && (V == 16 || V == 32), "a warp has 16 rows of the state");

constexpr int kWarps = K / 16;     // warps that step, 16 rows of the state each
constexpr int kGroup = 8;          // steps that are brought together
constexpr int kColumns = V / 8;    // fragments of a warp's rows of the state
constexpr int kBlocks = V / 16;    // pairs of them: operands of a product

// Element type codes of W.
struct F32 {
  static INLINE float at(const void *x, i64 i) { return static_cast<const float *>(x)[i]; }
};
template <class P>
struct Narrow {
  static INLINE float at(const void *x, i64 i) { return P::wide(static_cast<const u16 *>(x)[i]); }
};
using TW = M2RNN_W;

struct Call {
  i64 q_batch, q_step, k_batch, k_step, v_batch, v_step;  // strides, in elements
  int batch, steps, heads, documents;
  int q_share, k_share, v_share, w_share, f_share;  // heads of the state that a head of an input serves
  int every;        // steps between the states that forward keeps: a segment of backward
  int slots, ring;  // backward: walks of a head that run at a time; segments that a ring holds
  double clip;
  const u16 *q, *k, *v;  // [B, S, Nx, K or V]: heads and their elements side by side
  const float *f;        // [B, S, Nf]
  const void *W;         // [Nw, V, V]
  const float *h0;       // [D, B, N, K, V], or null
  const i64 *cumulative; // [D + 1], or null where the row is one document
  u16 *y;                // [B, S, N, V]
  float *last;           // [D, B, N, K, V]
  u32 *kept;             // [(S - 1) / every, B, N, K V / 2]: states before steps every, 2 every, …,
                         // as operands of a product, as lanes have them
  const u16 *dy;         // [B, S, N, V]
  const float *dlast;    // [D, B, N, K, V], or null
  u16 *dq, *dk;          // [B, S, Nx, K]
  u16 *dv;               // [B, S, N, V], where v is not shared
  float *dv_heads;       // the same in float32, where it is
  float *df;             // [B, S, N]
  float *dW;             // [slots, N, V, V]
  float *dh0;            // [D, B, N, K, V]
  float *ring_q, *ring_k;  // [slots, ring, N, kSteps, K]
  int *progress;           // [4, slots, N], zeros: segments of dq and dk written, parts of them summed
};

// The lane's place in a fragment.
struct Lane {
  int warp, lane, g, t;
  INLINE Lane() {
    warp = thread_index() / 32;
    lane = thread_index() % 32;
    g = lane / 4;
    t = lane % 4;
  }
};

template <class I>
INLINE I smaller(I a, I b) {
  return a < b ? a : b;
}
template <class I>
INLINE I larger(I a, I b) {
  return a > b ? a : b;
}

// Steps start … stop of the row: a document, never outside the row.
struct Document {
  int start, stop;
  INLINE Document(const Call &c, int d) {
    start = 0;
    stop = c.steps;
    if (c.cumulative) {
      const i64 steps = c.steps;
      start = int(smaller(larger(c.cumulative[d], i64(0)), steps));
      stop = int(smaller(larger(c.cumulative[d + 1], i64(start)), steps));
    }
  }
};

// Whether P has a number for x, if not an exact one; Inf and NaN it has.
template <class P>
INLINE bool held(float x) {
  const float size = x < 0 ? -x : x;
  return !(size > P::largest && size < 3.4e38f);
}

// The product h W of a warp's rows, its operands rounded to P.
template <class P>
struct Transition {
  u32 w[kBlocks][kColumns][2];
  // Says whether P holds the lane's elements.
  INLINE bool load(const void *W, int head, const Lane &l, bool transposed) {
    const i64 first = i64(head) * V * V;
    bool fits = true;
    auto at = [&](int row, int column) {
      return TW::at(W, first + (transposed ? column * V + row : row * V + column));
    };
#pragma unroll
    for (int i = 0; i < kBlocks; ++i)
#pragma unroll
      for (int j = 0; j < kColumns; ++j)
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const int row = 16 * i + 2 * l.t + 8 * half, column = 8 * j + l.g;
          const float one = at(row, column), other = at(row + 1, column);
          fits &= held<P>(one) && held<P>(other);
          w[i][j][half] = P::pack(one, other);
        }
    return fits;
  }
  // x += a W
  INLINE void operator()(float (&x)[kColumns][4], const u32 (&a)[kBlocks][4]) const {
#pragma unroll
    for (int i = 0; i < kBlocks; ++i)
#pragma unroll
      for (int j = 0; j < kColumns; ++j) P::multiply(x[j], a[i], w[i][j]);
  }
};

// A sum's fragments are the operand of the next product: no lane asks another for its elements.
template <class P>
INLINE void pack(u32 (&a)[kBlocks][4], const float (&x)[kColumns][4]) {
#pragma unroll
  for (int i = 0; i < kBlocks; ++i)
#pragma unroll
    for (int m = 0; m < 4; ++m) {
      const float *pair = &x[2 * i + m / 2][m % 2 * 2];
      a[i][m] = P::pack(pair[0], pair[1]);
    }
}
template <class P>
INLINE void unpack(float (&x)[kColumns][4], const u32 (&a)[kBlocks][4]) {
#pragma unroll
  for (int i = 0; i < kBlocks; ++i)
#pragma unroll
    for (int m = 0; m < 4; ++m) {
      x[2 * i + m / 2][m % 2 * 2] = P::low(a[i][m]);
      x[2 * i + m / 2][m % 2 * 2 + 1] = P::high(a[i][m]);
    }
}

// A step's inputs follow one another in shared memory, in an odd number of 16 bytes: the same rows of
// eight steps lie in different banks.

// Eight steps of k and v as operands of k vᵀ, the sum that a step adds to. Every step takes its own
// pair of columns and zeros for the others, so that no step sees another one's Inf or NaN.
struct Outer {
  u32 k[2], v[kColumns];
  int t;
  template <class Step>
  INLINE void load(const Step *group, const Lane &l) {
    const Step &step = group[l.lane % 8];
    t = l.t;
    forget(t);
    load_two_transposed(k, step.k + 16 * l.warp + l.lane / 8 % 2 * 8);
    if constexpr (kColumns == 2)
      load_two_transposed(v, step.v + l.lane / 8 % 2 * 8);
    else
      load_four_transposed(v, step.v + l.lane / 8 * 8);
  }
  INLINE void operator()(float (&x)[kColumns][4], int s) const {
    const u32 mask = t == s / 2 ? (s % 2 ? 0xffff0000u : 0x0000ffffu) : 0u;
#pragma unroll
    for (int j = 0; j < kColumns; ++j) {
#pragma unroll
      for (int e = 0; e < 4; ++e) x[j][e] = 0.f;
      T::multiply_eight(x[j], k[0] & mask, k[1] & mask, v[j] & mask);
    }
  }
};

// z = tanh(x), h = f h + (1 - f) z; exact at both ends of the gate.
INLINE void advance(float (&h)[kColumns][4], float (&x)[kColumns][4], float f, float taken) {
#pragma unroll
  for (int j = 0; j < kColumns; ++j)
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      x[j][e] = hyperbolic_tangent(x[j][e]);
      h[j][e] = f * h[j][e] + taken * x[j][e];
    }
}

// Where the state before a segment begins that forward keeps.
INLINE i64 kept_state(const Call &c, int segment, int b, int n) {
  return ((i64(segment - 1) * c.batch + b) * c.heads + n) * (K * V / 2);
}

// A warp's rows of one state in global memory, [K, V].
INLINE float *row_of(float *state, const Lane &l, int j, int half) {
  return state + (16 * l.warp + l.g + 8 * half) * V + 8 * j + 2 * l.t;
}
INLINE void load_state(float (&x)[kColumns][4], const float *state, const Lane &l) {
#pragma unroll
  for (int j = 0; j < kColumns; ++j)
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      Pair two{0.f, 0.f};
      if (state) two = *reinterpret_cast<const Pair *>(row_of(const_cast<float *>(state), l, j, half));
      x[j][2 * half] = two.x;
      x[j][2 * half + 1] = two.y;
    }
}
INLINE void store_state(float *state, const float (&x)[kColumns][4], const Lane &l) {
#pragma unroll
  for (int j = 0; j < kColumns; ++j)
#pragma unroll
    for (int half = 0; half < 2; ++half)
      *reinterpret_cast<Pair *>(row_of(state, l, j, half)) = Pair{x[j][2 * half], x[j][2 * half + 1]};
}
// The same rounded to P, as lanes have it, for the kernels alone.
struct alignas(16) Fragment {
  u32 pairs[4];
};
template <class P>
INLINE void load_own(float (&x)[kColumns][4], const u32 *state, const Lane &l) {
  u32 a[kBlocks][4];
#pragma unroll
  for (int i = 0; i < kBlocks; ++i) {
    const Fragment own = reinterpret_cast<const Fragment *>(state)[(l.warp * kBlocks + i) * 32 + l.lane];
#pragma unroll
    for (int m = 0; m < 4; ++m) a[i][m] = own.pairs[m];
  }
  unpack<P>(x, a);
}
template <class P>
INLINE void store_own(u32 *state, const float (&x)[kColumns][4], const Lane &l) {
  u32 a[kBlocks][4];
  pack<P>(a, x);
#pragma unroll
  for (int i = 0; i < kBlocks; ++i)
    reinterpret_cast<Fragment *>(state)[(l.warp * kBlocks + i) * 32 + l.lane] =
        Fragment{a[i][0], a[i][1], a[i][2], a[i][3]};
}
template <class P>
INLINE bool held(const float (&x)[kColumns][4]) {
  bool so = true;
#pragma unroll
  for (int j = 0; j < kColumns; ++j)
#pragma unroll
    for (int e = 0; e < 4; ++e) so &= held<P>(x[j][e]);
  return so;
}
#endif
