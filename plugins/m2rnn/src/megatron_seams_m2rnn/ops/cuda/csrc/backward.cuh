// Backward: one head a block, which walks through documents from their last steps to their first.
//
// Segment by segment, from the state before it that forward kept: step forward again, keeping h and z
// of each step in shared memory, then go back through the steps. A warp has 16 rows of the state here
// too, and needs no other rows for any of this. Three more warps bring the inputs of the segment that
// comes next, and take away what the chain has left of the one before.
//
// Where heads share a head of q or k, its gradient is a sum over blocks. Each block writes its part
// of a segment into a ring; one more warp of each block sums, in the order of heads, the parts of
// its share of the segments as soon as all blocks have written them. So blocks wait for one another,
// and all of them must run at a time (a cooperative launch). No block adds to what another wrote.
#ifndef M2RNN_BACKWARD
#define M2RNN_BACKWARD
#include "call.cuh"

namespace backward {

constexpr int kHelpers = 3, kThreads = 32 * (kWarps + kHelpers);
constexpr int kSteps = M2RNN_SEGMENT;  // of a segment
// Barriers. A segment's inputs are there (and the next number: of odd turns); there is room for what
// the chain leaves of it; that is left; the chain alone.
constexpr int kReady = 1, kFree = 3, kStaged = 4, kEnd = 5;
constexpr bool kWantsQ = (M2RNN_WANTS)&1, kWantsK = (M2RNN_WANTS)&2, kWantsV = (M2RNN_WANTS)&4,
               kWantsF = (M2RNN_WANTS)&8, kWantsW = (M2RNN_WANTS)&16;
static_assert(kSteps % kGroup == 0 && kSteps <= 32, "a segment is some groups, and a warp brings its gates");
// The loops back and forward are unrolled as far as their registers and the cache of instructions,
// which several blocks at different places share, allow: measured.
constexpr int kUnrollBack = kSteps == 8 ? 2 : 4, kUnrollForward = kSteps == 8 ? 2 : 8;

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

// A segment that the chain comes to, as the helpers tell it: so it holds nothing of this itself.
struct Visit {
  i64 state;            // where the document's states are, [K, V]
  int base, low, high;  // where the segment would begin, and its steps that are the document's
  bool there, begins, ends, kept;  // the walk goes on; the last and the first segment of a document;
                                   // forward has kept the state before it
};

struct Shared {
  alignas(128) Step steps[2][kSteps];  // of this segment and the next
  alignas(128) u32 before[2][K * V / 2];  // the states that forward kept, as lanes have them
  alignas(128) Visit visits[2];
  alignas(128) Rows rows[kSteps][kWarps];
  alignas(128) Sums sums[kSteps];
  alignas(128) Rows none;  // zeros
};

static_assert(sizeof(Shared) == M2RNN_SHARED, "what kernel.py says");

// Where a block is: the document, row and segment that its walk has come to.
struct Walk {
  const Call *c;
  int n, slot, item, d, b, start, stop, segment;
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
    segment = (stop - 1) / kSteps;  // of an empty document never looked at
  }
  INLINE bool empty() const { return start >= stop; }
  INLINE bool last() const { return segment == start / kSteps; }
  // The next segment back, or the last one of the next document that has any.
  INLINE void next() {
    if (!empty() && !last())
      --segment;
    else
      enter(item + c->slots);
  }
  INLINE void skip_empty() {
    while (there && empty()) enter(item + c->slots);
  }
  INLINE int base() const { return segment * kSteps; }
  INLINE int low() const { return larger(start, base()); }
  INLINE int high() const { return smaller(stop, base() + kSteps); }
  INLINE bool kept() const { return base() > start; }
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

// Steps s0 … s1 of a group forward; h and z of each are left in shared memory.
template <class P, bool kWhole>
INLINE void forward_group(const Step *steps, Rows (*rows)[kWarps], int s0, int s1,
                          float (&h)[kColumns][4], const Outer &outer, const Transition<P> &W,
                          const Lane &l) {
  float kv[kColumns][4];
  outer(kv, s0);
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
    outer(kv, s + 1 < kGroup ? s + 1 : s);
    advance(h, x, f, 1.f - f);
    u32 z[kBlocks][4];
    pack<F16>(z, x);
#pragma unroll
    for (int i = 0; i < kBlocks; ++i) {
      store_four(rows[s][l.warp].h[i][l.lane], a[i]);
      store_four(rows[s][l.warp].z[i][l.lane], z[i]);
    }
  };
  if constexpr (kWhole) {
#pragma unroll kUnrollForward
    for (int s = 0; s < kGroup; ++s) one(s);
  } else {
#pragma unroll 1
    for (int s = s0; s < s1; ++s) one(s);
  }
}

