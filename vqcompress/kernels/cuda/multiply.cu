// Products of few rows with packed trellis codes: x [rows, columns] times W^T, without a dense weight. It comes after
// decode.cu, whose `Job` and decoding it shares. Lines after it say what to compile:
//     MULTIPLY(name, TABLE, IN, TILES, HALVES...)          partial sums, float32; TILES times 16 rows at most
//     FINISH(name, OUT)                                    partial sums added, scaled, with the bias
//
// A warp multiplies 64 outputs. For mma.m16n8k16 a lane holds weights of four columns (2t, 2t + 1, 2t + 8, 2t + 9) and
// of one output of each of eight products. Those are eight outputs side by side, which at `rate` bits are `rate` bytes:
// a lane decodes them from three words, and needs nothing of the others (t is the lane modulo 4).

#ifndef VQ_HOST
#define VQ_PRODUCT_THREADS 128
// At least `BLOCKS` blocks a processor: without that, compilers spill to make room for more.
#define VQ_PRODUCT(BLOCKS) extern "C" __global__ void __launch_bounds__(VQ_PRODUCT_THREADS, BLOCKS)
#else
#define VQ_PRODUCT_THREADS blockDim.x
#define VQ_PRODUCT(BLOCKS) static void
#endif

constexpr int DEPTH = 64;            // columns of x that a block holds at once
constexpr int ROW = DEPTH + 8;       // their place in shared memory, so that eight rows lie in different banks
constexpr int WARP_OUTPUTS = 64;

// Columns of one job that one block goes over, in `vqcompress.kernels.cuda.products`.
struct Part {
    u32 job, first, count, unused;
};

// What a launch is about.
struct Product {
    const Job* jobs;
    const Part* parts;
    const u16* x;      // rows of `stride` numbers
    float* partial;    // [parts, rows, outputs]
    i64 stride;
    u32 rows, outputs, tiles;  // tiles of the outputs: what a block's warps have side by side
};

VQ_DEVICE constexpr bool is_half(const Half*) { return true; }
VQ_DEVICE constexpr bool is_half(const void*) { return false; }

template <class In>
VQ_DEVICE void multiply_add(float* sum, const u32* a, const u32* b) {
#ifdef VQ_HOST
    host_multiply_add(sum, a, b, is_half((In*)nullptr));
#elif __CUDA_ARCH__ >= 800
    if constexpr (is_half((In*)nullptr))
        asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
            : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
    else
        asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
            : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#endif
}

// The values of outputs `8 * eight` to `8 * eight + 7` of a stored column, as bits of the product's dtype.
template <int RATE, int TABLE>
VQ_DEVICE void eight_values(u32* v, const Job& job, u32 stored, u32 eight, u32 mask, const u8* table) {
    const u32* column = (const u32*)(job.codes + stored * job.column_bytes);
    u32 count = job.column_bytes >> 2, byte = eight * RATE + 2;  // from two bytes before the column on
    u32 first = byte >> 2, shift = 8 * (byte & 3);               // word `first - 1` of the column is the first
    u32 words[3];
    u32 at = first == 0 ? count - 1 : first - 1;                 // a column is a circle
    words[0] = __byte_perm(__ldg(column + at), 0, 0x0123);
    words[1] = __byte_perm(__ldg(column + (first < count ? first : count - 1)), 0, 0x0123);
    words[2] = RATE <= 3 ? 0 : __byte_perm(__ldg(column + (first + 1 < count ? first + 1 : count - 1)), 0, 0x0123);
    words[0] = __funnelshift_l(words[1], words[0], shift);
    words[1] = __funnelshift_l(words[2], words[1], shift);
#pragma unroll
    for (int i = 0; i < 8; i++) {
        const int end = 16 + 1 + (i + 1) * RATE, word = end / 32, left = end % 32;  // a state times the size of a value
        u32 low = word < 2 ? words[word] : 0u, high = word ? words[word - 1] : 0u;
        u32 offset = (left ? __funnelshift_l(low, high, left) : high) & mask;
        v[i] = TABLE == SHARED_HALF ? *(const u16*)(table + offset) : __ldg((const u16*)(table + offset));
    }
}

