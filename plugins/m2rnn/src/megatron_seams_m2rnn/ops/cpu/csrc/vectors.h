// Vectors of floats as wide as the machine's registers: what m2rnn.cpp is written in.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

namespace {

#if defined(__AVX512F__)
constexpr int kBytes = 64;
#else
constexpr int kBytes = 32;  // compilers cut a vector up for narrower machines
#endif

template <typename T>
struct Lanes;
template <>
struct Lanes<float> {
  typedef float vec __attribute__((vector_size(kBytes)));
  typedef int32_t bits __attribute__((vector_size(kBytes)));
};
template <>
struct Lanes<double> {
  typedef double vec __attribute__((vector_size(kBytes)));
  typedef int64_t bits __attribute__((vector_size(kBytes)));
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

struct Factors {
  double at[14];
};

// (ln 2)ⁱ / i!
constexpr Factors powers_over_factorials() {
  Factors factors = {{1}};
  for (int i = 1; i < 14; ++i) factors.at[i] = factors.at[i - 1] * 0.69314718055994530942 / i;
  return factors;
}

// x clamped to [-limit, limit]; a NaN stays.
template <typename T>
Vec<T> bounded(Vec<T> x, T limit) {
  const Vec<T> high = all<T>(limit), low = all<T>(-limit);
  x = x > high ? high : x;
  return x < low ? low : x;
}

// tanh to the last bits of T, relative accuracy near zero included:
// with e = expm1(2x) = 2ⁿ (2ʳ - 1) + (2ⁿ - 1), tanh x = e / (e + 2).
// Several vectors at a time, since each is a long chain of operations that wait for one another.
template <typename T, int I>
inline void apply_tanh(Vec<T> (&x)[I]) {
  constexpr bool single = std::is_same<T, float>::value;
  constexpr int mantissa = single ? 23 : 52;
  constexpr T magic = single ? T(12582912.0) : T(6755399441055744.0);  // 1.5 · 2^mantissa
  constexpr int degree = single ? 7 : 13;
  constexpr Factors factors = powers_over_factorials();

  Vec<T> shifted[I], r[I], p[I];
  for (int i = 0; i < I; ++i) {
    const Vec<T> t = bounded<T>(x[i] * T(2.88539008177792681472), T(64));  // 2x / ln 2
    shifted[i] = t + magic;  // rounds to n, which then stands in the lowest bits
    r[i] = t - (shifted[i] - magic);
    p[i] = all<T>(T(factors.at[degree]));
  }
  // 2ʳ - 1 = Σ (r ln 2)ᵈ / d!, by Horner's scheme.
  for (int d = degree - 1; d >= 1; --d)
    for (int i = 0; i < I; ++i) p[i] = p[i] * r[i] + T(factors.at[d]);
  const Bits<T> one = as_bits<T>(all<T>(T(1)));
  for (int i = 0; i < I; ++i) {
    // 2ⁿ: n is moved into the exponent, and the rest of `shifted` falls off.
    const Vec<T> scale = as_floats<T>((as_bits<T>(shifted[i]) << mantissa) + one);
    const Vec<T> e = scale * (p[i] * r[i]) + (scale - T(1));
    x[i] = e / (e + T(2));
  }
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

}  // namespace
