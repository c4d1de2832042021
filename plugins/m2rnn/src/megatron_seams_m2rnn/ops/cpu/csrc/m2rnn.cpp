// The M²RNN recurrence on a CPU; ../../operator.py has the equations and what each letter means.
//
// Plain C++ behind a C interface: no header of torch's or Python's, so that it compiles in seconds
// and outlives both. ../recurrence.py calls it and owns all memory, scratch included.
//
// Inside, the state of one head is stored transposed and padded, [V][KP]: a vector holds
// neighbouring rows of K for one column of V. The rows of h are independent of each other given W,
// so that h W, k vᵀ, dq and dk are sums of vectors times scalars; only y, dv, df and dW sum across
// a vector. The padding starts as zero and stays zero (k, q and h0 are zero there), so that no loop
// has a remainder in K.
//
// No result depends on the number of threads: a thread owns whole heads, and what several heads
// share is summed over them afterwards, in their order.

#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#include "vectors.h"

#if defined(_OPENMP)
#include <omp.h>
#endif

extern "C" {

// One call. ../library.py declares the same fields in the same order.
struct M2rnnCall {
  int64_t batch, steps, heads, rows, columns;            // B, S, N, K, V
  int64_t q_heads, k_heads, v_heads, w_heads, f_heads;   // each divides N
  int64_t q_batch, q_step, k_batch, k_step, v_batch, v_step;  // strides, in elements
  int64_t documents, every, padded_rows, threads;        // D, C, KP
  double clip;                                           // infinity: none
  const int64_t *bounds;                                 // [D + 1], in steps
  // Inputs. Heads and their elements are contiguous; f, W and dy entirely so.
  const void *q, *k, *v, *f, *W, *h0, *dy, *dlast;       // h0 and dlast [D, B, N, K, V]; may be null
  // Outputs: y [B, S, N, V], last [D, B, N, K, V], gradients in the layout of their inputs, dense.
  void *y, *last, *dq, *dk, *dv, *df, *dW, *dh0;         // dW [B, N, V, V]; dh0 may be null
  // What forward keeps: the states before every C-th step of a document but its first.
  void *kept;                                            // [slots, B, N, V, KP]
  // Scratch.
  void *own;                                             // for each thread
  void *carry, *part_q, *part_k, *part_v, *part_f;       // [B, N, ...] x V KP, C KP, C KP, C V, C
};

}  // extern "C"

namespace {

// The tile of a product that stays in registers, rows in vectors: AVX-512 has 32 of them, AVX2 16.
constexpr int kTileRows = 2, kTileColumns = kBytes == 64 ? 8 : 4;
// Vectors whose tanh is taken at a time.
constexpr int kChains = 8;
// Steps of a chunk whose states and gradients lie in the first cache together.
constexpr int kStrip = 2;

// sum[r][i] += Σ_j x[j][i] · M[j][r], over all V columns j of x, for R neighbouring columns of M and
// I neighbouring vectors of rows. Columns of x are `blocks` vectors apart.
template <typename T, int I, int R>
inline void accumulate(Vec<T> (&sum)[R][I], const Vec<T> *x, int64_t blocks, const T *M,
                       int64_t V) {
  for (int64_t j = 0; j < V; ++j)
    for (int r = 0; r < R; ++r)
      for (int i = 0; i < I; ++i) sum[r][i] += x[j * blocks + i] * M[j * V + r];
}

template <int size>
using Size = std::integral_constant<int, size>;

// Cut `count` into pieces of a size that the compiler knows, and what is left into smaller ones.
template <int size, typename Piece>
inline void for_pieces(int64_t count, Piece piece, int64_t i = 0) {
  for (; i + size <= count; i += size) piece(i, Size<size>());
  if constexpr (size > 1) for_pieces<size / 2>(count, piece, i);
}

template <typename T>
class Recurrence {
 public:
  explicit Recurrence(const M2rnnCall &call)
      : c(call), K(call.rows), V(call.columns), N(call.heads), B(call.batch), S(call.steps),
        C(call.every), KP(call.padded_rows), blocks(KP / L<T>), state(V * KP) {}

