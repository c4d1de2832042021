// The kernels on a CPU: the functions of csrc/warp.cuh, and blocks of threads that take turns.
//
// Every thread of every block is a fiber. Which one goes on is drawn at random, so that a missing
// barrier shows as a wrong number sooner or later; that nobody can go on is reported as such. Shared
// memory begins as NaN, and an asynchronous copy arrives as late as it may: when it is waited for.
#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#define M2RNN_WARP
using u16 = unsigned short;
using u32 = unsigned int;
using i64 = long long;
#define INLINE inline
#define OUTLINED inline
#define KERNEL(threads, blocks) static void
#define ARGUMENT const

struct alignas(16) Quad {
  float x, y, z, w;
};
struct alignas(8) TwoPairs {
  u32 x, y;
};
struct alignas(8) Pair {
  float x, y;
};

namespace emulator {

struct Copy {
  void *to;
  const void *from;
  int size;
  bool so;
};
struct Warp {
  void *given[32];
  const char *what = nullptr;
  int arrived = 0;
  long round = 0;
};
struct Barrier {
  int arrived = 0;
  long round = 0;
};
struct Block {
  std::vector<Warp> warps;
  Barrier barriers[16];
  char *memory;
};
struct Fiber {
  ucontext_t context;
  std::vector<char> stack;
  Block *block;
  int thread, index;
  bool done = false;
  std::vector<std::vector<Copy>> groups;
  std::vector<Copy> open;
};

static ucontext_t scheduler;
static Fiber *current;
static int blocks_in_all;
static long progress;  // counts whatever lets another thread go on
static std::string failure;

static void yield() { swapcontext(&current->context, &scheduler); }
static void fail(const std::string &what) {
  if (failure.empty()) failure = what;
  while (true) yield();
}
static Warp &warp() { return current->block->warps[current->thread / 32]; }

// All lanes of a warp give something; the last to come works on all of it.
template <class G>
static void together(const char *what, G &given, void (*work)(G **)) {
  Warp &w = warp();
  if (w.arrived && w.what != what) fail(std::string("lanes part: ") + w.what + " and " + what);
  w.what = what;
  w.given[current->thread % 32] = &given;
  const long round = w.round;
  if (++w.arrived == 32) {
    work(reinterpret_cast<G **>(w.given));
    w.arrived = 0;
    ++w.round;
    ++progress;
  } else {
    while (w.round == round) yield();
  }
}
static bool arrive_at(int barrier, int threads) {
  Barrier &b = current->block->barriers[barrier];
  ++progress;
  if (++b.arrived > threads) fail("too many threads at a barrier");
  if (b.arrived < threads) return false;
  b.arrived = 0;
  ++b.round;
  return true;
}

}  // namespace emulator

INLINE int thread_index() { return emulator::current->thread; }
INLINE int block_index() { return emulator::current->index; }
INLINE int block_count() { return emulator::blocks_in_all; }
INLINE char *shared_memory() { return emulator::current->block->memory; }

INLINE void forget(int &) {}
INLINE float bits(u32 x) {
  float z;
  std::memcpy(&z, &x, 4);
  return z;
}
INLINE u32 bits(float x) {
  u32 z;
  std::memcpy(&z, &x, 4);
  return z;
}
INLINE float hyperbolic_tangent(float x) { return std::tanh(x); }
INLINE float clamp_keeping_nan(float x, float limit) {
  return x > limit ? limit : x < -limit ? -limit : x;
}

template <class P>
struct Products {
  struct Given {
    float *d;
    u32 a[4], b[2];
  };
  // Of a 16 × 8 sum over 8 kHalves elements: whose register has an element of a or b.
  template <int kHalves>
  static void work(Given **all) {
    static thread_local float sums[32][4];
    for (int lane = 0; lane < 32; ++lane)
      for (int e = 0; e < 4; ++e) {
        const int row = lane / 4 + e / 2 * 8, column = lane % 4 * 2 + e % 2;
        float sum = all[lane]->d[e];
        for (int i = 0; i < 8 * kHalves; ++i) {
          const u32 a = all[row % 8 * 4 + i % 8 / 2]->a[row / 8 + i / 8 * 2];
          const u32 b = all[column * 4 + i % 8 / 2]->b[i / 8];
          sum += (i % 2 ? P::high(a) : P::low(a)) * (i % 2 ? P::high(b) : P::low(b));
        }
        sums[lane][e] = sum;
      }
    for (int lane = 0; lane < 32; ++lane) std::memcpy(all[lane]->d, sums[lane], 16);
  }
  static void multiply(float (&d)[4], const u32 *a, const u32 *b) {
    Given given{d, {a[0], a[1], a[2], a[3]}, {b[0], b[1]}};
    emulator::together("multiply", given, work<2>);
  }
  static void multiply_eight(float (&d)[4], u32 a0, u32 a1, u32 b) {
    Given given{d, {a0, a1, 0, 0}, {b, 0}};
    emulator::together("multiply_eight", given, work<1>);
  }
};
struct BF16 : Products<BF16> {
  static constexpr float largest = 3.38e38f;
  static u32 narrow(float x) {
    const u32 b = bits(x);
    if (x != x) return 0x7fff;
    return (b + 0x7fff + ((b >> 16) & 1)) >> 16;
  }
  static u32 pack(float low, float high) { return narrow(low) | narrow(high) << 16; }
  static float low(u32 x) { return bits(x << 16); }
  static float high(u32 x) { return bits(x & 0xffff0000u); }
  static float wide(u16 x) { return bits(u32(x) << 16); }
};
struct F16 : Products<F16> {
  static constexpr float largest = 65504.f;
  static u32 narrow(float x) {
    const _Float16 h = static_cast<_Float16>(x);
    u16 z;
    std::memcpy(&z, &h, 2);
    return z;
  }
  static u32 pack(float low, float high) { return narrow(low) | narrow(high) << 16; }
  static float wide(u16 x) {
    _Float16 h;
    std::memcpy(&h, &x, 2);
    return static_cast<float>(h);
  }
  static float low(u32 x) { return wide(u16(x)); }
  static float high(u32 x) { return wide(u16(x >> 16)); }
};

