// What the kernels ask of the GPU, an instruction a function: no header of CUDA is wanted, so that
// NVRTC compiles this alone. The tests put a header of the same functions in its place and run the
// kernels on a CPU.
//
// A fragment is a warp's share of a small matrix. Lane 4 g + t (g < 8, t < 4) holds of a 16 × 8 sum
// the elements (g, 2t), (g, 2t + 1), (g + 8, 2t), (g + 8, 2t + 1), and of 16-bit operands pairs of
// elements that lie beside each other along the dimension that is summed over.
#ifndef M2RNN_WARP
#define M2RNN_WARP

using u16 = unsigned short;
using u32 = unsigned int;
using i64 = long long;

#define INLINE __device__ __forceinline__
#define OUTLINED __device__ __noinline__
#define KERNEL(threads, blocks) extern "C" __global__ void __launch_bounds__(threads, blocks)
#define ARGUMENT const __grid_constant__

struct alignas(16) Quad {
  float x, y, z, w;
};
struct alignas(8) Pair {
  float x, y;
};
struct alignas(8) TwoPairs {  // of 16 bits
  u32 x, y;
};

INLINE int thread_index() { return threadIdx.x; }
INLINE int block_index() { return blockIdx.x; }
INLINE int block_count() { return gridDim.x; }
INLINE char *shared_memory() {
  extern __shared__ __align__(128) char memory[];
  return memory;
}
INLINE u32 shared_address(const void *p) {
  return static_cast<u32>(__cvta_generic_to_shared(p));
}

// Hides from the compiler what x is, so that what follows from it is worked out anew where it is
// wanted, and not kept in registers that there are not.
INLINE void forget(int &x) { asm volatile("" : "+r"(x)); }

// Arithmetic.
INLINE float bits(u32 x) { return __uint_as_float(x); }
INLINE u32 bits(float x) { return __float_as_uint(x); }
// Good to 2⁻¹¹, and exact at both ends.
INLINE float hyperbolic_tangent(float x) {
  float z;
  asm("tanh.approx.f32 %0, %1;" : "=f"(z) : "f"(x));
  return z;
}
INLINE float clamp_keeping_nan(float x, float limit) {
  float z;
  asm("min.NaN.f32 %0, %1, %2;" : "=f"(z) : "f"(x), "f"(limit));
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(z) : "f"(z), "f"(-limit));
  return z;
}

// Two numbers of 16 bits in one register, and their products: d += a b.
struct BF16 {
  static constexpr float largest = 3.38e38f;
  static INLINE u32 pack(float low, float high) {
    u32 z;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(z) : "f"(high), "f"(low));
    return z;
  }
  static INLINE float low(u32 x) { return bits(x << 16); }
  static INLINE float high(u32 x) { return bits(x & 0xffff0000u); }
  static INLINE float wide(u16 x) { return bits(u32(x) << 16); }
  static INLINE void multiply(float (&d)[4], const u32 *a, const u32 *b) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, "
        "{%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  }
  static INLINE void multiply_eight(float (&d)[4], u32 a0, u32 a1, u32 b) {
    asm("mma.sync.aligned.m16n8k8.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, "
        "{%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a0), "r"(a1), "r"(b));
  }
};
struct F16 {
  static constexpr float largest = 65504.f;
  static INLINE u32 pack(float low, float high) {
    u32 z;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(z) : "f"(high), "f"(low));
    return z;
  }
  static INLINE float wide(u16 x) {
    float z;
    asm("cvt.f32.f16 %0, %1;" : "=f"(z) : "h"(x));
    return z;
  }
  static INLINE float low(u32 x) { return wide(u16(x)); }
  static INLINE float high(u32 x) { return wide(u16(x >> 16)); }
  static INLINE void multiply(float (&d)[4], const u32 *a, const u32 *b) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, "
        "{%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  }
  static INLINE void multiply_eight(float (&d)[4], u32 a0, u32 a1, u32 b) {
    asm("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, "
        "{%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a0), "r"(a1), "r"(b));
  }
};
// The same of float32, of which the tensor cores take the first 10 bits of the mantissa.
INLINE void multiply_wide(float (&d)[4], float a0, float a1, float a2, float a3, float b0, float b1) {
  asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(bits(a0)), "r"(bits(a1)), "r"(bits(a2)), "r"(bits(a3)), "r"(bits(b0)), "r"(bits(b1)));
}

