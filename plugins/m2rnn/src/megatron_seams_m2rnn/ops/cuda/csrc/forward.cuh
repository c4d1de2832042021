// Forward: one head of one document a block. A warp steps 16 rows of the state, which need no other
// rows, and waits for nothing but its own chain; two more warps bring the inputs and sum y.
//
// Both sides go from group to group of eight steps: "go" says that a group's inputs are there and
// that there is room for its y, "done" that the group has been stepped.
#ifndef M2RNN_FORWARD
#define M2RNN_FORWARD
#include "call.cuh"

namespace forward {

constexpr int kHelpers = 2, kThreads = 32 * (kWarps + kHelpers);
constexpr int kSlots = 4;  // groups whose inputs are on their way, there, or in use
constexpr int kGo = 1, kDone = 3;  // and the next number: barriers of odd groups
constexpr int kOwnSteps = kGroup / kHelpers;

struct alignas(16) Step {
  u16 k[K], q[K], v[V];
  float f;
};
// Of a step and two rows: q of both, the gate, and what the gate lets in.
using Ahead = Quad[kGroup][kWarps * 8];
// A lane's columns of y over its two rows.
struct Part {
  float y[V / 4];
};
struct Shared {
  alignas(128) Step steps[kSlots][kGroup];
  alignas(128) Ahead ahead[2];
  alignas(128) Part part[3][kGroup][kWarps * 8][4];
};

static_assert(sizeof(Shared) == M2RNN_SHARED, "what kernel.py says");

struct Place {
  int n, b, d;
  Document document;
  INLINE Place(const Call &c)
      : n(block_index() % c.heads),
        b(block_index() / c.heads % c.batch),
        d(block_index() / c.heads / c.batch),
        document(c, d) {}
  INLINE i64 state(const Call &c) const { return ((i64(d) * c.batch + b) * c.heads + n) * K * V; }
};

// Wait until group i is there, and take its k and v.
INLINE void meet(const Shared &m, Outer &outer, int i, const Lane &l) {
  i % 2 ? sync_threads<kGo + 1, kThreads>() : sync_threads<kGo, kThreads>();
  outer.load(m.steps[i % kSlots], l);
}

// One group of steps: those of s0 … s1, all eight where kWhole. `outer` has its k and v, and then
// those of the next group, which is met in time for its first step not to wait.
template <class P, bool kWhole>
INLINE void step(Shared &m, int i, bool more, int s0, int s1, float (&h)[kColumns][4], Outer &outer,
                 const Transition<P> &W, const Lane &l) {
  const auto &ahead = m.ahead[i % 2];
  auto &part = m.part[i % 3];
  const Outer here = outer;
  // k vᵀ of a step is taken while the step before it waits for its product.
  float kv[kColumns][4];
  here(kv, s0);
  auto one = [&](int s) {
    const Quad now = ahead[s][l.warp * 8 + l.g];
    u32 a[kBlocks][4];
    pack<P>(a, h);
    float x[kColumns][4];
#pragma unroll
    for (int j = 0; j < kColumns; ++j)
#pragma unroll
      for (int e = 0; e < 4; ++e) x[j][e] = kv[j][e];
    W(x, a);
    here(kv, s + 1 < kGroup ? s + 1 : s);
    advance(h, x, now.z, now.w);
    Part y;
#pragma unroll
    for (int j = 0; j < kColumns; ++j)
#pragma unroll
      for (int e = 0; e < 2; ++e) y.y[2 * j + e] = now.x * h[j][e] + now.y * h[j][e + 2];
#pragma unroll
    for (int e = 0; e < V / 16; ++e)
      reinterpret_cast<Quad *>(&part[s][l.warp * 8 + l.g][l.t])[e] =
          Quad{y.y[4 * e], y.y[4 * e + 1], y.y[4 * e + 2], y.y[4 * e + 3]};
  };
  if constexpr (kWhole) {
#pragma unroll
    for (int s = 0; s < kGroup; ++s) {
      if (s == kGroup - 3 && more) meet(m, outer, i + 1, l);
      one(s);
    }
  } else {
    if (more) meet(m, outer, i + 1, l);
#pragma unroll 1
    for (int s = s0; s < s1; ++s) one(s);
  }
}

INLINE void chain(const Call &c, Shared &m, const Lane &l) {
  const Place at(c);
  const int start = at.document.start, stop = at.document.stop;
  Transition<F16> W;
  Transition<BF16> W_wide;
  bool narrow = W.load(c.W, at.n / c.w_share, l, false);
  float h[kColumns][4];
  load_state(h, c.h0 ? c.h0 + at.state(c) : nullptr, l);
  // A state never leaves the larger of 1 and its beginning, so that this holds for all of it.
  narrow = !any_lane(!(narrow && held<F16>(h)));
  if (!narrow) W_wide.load(c.W, at.n / c.w_share, l, false);
  const int first = start / kGroup, groups = start < stop ? (stop - 1) / kGroup + 1 - first : 0;
  Outer outer;
  if (groups) meet(m, outer, 0, l);
  for (int i = 0; i < groups; ++i) {
    const int t = (first + i) * kGroup;
    const int s0 = larger(start - t, 0), s1 = smaller(int(kGroup), stop - t);
    const bool more = i + 1 < groups;
    if (c.kept && t % c.every == 0 && t > start) {
      u32 *kept = c.kept + kept_state(c, t / c.every, at.b, at.n);
      narrow ? store_own<F16>(kept, h, l) : store_own<BF16>(kept, h, l);
    }
    if (!narrow)
      step<BF16, false>(m, i, more, s0, s1, h, outer, W_wide, l);
    else if (s0 == 0 && s1 == kGroup)
      step<F16, true>(m, i, more, s0, s1, h, outer, W, l);
    else
      step<F16, false>(m, i, more, s0, s1, h, outer, W, l);
    i % 2 ? arrive<kDone + 1, kThreads>() : arrive<kDone, kThreads>();
  }
  store_state(c.last + at.state(c), h, l);
}

// A helper brings its own four steps of a group and sums their y, so that helpers need not meet.
struct Helper {
  const Call &c;
  Shared &m;
  const Place at;
  const int lane, s0;
  const u16 *q, *k, *v;
  const float *f;
  const int f_heads;
  INLINE Helper(const Call &call, Shared &memory)
      : c(call),
        m(memory),
        at(call),
        lane(thread_index() % 32),
        s0((thread_index() / 32 - kWarps) * kOwnSteps),
        q(c.q + at.b * c.q_batch + at.n / c.q_share * K),
        k(c.k + at.b * c.k_batch + at.n / c.k_share * K),
        v(c.v + at.b * c.v_batch + at.n / c.v_share * V),
        f(c.f + i64(at.b) * c.steps * (c.heads / c.f_share) + at.n / c.f_share),
        f_heads(c.heads / c.f_share) {}

