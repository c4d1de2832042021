// Backward: one head a block, which walks through documents from their last steps to their first.
//
// Interval by interval of 32 steps, from the state that forward kept: step forward once to have the
// states before each of its segments; then, segment by segment from the last, step forward again,
// keeping h and z of each step in shared memory, go back through the steps, and take dW as one
// product over them. A warp has 16 rows of the state here too, and needs no other rows for any of
// this. Two more warps bring the inputs and take away what the chain has left for each segment.
//
// Where heads share a head of q or k, its gradient is a sum over blocks. Each block writes its part
// of a segment into a ring; one more warp of each block sums, in the order of heads, the parts of
// its share of the segments as soon as all blocks have written them. So blocks wait for one another,
// and all of them must run at a time (a cooperative launch). No block adds to what another wrote.
#ifndef M2RNN_BACKWARD
#define M2RNN_BACKWARD
#include "call.cuh"

namespace backward {

constexpr int kSteps = M2RNN_SEGMENT;  // of a segment
constexpr int kSegments = kInterval / kSteps;
constexpr int kReady = 1, kFree = 2, kStaged = 3, kEnd = 4;  // barriers
constexpr bool kWantsQ = (M2RNN_WANTS)&1, kWantsK = (M2RNN_WANTS)&2, kWantsV = (M2RNN_WANTS)&4,
               kWantsF = (M2RNN_WANTS)&8, kWantsW = (M2RNN_WANTS)&16;
static_assert(kSteps % kGroup == 0 && kInterval % kSteps == 0 && kInterval == 32, "a segment is some groups");

struct alignas(16) Step {
  u16 k[K], q[K], v[V], dy[V];
  float f;
};
// A warp's rows of two states as pairs of 16 bits, in the order of a product's operand.
struct Rows {
  u32 h[kBlocks][32][4];  // before the step
  u32 z[kBlocks][32][4];  // and, once it is used, dx
};
// What the chain leaves of a step for the helpers.
struct Sums {
  float dq[K], dk[K], dv[kWarps][V], df[kWarps][8];
};

struct Shared {
  alignas(128) Step steps[2][kInterval];
  alignas(128) Rows rows[kSteps][kWarps];
  alignas(128) Sums sums[kSteps];
  // States before all segments but the last, as lanes have them.
  alignas(128) float marks[kSegments > 1 ? kSegments - 1 : 1][K * V];
};

static_assert(sizeof(Shared) == M2RNN_SHARED, "what kernel.py says");

// Where a block is: the document, row and interval that its walk has come to.
struct Walk {
  const Call *c;
  int n, slot, item, d, b, start, stop, interval;
  bool there;
  INLINE explicit Walk(const Call &call)
      : c(&call), n(block_index() % call.heads), slot(block_index() / call.heads) {
    enter(slot);
  }
  INLINE void enter(int next) {
    item = next;
    there = item < c->documents * c->batch;
    if (!there) return;
    b = item % c->batch;
    d = item / c->batch;
    const Document document(*c, d);
    start = document.start;
    stop = document.stop;
    interval = (stop - 1) / kInterval;  // of an empty document never looked at
  }
  INLINE bool empty() const { return start >= stop; }
  INLINE bool last() const { return interval == start / kInterval; }
  // The next interval back, or the last one of the next document that has any.
  INLINE void next() {
    if (!empty() && !last())
      --interval;
    else
      enter(item + c->slots);
  }
  INLINE void skip_empty() {
    while (there && empty()) enter(item + c->slots);
  }
  INLINE int low(int s) const { return larger(start, interval * kInterval + s * kSteps); }
  INLINE int high(int s) const { return smaller(stop, interval * kInterval + (s + 1) * kSteps); }
  INLINE i64 state() const { return ((i64(d) * c->batch + b) * c->heads + n) * K * V; }
};

// Two of 16 bits as numbers: a lane's pairs of columns of a row.
INLINE void columns(float (&x)[kColumns][2], const u32 (&pairs)[kColumns]) {
#pragma unroll
  for (int j = 0; j < kColumns; ++j) {
    x[j][0] = T::low(pairs[j]);
    x[j][1] = T::high(pairs[j]);
  }
}

// What a warp carries from step to step and segment to segment.
struct Carry {
  float G[kColumns][4];  // the gradient of the state that a step hands back
  float h[kColumns][4];  // the state after the step that comes next
  float dW[kBlocks][kColumns][4];
};

// What a lane reads for a step back: asked for one step ahead.
struct Read {
  u32 z[kBlocks][4], h[kBlocks][4], dy[kColumns], v[kColumns];
  u16 q[2], k[2];
  float f;
  INLINE void load(const Step &step, const Rows &rows, const Lane &l) {
    const int row = 16 * l.warp + l.g;
#pragma unroll
    for (int i = 0; i < kBlocks; ++i) {
      load_four(z[i], rows.z[i][l.lane]);
      load_four(h[i], rows.h[i][l.lane]);
    }
    f = step.f;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      q[half] = step.q[row + 8 * half];
      if constexpr (kWantsV) k[half] = step.k[row + 8 * half];
    }
#pragma unroll
    for (int j = 0; j < kColumns; ++j) {
      dy[j] = *reinterpret_cast<const u32 *>(step.dy + 8 * j + 2 * l.t);
      if constexpr (kWantsK) v[j] = *reinterpret_cast<const u32 *>(step.v + 8 * j + 2 * l.t);
    }
  }
};

