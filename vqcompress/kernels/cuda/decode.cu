// Packed weights to dense ones: W^T [columns, outputs], each row contiguous, in float32, float16 or bfloat16.
//
// A thread decodes 32 outputs of a column. Lines after this file say what to compile:
//     TRELLIS(name, TABLE, FLAGS, OUT, HALVES...)
//     ADDITIVE(name, DIMENSION, FLAGS, OUT)
//     SCALAR(name, BITS, FLAGS, OUT)
// The compiler gets --fmad=false: every product and sum rounds as in the format's own decoder. No header is needed, so any
// NVRTC will do. With VQ_HOST defined, a header of the tests stands for the GPU and the same file is C++.

#ifndef VQ_HOST
#define VQ_DEVICE __device__ __forceinline__
#define VQ_THREADS 256
#define VQ_KERNEL extern "C" __global__ void __launch_bounds__(VQ_THREADS)
// For kernels that compilers otherwise hold to 64 registers, by spilling: two blocks a processor are enough for them.
#define VQ_ROOMY_KERNEL extern "C" __global__ void __launch_bounds__(VQ_THREADS, 2)
#define VQ_SHARED(name) extern __shared__ __align__(16) unsigned char name[]
#endif

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef long long i64;
typedef unsigned long long u64;

enum Table { SHARED_FLOAT, SHARED_HALF, GLOBAL_FLOAT, GLOBAL_HALF };
enum Flags { ALIGNED = 1, ROTATED = 2, FACTORS = 4, OUTLIERS = 8, PACKED = 16 };
struct Half { u16 bits; };
struct Bfloat { u16 bits; };

// What all formats' launches know of one weight. Pointers first, in the order of `vqcompress.kernels.cuda.jobs`.
struct Job {
    const u8* codes;            // of the first column here
    const int* order;           // [columns] where each stored column belongs
    const float* scale;         // [outputs], a multiple of 32 of them
    const float* factors;       // [all columns], or null
    const void* table;          // trellis: values by state; additive: codebooks; scalar: scales of groups
    const u8* zeros;            // scalar
    const int* positions;       // of outliers, rising
    const float* values;        // of outliers
    i64 out;                    // elements from the launch's output
    u32 columns, outputs;
    int outliers;
    u32 groups;                 // of 32 outputs in a column
    u32 magic;                  // floor(2^31 / groups) + 1; see `vqcompress.kernels.cuda.jobs.size_problem`
    int state_bits;             // trellis; additive and scalar: bits of a code
    int rotation;               // block, or 0
    int dimension;              // additive: weights of a vector; scalar: columns of a group
    int rate;                   // trellis: half bits a weight; additive: codes of a vector; scalar: bits of a scale
    u32 column_bytes;
    float norm;                 // of the rotation: block^-1/2
    u32 first_tile;             // tiles of the jobs before; a tile is what a block's threads decode at once
    u32 unused[2];
};
static_assert(sizeof(Job) == 128, "jobs.py writes 128 bytes");

VQ_DEVICE float from_half(u16 bits) {
#ifdef VQ_HOST
    return host_from_half(bits);
#else
    float value;
    asm("{ .reg .b16 h; mov.b16 h, %1; cvt.f32.f16 %0, h; }" : "=f"(value) : "h"(bits));
    return value;
#endif
}

VQ_DEVICE u16 half_bits(float value) {
#ifdef VQ_HOST
    return host_to_half(value);
#else
    u16 bits;
    asm("{ .reg .b16 h; cvt.rn.f16.f32 h, %1; mov.b16 %0, h; }" : "=h"(bits) : "f"(value));
    return bits;
#endif
}

VQ_DEVICE u16 bfloat_bits(float value) {
#if !defined(VQ_HOST) && __CUDA_ARCH__ >= 800
    u16 bits;
    asm("{ .reg .b16 h; cvt.rn.bf16.f32 h, %1; mov.b16 %0, h; }" : "=h"(bits) : "f"(value));
    return bits;
#else
    u32 word = __float_as_uint(value);
    if ((word & 0x7fffffffu) > 0x7f800000u) return 0x7fff;
    return (u16)((word + 0x7fffu + ((word >> 16) & 1u)) >> 16);
#endif
}