  template <int kSize>
  INLINE void bring(Step *to, u16 (Step::*part)[kSize], const u16 *from, i64 step, int t) const {
    constexpr int kCopies = kSize / 8;
    for (int i = lane; i < kOwnSteps * kCopies; i += 32) {
      const int s = s0 + i / kCopies, e = i % kCopies * 8;
      const bool so = t + s >= at.document.start && t + s < at.document.stop;
      copy_sixteen((to[s].*part) + e, from + (so ? t + s : at.document.start) * step + e, so);
    }
  }
  // Ask for the inputs of group i of the document; every call counts, also past the last group.
  INLINE void ask(int i, int groups) const {
    if (i < groups) {
      const int t = (at.document.start / kGroup + i) * kGroup;
      Step *to = m.steps[i % kSlots];
      bring(to, &Step::k, k, c.k_step, t);
      bring(to, &Step::q, q, c.q_step, t);
      bring(to, &Step::v, v, c.v_step, t);
      if (lane < kOwnSteps) {
        const int s = s0 + lane;
        const bool so = t + s >= at.document.start && t + s < at.document.stop;
        copy_four(&to[s].f, f + i64(so ? t + s : at.document.start) * f_heads, so);
      }
    }
    commit_copies();
  }
  INLINE void prepare(int i) const {
#pragma unroll
    for (int item = lane; item < kOwnSteps * kWarps * 8; item += 32) {
      const int s = s0 + item / (kWarps * 8), e = item % (kWarps * 8), row = e / 8 * 16 + e % 8;
      const Step &step = m.steps[i % kSlots][s];
      m.ahead[i % 2][s][e] =
          Quad{T::wide(step.q[row]), T::wide(step.q[row + 8]), step.f, 1.f - step.f};
    }
  }
  INLINE void sum(int i) const {
    // Lanes: t, then which half of the rows, then which of the four steps.
    const int t = lane % 4, half = lane / 4 % 2, s = s0 + lane / 8;
    float y[V / 4];
#pragma unroll
    for (int e = 0; e < V / 4; ++e) y[e] = 0.f;
#pragma unroll
    for (int pair = half; pair < kWarps * 8; pair += 2) {
      const Part &part = m.part[i % 3][s][pair][t];
#pragma unroll
      for (int e = 0; e < V / 16; ++e) {
        const Quad four = reinterpret_cast<const Quad *>(&part)[e];
        y[4 * e] += four.x, y[4 * e + 1] += four.y, y[4 * e + 2] += four.z, y[4 * e + 3] += four.w;
      }
    }
#pragma unroll
    for (int e = 0; e < V / 4; ++e) y[e] += from_lane_xor(y[e], 4);
    const int step = (at.document.start / kGroup + i) * kGroup + s;
    if (step < at.document.start || step >= at.document.stop) return;
    u16 *row = c.y + ((i64(at.b) * c.steps + step) * c.heads + at.n) * V + 2 * t;
#pragma unroll
    for (int j = 0; j < kColumns / 2; ++j) {  // each half writes half of the columns
      const float low = half ? y[kColumns + 2 * j] : y[2 * j];
      const float high = half ? y[kColumns + 2 * j + 1] : y[2 * j + 1];
      *reinterpret_cast<u32 *>(row + 8 * (j + half * (kColumns / 2))) = T::pack(low, high);
    }
  }
};

INLINE void help(const Call &c, Shared &m) {
  const Helper helper(c, m);
  const Document &document = helper.at.document;
  if (document.start >= document.stop) return;
  const int groups = (document.stop - 1) / kGroup + 1 - document.start / kGroup;
  auto go = [&](int i) {
    helper.prepare(i);
    i % 2 ? arrive<kGo + 1, kThreads>() : arrive<kGo, kThreads>();
  };
  helper.ask(0, groups);
  helper.ask(1, groups);
  helper.ask(2, groups);
  wait_copies<1>();  // groups 0 and 1 are there
  sync_warp();
  go(0);
  if (groups > 1) go(1);
  for (int i = 0; i < groups; ++i) {
    i % 2 ? sync_threads<kDone + 1, kThreads>() : sync_threads<kDone, kThreads>();
    helper.ask(i + 3, groups);
    wait_copies<1>();  // group i + 2 is there
    sync_warp();
    if (i + 2 < groups) go(i + 2);  // the sums of two groups behind it are taken: it has room
    helper.sum(i);
  }
}

}  // namespace forward

KERNEL(M2RNN_THREADS, M2RNN_RESIDENT) m2rnn_forward(ARGUMENT Call c) {
  auto &m = *reinterpret_cast<forward::Shared *>(shared_memory());
  if (thread_index() < 32 * kWarps)
    forward::chain(c, m, Lane());
  else
    forward::help(c, m);
}
#endif