// What a step has yet to sum over lanes and to store: done while the step before it runs.
struct Left {
  float dq[4], dk[4], dv[2 * kColumns], df;
  INLINE void finish(Sums &sums, const Lane &l) {
    const int row = 16 * l.warp + l.g;
    int first = 0;
    if constexpr (kWantsV) {
      // Over the rows: lanes that are 16, 8 and 4 apart halve what each still has to sum.
#pragma unroll
      for (int apart = 16, have = 2 * kColumns; apart >= 4; apart /= 2) {
        const bool upper = l.lane & apart;
        if (have > 1) {
          have /= 2;
#pragma unroll
          for (int e = 0; e < have; ++e) {
            const float mine = upper ? dv[e + have] : dv[e], other = upper ? dv[e] : dv[e + have];
            dv[e] = mine + from_lane_xor(other, apart);
          }
          first += upper ? have : 0;
        } else {
          dv[0] += from_lane_xor(dv[0], apart);
        }
      }
    }
    if constexpr (kWantsF) {
      df += from_lane_xor(df, 1);
      df += from_lane_xor(df, 2);
    }
    if (l.t == 0) {  // all four lanes of a row have its sums
      if constexpr (kWantsQ) sums.dq[row] = dq[0], sums.dq[row + 8] = dq[2];
      if constexpr (kWantsK) sums.dk[row] = dk[0], sums.dk[row + 8] = dk[2];
      if constexpr (kWantsF) sums.df[l.warp][l.g] = df;
    }
    if constexpr (kWantsV) {
      constexpr int kLeft = kColumns / 4 > 0 ? kColumns / 4 : 1;
#pragma unroll
      for (int e = 0; e < kLeft; ++e) {
        const int pair = first + e;
        sums.dv[l.warp][pair / 2 * 8 + 2 * l.t + pair % 2] = dv[e];
      }
    }
  }
};

