// The n-gram tables on a CPU: hashing, looking rows up, and adding gradients to them.
//
// Plain C functions over plain memory, called through ctypes: no torch headers, so that a build takes
// seconds and the result serves every torch. Whoever calls has checked shapes, types and contiguity.
//
// Work is cut so that no two parts write to one place, and so that every sum is taken in the order of
// the positions: the results do not depend on the number of threads.

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstring>
#include <thread>
#include <type_traits>
#include <vector>

namespace {

constexpr int64_t kAhead = 24;  // rows that are under way from memory while one is worked on
constexpr int64_t kSome = 8192;  // indices in a part: far more work than to ask for the next part
constexpr int64_t kShare = 262144;  // indices to compute for each thread more: it takes as long to start
constexpr uint64_t kLow63 = ~uint64_t{0} >> 1;

// Runs part(0) ... part(parts - 1), each on whichever of the threads is free next: this one begins at
// once, while others start, and does it all where the other cores are busy. A pool that waits in
// between would spin on the cores that torch's own threads need.
template <class Part>
void in_parallel(int64_t parts, int64_t threads, const Part& part) {
  std::atomic<int64_t> next{0};
  const auto work = [&] {
    for (int64_t i = next++; i < parts; i = next++) part(i);
  };
  std::vector<std::thread> others;
  for (int64_t i = 1; i < std::min(threads, parts); ++i) others.emplace_back(work);
  work();
  for (auto& other : others) other.join();
}

// n mod d for a d that is known long before: with m = floor((2^64 - 1) / d), the high half of n * m is
// the quotient or one less, because 2^64 / d - m <= 1 and n < 2^64.
struct Modulus {
  uint64_t divisor, reciprocal;
  explicit Modulus(uint64_t d) : divisor(d), reciprocal(~uint64_t{0} / d) {}
  uint64_t of(uint64_t n) const {
    const uint64_t quotient =
        static_cast<uint64_t>((static_cast<unsigned __int128>(n) * reciprocal) >> 64);
    const uint64_t rest = n - quotient * divisor;
    return rest >= divisor ? rest - divisor : rest;
  }
};

float widened(float value) { return value; }
double widened(double value) { return value; }
struct bfloat16 {
  uint16_t bits;
};
float widened(bfloat16 value) {
  const uint32_t bits = static_cast<uint32_t>(value.bits) << 16;
  float wide;
  std::memcpy(&wide, &bits, sizeof wide);
  return wide;
}

// Each part has some of the tables, and goes through all positions in order: several tables at a time,
// so that gradients are read in long runs, but few enough that no thread is left without.
template <class From, class To>
void scatter(const From* from, int64_t width, const int64_t* indices, int64_t positions,
             int64_t tables, int64_t first, int64_t rows, To* to, int64_t threads) {
  const int64_t some = std::max<int64_t>(1, tables / (2 * threads));
  const int64_t ahead = (kAhead + some - 1) / some;
  const auto row_at = [&](int64_t position, int64_t table) -> To* {
    const int64_t row = indices[position * tables + table] - first;
    return row < 0 || row >= rows ? nullptr : to + row * width;
  };
  in_parallel((tables + some - 1) / some, threads, [&](int64_t part) {
    const int64_t low = part * some, high = std::min(tables, low + some);
    for (int64_t position = 0; position < positions; ++position) {
      if (position + ahead < positions) {
        for (int64_t table = low; table < high; ++table)
          if (const To* later = row_at(position + ahead, table)) __builtin_prefetch(later, 1);
      }
      for (int64_t table = low; table < high; ++table) {
        To* row = row_at(position, table);
        if (row == nullptr) continue;
        const From* gradient = from + (position * tables + table) * width;
        for (int64_t column = 0; column < width; ++column) row[column] += widened(gradient[column]);
      }
    }
  });
}

}  // namespace

