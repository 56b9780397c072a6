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

struct Job;
typedef void (*Kernel)(const Job*, int, unsigned, void*);

static void launch(Kernel kernel, unsigned grid, unsigned threads, size_t shared, const Job* jobs, int count,
                   unsigned tiles, void* out) {
    for (unsigned b = 0; b < grid; b++) {
        Block own(threads, shared);
        std::vector<std::thread> all;
        for (unsigned t = 0; t < threads; t++)
            all.emplace_back([&, t] {
                threadIdx = {t}, blockIdx = {b}, blockDim = {threads}, gridDim = {grid}, block = &own;
                kernel(jobs, count, tiles, out);
            });
        for (std::thread& thread : all) thread.join();
    }
}
