// Launches from standard input. Every tensor lies in memory of its own of exactly its size, so that AddressSanitizer sees
// a byte too far. All numbers are int64; a tensor is its bytes and contents; a job's pointers are
// (tensor + 1) << 40 | offset.

static long long number() {
    long long value;
    if (fread(&value, 8, 1, stdin) != 1) abort();
    return value;
}

static void read(void* at, size_t size) {
    if (size && fread(at, 1, size, stdin) != size) abort();
}

typedef std::vector<std::unique_ptr<unsigned char[]>> Tensors;

static Tensors read_tensors(long long count) {
    Tensors tensors(count);
    for (auto& tensor : tensors) {
        long long bytes = number();
        if (bytes < 0) continue;  // no address
        tensor.reset(new unsigned char[bytes]);
        read(tensor.get(), bytes);
    }
    return tensors;
}

static std::vector<Job> read_jobs(long long count, const Tensors& tensors) {
    std::vector<Job> jobs(count);
    read(jobs.data(), sizeof(Job) * count);
    for (Job& job : jobs) {
        void** pointers = (void**)&job;
        for (int i = 0; i < 8; i++) {
            unsigned long long place = (unsigned long long)pointers[i];
            if (place) pointers[i] = tensors[(place >> 40) - 1].get() + (place & ((1ull << 40) - 1));
        }
    }
    return jobs;
}

// Memory as a GPU's allocator gives it, filled with what no kernel writes.
struct Output {
    explicit Output(size_t bytes) : size(bytes), at((unsigned char*)operator new[](bytes, std::align_val_t(16))) {
        memset(at, 0xaa, size);
    }
    ~Output() { operator delete[](at, std::align_val_t(16)); }
    void write() const { fwrite(at, 1, size, stdout); }
    size_t size;
    unsigned char* at;
};