// Steps s0 … s1 of a group forward; where kKeep, h and z of each are left in shared memory.
template <class P, bool kKeep, bool kWhole>
INLINE void forward_group(const Step *steps, Rows (*rows)[kWarps], int s0, int s1,
                          float (&h)[kColumns][4], const Transition<P> &W, const Lane &l) {
  Outer outer;
  outer.load(steps, l);
  float kv[kColumns][4];
  outer(kv, s0, l);
  auto one = [&](int s) {
    const float f = steps[s].f;
    u32 a[kBlocks][4];
    pack<P>(a, h);
    float x[kColumns][4];
#pragma unroll
    for (int j = 0; j < kColumns; ++j)
#pragma unroll
      for (int e = 0; e < 4; ++e) x[j][e] = kv[j][e];
    W(x, a);
    outer(kv, s + 1 < kGroup ? s + 1 : s, l);
    advance<M2RNN_EXACT_TANH>(h, x, f, 1.f - f);
    if constexpr (kKeep) {
      u32 z[kBlocks][4];
      pack<F16>(z, x);
#pragma unroll
      for (int i = 0; i < kBlocks; ++i) {
        store_four(rows[s][l.warp].h[i][l.lane], a[i]);
        store_four(rows[s][l.warp].z[i][l.lane], z[i]);
      }
    }
  };
  if constexpr (kWhole) {
#pragma unroll
    for (int s = 0; s < kGroup; ++s) one(s);
  } else {
#pragma unroll 1
    for (int s = s0; s < s1; ++s) one(s);
  }
}

// Steps low … high forward; kHurry where they are worth unrolled code.
template <class P, bool kKeep, bool kHurry>
INLINE void forward_steps(Shared &m, const Step *steps, int base, int low, int high,
                          float (&h)[kColumns][4], const Transition<P> &W, const Lane &l) {
#pragma unroll 1
  for (int t = low / kGroup * kGroup; t < high; t += kGroup) {
    const int s0 = larger(low - t, 0), s1 = smaller(int(kGroup), high - t);
    const Step *group = steps + (t - base);
    auto *rows = m.rows + (t - base) % kSteps;
    if (kHurry && s0 == 0 && s1 == kGroup)
      forward_group<P, kKeep, kHurry>(group, rows, s0, s1, h, W, l);
    else
      forward_group<P, kKeep, false>(group, rows, s0, s1, h, W, l);
  }
}

// One step back. The chain from step to step comes first, so that the sums beside it fill its waits.
template <class P>
INLINE void backward_step(const Read &now, Rows &rows, Left &left, Carry &carry,
                          const Transition<BF16> &W, const Lane &l, float clip) {
  float z[kColumns][4], before[kColumns][4], dy[kColumns][2], dx[kColumns][4];
  unpack<F16>(z, now.z);
  columns(dy, now.dy);
  const float f = now.f, taken = 1.f - f, q[2] = {T::wide(now.q[0]), T::wide(now.q[1])};
  float G[kColumns][4];
#pragma unroll
  for (int j = 0; j < kColumns; ++j)
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      G[j][e] = carry.G[j][e];
      if constexpr (M2RNN_CLIPS) G[j][e] = clamp_keeping_nan(G[j][e], clip);
      G[j][e] += q[e / 2] * dy[j][e % 2];
      dx[j][e] = taken * (1.f - z[j][e] * z[j][e]) * G[j][e];
      carry.G[j][e] = f * G[j][e];
    }
  u32 b[kBlocks][4];
  pack<BF16>(b, dx);
  W(carry.G, b);

  unpack<P>(before, now.h);
  if constexpr (kWantsQ) {
#pragma unroll
    for (int e = 0; e < 4; ++e) left.dq[e] = 0.f;
#pragma unroll
    for (int j = 0; j < kColumns; ++j)
      multiply_wide(left.dq, carry.h[j][0], carry.h[j][2], carry.h[j][1], carry.h[j][3], dy[j][0],
                    dy[j][1]);
#pragma unroll
    for (int j = 0; j < kColumns; ++j)
#pragma unroll
      for (int e = 0; e < 4; ++e) carry.h[j][e] = before[j][e];
  }
  if constexpr (kWantsK) {
    float v[kColumns][2];
    columns(v, now.v);
#pragma unroll
    for (int e = 0; e < 4; ++e) left.dk[e] = 0.f;
#pragma unroll
    for (int j = 0; j < kColumns; ++j)
      multiply_wide(left.dk, dx[j][0], dx[j][2], dx[j][1], dx[j][3], v[j][0], v[j][1]);
  }
  if constexpr (kWantsV) {
    const float k[2] = {T::wide(now.k[0]), T::wide(now.k[1])};
#pragma unroll
    for (int j = 0; j < kColumns; ++j)
#pragma unroll
      for (int e = 0; e < 2; ++e) left.dv[2 * j + e] = k[0] * dx[j][e] + k[1] * dx[j][e + 2];
  }
  if constexpr (kWantsF) {
    float part[2] = {0.f, 0.f};
#pragma unroll
    for (int j = 0; j < kColumns; ++j)
#pragma unroll
      for (int e = 0; e < 4; ++e) part[e % 2] += (before[j][e] - z[j][e]) * G[j][e];
    left.df = part[0] + part[1];
  }
  if constexpr (kWantsW) {
    u32 h[kBlocks][4];
    pack<BF16>(h, before);
    sync_warp();  // every lane has read the step's h and z
#pragma unroll
    for (int i = 0; i < kBlocks; ++i) {
      store_four(rows.z[i][l.lane], b[i]);
      store_four(rows.h[i][l.lane], h[i]);
    }
  }
}