extern "C" {

// ids [batch, length]; starts null, or [batch, length] with starts_stride = length, or [1, length]
// with 0; multipliers [hashes, highest]; biases [hashes]; hash_of, primes, offsets [tables];
// out [batch, length, tables]. The rule is the one of indices.py.
void ngram_indices(const int64_t* ids, const int64_t* starts, int64_t starts_stride, int64_t batch,
                   int64_t length, int64_t pad, const int64_t* multipliers, const int64_t* biases,
                   int64_t hashes, int64_t highest, const int64_t* hash_of, const int64_t* primes,
                   const int64_t* offsets, int64_t tables, int64_t* out, int64_t threads) {
  std::vector<Modulus> moduli(primes, primes + tables);
  const int64_t positions = batch * length;
  const int64_t some = std::max<int64_t>(1, kSome / tables);
  const auto hash_part = [&](auto order, int64_t part) {
    constexpr int64_t kOrder = decltype(order)::value;  // 0 where it is not known here
    const int64_t taps = kOrder == 0 ? highest : kOrder;
    std::vector<uint64_t> windows(highest), hashes_here(hashes);
    // Nothing that is written is read through another name, so that values stay in registers.
    uint64_t* __restrict window = windows.data();
    uint64_t* __restrict hashed = hashes_here.data();
    const Modulus* __restrict modulus = moduli.data();
    int64_t at = part * some, row = at / length, t = at % length;
    for (const int64_t end = std::min(positions, at + some); at < end; ++at, ++t) {
      if (t == length) ++row, t = 0;
      const int64_t start = starts == nullptr ? 0 : starts[row * starts_stride + t];
      for (int64_t p = 0; p < taps; ++p)
        window[p] = static_cast<uint64_t>(t - p >= start ? ids[at - p] : pad);
      for (int64_t i = 0; i < hashes; ++i) {
        uint64_t value = static_cast<uint64_t>(biases[i]);
        for (int64_t p = 0; p < taps; ++p)
          value ^= static_cast<uint64_t>(multipliers[i * taps + p]) * window[p];
        hashed[i] = value & kLow63;
      }
      int64_t* __restrict rows = out + at * tables;
      for (int64_t j = 0; j < tables; ++j)
        rows[j] = static_cast<int64_t>(modulus[j].of(hashed[hash_of[j]])) + offsets[j];
    }
  };
  threads = std::min(threads, 1 + positions * tables / kShare);
  in_parallel((positions + some - 1) / some, threads, [&](int64_t part) {
    // The usual orders are unrolled, which halves the time.
    if (highest == 2) hash_part(std::integral_constant<int64_t, 2>{}, part);
    else if (highest == 3) hash_part(std::integral_constant<int64_t, 3>{}, part);
    else hash_part(std::integral_constant<int64_t, 0>{}, part);
  });
}

// Row indices[i] - first of table [rows, row_bytes] to place i of out; zeros where it has none such.
void ngram_gather(const char* table, int64_t row_bytes, int64_t first, int64_t rows,
                  const int64_t* indices, int64_t count, char* out, int64_t threads) {
  const auto row_at = [&](int64_t at) -> const char* {
    const int64_t row = indices[at] - first;
    return row < 0 || row >= rows ? nullptr : table + row * row_bytes;
  };
  in_parallel((count + kSome - 1) / kSome, threads, [&](int64_t part) {
    const int64_t end = std::min(count, (part + 1) * kSome);
    for (int64_t at = part * kSome; at < end; ++at) {
      if (at + kAhead < count) {
        if (const char* later = row_at(at + kAhead)) __builtin_prefetch(later);
      }
      const char* row = row_at(at);
      char* place = out + at * row_bytes;
      if (row == nullptr)
        std::memset(place, 0, row_bytes);
      else
        std::memcpy(place, row, row_bytes);
    }
  });
}

// Row i of values to row indices[i] of table [rows, row_bytes], for every i; no index twice.
void ngram_put(char* table, int64_t row_bytes, const int64_t* indices, int64_t count,
               const char* values, int64_t threads) {
  in_parallel((count + kSome - 1) / kSome, threads, [&](int64_t part) {
    const int64_t end = std::min(count, (part + 1) * kSome);
    for (int64_t at = part * kSome; at < end; ++at) {
      if (at + kAhead < count) __builtin_prefetch(table + indices[at + kAhead] * row_bytes, 1);
      std::memcpy(table + indices[at] * row_bytes, values + at * row_bytes, row_bytes);
    }
  });
}

// to[indices[i] - first] += from[i] for every i that has such a row; indices [positions, tables] where
// no two tables share a row, from [positions, tables, width], to [rows, width].
#define NGRAM_SCATTER(NAME, FROM, TO)                                                              \
  void NAME(const FROM* from, int64_t width, const int64_t* indices, int64_t positions,            \
            int64_t tables, int64_t first, int64_t rows, TO* to, int64_t threads) {                \
    scatter<FROM, TO>(from, width, indices, positions, tables, first, rows, to, threads);          \
  }
NGRAM_SCATTER(ngram_scatter_float32_float32, float, float)
NGRAM_SCATTER(ngram_scatter_bfloat16_float32, bfloat16, float)
NGRAM_SCATTER(ngram_scatter_float64_float64, double, double)

}  // extern "C"
