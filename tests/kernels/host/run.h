// Reads launches of decode.cu from standard input, runs them, writes the bytes of each output. Numbers of a launch:
// kernel, grid, threads, shared bytes, jobs, tiles, output bytes, tensors; then the tensors and the jobs.

#include "input.h"

typedef void (*Kernel)(const Job*, int, unsigned, void*);
static Kernel KERNELS[] = {VQ_KERNELS};

int main() {
    for (long long launches = number(); launches > 0; launches--) {
        long long kernel = number(), grid = number(), threads = number(), shared = number();
        long long count = number(), tiles = number(), size = number();
        Tensors tensors = read_tensors(number());
        std::vector<Job> jobs = read_jobs(count, tensors);
        Output out(size);
        launch(grid, threads, shared, [&] { KERNELS[kernel](jobs.data(), count, tiles, out.at); });
        out.write();
    }
}