struct WideProduct {
  float *d, a[4], b[2];
};
INLINE void multiply_wide(float (&d)[4], float a0, float a1, float a2, float a3, float b0, float b1) {
  auto cut = [](float x) { return bits(bits(x) & 0xffffe000u); };
  WideProduct given{d, {cut(a0), cut(a1), cut(a2), cut(a3)}, {cut(b0), cut(b1)}};
  emulator::together<WideProduct>("multiply_wide", given, [](WideProduct **all) {
    static thread_local float sums[32][4];
    for (int lane = 0; lane < 32; ++lane)
      for (int e = 0; e < 4; ++e) {
        const int row = lane / 4 + e / 2 * 8, column = lane % 4 * 2 + e % 2;
        float sum = all[lane]->d[e];
        for (int i = 0; i < 8; ++i)
          sum += all[row % 8 * 4 + i % 4]->a[row / 8 + i / 4 * 2] * all[column * 4 + i % 4]->b[i / 4];
        sums[lane][e] = sum;
      }
    for (int lane = 0; lane < 32; ++lane) std::memcpy(all[lane]->d, sums[lane], 16);
  });
}

struct Matrices {
  u32 *z;
  const void *row;
};
template <int kCount, bool kTransposed>
void load_matrices(Matrices **all) {
  for (int m = 0; m < kCount; ++m)
    for (int lane = 0; lane < 32; ++lane) {
      const int g = lane / 4, t = lane % 4;
      auto at = [&](int row, int column) {
        return static_cast<const u16 *>(all[8 * m + row]->row)[column];
      };
      const u32 low = kTransposed ? at(2 * t, g) : at(g, 2 * t);
      const u32 high = kTransposed ? at(2 * t + 1, g) : at(g, 2 * t + 1);
      all[lane]->z[m] = low | high << 16;
    }
}
INLINE void load_four(u32 *z, const void *row) {
  Matrices given{z, row};
  emulator::together("load_four", given, load_matrices<4, false>);
}
INLINE void load_four_transposed(u32 *z, const void *row) {
  Matrices given{z, row};
  emulator::together("load_four_transposed", given, load_matrices<4, true>);
}
INLINE void load_two_transposed(u32 *z, const void *row) {
  Matrices given{z, row};
  emulator::together("load_two_transposed", given, load_matrices<2, true>);
}
INLINE void store_four(void *row, const u32 *z) {
  Matrices given{const_cast<u32 *>(z), row};
  emulator::together<Matrices>("store_four", given, [](Matrices **all) {
    for (int m = 0; m < 4; ++m)
      for (int lane = 0; lane < 32; ++lane)
        std::memcpy(static_cast<u16 *>(const_cast<void *>(all[8 * m + lane / 4]->row)) + lane % 4 * 2,
                    &all[lane]->z[m], 4);
  });
}

struct Exchanged {
  float x, z;
  int mask;
};
INLINE float from_lane_xor(float x, int mask) {
  Exchanged given{x, 0.f, mask};
  emulator::together<Exchanged>("from_lane_xor", given, [](Exchanged **all) {
    for (int lane = 0; lane < 32; ++lane) all[lane]->z = all[lane ^ all[lane]->mask]->x;
  });
  return given.z;
}
struct Asked {
  bool so, any;
};
INLINE bool any_lane(bool x) {
  Asked given{x, false};
  emulator::together<Asked>("any_lane", given, [](Asked **all) {
    bool any = false;
    for (int lane = 0; lane < 32; ++lane) any |= all[lane]->so;
    for (int lane = 0; lane < 32; ++lane) all[lane]->any = any;
  });
  return given.any;
}
INLINE void sync_warp() {
  int nothing = 0;
  emulator::together<int>("sync_warp", nothing, [](int **) {});
}
template <int kBarrier, int kThreads>
INLINE void sync_threads() {
  const long round = emulator::current->block->barriers[kBarrier].round;
  if (!emulator::arrive_at(kBarrier, kThreads))
    while (emulator::current->block->barriers[kBarrier].round == round) emulator::yield();
}
template <int kBarrier, int kThreads>
INLINE void arrive() {
  emulator::arrive_at(kBarrier, kThreads);
}