// Steps low … high forward; kHurry where they are worth unrolled code.
template <class P, bool kHurry>
INLINE void forward_steps(Shared &m, const Step *steps, int base, int low, int high,
                          float (&h)[kColumns][4], const Transition<P> &W, const Lane &l) {
  Outer next;
  next.load(steps + (low / kGroup * kGroup - base), l);
#pragma unroll 1
  for (int t = low / kGroup * kGroup; t < high; t += kGroup) {
    const int s0 = larger(low - t, 0), s1 = smaller(int(kGroup), high - t);
    const Step *group = steps + (t - base);
    const Outer outer = next;
    if (t + kGroup < high) next.load(group + kGroup, l);
    auto *rows = m.rows + (t - base);
    if (kHurry && s0 == 0 && s1 == kGroup)
      forward_group<P, kHurry>(group, rows, s0, s1, h, outer, W, l);
    else
      forward_group<P, false>(group, rows, s0, s1, h, outer, W, l);
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

// dW += h_{t-1}ᵀ dx_t of the warp's rows and one step.
INLINE void add_weight_gradient(const Rows &rows, Carry &carry, const Lane &l) {
  // Transposed, the second and the third matrix of an operand change places.
  const int across = l.lane % 8 + l.lane / 8 % 2 * 16 + l.lane / 16 * 8;
  u32 h[kBlocks][4], dx[kBlocks][4];
#pragma unroll
  for (int i = 0; i < kBlocks; ++i) {
    load_four_transposed(h[i], rows.h[i][across]);
    load_four_transposed(dx[i], rows.z[i][l.lane]);
  }
#pragma unroll
  for (int i = 0; i < kBlocks; ++i)
#pragma unroll
    for (int j = 0; j < kColumns; ++j) BF16::multiply(carry.dW[i][j], h[i], &dx[j / 2][j % 2 * 2]);
}

// Steps low … high back, all of a segment.
template <class P, bool kHurry>
INLINE void backward_steps(Shared &m, const Step *steps, int base, int low, int high, Carry &carry,
                           const Transition<BF16> &W, const Lane &l, float clip) {
  Read next;
  next.load(steps[high - 1 - base], m.rows[high - 1 - base][l.warp], l);
  // What the step behind has left is finished beside each step. Behind the first one there is none:
  // what is written for it is written over, and it adds zeros to dW.
  Left left{};
  Sums *sums = &m.sums[high - 1 - base];
  const Rows *rows = &m.none;
#pragma unroll 1
  for (int t = (high - 1) / kGroup * kGroup; t + kGroup > low; t -= kGroup) {
    const int s0 = larger(low - t, 0), s1 = smaller(int(kGroup), high - t), first = t - base;
    const Step *group = steps + (t - base);
    auto one = [&](int s) {
      const Read now = next;
      const int ahead = s > s0 || t > low ? s - 1 : s;  // of the last step, itself once more
      next.load(group[ahead], m.rows[first + ahead][l.warp], l);
      if constexpr (kWantsW) add_weight_gradient(*rows, carry, l);
      left.finish(*sums, l);
      sums = &m.sums[first + s];
      rows = &m.rows[first + s][l.warp];
      backward_step<P>(now, m.rows[first + s][l.warp], left, carry, W, l, clip);
      if constexpr (kWantsW) sync_warp();  // what a lane has stored, others load
    };
    if (kHurry && s0 == 0 && s1 == kGroup) {
#pragma unroll kUnrollBack
      for (int s = kGroup - 1; s >= 0; --s) one(s);
    } else {
#pragma unroll 1
      for (int s = s1 - 1; s >= s0; --s) one(s);
    }
  }
  left.finish(m.sums[low - base], l);
  if constexpr (kWantsW) add_weight_gradient(*rows, carry, l);
  sync_warp();  // the next segment writes there
}

// A segment, forward and back.
template <class P, bool kHurry>
INLINE void segment(const Call &c, Shared &m, int turn, Carry &carry, const Transition<P> &W,
                    const Transition<BF16> &W_back, const Lane &l) {
  const Visit &at = m.visits[turn % 2];
  const Step *steps = m.steps[turn % 2];
  const int base = at.base, low = at.low, high = at.high;
  if (at.kept)
    load_own<P>(carry.h, m.before[turn % 2], l);
  else
    load_state(carry.h, c.h0 ? c.h0 + at.state : nullptr, l);
  forward_steps<P, kHurry>(m, steps, base, low, high, carry.h, W, l);
  sync_warp();
  sync_threads<kFree, kThreads>();
  backward_steps<P, kHurry>(m, steps, base, low, high, carry, W_back, l, float(c.clip));
  if (at.ends && c.dh0) store_state(c.dh0 + at.state, carry.G, l);
  arrive<kStaged, kThreads>();
}

// The same of a state that float16 cannot hold: rare, and apart, so that it costs no registers.
OUTLINED void wide_segment(const Call &c, Shared &m, int turn, Carry &result) {
  const Lane l;
  Transition<BF16> W, W_back;
  const int head = block_index() % c.heads / c.w_share;
  W.load(c.W, head, l, false);
  W_back.load(c.W, head, l, true);
  Carry carry = result;
  segment<BF16, false>(c, m, turn, carry, W, W_back, l);
  result = carry;
}

INLINE void chain(const Call &c, Shared &m, const Lane &l) {
  Transition<F16> W;
  Transition<BF16> W_back;
  const int head = block_index() % c.heads / c.w_share;
  const bool W_fits = W.load(c.W, head, l, false);
  W_back.load(c.W, head, l, true);
  Carry carry;
  const u32 zeros[4] = {0, 0, 0, 0};
#pragma unroll
  for (int i = 0; i < kBlocks; ++i) {
    if (l.warp == 0) {
      store_four(m.none.h[i][l.lane], zeros);
      store_four(m.none.z[i][l.lane], zeros);
    }
#pragma unroll
    for (int j = 0; j < kColumns; ++j)
#pragma unroll
      for (int e = 0; e < 4; ++e) carry.dW[i][j][e] = 0.f;
  }
  sync_threads<kEnd, 32 * kWarps>();
  bool narrow = true;
#pragma unroll 1
  for (int turn = 0;; ++turn) {
    turn % 2 ? sync_threads<kReady + 1, kThreads>() : sync_threads<kReady, kThreads>();
    const Visit &at = m.visits[turn % 2];
    if (!at.there) break;
    if (at.begins) {
      narrow = W_fits;
      if (c.h0) {
        load_state(carry.G, c.h0 + at.state, l);
        narrow = narrow && held<F16>(carry.G);
      }
      narrow = !any_lane(!narrow);
      load_state(carry.G, c.dlast ? c.dlast + at.state : nullptr, l);
    }
    if (narrow) {
      segment<F16, true>(c, m, turn, carry, W, W_back, l);
    } else {
      Carry apart = carry;
      wide_segment(c, m, turn, apart);
      carry = apart;
    }
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
    float *dW = c.dW + i64(block_index()) * V * V;
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
      while (published(summed + unit % share) < unit / share + 1) pause(100);
    }
    sync_warp();
  }
  INLINE void say_written(int segment, int lane) const {
    sync_warp();
    if (lane == 0) publish(written + rank, segment + 1);
  }
  // Sum the block's units of a segment, steps low … high; `unit` counts those of all segments.
  INLINE void sum(int segment, int &turn, int &done, int b, int base, int low, int high, int lane) const {
#pragma unroll 1
    for (int part_of = 0; part_of < kUnits; ++part_of) {
      const bool mine = turn == rank;
      turn = turn + 1 == share ? 0 : turn + 1;
      if (!mine) continue;
      for (int other = lane; other < share; other += 32)
        while (published(written + other) < segment + 1) pause(1000);
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
        *reinterpret_cast<TwoPairs *>(
            to + ((i64(b) * c.steps + t) * (c.heads / share) + head) * K + first % K) =
            TwoPairs{T::pack(sum.x, sum.y), T::pack(sum.z, sum.w)};
      }
      sync_warp();
      if (lane == 0) publish(summed + rank, ++done);
    }
  }
};

