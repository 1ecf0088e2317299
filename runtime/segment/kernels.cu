// Frames that lie in device memory: cut into tiles, measured, checked; and scores stitched into labels.
//
// Each kernel does bit for bit what the host does with numpy (plan, mirror, normalisation, frames, scores), so that it
// does not matter where a frame lies. Each has one parameter, a struct passed by value, which kernel_arguments.py
// mirrors. Threads stride over rows and columns: any grid covers any plane. After a change run `make kernels`.

typedef unsigned char uint8;
typedef unsigned short uint16;
typedef unsigned int uint32;
typedef unsigned long long uint64;
typedef long long int64;

enum Dtype { UINT8, INT8, UINT16, INT16, UINT32, INT32, UINT64, INT64, FLOAT16, FLOAT32, FLOAT64 };

// One channel of an array.
struct Plane {
    char *address;                    // of row 0, column 0
    int64 height, width;              // pixels
    int64 row_stride, column_stride;  // bytes, of either sign
    int64 dtype;                      // a Dtype
};

#define FOR_EACH_PIXEL(plane)                                                                                      \
    for (int64 row = (int64)blockIdx.y * blockDim.y + threadIdx.y; row < (plane).height;                           \
         row += (int64)gridDim.y * blockDim.y)                                                                     \
        for (int64 column = (int64)blockIdx.x * blockDim.x + threadIdx.x; column < (plane).width;                  \
             column += (int64)gridDim.x * blockDim.x)

static __device__ char *pixel_at(const Plane &plane, int64 row, int64 column) {
    return plane.address + row * plane.row_stride + column * plane.column_stride;
}

// By its bits, as there is no type for it that all compilers know. Exact: 2^112 moves the exponent's bias of 15 to 127.
static __device__ float float16_to_float32(uint16 bits) {
    uint32 magnitude = (bits & 0x7fffu) << 13;
    float value = __fmul_rn(__uint_as_float(magnitude), 5.192296858534828e33f);
    if (magnitude >= 0x7c00u << 13) value = __uint_as_float(magnitude | 0x7f800000u);  // infinity, NaN
    return __uint_as_float(__float_as_uint(value) | (bits & 0x8000u) << 16);
}

static __device__ float read_float(const char *pixel, int64 dtype) {
    switch (dtype) {
        case UINT8: return (float)*(const uint8 *)pixel;
        case INT8: return (float)*(const signed char *)pixel;
        case UINT16: return (float)*(const uint16 *)pixel;
        case INT16: return (float)*(const short *)pixel;
        case UINT32: return (float)*(const uint32 *)pixel;
        case INT32: return (float)*(const int *)pixel;
        case UINT64: return (float)*(const uint64 *)pixel;
        case INT64: return (float)*(const int64 *)pixel;
        case FLOAT16: return float16_to_float32(*(const uint16 *)pixel);
        case FLOAT32: return *(const float *)pixel;
        default: return (float)*(const double *)pixel;
    }
}

static __device__ uint16 read_grey(const char *pixel, int64 dtype) {
    return dtype == UINT8 ? *(const uint8 *)pixel : *(const uint16 *)pixel;
}

// Not larger than FLT_MAX; false for NaN.
static __device__ bool is_finite(float value) { return fabsf(value) <= 3.402823466e38f; }

static __device__ bool is_usable(const char *pixel, int64 dtype) {
    if (dtype == FLOAT64) return fabs(*(const double *)pixel) <= 3.4028234663852886e38;
    return is_finite(read_float(pixel, dtype));
}

// The index in 0 ... length - 1 that a coordinate anywhere is read from.
static __device__ int64 mirrored(int64 at, int64 length, bool symmetric) {
    if (0 <= at && at < length) return at;
    int64 period = symmetric ? 2 * length : 2 * length - 2;
    if (period == 0) return 0;
    int64 folded = at % period;
    if (folded < 0) folded += period;
    int64 backwards = period - folded - (symmetric ? 1 : 0);
    return folded < backwards ? folded : backwards;
}

struct Cut {
    Plane frame;          // any dtype; grey values where the slot takes them
    Plane slot;           // FLOAT32: (pixel - offset) * scale; UINT8, UINT16: raw grey values
    int64 top, left;      // where the slot begins in the frame, pixels; may lie outside
    int64 symmetric;      // whether the edge pixel is repeated
    float offset, scale;
};

extern "C" __global__ void cut(const Cut argument) {
    const Plane &frame = argument.frame, &slot = argument.slot;
    FOR_EACH_PIXEL(slot) {
        const char *from = pixel_at(frame, mirrored(argument.top + row, frame.height, argument.symmetric),
                                    mirrored(argument.left + column, frame.width, argument.symmetric));
        char *to = pixel_at(slot, row, column);
        // Rounded after each step, as numpy does: a fused multiply-add would round once.
        if (slot.dtype == FLOAT32)
            *(float *)to = __fmul_rn(__fsub_rn(read_float(from, frame.dtype), argument.offset), argument.scale);
        else if (slot.dtype == UINT8)
            *(uint8 *)to = (uint8)read_grey(from, frame.dtype);
        else
            *(uint16 *)to = read_grey(from, frame.dtype);
    }
}

struct Histogram {
    Plane channel;  // UINT8 or UINT16
    uint32 *bins;   // (copies, values); their sum over the copies counts
    int64 copies;   // several, as blocks that add to the same bin wait for each other
    int64 values;
};

extern "C" __global__ void histogram(const Histogram argument) {
    int64 block = (int64)blockIdx.y * gridDim.x + blockIdx.x;
    uint32 *bins = argument.bins + block % argument.copies * argument.values;
    FOR_EACH_PIXEL(argument.channel)
        atomicAdd(bins + read_grey(pixel_at(argument.channel, row, column), argument.channel.dtype), 1u);
}

struct StitchLabels {
    Plane scores;        // of the first class, the whole slot
    int64 class_stride;  // bytes
    int64 classes;
    Plane labels;        // UINT8, where the core goes; no larger than the slot
    int *spoilt;         // set to 1 where a score of the slot is not finite; null: not looked for
};

extern "C" __global__ void stitch_labels(const StitchLabels argument) {
    const Plane &scores = argument.scores, &labels = argument.labels;
    FOR_EACH_PIXEL(argument.spoilt ? scores : labels) {
        const char *pixel = pixel_at(scores, row, column);
        float best = read_float(pixel, scores.dtype);
        uint8 label = 0;
        bool finite = is_finite(best);
        for (int64 index = 1; index < argument.classes; index++) {
            float score = read_float(pixel + index * argument.class_stride, scores.dtype);
            finite = finite && is_finite(score);
            if (score > best) label = (uint8)index;
            if (score > best || score != score) best = score;  // nothing is higher than a NaN
        }
        if (row < labels.height && column < labels.width) *(uint8 *)pixel_at(labels, row, column) = label;
        if (argument.spoilt && !finite) *argument.spoilt = 1;
    }
}

struct NotFinite {
    Plane channel;
    uint64 *found;  // how many, and the lowest index
    uint64 start;   // index of the channel's first pixel
};

extern "C" __global__ void not_finite(const NotFinite argument) {
    FOR_EACH_PIXEL(argument.channel) {
        if (is_usable(pixel_at(argument.channel, row, column), argument.channel.dtype)) continue;
        atomicAdd(argument.found, 1ull);
        atomicMin(argument.found + 1, argument.start + row * argument.channel.width + column);
    }
}