  // Elements of `own` for each thread.
  static int64_t scratch(int64_t C, int64_t V, int64_t KP) {
    // h and z of a chunk; k and q; then, in vectors, dv, f G of a tile, and dW.
    return (2 * C + 1) * V * KP + 2 * KP + (V + V * kTileRows + V * V) * L<T>;
  }

  void forward() {
    const int64_t tasks = c.documents * B * N;
#pragma omp parallel for schedule(dynamic) num_threads(c.threads)
    for (int64_t task = 0; task < tasks; ++task) {
      const int64_t document = task / (B * N), b = task / N % B, n = task % N;
      T *own = mine();
      T *h = own, *next = own + state;
      Vec<T> *k = vecs(own + 2 * state), *q = k + blocks, *y = q + blocks;
      begin(h, document, b, n);
      int64_t slot = slots_before(document);
      for (int64_t t = c.bounds[document], first = t; t < c.bounds[document + 1]; ++t) {
        if (t > first && (t - first) % C == 0)
          std::memcpy(kept(slot++, b, n), h, state * sizeof(T));
        pad<T>(k, key(b, t, n), K, KP);
        pad<T>(q, query(b, t, n), K, KP);
        step(vecs(h), vecs(next), nullptr, k, value(b, t, n), gate(b, t, n), weights(n), q, y);
        sum_lanes<T>(y, out<T>(c.y) + ((b * S + t) * N + n) * V, V);
        std::swap(h, next);
      }
      end(out<T>(c.last), h, document, b, n);
    }
  }

  void backward() {
#pragma omp parallel num_threads(c.threads)
    for (int64_t document = 0; document < c.documents; ++document) {
      const int64_t first = c.bounds[document], stop = c.bounds[document + 1];
      const int64_t chunks = (stop - first + C - 1) / C;
#pragma omp for schedule(static)
      for (int64_t head = 0; head < B * N; ++head)
        transposed(carry(head), in<T>(c.dlast), document, head / N, head % N);
      for (int64_t chunk = chunks - 1; chunk >= 0; --chunk) {
        const int64_t t0 = first + chunk * C, t1 = t0 + C < stop ? t0 + C : stop;
#pragma omp for schedule(dynamic)
        for (int64_t head = 0; head < B * N; ++head)
          chunk_backward(document, chunk, t0, t1, head / N, head % N);
#pragma omp for schedule(static)
        for (int64_t step = 0; step < B * (t1 - t0); ++step)
          gather(step / (t1 - t0), t0, step % (t1 - t0));
      }
      if (c.dh0) {
#pragma omp for schedule(static)
        for (int64_t head = 0; head < B * N; ++head)
          end(out<T>(c.dh0), carry(head), document, head / N, head % N);
      }
    }
  }

 private:
  const M2rnnCall &c;
  const int64_t K, V, N, B, S, C, KP, blocks, state;

  template <typename U>
  static const U *in(const void *x) { return static_cast<const U *>(x); }
  template <typename U>
  static U *out(void *x) { return static_cast<U *>(x); }
  static Vec<T> *vecs(T *x) { return reinterpret_cast<Vec<T> *>(x); }
  static const Vec<T> *vecs(const T *x) { return reinterpret_cast<const Vec<T> *>(x); }