// The warps that bring inputs and take sums away: one has dq, one dk, one dv and df.
struct Helper {
  const Call &c;
  Shared &m;
  const int lane, helper;

  template <int kSize>
  INLINE void bring(Step *to, u16 (Step::*part)[kSize], const u16 *from, i64 step,
                    const Walk &walk) const {
    constexpr int kCopies = kSize / 8;
    const int t = walk.base();
#pragma unroll 1
    for (int i = helper * 32 + lane; i < kSteps * kCopies; i += 32 * kHelpers) {
      const int s = i / kCopies, e = i % kCopies * 8;
      const bool so = t + s >= walk.start && t + s < walk.stop;
      copy_sixteen((to[s].*part) + e, from + (so ? t + s : walk.start) * step + e, so);
    }
  }
  // Ask for a segment's inputs.
  INLINE void ask(const Walk &walk, int turn) const {
    if (walk.there) {
      Step *to = m.steps[turn % 2];
      int n = walk.n;
      forget(n);
      const int f_heads = c.heads / c.f_share;
      const i64 b = walk.b;
      bring(to, &Step::k, c.k + b * c.k_batch + n / c.k_share * K, c.k_step, walk);
      bring(to, &Step::q, c.q + b * c.q_batch + n / c.q_share * K, c.q_step, walk);
      bring(to, &Step::v, c.v + b * c.v_batch + n / c.v_share * V, c.v_step, walk);
      bring(to, &Step::dy, c.dy + (b * c.steps * c.heads + n) * V, i64(c.heads) * V, walk);
      if (walk.kept()) {
        const u32 *from = c.kept + kept_state(c, walk.segment, walk.b, n);
#pragma unroll 1
        for (int e = (helper * 32 + lane) * 4; e < K * V / 2; e += 128 * kHelpers)
          copy_sixteen(m.before[turn % 2] + e, from + e, true);
      }
      if (helper == 0 && lane < kSteps) {
        const int t = walk.base() + lane;
        const bool so = t >= walk.start && t < walk.stop;
        copy_four(&to[lane].f, c.f + (b * c.steps + (so ? t : walk.start)) * f_heads + n / c.f_share, so);
      }
    }
    commit_copies();
  }
  // Let the chain have the segment that was asked for last.
  INLINE void hand_over(const Walk &walk, bool begins, int turn) const {
    if (helper == 0 && lane == 0) {
      Visit &visit = m.visits[turn % 2];
      visit.there = walk.there;
      visit.begins = begins;
      if (walk.there) {
        visit.state = walk.state();
        visit.base = walk.base();
        visit.low = walk.low();
        visit.high = walk.high();
        visit.ends = walk.last();
        visit.kept = walk.kept();
      }
    }
    sync_warp();
    wait_copies<0>();
    turn % 2 ? arrive<kReady + 1, kThreads>() : arrive<kReady, kThreads>();
  }
  // Past documents without steps: the gradient of their last state is that of their first.
  INLINE void skip_empty(Walk &walk) const {
    for (; walk.there && walk.empty(); walk.enter(walk.item + c.slots))
      if (helper == 2 && c.dh0)
        for (int e = lane * 4; e < K * V; e += 128)
          *reinterpret_cast<Quad *>(c.dh0 + walk.state() + e) =
              c.dlast ? *reinterpret_cast<const Quad *>(c.dlast + walk.state() + e) : Quad{0.f, 0.f, 0.f, 0.f};
  }
  // A segment's dq or dk, of a head of its own or into the ring.
  INLINE void take(float (Sums::*of)[K], const Gradient &gradient, const Walk &walk, int segment) const {
    const int base = walk.base(), low = walk.low(), high = walk.high();
    float *part = gradient.share > 1 ? gradient.part(segment, gradient.rank) + lane * 4 : nullptr;
    int n = walk.n;
    forget(n);
    u16 *to = gradient.to + ((i64(walk.b) * c.steps + base) * c.heads + n) * K;
    const i64 step = i64(c.heads) * K;
#pragma unroll 4
    for (int e = lane * 4; e < kSteps * K; e += 128) {
      const int s = e / K;
      const Quad four = *reinterpret_cast<const Quad *>((m.sums[s].*of) + e % K);
      if (part) {
        store_shared_by_blocks(part, four);
        part += 128;
      } else if (base + s >= low && base + s < high) {
        *reinterpret_cast<TwoPairs *>(to + s * step + e % K) =
            TwoPairs{T::pack(four.x, four.y), T::pack(four.z, four.w)};
      }
    }
  }
  INLINE void take_values(const Walk &walk) const {
    const int base = walk.base(), low = walk.low(), high = walk.high();
    int n = walk.n;
    forget(n);
    const i64 first = ((i64(walk.b) * c.steps + base) * c.heads + n) * V;
    const i64 step = i64(c.heads) * V;
#pragma unroll 1
    for (int e = lane * 4; e < kSteps * V; e += 128) {
      const int s = e / V;
      Quad sum{0.f, 0.f, 0.f, 0.f};
#pragma unroll
      for (int w = 0; w < kWarps; ++w) {
        const Quad four = *reinterpret_cast<const Quad *>(m.sums[s].dv[w] + e % V);
        sum.x += four.x, sum.y += four.y, sum.z += four.z, sum.w += four.w;
      }
      if (base + s < low || base + s >= high) continue;
      const i64 at = first + s * step + e % V;
      if (c.dv_heads)
        *reinterpret_cast<Quad *>(c.dv_heads + at) = sum;
      else
        *reinterpret_cast<TwoPairs *>(c.dv + at) =
            TwoPairs{T::pack(sum.x, sum.y), T::pack(sum.z, sum.w)};
    }
  }
  INLINE void take_gates(const Walk &walk) const {
    const int base = walk.base(), low = walk.low(), high = walk.high();
#pragma unroll 1
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
  helper.skip_empty(walk);
  const Gradient gradient(c, walk, helper.helper == 0);
  const bool wanted = helper.helper == 0 ? kWantsQ : helper.helper == 1 && kWantsK;
  const bool shares = wanted && gradient.share > 1;
  int segment = 0, turn = 0;
  helper.ask(walk, turn);
  helper.hand_over(walk, true, turn);
#pragma unroll 1
  while (walk.there) {
    arrive<kFree, kThreads>();
    // The chain has left the segment before this one, in whose place the next one goes.
    Walk after = walk;
    after.next();
    helper.skip_empty(after);
    ++turn;
    helper.ask(after, turn);
    // What waits for other blocks is done while the chain is busy.
    if (shares && segment > 0) gradient.say_written(segment - 1, helper.lane);
    if (shares) gradient.wait_for_room(segment, helper.lane);
#ifndef M2RNN_CHECKED
    helper.hand_over(after, after.item != walk.item, turn);
    sync_threads<kStaged, kThreads>();
#else  // where all wait, the chain waits here first
    sync_threads<kStaged, kThreads>();
    helper.hand_over(after, after.item != walk.item, turn);
#endif
    if (helper.helper < 2) {
      if (wanted) helper.take(helper.helper ? &Sums::dk : &Sums::dq, gradient, walk, segment);
    } else {
      if constexpr (kWantsV) helper.take_values(walk);
      if constexpr (kWantsF) helper.take_gates(walk);
    }
    ++segment;
    walk = after;
  }
  if (shares && segment > 0) gradient.say_written(segment - 1, helper.lane);
}

// The warp that sums over the blocks of a group.
INLINE void gather(const Call &c) {
  const int lane = thread_index() % 32;
  Walk walk(c);
  walk.skip_empty();
  // Of q, and of k: whose turn it is to sum the next unit, and how many this block has summed.
  int segment = 0, turns[2] = {0, 0}, done[2] = {0, 0};
  for (; walk.there; ++segment) {
#pragma unroll 1
    for (int which = 0; which < 2; ++which) {
      const Gradient gradient(c, walk, which == 0);
      if (gradient.share == 1 || !(which ? kWantsK : kWantsQ)) continue;
      int turn = which ? turns[1] : turns[0], sums = which ? done[1] : done[0];
      gradient.sum(segment, turn, sums, walk.b, walk.base(), walk.low(), walk.high(), lane);
      turns[0] = which ? turns[0] : turn;
      turns[1] = which ? turn : turns[1];
      done[0] = which ? done[0] : sums;
      done[1] = which ? sums : done[1];
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
    if (warp < kWarps + backward::kHelpers)
      backward::help(c, m);
    else if (M2RNN_SHARES && warp == kWarps + backward::kHelpers)
      backward::gather(c);
  }
}
#endif
