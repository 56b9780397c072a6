// Stands for a GPU: a block's threads are threads of this machine, its barriers are barriers, its shared memory is an
// array of exactly the bytes that the launch asked for.

#include <barrier>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <thread>
#include <vector>

#define VQ_HOST
#define VQ_THREADS blockDim.x
#define VQ_DEVICE static inline
#define VQ_KERNEL static void
#define VQ_ROOMY_KERNEL static void
#define VQ_SHARED(name) unsigned char* name = block->shared.data()

struct Warp {
    explicit Warp(unsigned lanes) : all(lanes) {}
    std::barrier<> all;
    float slots[32];
    unsigned operands[32][6];
};

struct Block {
    Block(unsigned threads, size_t bytes) : all(threads), shared(bytes) {
        for (unsigned first = 0; first < threads; first += 32) warps.push_back(std::make_unique<Warp>(32));
    }
    std::barrier<> all;
    std::vector<unsigned char> shared;
    std::vector<std::unique_ptr<Warp>> warps;
};

struct Number {
    unsigned x;
};
static thread_local Number threadIdx, blockIdx, blockDim, gridDim;
static thread_local Block* block;

struct alignas(16) uint4 {
    unsigned x, y, z, w;
};

template <class T>
static inline T __ldg(const T* at) {
    return *at;
}

static inline void __syncthreads() { block->all.arrive_and_wait(); }

static inline float __shfl_xor_sync(unsigned, float value, int other) {
    Warp& warp = *block->warps[threadIdx.x / 32];
    warp.slots[threadIdx.x % 32] = value;
    warp.all.arrive_and_wait();
    float found = warp.slots[(threadIdx.x % 32) ^ other];
    warp.all.arrive_and_wait();
    return found;
}

static inline unsigned __umulhi(unsigned a, unsigned b) { return ((unsigned long long)a * b) >> 32; }

static inline unsigned __funnelshift_l(unsigned low, unsigned high, unsigned shift) {
    return ((((unsigned long long)high << 32) | low) << (shift & 31)) >> 32;
}

static inline unsigned __byte_perm(unsigned a, unsigned b, unsigned selector) {
    unsigned long long both = ((unsigned long long)b << 32) | a;
    unsigned result = 0;
    for (int i = 0; i < 4; i++) result |= ((both >> (8 * ((selector >> (4 * i)) & 7))) & 0xff) << (8 * i);
    return result;
}

static inline unsigned __float_as_uint(float value) {
    unsigned word;
    memcpy(&word, &value, 4);
    return word;
}

static inline float __uint_as_float(unsigned word) {
    float value;
    memcpy(&value, &word, 4);
    return value;
}

static inline float host_from_half(unsigned short bits) {
    _Float16 half;
    memcpy(&half, &bits, 2);
    return half;
}

static inline unsigned short host_to_half(float value) {
    _Float16 half = value;
    unsigned short bits;
    memcpy(&bits, &half, 2);
    return bits;
}

// mma.m16n8k16: lane 4g + t has of a the columns 2t, 2t + 1, 2t + 8 and 2t + 9 of rows g and g + 8, of b the same rows of
// column g, and of the sums columns 2t and 2t + 1 of rows g and g + 8.
static inline void host_multiply_add(float* sum, const unsigned* a, const unsigned* b, bool half) {
    Warp& warp = *block->warps[threadIdx.x / 32];
    unsigned lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    memcpy(warp.operands[lane], a, 16), memcpy(warp.operands[lane] + 4, b, 8);
    warp.all.arrive_and_wait();
    auto number = [half](unsigned word, int upper) {
        unsigned bits = upper ? word >> 16 : word & 0xffff;
        return half ? host_from_half(bits) : __uint_as_float(bits << 16);
    };
    for (int i = 0; i < 4; i++) {
        unsigned row = i / 2, column = 2 * t + i % 2;
        for (int k = 0; k < 16; k++) {
            unsigned other = (k % 8) / 2, upper = k % 2, far = k / 8;
            float left = number(warp.operands[4 * g + other][row + 2 * far], upper);
            sum[i] += left * number(warp.operands[4 * column + other][4 + far], upper);
        }
    }
    warp.all.arrive_and_wait();
}

template <class Body>
static void launch(unsigned grid, unsigned threads, size_t shared, Body body) {
    for (unsigned b = 0; b < grid; b++) {
        Block own(threads, shared);
        std::vector<std::thread> all;
        for (unsigned t = 0; t < threads; t++)
            all.emplace_back([&, t] {
                threadIdx = {t}, blockIdx = {b}, blockDim = {threads}, gridDim = {grid}, block = &own;
                body();
            });
        for (std::thread& thread : all) thread.join();
    }
}
