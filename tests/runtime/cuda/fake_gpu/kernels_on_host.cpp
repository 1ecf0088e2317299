// kernels.cu as C++ for the host: one thread after another. Compiled with -ffp-contract=off and -DKERNELS="...".

#include <cmath>
#include <cstddef>
#include <cstring>

struct Extent { unsigned x, y, z; };
static thread_local Extent gridDim, blockDim, blockIdx, threadIdx;

#define __global__
#define __device__

static float __fsub_rn(float a, float b) { return a - b; }
static float __fmul_rn(float a, float b) { return a * b; }

template <class To, class From>
static To bits_as(From from) {
    static_assert(sizeof(To) == sizeof(From));
    To to;
    std::memcpy(&to, &from, sizeof to);
    return to;
}
static float __uint_as_float(unsigned bits) { return bits_as<float>(bits); }
static unsigned __float_as_uint(float value) { return bits_as<unsigned>(value); }

// Atomic here too: launches may come from several threads.
template <class T>
static void atomicAdd(T *at, T value) { __atomic_fetch_add(at, value, __ATOMIC_RELAXED); }
template <class T>
static void atomicMin(T *at, T value) {
    T old = *at;
    while (value < old && !__atomic_compare_exchange_n(at, &old, value, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {}
}

#include KERNELS

template <class Argument>
static void run(void (*kernel)(Argument), const unsigned *grid, const unsigned *block, const void *bytes) {
    Argument argument;
    std::memcpy(&argument, bytes, sizeof argument);
    gridDim = {grid[0], grid[1], grid[2]};
    blockDim = {block[0], block[1], block[2]};
    for (blockIdx.z = 0; blockIdx.z < grid[2]; blockIdx.z++)
        for (blockIdx.y = 0; blockIdx.y < grid[1]; blockIdx.y++)
            for (blockIdx.x = 0; blockIdx.x < grid[0]; blockIdx.x++)
                for (threadIdx.z = 0; threadIdx.z < block[2]; threadIdx.z++)
                    for (threadIdx.y = 0; threadIdx.y < block[1]; threadIdx.y++)
                        for (threadIdx.x = 0; threadIdx.x < block[0]; threadIdx.x++) kernel(argument);
}

#define ON_HOST(kernel, Argument)                                                                               \
    extern "C" std::size_t size_of_##kernel() { return sizeof(Argument); }                                      \
    extern "C" void run_##kernel(const unsigned *grid, const unsigned *block, const void *bytes) {              \
        run(kernel, grid, block, bytes);                                                                        \
    }

ON_HOST(cut, Cut)
ON_HOST(histogram, Histogram)
ON_HOST(stitch_labels, StitchLabels)
ON_HOST(not_finite, NotFinite)