template <int kCount>
INLINE void give_registers() {}
template <int kCount>
INLINE void take_registers() {}

INLINE void copy_sixteen(void *to, const void *from, bool so) {
  if (reinterpret_cast<std::size_t>(to) % 16 || reinterpret_cast<std::size_t>(from) % 16)
    emulator::fail("a copy of 16 bytes that is not aligned");
  emulator::current->open.push_back({to, from, 16, so});
}
INLINE void copy_four(void *to, const void *from, bool so) {
  emulator::current->open.push_back({to, from, 4, so});
}
INLINE void commit_copies() {
  emulator::current->groups.push_back(std::move(emulator::current->open));
  emulator::current->open.clear();
}
template <int kPending>
INLINE void wait_copies() {
  auto &groups = emulator::current->groups;
  while (groups.size() > kPending) {
    for (const auto &copy : groups.front()) {
      if (copy.so)
        std::memcpy(copy.to, copy.from, copy.size);
      else
        std::memset(copy.to, 0, copy.size);
    }
    groups.erase(groups.begin());
  }
}

INLINE Quad load_shared_by_blocks(const float *from) { return *reinterpret_cast<const Quad *>(from); }
INLINE void store_shared_by_blocks(float *to, const Quad &x) { *reinterpret_cast<Quad *>(to) = x; }
INLINE void publish(int *to, int x) {
  *to = x;
  ++emulator::progress;
  emulator::yield();
}
INLINE int published(const int *from) { return *from; }
INLINE void pause(int) { emulator::yield(); }

#include M2RNN_KERNEL

namespace emulator {

static const Call *call;
static void enter() {
  M2RNN_NAME(*call);
  current->done = true;
  ++progress;
  swapcontext(&current->context, &scheduler);
}

}  // namespace emulator

// Runs the kernel; says what went wrong, or nothing.
extern "C" const char *emulate(const Call *call, int blocks, int threads, int shared, unsigned seed) {
  using namespace emulator;
  emulator::call = call;
  blocks_in_all = blocks;
  failure.clear();
  std::vector<Block> all(blocks);
  std::vector<Fiber> fibers(static_cast<std::size_t>(blocks) * threads);
  std::vector<std::vector<u32>> memory(blocks);
  for (int b = 0; b < blocks; ++b) {
    all[b].warps.resize(threads / 32);
    memory[b].assign(shared / 4 + 64, 0x7fffffffu);
    std::size_t base = reinterpret_cast<std::size_t>(memory[b].data());
    all[b].memory = reinterpret_cast<char *>((base + 127) / 128 * 128);
    for (int thread = 0; thread < threads; ++thread) {
      Fiber &fiber = fibers[static_cast<std::size_t>(b) * threads + thread];
      fiber.block = &all[b];
      fiber.thread = thread;
      fiber.index = b;
      fiber.stack.resize(256 * 1024);
      getcontext(&fiber.context);
      fiber.context.uc_stack.ss_sp = fiber.stack.data();
      fiber.context.uc_stack.ss_size = fiber.stack.size();
      fiber.context.uc_link = &scheduler;
      makecontext(&fiber.context, enter, 0);
    }
  }
  std::mt19937 random(seed);
  std::vector<Fiber *> alive;
  for (auto &fiber : fibers) alive.push_back(&fiber);
  for (long idle = 0, seen = progress; !alive.empty();) {
    // A warp after another in an order drawn anew, and its lanes likewise.
    std::shuffle(alive.begin(), alive.end(), random);
    for (Fiber *fiber : alive) {
      current = fiber;
      swapcontext(&scheduler, &fiber->context);
      if (!failure.empty()) return failure.c_str();
    }
    std::vector<Fiber *> left;
    for (Fiber *fiber : alive)
      if (!fiber->done) left.push_back(fiber);
    alive.swap(left);
    idle = seen == progress ? idle + 1 : 0;
    seen = progress;
    if (idle > 100) {
      failure = "no thread can go on";
      return failure.c_str();
    }
  }
  for (const Block &block : all)
    for (const Barrier &barrier : block.barriers)
      if (barrier.arrived) failure = "threads left waiting for at a barrier";
  return failure.c_str();
}
extern "C" int call_bytes() { return sizeof(Call); }