  const T *query(int64_t b, int64_t t, int64_t n) const {
    return in<T>(c.q) + b * c.q_batch + t * c.q_step + n / (N / c.q_heads) * K;
  }
  const T *key(int64_t b, int64_t t, int64_t n) const {
    return in<T>(c.k) + b * c.k_batch + t * c.k_step + n / (N / c.k_heads) * K;
  }
  const T *value(int64_t b, int64_t t, int64_t n) const {
    return in<T>(c.v) + b * c.v_batch + t * c.v_step + n / (N / c.v_heads) * V;
  }
  T gate(int64_t b, int64_t t, int64_t n) const {
    return in<T>(c.f)[(b * S + t) * c.f_heads + n / (N / c.f_heads)];
  }
  // W and, after it, Wᵀ.
  const T *weights(int64_t n) const { return in<T>(c.W) + n / (N / c.w_heads) * V * V; }
  const T *transposed_weights(int64_t n) const { return weights(n) + c.w_heads * V * V; }
  T *kept(int64_t slot, int64_t b, int64_t n) const {
    return out<T>(c.kept) + ((slot * B + b) * N + n) * state;
  }
  T *carry(int64_t head) const { return out<T>(c.carry) + head * state; }
  T *mine() const {
#if defined(_OPENMP)
    const int64_t thread = omp_get_thread_num();
#else
    const int64_t thread = 0;
#endif
    const int64_t size = scratch(C, V, KP);
    return out<T>(c.own) + thread * size;
  }
  int64_t slots_before(int64_t document) const {
    int64_t slots = 0;
    for (int64_t d = 0; d < document; ++d) {
      const int64_t length = c.bounds[d + 1] - c.bounds[d];
      if (length > 0) slots += (length - 1) / C;
    }
    return slots;
  }

  // [V][KP] from one head's [K][V] of a [D, B, N, K, V] tensor, or zero.
  void transposed(T *h, const T *x, int64_t document, int64_t b, int64_t n) const {
    std::memset(h, 0, state * sizeof(T));
    if (!x) return;
    x += ((document * B + b) * N + n) * K * V;
    for (int64_t i = 0; i < K; ++i)
      for (int64_t j = 0; j < V; ++j) h[j * KP + i] = x[i * V + j];
  }
  void begin(T *h, int64_t document, int64_t b, int64_t n) const {
    transposed(h, in<T>(c.h0), document, b, n);
  }
  void end(T *x, const T *h, int64_t document, int64_t b, int64_t n) const {
    x += ((document * B + b) * N + n) * K * V;
    for (int64_t i = 0; i < K; ++i)
      for (int64_t j = 0; j < V; ++j) x[i * V + j] = h[j * KP + i];
  }

  // One step of one head. z may be null, and y, which gets its products, not yet summed over lanes.
  void step(const Vec<T> *h, Vec<T> *next, Vec<T> *z, const Vec<T> *k, const T *v, T f, const T *W,
            const Vec<T> *q, Vec<T> *y) const {
    for_pieces<kTileRows>(blocks, [&](int64_t i, auto rows) {
      constexpr int I = decltype(rows)::value;
      for_pieces<kTileColumns>(V, [&](int64_t j, auto columns) {
        constexpr int R = decltype(columns)::value;
        Vec<T> x[R][I];
        for (int r = 0; r < R; ++r)
          for (int a = 0; a < I; ++a) x[r][a] = k[i + a] * v[j + r];
        accumulate<T, I, R>(x, h + i, blocks, W + j, V);
        for (int r = 0; r < R; ++r)
          for (int a = 0; a < I; ++a) next[(j + r) * blocks + i + a] = x[r][a];
      });
    });
    for (int64_t j = 0; j < V; ++j) {
      Vec<T> sum{};
      for_pieces<kChains>(blocks, [&](int64_t i, auto rows) {
        constexpr int I = decltype(rows)::value;
        Vec<T> x[I];
        for (int a = 0; a < I; ++a) x[a] = next[j * blocks + i + a];
        apply_tanh<T, I>(x);
        for (int a = 0; a < I; ++a) {
          const int64_t at = j * blocks + i + a;
          // Exact at both ends: a gate of 1 keeps h and a gate of 0 takes z.
          const Vec<T> n = f * h[at] + (T(1) - f) * x[a];
          next[at] = n;
          if (z) z[at] = x[a];
          if (y) sum += q[i + a] * n;
        }
      });
      if (y) y[j] = sum;
    }
  }