// Steps low … high back, all of a segment.
template <class P, bool kHurry>
INLINE void backward_steps(Shared &m, const Step *steps, int base, int low, int high, Carry &carry,
                           const Transition<BF16> &W, const Lane &l, float clip) {
  Read next;
  Left left;
  next.load(steps[high - 1 - base], m.rows[(high - 1 - base) % kSteps][l.warp], l);
  Sums *behind = nullptr;  // of the step that is left to be finished
#pragma unroll 1
  for (int t = (high - 1) / kGroup * kGroup; t + kGroup > low; t -= kGroup) {
    const int s0 = larger(low - t, 0), s1 = smaller(int(kGroup), high - t), first = (t - base) % kSteps;
    const Step *group = steps + (t - base);
    auto one = [&](int s, bool some) {
      const Read now = next;
      // The step before: of the first one of all, itself once more.
      const int ahead = s > s0 || t > low ? s - 1 : s;
      next.load(group[ahead], m.rows[first + ahead][l.warp], l);
      if (some) left.finish(m.sums[first + s + 1], l);
      backward_step<P>(now, m.rows[first + s][l.warp], left, carry, W, l, clip);
    };
    if (kHurry && s0 == 0 && s1 == kGroup) {
#pragma unroll
      for (int s = kGroup - 1; s >= 0; --s) one(s, s < kGroup - 1 || behind);
    } else {
#pragma unroll 1
      for (int s = s1 - 1; s >= s0; --s) one(s, s < s1 - 1 || behind);
    }
    behind = &m.sums[first];
  }
  left.finish(m.sums[(low - base) % kSteps], l);
}

// dW += Σ h_{t-1}ᵀ dx_t over the steps first … end of a segment and the warp's rows.
INLINE void add_weight_gradient(Shared &m, Carry &carry, int first, int end, const Lane &l) {
  sync_warp();
#pragma unroll 2
  for (int step = first; step < end; ++step) {
    u32 h[kBlocks][4], dx[kBlocks][4];
#pragma unroll
    for (int i = 0; i < kBlocks; ++i) {
      load_four_transposed(h[i], m.rows[step][l.warp].h[i][l.lane]);
      load_four_transposed(dx[i], m.rows[step][l.warp].z[i][l.lane]);
    }
#pragma unroll
    for (int i = 0; i < kBlocks; ++i) {
      const u32 a[4] = {h[i][0], h[i][2], h[i][1], h[i][3]};
#pragma unroll
      for (int j = 0; j < kColumns; ++j) BF16::multiply(carry.dW[i][j], a, &dx[j / 2][j % 2 * 2]);
    }
  }
  sync_warp();  // the next segment writes there
}