VQ_DEVICE u32 two_halves(float low, float high) {
#if !defined(VQ_HOST) && __CUDA_ARCH__ >= 800
    u32 word;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
    return word;
#else
    return half_bits(low) | ((u32)half_bits(high) << 16);
#endif
}

VQ_DEVICE u32 two_bfloats(float low, float high) {
#if !defined(VQ_HOST) && __CUDA_ARCH__ >= 800
    u32 word;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
    return word;
#else
    return bfloat_bits(low) | ((u32)bfloat_bits(high) << 16);
#endif
}

VQ_DEVICE void put(float* at, float value) { *at = value; }
VQ_DEVICE void put(Half* at, float value) { at->bits = half_bits(value); }
VQ_DEVICE void put(Bfloat* at, float value) { at->bits = bfloat_bits(value); }

// 32 numbers to 16-byte boundaries.
VQ_DEVICE void put_all(float* at, const float* v) {
#pragma unroll
    for (int i = 0; i < 32; i += 4)
        *(uint4*)(at + i) =
            uint4{__float_as_uint(v[i]), __float_as_uint(v[i + 1]), __float_as_uint(v[i + 2]), __float_as_uint(v[i + 3])};
}
VQ_DEVICE void put_all(Half* at, const float* v) {
#pragma unroll
    for (int i = 0; i < 32; i += 8)
        *(uint4*)(at + i) = uint4{two_halves(v[i], v[i + 1]), two_halves(v[i + 2], v[i + 3]),
                                  two_halves(v[i + 4], v[i + 5]), two_halves(v[i + 6], v[i + 7])};
}
VQ_DEVICE void put_all(Bfloat* at, const float* v) {
#pragma unroll
    for (int i = 0; i < 32; i += 8)
        *(uint4*)(at + i) = uint4{two_bfloats(v[i], v[i + 1]), two_bfloats(v[i + 2], v[i + 3]),
                                  two_bfloats(v[i + 4], v[i + 5]), two_bfloats(v[i + 6], v[i + 7])};
}

// Keeps a number in a register: the compiler takes it for one that it cannot compute anew.
VQ_DEVICE void opaque(u32& number) {
#ifndef VQ_HOST
    asm("" : "+r"(number));
#endif
}
template <class T>
VQ_DEVICE void opaque(T*& address) {
#ifndef VQ_HOST
    asm("" : "+l"(address));
#endif
}

// The place of a thread's work: a stored column and 32 of its outputs.
struct Place {
    u32 stored, group;
    bool inside;
};

// Without ROTATED, whose lanes need each other, threads past the end do the last work once more.
template <int FLAGS>
VQ_DEVICE Place place_of(const Job& job, u32 index) {
    u32 most = job.columns * job.groups - 1;
    if (!(FLAGS & ROTATED)) index = index < most ? index : most;
    u32 stored = __umulhi(2 * index, job.magic), group = index - stored * job.groups;
    opaque(stored), opaque(group);  // or what follows is computed from `index`, in more instructions
    return Place{stored, group, !(FLAGS & ROTATED) || stored < job.columns};
}

// The last sixteen bits of a circle of `bits` bits, which may be shorter than that.
VQ_DEVICE u32 circle_end(const u8* column, u32 bits) {
    u32 value = 0;
    for (u32 back = 16; back > 0; back--) {
        u32 at = bits - 1 - (back - 1) % bits;
        value = (value << 1) | ((column[at >> 3] >> (7 - (at & 7))) & 1);
    }
    return value;
}

