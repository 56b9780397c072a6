// Reads launches from standard input, runs them, writes the bytes of each output. Every tensor lies in memory of its
// own of exactly its size, so that AddressSanitizer sees a byte too far.
//
// All numbers are int64. A file: launches; each: kernel, grid, threads, shared bytes, jobs, tiles, output bytes,
// tensors, then each tensor's bytes and contents, then the jobs. A job's pointers are (tensor + 1) << 40 | offset.

static long long number() {
    long long value;
    if (fread(&value, 8, 1, stdin) != 1) abort();
    return value;
}

static void read(void* at, size_t size) {
    if (size && fread(at, 1, size, stdin) != size) abort();
}

int main() {
    for (long long launches = number(); launches > 0; launches--) {
        long long kernel = number(), grid = number(), threads = number(), shared = number();
        long long count = number(), tiles = number(), size = number();
        std::vector<std::unique_ptr<unsigned char[]>> tensors(number());
        for (auto& tensor : tensors) {
            long long bytes = number();
            tensor.reset(new unsigned char[bytes]);
            read(tensor.get(), bytes);
        }
        std::vector<Job> jobs(count);
        read(jobs.data(), sizeof(Job) * count);
        for (Job& job : jobs) {
            void** pointers = (void**)&job;
            for (int i = 0; i < 8; i++) {
                unsigned long long place = (unsigned long long)pointers[i];
                if (place) pointers[i] = tensors[(place >> 40) - 1].get() + (place & ((1ull << 40) - 1));
            }
        }
        std::unique_ptr<unsigned char[]> out((unsigned char*)operator new[](size, std::align_val_t(16)));
        memset(out.get(), 0xaa, size);
        launch(KERNELS[kernel], grid, threads, shared, jobs.data(), count, tiles, out.get());
        fwrite(out.get(), 1, size, stdout);
        operator delete[](out.release(), std::align_val_t(16));
    }
}