template <class P, bool kHurry>
INLINE void interval(const Call &c, Shared &m, const Walk &walk, Carry &carry, const Transition<P> &W,
                     const Transition<BF16> &W_back, const Lane &l) {
  const int base = walk.interval * kInterval;
  const Step *steps = m.steps[walk.interval % 2];
  const float clip = float(c.clip);
  float h[kColumns][4];
  if (base > walk.start)
    load_own(h, c.kept + kept_state(c, walk.interval, walk.b, walk.n), l);
  else
    load_state(h, c.h0 ? c.h0 + walk.state() : nullptr, l);
  const int s_first = (walk.low(0) - base) / kSteps;
  const int s_last = (smaller(walk.stop, base + kInterval) - 1 - base) / kSteps;
  for (int s = s_first; s < s_last; ++s) {
    store_own(m.marks[s], h, l);
    forward_steps<P, false, kHurry>(m, steps, base, walk.low(s), walk.high(s), h, W, l);
  }
#pragma unroll 1
  for (int s = s_last; s >= s_first; --s) {
    const int low = walk.low(s), high = walk.high(s);
    if (s < s_last) load_own(h, m.marks[s], l);
    forward_steps<P, true, kHurry>(m, steps, base, low, high, h, W, l);
    sync_warp();
#pragma unroll
    for (int j = 0; j < kColumns; ++j)
#pragma unroll
      for (int e = 0; e < 4; ++e) carry.h[j][e] = h[j][e];
    sync_threads<kFree, kThreads>();
    backward_steps<P, kHurry>(m, steps, base, low, high, carry, W_back, l, clip);
    if constexpr (kWantsW)
      add_weight_gradient(m, carry, (low - base) % kSteps, (high - 1 - base) % kSteps + 1, l);
    arrive<kStaged, kThreads>();
  }
}

// The same of a state that float16 cannot hold: rare, and apart, so that it costs no registers.
OUTLINED void wide_interval(const Call &c, Shared &m, const Walk &walk, Carry &result) {
  const Lane l;
  Transition<BF16> W, W_back;
  W.load(c.W, walk.n / c.w_share, l, false);
  W_back.load(c.W, walk.n / c.w_share, l, true);
  Carry carry = result;
  interval<BF16, false>(c, m, walk, carry, W, W_back, l);
  result = carry;
}

INLINE void chain(const Call &c, Shared &m, const Lane &l) {
  Walk walk(c);
  Transition<F16> W;
  Transition<BF16> W_back;
  const int head = walk.n / c.w_share;
  const bool W_fits = W.load(c.W, head, l, false);
  W_back.load(c.W, head, l, true);
  Carry carry;
#pragma unroll
  for (int i = 0; i < kBlocks; ++i)
#pragma unroll
    for (int j = 0; j < kColumns; ++j)
#pragma unroll
      for (int e = 0; e < 4; ++e) carry.dW[i][j][e] = 0.f;
  while (walk.there) {
    bool narrow = W_fits;
    if (c.h0) {
      load_state(carry.G, c.h0 + walk.state(), l);
      narrow = narrow && held<F16>(carry.G);
    }
    narrow = !any_lane(!narrow);
    load_state(carry.G, c.dlast ? c.dlast + walk.state() : nullptr, l);
    float *dh0 = c.dh0 ? c.dh0 + walk.state() : nullptr;
    const int item = walk.item;
    while (walk.there && walk.item == item) {
      if (!walk.empty()) {
        sync_threads<kReady, kThreads>();
        if (narrow)
          interval<F16, true>(c, m, walk, carry, W, W_back, l);
        else {
          Carry apart = carry;
          const Walk here = walk;
          wide_interval(c, m, here, apart);
          carry = apart;
        }
      }
      walk.next();
    }
    if (dh0) store_state(dh0, carry.G, l);
  }
  if constexpr (kWantsW) {
    sync_threads<kEnd, 32 * kWarps>();
    float *sums = reinterpret_cast<float *>(&m.rows);  // nothing reads it any more
    static_assert(sizeof(m.rows) >= kWarps * V * V * sizeof(float), "room for the warps' sums");
#pragma unroll
    for (int i = 0; i < kBlocks; ++i)
#pragma unroll
      for (int j = 0; j < kColumns; ++j)
#pragma unroll
        for (int half = 0; half < 2; ++half)
          *reinterpret_cast<Pair *>(sums + (l.warp * V + 16 * i + l.g + 8 * half) * V + 8 * j + 2 * l.t) =
              Pair{carry.dW[i][j][2 * half], carry.dW[i][j][2 * half + 1]};
    sync_threads<kEnd, 32 * kWarps>();
    float *dW = c.dW + (i64(walk.slot) * c.heads + walk.n) * V * V;
    for (int e = thread_index(); e < V * V; e += 32 * kWarps) {
      float sum = 0.f;
#pragma unroll
      for (int w = 0; w < kWarps; ++w) sum += sums[w * V * V + e];
      dW[e] = sum;
    }
  }
}