// Bits of a group as 32-bit words, most significant first: sixteen before its own, then 16 * HALVES of its own.
template <int HALVES, int FLAGS>
VQ_DEVICE void load_words(u32* words, const Job& job, const Place& place) {
    constexpr int COUNT = (HALVES + 2) / 2;
    u32 offset = place.stored * job.column_bytes + (u32)(2 * HALVES) * place.group;
    const u8* own = job.codes + offset;
    const u8* before = job.codes + (offset + (place.group ? 0 : job.column_bytes));  // what is before this address
    if (FLAGS & ALIGNED && HALVES % 2 == 0) {  // 4-byte boundaries
        u32 last = __byte_perm(__ldg((const u32*)before - 1), 0, 0x0123);
#pragma unroll
        for (int i = 0; i < HALVES / 2; i++) {
            u32 word = __byte_perm(__ldg((const u32*)own + i), 0, 0x0123);
            words[i] = __funnelshift_l(word, last, 16);
            last = word;
        }
        words[HALVES / 2] = last << 16;
        return;
    }
    u32 units[HALVES + 2];
    if (FLAGS & ALIGNED) {  // 2-byte boundaries
        units[0] = __byte_perm(__ldg((const u16*)before - 1), 0, 0x4401);
#pragma unroll
        for (int i = 0; i < HALVES; i++) units[i + 1] = __byte_perm(__ldg((const u16*)own + i), 0, 0x4401);
    } else {
        const u8* column = own - (u32)(2 * HALVES) * place.group;
        u32 bits = (job.outputs * HALVES) >> 1, length = job.column_bytes;
        u32 first = (u32)(2 * HALVES) * place.group;
        units[0] = place.group ? ((u32)own[-2] << 8) | own[-1] : circle_end(column, bits);
#pragma unroll
        for (int i = 0; i < HALVES; i++) {
            u32 at = first + 2 * i;
            units[i + 1] = ((at < length ? (u32)column[at] : 0u) << 8) | (at + 1 < length ? column[at + 1] : 0);
        }
    }
    units[HALVES + 1] = 0;
#pragma unroll
    for (int i = 0; i < COUNT; i++) words[i] = (units[2 * i] << 16) | units[2 * i + 1];
}

VQ_DEVICE constexpr int size_bits(int table) { return table == SHARED_FLOAT || table == GLOBAL_FLOAT ? 2 : 1; }

// The value at `offset` bytes, scaled by the size of a value.
template <int TABLE>
VQ_DEVICE float looked_up(const u8* table, u32 offset) {
    if (TABLE == SHARED_FLOAT) return *(const float*)(table + offset);
    if (TABLE == GLOBAL_FLOAT) return __ldg((const float*)(table + offset));
    return from_half(TABLE == SHARED_HALF ? *(const u16*)(table + offset) : __ldg((const u16*)(table + offset)));
}

// Walsh-Hadamard over blocks of outputs: 32 are a thread's own, larger blocks lie in lanes side by side.
VQ_DEVICE void rotate_back(float* v, const Job& job, u32 group) {
#pragma unroll
    for (int span = 1; span < 32; span *= 2) {
        if (span < job.rotation) {
#pragma unroll
            for (int i = 0; i < 32; i++) {
                if (!(i & span)) {
                    float first = v[i], second = v[i + span];
                    v[i] = first + second;
                    v[i + span] = first - second;
                }
            }
        }
    }
#pragma unroll
    for (int lane = 1; lane < 8; lane *= 2) {
        if (32 * lane < job.rotation) {
            bool upper = threadIdx.x & lane;
#pragma unroll
            for (int i = 0; i < 32; i++) {
                float other = __shfl_xor_sync(0xffffffffu, v[i], lane);
                v[i] = upper ? other - v[i] : v[i] + other;
            }
        }
    }
#pragma unroll
    for (int i = 0; i < 32; i++) {
        u32 mixed = (32 * group + i) * 2654435769u;
        mixed = (mixed ^ (mixed >> 15)) * 2246822519u;
        v[i] = __uint_as_float(__float_as_uint(v[i] * job.norm) ^ (mixed & 0x80000000u));
    }
}

VQ_DEVICE void add_outliers(float* v, const Job& job, i64 first, int count) {
    int low = 0, high = job.outliers;
    while (low < high) {
        int middle = (low + high) >> 1;
        if (job.positions[middle] < first) low = middle + 1;
        else high = middle;
    }
    for (; low < job.outliers && job.positions[low] < first + count; low++) {
        int place = (int)(job.positions[low] - first);
        float value = job.values[low];
#pragma unroll
        for (int i = 0; i < 32; i++)
            if (i == place) v[i] = v[i] + value;
    }
}