template <int RATE, int TABLE, class In, int TILES>
VQ_DEVICE bool multiply_part(const Product& p, const Job& given, const Part& part, u32 tile, u32 at, u16* rows,
                             const u8* table) {
    const Job job = given;
    u32 lane = threadIdx.x & 31, warp = threadIdx.x >> 5, t = lane & 3, g = lane >> 2;
    u32 first = (tile * (VQ_PRODUCT_THREADS / 32) + warp) * WARP_OUTPUTS;  // output
    u32 eight = first / 8 + g, eights = job.outputs / 8, mask = ((1u << job.state_bits) - 1) << 1;
    eight = eight < eights ? eight : eights - 1;  // lanes past the end decode the last once more
    float sums[TILES][8][4];
#pragma unroll
    for (int m = 0; m < TILES; m++)
#pragma unroll
        for (int i = 0; i < 8; i++)
#pragma unroll
            for (int j = 0; j < 4; j++) sums[m][i][j] = 0.0f;
    u32 last = part.first + part.count;
    for (u32 begin = part.first; begin < last; begin += DEPTH) {
        __syncthreads();
        for (u32 i = threadIdx.x; i < 16 * TILES * DEPTH; i += VQ_PRODUCT_THREADS) {
            u32 row = i / DEPTH, column = begin + i % DEPTH;
            bool inside = row < p.rows && column < last;
            rows[row * ROW + i % DEPTH] = inside ? p.x[row * p.stride + __ldg(job.order + column)] : (u16)0;
        }
        __syncthreads();
        u32 steps = ((last - begin < DEPTH ? last - begin : DEPTH) + 15) >> 4;
#pragma unroll 1
        for (u32 step = 0; step < steps; step++) {
            u32 v[4][8];
#pragma unroll
            for (int c = 0; c < 4; c++) {
                u32 stored = begin + 16 * step + 2 * t + (c & 1) + 8 * (c >> 1);
                eight_values<RATE, TABLE>(v[c], job, stored < last ? stored : last - 1, eight, mask, table);
            }
#pragma unroll
            for (int m = 0; m < TILES; m++) {
                const u16* x = rows + (16 * m + g) * ROW + 16 * step + 2 * t;
                u32 a[4] = {*(const u32*)x, *(const u32*)(x + 8 * ROW), *(const u32*)(x + 8),
                            *(const u32*)(x + 8 * ROW + 8)};
#pragma unroll
                for (int i = 0; i < 8; i++) {
                    u32 b[2] = {v[0][i] | (v[1][i] << 16), v[2][i] | (v[3][i] << 16)};
                    multiply_add<In>(sums[m][i], a, b);
                }
            }
        }
    }
    u32 output = first + 16 * t;
    if (output >= p.outputs) return true;
#pragma unroll
    for (int m = 0; m < TILES; m++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            u32 row = 16 * m + 8 * half + g;
            if (row >= p.rows) continue;
            float* out = p.partial + ((i64)at * p.rows + row) * p.outputs + output;
#pragma unroll
            for (int j = 0; j < 16; j += 4) {
                const float(*from)[4] = sums[m] + j % 8;
                int k = 2 * half + j / 8;
                *(uint4*)(out + j) = uint4{__float_as_uint(from[0][k]), __float_as_uint(from[1][k]),
                                           __float_as_uint(from[2][k]), __float_as_uint(from[3][k])};
            }
        }
    return true;
}

template <int TABLE, class In, int TILES, int... HALVES>
VQ_DEVICE void multiply(const Product& p) {
    VQ_SHARED(shared);
    u32 at = blockIdx.x / p.tiles, tile = blockIdx.x - at * p.tiles;
    const Part part = p.parts[at];
    const Job& job = p.jobs[part.job];
    u16* rows = (u16*)shared;
    u8* table = shared + 16 * TILES * ROW * sizeof(u16);
    if (TABLE == SHARED_HALF)
        for (u32 i = threadIdx.x; i < (1u << job.state_bits) / 2; i += VQ_PRODUCT_THREADS)
            ((u32*)table)[i] = __ldg((const u32*)job.table + i);
    const u8* values = TABLE == SHARED_HALF ? table : (const u8*)job.table;
    (void)(... || (job.rate == HALVES &&
                   multiply_part<HALVES / 2, TABLE, In, TILES>(p, job, part, tile, at, rows, values)));
}

template <class Out>
VQ_DEVICE float value_of(const Out* at) {
    if constexpr (sizeof(Out) == 4) return *(const float*)at;
    else if constexpr (is_half((Out*)nullptr)) return from_half(((const Half*)at)->bits);
    else return __uint_as_float((u32)((const Bfloat*)at)->bits << 16);
}

// The sums of all parts in their order, so that the same input gives the same output.
template <class Out>
VQ_DEVICE void finish_product(Out* y, const float* partial, const float* scale, const Out* bias, u32 parts, u32 rows,
                              u32 outputs) {
    u32 index = blockIdx.x * VQ_PRODUCT_THREADS + threadIdx.x, all = rows * outputs;
    if (index >= all) return;
    u32 output = index % outputs;
    float sum = 0.0f;
    for (u32 part = 0; part < parts; part++) sum += partial[(i64)part * all + index];
    sum *= __ldg(scale + output);
    put(y + index, bias ? sum + value_of(bias + output) : sum);
}

#define MULTIPLY(NAME, TABLE, IN, TILES, ...)                                                                          \
    VQ_PRODUCT(TILES > 2 ? 2 : 4)                                                                                      \
    NAME(const Job* jobs, const Part* parts, const void* x, float* partial, i64 stride, u32 rows, u32 outputs,         \
         u32 tiles) {                                                                                                  \
        const Product product{jobs, parts, (const u16*)x, partial, stride, rows, outputs, tiles};                      \
        multiply<TABLE, IN, TILES, __VA_ARGS__>(product);                                                              \
    }
#define FINISH(NAME, OUT)                                                                                              \
    VQ_PRODUCT(8)                                                                                                      \
    NAME(void* y, const float* partial, const float* scale, const void* bias, u32 parts, u32 rows, u32 outputs) {      \
        finish_product((OUT*)y, partial, scale, (const OUT*)bias, parts, rows, outputs);                               \
    }