// A gradient that a group of blocks sums: whose part a block has, and what the others have done.
struct Gradient {
  const Call &c;
  const int share, head, rank;  // blocks of a group, the group's head of q or k, the block's number in it
  float *ring;
  int *written, *summed;  // of all blocks of the slot's groups
  u16 *to;
  static constexpr int kElements = kSteps * K, kUnit = 128, kUnits = kElements / kUnit;
  INLINE Gradient(const Call &call, const Walk &walk, bool of_q)
      : c(call),
        share(of_q ? call.q_share : call.k_share),
        head(walk.n / share),
        rank(walk.n % share),
        ring((of_q ? call.ring_q : call.ring_k) + i64(walk.slot) * call.ring * call.heads * kElements),
        written(call.progress + ((of_q ? 0 : 2) * call.slots + walk.slot) * call.heads + head * share),
        summed(call.progress + ((of_q ? 1 : 3) * call.slots + walk.slot) * call.heads + head * share),
        to(of_q ? call.dq : call.dk) {}
  INLINE float *part(int segment, int of) const {
    return ring + i64(segment % c.ring * c.heads + head * share + of) * kElements;
  }
  // Of the units of all segments, one after the other, a block sums each that is its turn.
  INLINE void wait_for_room(int segment, int lane) const {
    if (segment < c.ring) return;
    if (lane < kUnits) {
      const int unit = (segment - c.ring) * kUnits + lane;
      while (published(summed + unit % share) < unit / share + 1) pause();
    }
    sync_warp();
  }
  INLINE void say_written(int segment, int lane) const {
    fence_blocks();
    sync_warp();
    if (lane == 0) publish(written + rank, segment + 1);
  }
  // Sum the block's units of a segment, steps low … high; `unit` counts those of all segments.
  INLINE void sum(int segment, int &turn, int &done, int b, int base, int low, int high, int lane) const {
    for (int part_of = 0; part_of < kUnits; ++part_of) {
      const bool mine = turn == rank;
      turn = turn + 1 == share ? 0 : turn + 1;
      if (!mine) continue;
      for (int other = lane; other < share; other += 32)
        while (published(written + other) < segment + 1) pause();
      sync_warp();
      const int first = part_of * kUnit + lane * 4;
      Quad sum{0.f, 0.f, 0.f, 0.f};
      const float *from = part(segment, 0) + first;
#pragma unroll 4
      for (int other = 0; other < share; ++other) {
        const Quad four = load_shared_by_blocks(from + other * kElements);
        sum.x += four.x, sum.y += four.y, sum.z += four.z, sum.w += four.w;
      }
      const int t = base + first / K;
      if (t >= low && t < high) {
        u32 *row = reinterpret_cast<u32 *>(
            to + ((i64(b) * c.steps + t) * (c.heads / share) + head) * K + first % K);
        row[0] = T::pack(sum.x, sum.y);
        row[1] = T::pack(sum.z, sum.w);
      }
      sync_warp();
      if (lane == 0) publish(summed + rank, ++done);
    }
  }
};

// The two warps that bring inputs and take sums away: one has dq and df, the other dk and dv.
struct Helper {
  const Call &c;
  Shared &m;
  const int lane, helper;