// Rotation, column scale and outliers of 32 decoded values, then the store. `out` is where the job's weight begins.
template <int FLAGS, class Out>
VQ_DEVICE void finish(float* v, const Job& job, const Place& place, Out* out) {
    u32 output = 32 * place.group, count = job.outputs - output < 32 ? job.outputs - output : 32;
    if (FLAGS & ROTATED) rotate_back(v, job, place.group);
    if (!place.inside) return;
    u32 column = __ldg(job.order + place.stored);
    if (FLAGS & FACTORS) {
        float factor = __ldg(job.factors + column);
#pragma unroll
        for (int i = 0; i < 32; i++) v[i] = v[i] * factor;
    }
    u32 first = column * job.outputs + output;
    if (FLAGS & OUTLIERS) add_outliers(v, job, first, (int)count);
    Out* at = out + first;
    if (FLAGS & ALIGNED) {
        put_all(at, v);
    } else {
        for (u32 i = 0; i < 32; i++)
            if (i < count) put(at + i, v[i]);
    }
}

VQ_DEVICE void scale_rows(float* v, const Job& job, const Place& place) {
    const uint4* scale = (const uint4*)(job.scale + 32 * place.group);
#pragma unroll
    for (int i = 0; i < 8; i++) {
        uint4 four = __ldg(scale + i);
        v[4 * i] *= __uint_as_float(four.x);
        v[4 * i + 1] *= __uint_as_float(four.y);
        v[4 * i + 2] *= __uint_as_float(four.z);
        v[4 * i + 3] *= __uint_as_float(four.w);
    }
}

// The values of a group, looked up by their states.
template <int HALVES, int TABLE, int FLAGS>
VQ_DEVICE bool trellis_values(float* v, const Job& job, const Place& place, u32 mask, const u8* table) {
    if (HALVES == 0) {
#pragma unroll
        for (int i = 0; i < 32; i++) v[i] = 0.0f;
        return true;
    }
    // A state times the size of a value, cut out of the stream at once: the bits after it are masked out.
    constexpr int SIZE = size_bits(TABLE);
    u32 words[HALVES / 2 + 3];
    load_words<HALVES, FLAGS>(words, job, place);
    words[(HALVES + 2) / 2] = 0;
#pragma unroll
    for (int i = 0; i < 32; i++) {
        const int end = 16 + SIZE + (((i + 1) * HALVES) >> 1), word = end / 32, shift = end % 32;
        u32 window = shift ? __funnelshift_l(words[word], word ? words[word - 1] : 0u, shift) : words[word - 1];
        u32 offset = window & mask;
        if (i & HALVES & 1) offset += mask + (1u << SIZE);
        v[i] = looked_up<TABLE>(table, offset);
    }
    return true;
}

// Goes over a block's share of the tiles, job by job: `some(job, index, rounds)` decodes from `index` on, every
// VQ_THREADS, `rounds` times, and has no barrier. All threads of a block go round equally often.
template <class Load, class Some>
VQ_DEVICE void over_tiles(const Job* jobs, int count, u32 tiles, Load load, Some some) {
    u32 tile = (u32)((i64)tiles * blockIdx.x / gridDim.x), last = (u32)((i64)tiles * (blockIdx.x + 1) / gridDim.x);
    int at = 0;
    while (tile < last) {
        while (at + 1 < count && jobs[at + 1].first_tile <= tile) at++;
        const Job& job = jobs[at];
        u32 next = at + 1 < count ? jobs[at + 1].first_tile : tiles;
        u32 end = next < last ? next : last;
        load(job);
        some(job, (tile - job.first_tile) * VQ_THREADS + threadIdx.x, end - tile);
        tile = end;
    }
}

