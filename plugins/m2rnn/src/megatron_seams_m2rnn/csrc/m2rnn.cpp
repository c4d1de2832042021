// The M²RNN recurrence on a CPU; ../operator.py has the equations and what each letter means.
//
// Plain C++ behind a C interface: no header of torch's or Python's, so that it compiles in seconds
// and outlives both. cpu.py calls it and owns all memory, scratch included.
//
// Inside, the state of one head is stored transposed and padded, [V][KP]: a vector holds
// neighbouring rows of K for one column of V. The rows of h are independent of each other given W,
// so that h W, k vᵀ, dq and dk are sums of vectors times scalars; only y, dv, df and dW sum across
// a vector. The padding starts as zero and stays zero (k, q and h0 are zero there), so that no loop
// has a remainder in K.
//
// No result depends on the number of threads: a thread owns whole heads, and what several heads
// share is summed over them afterwards, in their order.

#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#if defined(_OPENMP)
#include <omp.h>
#endif

extern "C" {

// One call. cpu.py declares the same fields in the same order.
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

constexpr int kBytes = 64;  // one AVX-512 register; compilers cut it up for narrower machines

template <typename T>
struct Lanes;
template <>
struct Lanes<float> {
  typedef float vec __attribute__((vector_size(kBytes)));
  typedef int32_t bits __attribute__((vector_size(kBytes)));
  using word = int32_t;
};
template <>
struct Lanes<double> {
  typedef double vec __attribute__((vector_size(kBytes)));
  typedef int64_t bits __attribute__((vector_size(kBytes)));
  using word = int64_t;
};
template <typename T>
using Vec = typename Lanes<T>::vec;
template <typename T>
using Bits = typename Lanes<T>::bits;
template <typename T>
constexpr int L = kBytes / static_cast<int>(sizeof(T));

template <typename T>
Vec<T> all(T x) {
  return Vec<T>{} + x;
}

template <typename T>
Vec<T> as_floats(Bits<T> x) {
  Vec<T> y;
  std::memcpy(&y, &x, kBytes);
  return y;
}

template <typename T>
Bits<T> as_bits(Vec<T> x) {
  Bits<T> y;
  std::memcpy(&y, &x, kBytes);
  return y;
}

template <typename T>
Vec<T> bounded(Vec<T> x, Vec<T> limit) {
  x = x > limit ? limit : x;  // a NaN stays
  return x < -limit ? -limit : x;
}

// tanh to the last bits of T, relative accuracy near zero included:
// with e = expm1(-2x), tanh x = -e / (2 + e).
template <typename T>
Vec<T> tanh_of(Vec<T> x) {
  constexpr bool single = std::is_same<T, float>::value;
  constexpr int mantissa = single ? 23 : 52;
  constexpr T magic = single ? T(12582912.0) : T(6755399441055744.0);  // 1.5 · 2^mantissa
  // ln 2 in two parts, the first with so few bits that its small multiples are exact.
  constexpr T ln2_high = single ? T(0.693359375) : T(0.69314718036912381649);
  constexpr T ln2_low = single ? T(-2.12194440054690583e-4) : T(1.9082149292705877000e-10);
  constexpr int degree = single ? 7 : 13;

  const Vec<T> t = bounded<T>(x * T(-2), all<T>(T(45)));  // tanh is ±1 beyond
  const Vec<T> shifted = t * T(1.44269504088896340736) + magic;  // rounds t / ln 2 to n
  const Vec<T> n = shifted - magic;
  const Vec<T> r = (t - n * ln2_high) - n * ln2_low;
  // expm1(r) = r + r² (1/2! + r/3! + ...), by Horner's scheme.
  constexpr double factorial[] = {1, 1, 2, 6, 24, 120, 720, 5040, 40320, 362880,
                                  3628800, 39916800, 479001600, 6227020800};
  Vec<T> p = all<T>(T(1 / factorial[degree]));
  for (int i = degree - 1; i >= 2; --i) p = p * r + T(1 / factorial[i]);
  p = r + r * r * p;
  // 2ⁿ: n stands in the lowest bits of `shifted`; moved into the exponent, the rest falls off.
  const Vec<T> scale = as_floats<T>((as_bits<T>(shifted) << mantissa) + as_bits<T>(all<T>(T(1))));
  const Vec<T> e = scale * p + (scale - T(1));
  return -e / (e + T(2));
}

// a and b hold groups of `size` lanes; halve each group by adding, a's groups first.
template <typename T, int size>
Vec<T> halved(Vec<T> a, Vec<T> b) {
  constexpr int l = L<T>;
  Bits<T> low{};
  for (int i = 0; i < l; ++i) {
    const int source = i < l / 2 ? i : l + (i - l / 2);
    const int within = source % l, base = source - within;
    low[i] = base + within / (size / 2) * size + within % (size / 2);
  }
#if defined(__clang__)
  Vec<T> x, y;
  for (int i = 0; i < l; ++i) {
    const int from = static_cast<int>(low[i]), to = from + size / 2;
    x[i] = from < l ? a[from] : b[from - l];
    y[i] = to < l ? a[to] : b[to - l];
  }
  return x + y;
#else
  return __builtin_shuffle(a, b, low) + __builtin_shuffle(a, b, low + size / 2);
#endif
}

template <typename T, int size>
void halve_all(Vec<T> *x, int count) {
  for (int i = 0; i < count; i += 2) x[i / 2] = halved<T, size>(x[i], x[i + 1]);
  if constexpr (size > 2) halve_all<T, size / 2>(x, count / 2);
}

// Sum each of `count` vectors across its lanes.
template <typename T>
void sum_lanes(const Vec<T> *x, T *out, int64_t count) {
  for (int64_t i = 0; i < count; i += L<T>) {
    Vec<T> tree[L<T>] = {};
    const int64_t left = count - i < L<T> ? count - i : L<T>;
    for (int64_t j = 0; j < left; ++j) tree[j] = x[i + j];
    halve_all<T, L<T>>(tree, L<T>);
    std::memcpy(out + i, tree, left * sizeof(T));
  }
}

template <typename T>
void pad(Vec<T> *out, const T *x, int64_t count, int64_t padded) {
  std::memcpy(out, x, count * sizeof(T));
  std::memset(reinterpret_cast<T *>(out) + count, 0, (padded - count) * sizeof(T));
}

// out[r] += Σ_j x[j] · M[j][r], for R neighbouring columns of a matrix with V of them; x strides by
// `blocks` vectors.
template <typename T, int R>
inline void accumulate(Vec<T> *out, const Vec<T> *x, int64_t blocks, const T *M, int64_t V) {
  for (int64_t j = 0; j < V; ++j) {
    const Vec<T> x_j = x[j * blocks];
    for (int r = 0; r < R; ++r) out[r] += x_j * M[j * V + r];
  }
}

// Cut V columns into tiles whose width the compiler knows, so that sums stay in registers.
template <typename Tile>
inline void for_tiles(int64_t V, Tile tile) {
  int64_t j = 0;
  for (; j + 16 <= V; j += 16) tile(j, std::integral_constant<int, 16>());
  if (V - j >= 8) tile(j, std::integral_constant<int, 8>()), j += 8;
  if (V - j >= 4) tile(j, std::integral_constant<int, 4>()), j += 4;
  if (V - j >= 2) tile(j, std::integral_constant<int, 2>()), j += 2;
  if (V - j >= 1) tile(j, std::integral_constant<int, 1>());
}

template <typename T>
class Recurrence {
 public:
  explicit Recurrence(const M2rnnCall &call)
      : c(call), K(call.rows), V(call.columns), N(call.heads), B(call.batch), S(call.steps),
        C(call.every), KP(call.padded_rows), blocks(KP / L<T>), state(V * KP) {}

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
        for (int64_t j = 0; j < V; ++j) y[j] = Vec<T>{};
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
    // h and z of a chunk; then k, q, and three times V vectors of sums.
    const int64_t size = (2 * C + 1) * state + 2 * KP + 3 * V * L<T>;
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

  // One step of one head. z and y may be null; y gets its products, not yet summed over lanes.
  void step(const Vec<T> *h, Vec<T> *next, Vec<T> *z, const Vec<T> *k, const T *v, T f, const T *W,
            const Vec<T> *q, Vec<T> *y) const {
    for (int64_t i = 0; i < blocks; ++i) {
      for_tiles(V, [&](int64_t j, auto width) {
        constexpr int R = decltype(width)::value;
        Vec<T> x[R];
        for (int r = 0; r < R; ++r) x[r] = k[i] * v[j + r];
        accumulate<T, R>(x, h + i, blocks, W + j, V);
        for (int r = 0; r < R; ++r) {
          const int64_t at = (j + r) * blocks + i;
          const Vec<T> z_r = tanh_of<T>(x[r]);
          // Exact at both ends: a gate of 1 keeps h and a gate of 0 takes z.
          next[at] = f * h[at] + (T(1) - f) * z_r;
          if (z) z[at] = z_r;
          if (y) y[j + r] += q[i] * next[at];
        }
      });
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
    const Vec<T> limit = all<T>(T(c.clip));
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
      for (int64_t i = 0; i < blocks; ++i) {
        Vec<T> dq{}, dk{};
        for (int64_t j = 0; j < V; ++j) {
          const int64_t at = j * blocks + i;
          const Vec<T> z_t = dx[at], G_t = bounded<T>(G[at], limit) + q[i] * dy[j];
          const Vec<T> dx_t = (T(1) - f) * G_t * (T(1) - z_t * z_t);
          dq += after[at] * dy[j];
          dk += dx_t * v[j];
          df += (before[at] - z_t) * G_t;
          dv[j] += dx_t * k[i];
          dx[at] = dx_t;
          fG[j] = f * G_t;
        }
        for_tiles(V, [&](int64_t j, auto width) {
          constexpr int R = decltype(width)::value;
          Vec<T> sum[R];
          for (int r = 0; r < R; ++r) sum[r] = fG[j + r];
          accumulate<T, R>(sum, dx + i, blocks, W_transposed + j, V);
          for (int r = 0; r < R; ++r) G[(j + r) * blocks + i] = sum[r];
        });
        vecs(out<T>(c.part_q))[(head * C + s) * blocks + i] = dq;
        vecs(out<T>(c.part_k))[(head * C + s) * blocks + i] = dk;
      }
      sum_lanes<T>(dv, out<T>(c.part_v) + (head * C + s) * V, V);
      sum_lanes<T>(&df, out<T>(c.part_f) + head * C + s, 1);
    }
    add_weight_gradient(out<T>(c.dW) + head * V * V, h, z, length);
  }

  // dW += Σ_t h_{t-1}ᵀ dx_t over a chunk, four by four elements at a time.
  void add_weight_gradient(T *dW, const Vec<T> *h, const Vec<T> *dx,
                           int64_t length) const {
    constexpr int R = 4;
    const int64_t size = V * blocks;
    for (int64_t j = 0; j < V; j += R) {
      for (int64_t l = 0; l < V; l += R) {
        Vec<T> sum[R][R] = {};
        const int64_t across = V - j < R ? V - j : R, along = V - l < R ? V - l : R;
        if (across == R && along == R) {
          for (int64_t s = 0; s < length; ++s)
            for (int64_t i = 0; i < blocks; ++i) {
              const Vec<T> *x = h + s * size + j * blocks + i, *d = dx + s * size + l * blocks + i;
              for (int a = 0; a < R; ++a)
                for (int e = 0; e < R; ++e) sum[a][e] += x[a * blocks] * d[e * blocks];
            }
        } else {
          for (int64_t s = 0; s < length; ++s)
            for (int64_t i = 0; i < blocks; ++i) {
              const Vec<T> *x = h + s * size + j * blocks + i, *d = dx + s * size + l * blocks + i;
              for (int64_t a = 0; a < across; ++a)
                for (int64_t e = 0; e < along; ++e) sum[a][e] += x[a * blocks] * d[e * blocks];
            }
        }
        T flat[R];
        for (int64_t a = 0; a < across; ++a) {
          sum_lanes<T>(sum[a], flat, along);
          for (int64_t e = 0; e < along; ++e) dW[(j + a) * V + l + e] += flat[e];
        }
      }
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
int64_t m2rnn_call_bytes() { return sizeof(M2rnnCall); }

void m2rnn_forward_float32(const M2rnnCall *call) { Recurrence<float>(*call).forward(); }
void m2rnn_forward_float64(const M2rnnCall *call) { Recurrence<double>(*call).forward(); }
void m2rnn_backward_float32(const M2rnnCall *call) { Recurrence<float>(*call).backward(); }
void m2rnn_backward_float64(const M2rnnCall *call) { Recurrence<double>(*call).backward(); }

}  // extern "C"