  template <int kSize>
  INLINE void bring(u16 (Step::*part)[kSize], const u16 *from, i64 step, const Walk &walk) const {
    constexpr int kCopies = kSize / 8;
    Step *to = m.steps[walk.interval % 2];
    const int t = walk.interval * kInterval;
    for (int i = helper * 32 + lane; i < kInterval * kCopies; i += 32 * kHelpers) {
      const int s = i / kCopies, e = i % kCopies * 8;
      const bool so = t + s >= walk.start && t + s < walk.stop;
      copy_sixteen((to[s].*part) + e, from + (so ? t + s : walk.start) * step + e, so);
    }
  }
  // Ask for an interval's inputs.
  INLINE void ask(const Walk &walk) const {
    if (walk.there) {
      const int n = walk.n, f_heads = c.heads / c.f_share;
      const i64 b = walk.b;
      bring(&Step::k, c.k + b * c.k_batch + n / c.k_share * K, c.k_step, walk);
      bring(&Step::q, c.q + b * c.q_batch + n / c.q_share * K, c.q_step, walk);
      bring(&Step::v, c.v + b * c.v_batch + n / c.v_share * V, c.v_step, walk);
      bring(&Step::dy, c.dy + (b * c.steps * c.heads + n) * V, i64(c.heads) * V, walk);
      if (helper == 0) {
        const int t = walk.interval * kInterval + lane;
        const bool so = t >= walk.start && t < walk.stop;
        copy_four(&m.steps[walk.interval % 2][lane].f,
                  c.f + (b * c.steps + (so ? t : walk.start)) * f_heads + n / c.f_share, so);
      }
    }
    commit_copies();
  }
  // A segment's dq or dk, of a head of its own or into the ring.
  INLINE void take(float (Sums::*of)[K], const Gradient &gradient, const Walk &walk, int segment,
                   int base, int low, int high) const {
    if (gradient.share > 1) {
      float *part = gradient.part(segment, gradient.rank);
      for (int e = lane * 4; e < kSteps * K; e += 128)
        store_shared_by_blocks(part + e, *reinterpret_cast<const Quad *>((m.sums[e / K].*of) + e % K));
    } else {
      for (int e = lane * 2; e < kSteps * K; e += 64) {
        const int t = base + e / K;
        if (t < low || t >= high) continue;
        const Pair two = *reinterpret_cast<const Pair *>((m.sums[e / K].*of) + e % K);
        *reinterpret_cast<u32 *>(gradient.to + ((i64(walk.b) * c.steps + t) * c.heads + walk.n) * K + e % K) =
            T::pack(two.x, two.y);
      }
    }
  }
  INLINE void take_values(const Walk &walk, int base, int low, int high) const {
    for (int e = lane * 2; e < kSteps * V; e += 64) {
      const int t = base + e / V;
      if (t < low || t >= high) continue;
      Pair sum{0.f, 0.f};
#pragma unroll
      for (int w = 0; w < kWarps; ++w) {
        const Pair two = *reinterpret_cast<const Pair *>(m.sums[e / V].dv[w] + e % V);
        sum.x += two.x, sum.y += two.y;
      }
      const i64 at = ((i64(walk.b) * c.steps + t) * c.heads + walk.n) * V + e % V;
      if (c.dv_heads)
        *reinterpret_cast<Pair *>(c.dv_heads + at) = sum;
      else
        *reinterpret_cast<u32 *>(c.dv + at) = T::pack(sum.x, sum.y);
    }
  }
  INLINE void take_gates(const Walk &walk, int base, int low, int high) const {
#pragma unroll
    for (int e = lane; e < kSteps * 4; e += 32) {  // four lanes a step
      float sum = 0.f;
#pragma unroll
      for (int w = 0; w < kWarps; ++w) {
        const Pair two = *reinterpret_cast<const Pair *>(m.sums[e / 4].df[w] + e % 4 * 2);
        sum += two.x + two.y;
      }
      sum += from_lane_xor(sum, 1);
      sum += from_lane_xor(sum, 2);
      const int t = base + e / 4;
      if (e % 4 == 0 && t >= low && t < high) c.df[(i64(walk.b) * c.steps + t) * c.heads + walk.n] = sum;
    }
  }
};