// A loop over groups of a job, whose rate is one of HALVES.
template <int TABLE, int FLAGS, class Out, int... HALVES>
VQ_DEVICE bool trellis_rounds(const Job& given, u32 index, u32 rounds, u32 mask, const u8* table, Out* out) {
    constexpr int UNROLLED = sizeof...(HALVES) == 1 ? 2 : 1;
    const Job job = given;  // in registers, of which each loop needs others
#pragma unroll UNROLLED
    for (; rounds > 0; rounds--, index += VQ_THREADS) {
        Place place = place_of<FLAGS>(job, index);
        float v[32];
        if (place.inside) {
            (void)(... || ((sizeof...(HALVES) == 1 || job.rate == HALVES) &&
                           trellis_values<HALVES, TABLE, FLAGS>(v, job, place, mask, table)));
            scale_rows(v, job, place);
        } else {
#pragma unroll
            for (int i = 0; i < 32; i++) v[i] = 0.0f;
        }
        finish<FLAGS>(v, job, place, out);
    }
    return true;
}

// A job has one rate, so all threads of a block go the same way. Each of HALVES has a loop of its own, but for
// rotations, which would be compiled over and over: there, each round chooses.
template <int TABLE, int FLAGS, class Out, int... HALVES>
VQ_DEVICE void decode_trellis(const Job* jobs, int count, u32 tiles, Out* out) {
    VQ_SHARED(shared);
    constexpr bool HELD = TABLE == SHARED_FLOAT || TABLE == SHARED_HALF;
    const void* held = nullptr;
    u32 mask = 0;
    Out* base = out;
    over_tiles(
        jobs, count, tiles,
        [&](const Job& job) {
            base = out + job.out, mask = ((1u << job.state_bits) - 1) << size_bits(TABLE);
            opaque(base), opaque(mask);
#ifndef VQ_HOST
            __builtin_assume(__isGlobal(base));
#endif
            if (!HELD || job.rate == 0 || job.table == held) return;
            u32 words = ((1u + (job.rate & 1)) << job.state_bits) / (TABLE == SHARED_HALF ? 2 : 1);
            __syncthreads();
            for (u32 i = threadIdx.x; i < words; i += VQ_THREADS) ((u32*)shared)[i] = ((const u32*)job.table)[i];
            __syncthreads();
            held = job.table;
        },
        [&](const Job& job, u32 index, u32 rounds) {
            const u8* table = HELD ? shared : (const u8*)job.table;
            if constexpr ((FLAGS & ROTATED) != 0)
                trellis_rounds<TABLE, FLAGS, Out, HALVES...>(job, index, rounds, mask, table, base);
            else
                (void)(... || (job.rate == HALVES &&
                               trellis_rounds<TABLE, FLAGS, Out, HALVES>(job, index, rounds, mask, table, base)));
        });
}

// `count` bits from bit `start` on.
VQ_DEVICE u32 bit_field(const u8* stream, u32 start, u32 count) {
    if (count == 8 && start % 8 == 0) return __ldg(stream + (start >> 3));
    u32 value = 0, last = (start + count - 1) >> 3;
#pragma unroll 1
    for (u32 at = start >> 3; at <= last; at++) value = (value << 8) | stream[at];
    return (value >> (8 * (last + 1) - start - count)) & ((1u << count) - 1);
}

// Vectors run along the outputs; a sum begins with a zero, as the reference's does. DIMENSION, if not 0, is that of the
// vectors, and divides 32.
template <int DIMENSION, int FLAGS, class Out>
VQ_DEVICE void additive_group(const Job& job, u32 index, Out* out) {
    Place place = place_of<FLAGS>(job, index);
    const u8* column = job.codes + (u64)place.stored * job.column_bytes;
    const float* books = (const float*)job.table;
    u32 dimension = DIMENSION ? DIMENSION : job.dimension, bits = job.state_bits, output = 32 * place.group;
    u32 left = job.outputs - output < 32 ? job.outputs - output : 32;
    float v[32];
#pragma unroll
    for (int i = 0; i < 32; i++) v[i] = 0.0f;
    for (u32 m = 0; m < (u32)job.rate; m++) {
        u32 vector = output / dimension, element = output - vector * dimension, code = 0;
        const float* book = books + ((u64)(m << bits) * dimension);
#pragma unroll
        for (u32 i = 0; i < 32; i++) {
            if (DIMENSION ? i % DIMENSION == 0 : i == 0 || element == 0) {
                u32 at = DIMENSION ? vector + i / DIMENSION : vector;
                if (i < left) code = bit_field(column, (at * job.rate + m) * bits, bits);
            }
            u32 place_in_vector = DIMENSION ? i % DIMENSION : element;
            if (i < left) v[i] = v[i] + __ldg(book + (code * dimension + place_in_vector));
            if (!DIMENSION && ++element == dimension) vector++, element = 0;
        }
    }
    scale_rows(v, job, place);
    finish<FLAGS>(v, job, place, out);
}