  // Steps t0 ... t1 of one head, backwards; leaves what step t0 hands back in the carry.
  void chunk_backward(int64_t document, int64_t chunk, int64_t t0, int64_t t1, int64_t b,
                      int64_t n) const {
    const int64_t size = V * blocks, head = b * N + n, length = t1 - t0;
    T *own = mine();
    Vec<T> *h = vecs(own), *z = h + (C + 1) * size;
    Vec<T> *k = z + C * size, *q = k + blocks, *dv = q + blocks, *fG = dv + V;
    if (chunk == 0)
      begin(own, document, b, n);
    else
      std::memcpy(own, kept(slots_before(document) + chunk - 1, b, n), state * sizeof(T));
    for (int64_t s = 0; s < length; ++s) {
      pad<T>(k, key(b, t0 + s, n), K, KP);
      step(h + s * size, h + (s + 1) * size, z + s * size, k, value(b, t0 + s, n),
           gate(b, t0 + s, n), weights(n), nullptr, nullptr);
    }

    Vec<T> *G = vecs(carry(head));
    const T *W_transposed = transposed_weights(n);
    const T limit = T(c.clip);
    for (int64_t s = length - 1; s >= 0; --s) {
      const int64_t t = t0 + s;
      pad<T>(k, key(b, t, n), K, KP);
      pad<T>(q, query(b, t, n), K, KP);
      const T f = gate(b, t, n), *v = value(b, t, n);
      const T *dy = in<T>(c.dy) + ((b * S + t) * N + n) * V;
      const Vec<T> *before = h + s * size, *after = before + size;
      Vec<T> *dx = z + s * size;  // z_t, until it is used
      Vec<T> df{};
      for (int64_t j = 0; j < V; ++j) dv[j] = Vec<T>{};
      for_pieces<kTileRows>(blocks, [&](int64_t i, auto rows) {
        constexpr int I = decltype(rows)::value;
        Vec<T> dq[I] = {}, dk[I] = {};
        for (int64_t j = 0; j < V; ++j)
          for (int a = 0; a < I; ++a) {
            const int64_t at = j * blocks + i + a;
            const Vec<T> z_t = dx[at], G_t = bounded<T>(G[at], limit) + q[i + a] * dy[j];
            const Vec<T> dx_t = (T(1) - f) * G_t * (T(1) - z_t * z_t);
            dq[a] += after[at] * dy[j];
            dk[a] += dx_t * v[j];
            df += (before[at] - z_t) * G_t;
            dv[j] += dx_t * k[i + a];
            dx[at] = dx_t;
            fG[j * I + a] = f * G_t;
          }
        for_pieces<kTileColumns>(V, [&](int64_t j, auto columns) {
          constexpr int R = decltype(columns)::value;
          Vec<T> sum[R][I];
          for (int r = 0; r < R; ++r)
            for (int a = 0; a < I; ++a) sum[r][a] = fG[(j + r) * I + a];
          accumulate<T, I, R>(sum, dx + i, blocks, W_transposed + j, V);
          for (int r = 0; r < R; ++r)
            for (int a = 0; a < I; ++a) G[(j + r) * blocks + i + a] = sum[r][a];
        });
        for (int a = 0; a < I; ++a) {
          vecs(out<T>(c.part_q))[(head * C + s) * blocks + i + a] = dq[a];
          vecs(out<T>(c.part_k))[(head * C + s) * blocks + i + a] = dk[a];
        }
      });
      sum_lanes<T>(dv, out<T>(c.part_v) + (head * C + s) * V, V);
      sum_lanes<T>(&df, out<T>(c.part_f) + head * C + s, 1);
    }
    add_weight_gradient(out<T>(c.dW) + head * V * V, h, z, length, fG + V * kTileRows, dv);
  }