// Matrices of 8 × 8 numbers of 16 bits in shared memory: lane 8 m + r gives the address of row r of
// matrix m, and z[m] is the lane's pair of it.
INLINE void load_four(u32 *z, const void *row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(z[0]), "=r"(z[1]), "=r"(z[2]), "=r"(z[3])
               : "r"(shared_address(row))
               : "memory");
}
INLINE void load_four_transposed(u32 *z, const void *row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(z[0]), "=r"(z[1]), "=r"(z[2]), "=r"(z[3])
               : "r"(shared_address(row))
               : "memory");
}
INLINE void load_two_transposed(u32 *z, const void *row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0,%1}, [%2];"
               : "=r"(z[0]), "=r"(z[1])
               : "r"(shared_address(row))
               : "memory");
}
INLINE void store_four(void *row, const u32 *z) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1,%2,%3,%4};"
               :
               : "r"(shared_address(row)), "r"(z[0]), "r"(z[1]), "r"(z[2]), "r"(z[3])
               : "memory");
}

// Between lanes and warps.
INLINE float from_lane_xor(float x, int mask) { return __shfl_xor_sync(0xffffffffu, x, mask); }
INLINE bool any_lane(bool x) { return __any_sync(0xffffffffu, x); }
INLINE void sync_warp() { __syncwarp(); }
template <int kBarrier, int kThreads>
INLINE void sync_threads() {
  asm volatile("bar.sync %0, %1;" : : "n"(kBarrier), "n"(kThreads) : "memory");
}
// Whoever arrives goes on without waiting. compute-sanitizer's racecheck does not know of that, and
// reports what the barrier orders: for it, with M2RNN_CHECKED, all wait.
template <int kBarrier, int kThreads>
INLINE void arrive() {
#ifdef M2RNN_CHECKED
  sync_threads<kBarrier, kThreads>();
#else
  asm volatile("bar.arrive %0, %1;" : : "n"(kBarrier), "n"(kThreads) : "memory");
#endif
}

// Registers that four warps beside each other give up, or take.
template <int kCount>
INLINE void give_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" : : "n"(kCount));
}
template <int kCount>
INLINE void take_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" : : "n"(kCount));
}

// From global to shared memory while the thread goes on; zeros where `so` is false.
INLINE void copy_sixteen(void *to, const void *from, bool so) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
               :
               : "r"(shared_address(to)), "l"(from), "r"(so ? 16 : 0)
               : "memory");
}
INLINE void copy_four(void *to, const void *from, bool so) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;"
               :
               : "r"(shared_address(to)), "l"(from), "r"(so ? 4 : 0)
               : "memory");
}
INLINE void commit_copies() { asm volatile("cp.async.commit_group;" : : : "memory"); }
template <int kPending>
INLINE void wait_copies() {
  asm volatile("cp.async.wait_group %0;" : : "n"(kPending) : "memory");
}

// Between blocks, past the caches of a multiprocessor.
INLINE Quad load_shared_by_blocks(const float *from) {
  Quad z;
  asm volatile("ld.global.cg.v4.f32 {%0,%1,%2,%3}, [%4];"
               : "=f"(z.x), "=f"(z.y), "=f"(z.z), "=f"(z.w)
               : "l"(from)
               : "memory");
  return z;
}
INLINE void store_shared_by_blocks(float *to, const Quad &x) {
  asm volatile("st.global.cg.v4.f32 [%0], {%1,%2,%3,%4};"
               :
               : "l"(to), "f"(x.x), "f"(x.y), "f"(x.z), "f"(x.w)
               : "memory");
}
// A lane publishes what its warp has written before. Whoever reads that reads the rest past the cache
// of its multiprocessor, and issues no load before the one that it waits for: so it wants no fence,
// which would empty that cache each time.
INLINE void publish(int *to, int x) {
  asm volatile("st.release.gpu.global.s32 [%0], %1;" : : "l"(to), "r"(x) : "memory");
}
INLINE int published(const int *from) {
  int x;
  asm volatile("ld.relaxed.gpu.global.s32 %0, [%1];" : "=r"(x) : "l"(from) : "memory");
  return x;
}
INLINE void pause(int nanoseconds) { __nanosleep(nanoseconds); }
#endif