// Number `i` of those of BITS bits in `words`, most significant first.
template <int BITS>
VQ_DEVICE int number_at(const u32* words, int i) {
    const int end = (i + 1) * BITS, word = end / 32, shift = end % 32;
    u32 window = shift ? __funnelshift_l(words[word], word ? words[word - 1] : 0u, shift) : words[word - 1];
    return window & ((1u << BITS) - 1);
}

// Factors of a group are float16, or integers of few bits times the output's scale. BITS, if not 0, are those of a code.
template <int BITS, int FLAGS, class Out>
VQ_DEVICE void scalar_group(const Job& job, u32 index, Out* out) {
    Place place = place_of<FLAGS>(job, index);
    u32 row = place.stored / (u32)job.dimension, bits = job.state_bits, scale_bits = job.rate;
    const u8* codes = job.codes + (u64)place.stored * job.column_bytes;
    const u8* zeros = job.zeros + (u64)row * job.column_bytes;
    const u8* packed = (const u8*)job.table + (u64)row * ((job.outputs * scale_bits + 7) >> 3);
    const u16* halves = (const u16*)job.table + (u64)row * job.outputs;
    u32 own[BITS + 1], offsets[BITS + 1];
    own[BITS] = offsets[BITS] = 0;
    if (BITS) {
#pragma unroll
        for (int i = 0; i < BITS; i++) {
            own[i] = __byte_perm(__ldg((const u32*)codes + place.group * BITS + i), 0, 0x0123);
            offsets[i] = __byte_perm(__ldg((const u32*)zeros + place.group * BITS + i), 0, 0x0123);
        }
    }
    float v[32];
#pragma unroll
    for (int i = 0; i < 32; i++) {
        u32 output = 32 * place.group + i;
        v[i] = 0.0f;
        if (BITS || output < job.outputs) {
            int code = BITS ? number_at<BITS>(own, i) : (int)bit_field(codes, output * bits, bits);
            int zero = BITS ? number_at<BITS>(offsets, i) : (int)bit_field(zeros, output * bits, bits);
            float factor = FLAGS & PACKED
                               ? (float)bit_field(packed, output * scale_bits, scale_bits) * __ldg(job.scale + output)
                               : from_half(__ldg(halves + output));
            v[i] = (float)(code - zero) * factor;
        }
    }
    finish<FLAGS>(v, job, place, out);
}

#define TRELLIS(NAME, TABLE, FLAGS, OUT, ...)                                                                     \
    VQ_KERNEL NAME(const Job* jobs, int count, u32 tiles, void* out) {                                            \
        decode_trellis<TABLE, FLAGS, OUT, __VA_ARGS__>(jobs, count, tiles, (OUT*)out);                            \
    }
#define ADDITIVE(NAME, DIMENSION, FLAGS, OUT)                                                                     \
    VQ_ROOMY_KERNEL NAME(const Job* jobs, int count, u32 tiles, void* out) {                                      \
        over_tiles(jobs, count, tiles, [](const Job&) {}, [&](const Job job, u32 index, u32 rounds) {             \
            for (; rounds > 0; rounds--, index += VQ_THREADS)                                                     \
                additive_group<DIMENSION, FLAGS>(job, index, (OUT*)out + job.out);                                \
        });                                                                                                       \
    }
#define SCALAR(NAME, BITS, FLAGS, OUT)                                                                            \
    VQ_KERNEL NAME(const Job* jobs, int count, u32 tiles, void* out) {                                            \
        over_tiles(jobs, count, tiles, [](const Job&) {}, [&](const Job job, u32 index, u32 rounds) {             \
            for (; rounds > 0; rounds--, index += VQ_THREADS)                                                     \
                scalar_group<BITS, FLAGS>(job, index, (OUT*)out + job.out);                                       \
        });                                                                                                       \
    }