  // dW += Σ_t h_{t-1}ᵀ dx_t over a chunk, a strip of it at a time. Scratch: sums [V][V], row [V].
  void add_weight_gradient(T *dW, const Vec<T> *h, const Vec<T> *dx, int64_t length,
                           Vec<T> *sums, Vec<T> *row) const {
    const int64_t size = V * blocks;
    for (int64_t j = 0; j < V * V; ++j) sums[j] = Vec<T>{};
    for (int64_t t = 0; t < length; t += kStrip) {
      const int64_t stop = t + kStrip < length ? t + kStrip : length;
      for_pieces<4>(V, [&](int64_t j, auto across) {
        for_pieces<3>(V, [&](int64_t l, auto along) {
          constexpr int A = decltype(across)::value, E = decltype(along)::value;
          Vec<T> sum[A][E];
          for (int a = 0; a < A; ++a)
            for (int e = 0; e < E; ++e) sum[a][e] = sums[(j + a) * V + l + e];
          for (int64_t s = t; s < stop; ++s)
            for (int64_t i = 0; i < blocks; ++i) {
              const Vec<T> *x = h + s * size + j * blocks + i, *d = dx + s * size + l * blocks + i;
              for (int a = 0; a < A; ++a)
                for (int e = 0; e < E; ++e) sum[a][e] += x[a * blocks] * d[e * blocks];
            }
          for (int a = 0; a < A; ++a)
            for (int e = 0; e < E; ++e) sums[(j + a) * V + l + e] = sum[a][e];
        });
      });
    }
    for (int64_t j = 0; j < V; ++j) {
      T *flat = reinterpret_cast<T *>(row);
      sum_lanes<T>(sums + j * V, flat, V);
      for (int64_t l = 0; l < V; ++l) dW[j * V + l] += flat[l];
    }
  }

  // Sum one step's gradients over the heads that each head of an input served, in their order.
  void gather(int64_t b, int64_t t0, int64_t s) const {
    const int64_t at = b * S + t0 + s;
    gather_one(out<T>(c.dq) + at * c.q_heads * K, out<T>(c.part_q), c.q_heads, K, KP, b, s);
    gather_one(out<T>(c.dk) + at * c.k_heads * K, out<T>(c.part_k), c.k_heads, K, KP, b, s);
    gather_one(out<T>(c.dv) + at * c.v_heads * V, out<T>(c.part_v), c.v_heads, V, V, b, s);
    gather_one(out<T>(c.df) + at * c.f_heads, out<T>(c.part_f), c.f_heads, 1, 1, b, s);
  }
  void gather_one(T *sum, const T *part, int64_t heads, int64_t size, int64_t stride, int64_t b,
                  int64_t s) const {
    const int64_t served = N / heads;
    for (int64_t n = 0; n < N; ++n) {
      const T *x = part + ((b * N + n) * C + s) * stride;
      T *to = sum + n / served * size;
      if (n % served == 0)
        std::memcpy(to, x, size * sizeof(T));
      else
        for (int64_t i = 0; i < size; ++i) to[i] += x[i];
    }
  }
};

}  // namespace

extern "C" {

// Elements that a vector of this type holds: rows are padded to a multiple of it.
int64_t m2rnn_lanes(int64_t bytes) { return kBytes / bytes; }
// Elements of scratch that a thread wants.
int64_t m2rnn_scratch(int64_t bytes, int64_t every, int64_t columns, int64_t padded_rows) {
  return bytes == sizeof(float) ? Recurrence<float>::scratch(every, columns, padded_rows)
                                : Recurrence<double>::scratch(every, columns, padded_rows);
}
int64_t m2rnn_call_bytes() { return sizeof(M2rnnCall); }

void m2rnn_forward_float32(const M2rnnCall *call) { Recurrence<float>(*call).forward(); }
void m2rnn_forward_float64(const M2rnnCall *call) { Recurrence<double>(*call).forward(); }
void m2rnn_backward_float32(const M2rnnCall *call) { Recurrence<float>(*call).backward(); }
void m2rnn_backward_float64(const M2rnnCall *call) { Recurrence<double>(*call).backward(); }

}  // extern "C"