INLINE void help(const Call &c, Shared &m) {
  const Helper helper{c, m, thread_index() % 32, thread_index() / 32 - kWarps};
  Walk walk(c);
  walk.skip_empty();
  const Gradient gradient(c, walk, helper.helper == 0);
  const bool shares = gradient.share > 1 && (helper.helper == 0 ? kWantsQ : kWantsK);
  int segment = 0;
  helper.ask(walk);
  while (walk.there) {
    Walk after = walk;
    after.next();
    after.skip_empty();
    // Until here the chain has left the interval before this one, in whose place the next one goes,
    // unless both have the same parity: then it goes there once this one is done.
    wait_copies<0>();
    arrive<kReady, kThreads>();
    const bool apart = after.there && after.interval % 2 != walk.interval % 2;
    if (apart) helper.ask(after);
    const int base = walk.interval * kInterval;
    const int s_first = (walk.low(0) - base) / kSteps;
    const int s_last = (smaller(walk.stop, base + kInterval) - 1 - base) / kSteps;
    for (int s = s_last; s >= s_first; --s) {
      arrive<kFree, kThreads>();
      // What waits for other blocks is done while the chain is busy.
      if (shares && segment > 0) gradient.say_written(segment - 1, helper.lane);
      if (shares) gradient.wait_for_room(segment, helper.lane);
      sync_threads<kStaged, kThreads>();
      const int from = base + s * kSteps, low = walk.low(s), high = walk.high(s);
      if (helper.helper == 0) {
        if constexpr (kWantsQ) helper.take(&Sums::dq, gradient, walk, segment, from, low, high);
        if constexpr (kWantsF) helper.take_gates(walk, from, low, high);
      } else {
        if constexpr (kWantsK) helper.take(&Sums::dk, gradient, walk, segment, from, low, high);
        if constexpr (kWantsV) helper.take_values(walk, from, low, high);
      }
      ++segment;
    }
    if (!apart) helper.ask(after);
    walk = after;
  }
  if (shares && segment > 0) gradient.say_written(segment - 1, helper.lane);
}

// The warp that sums over the blocks of a group.
INLINE void gather(const Call &c) {
  const int lane = thread_index() % 32;
  Walk walk(c);
  walk.skip_empty();
  const Gradient of_q(c, walk, true), of_k(c, walk, false);
  int segment = 0, turn_q = 0, turn_k = 0, done_q = 0, done_k = 0;
  while (walk.there) {
    const int base = walk.interval * kInterval;
    const int s_first = (walk.low(0) - base) / kSteps;
    const int s_last = (smaller(walk.stop, base + kInterval) - 1 - base) / kSteps;
    for (int s = s_last; s >= s_first; --s) {
      const int from = base + s * kSteps, low = walk.low(s), high = walk.high(s);
      if (kWantsQ && of_q.share > 1) of_q.sum(segment, turn_q, done_q, walk.b, from, low, high, lane);
      if (kWantsK && of_k.share > 1) of_k.sum(segment, turn_k, done_k, walk.b, from, low, high, lane);
      ++segment;
    }
    walk.next();
    walk.skip_empty();
  }
}

}  // namespace backward

KERNEL(M2RNN_THREADS, M2RNN_RESIDENT) m2rnn_backward(ARGUMENT Call c) {
  auto &m = *reinterpret_cast<backward::Shared *>(shared_memory());
  const int warp = thread_index() / 32;
  if (warp < kWarps) {
#ifdef M2RNN_CHAIN_REGISTERS
    take_registers<M2RNN_CHAIN_REGISTERS>();
#endif
    backward::chain(c, m, Lane());
  } else {
#ifdef M2RNN_OTHER_REGISTERS
    give_registers<M2RNN_OTHER_REGISTERS>();
#endif
    if (warp < kWarps + kHelpers)
      backward::help(c, m);
    else if (M2RNN_SHARES && warp == kWarps + kHelpers)
      backward::gather(c);
  }
}
#endif
