// Reads products of multiply.cu from standard input, runs them, writes the bytes of each output. Numbers of one: kernel,
// grid, threads and shared bytes of the product; kernel, grid and threads of the sum; rows, outputs, tiles, stride, jobs,
// parts, output bytes, tensors; then the tensors, the first three of which are x, scale and bias; the jobs and the parts.

#include "input.h"

typedef void (*Multiply)(const Job*, const Part*, const void*, float*, i64, u32, u32, u32);
typedef void (*Finish)(void*, const float*, const float*, const void*, u32, u32, u32);
static Multiply MULTIPLIES[] = {VQ_MULTIPLIES};
static Finish FINISHES[] = {VQ_FINISHES};

int main() {
    for (long long products = number(); products > 0; products--) {
        long long kernel = number(), grid = number(), threads = number(), shared = number();
        long long finish = number(), finish_grid = number(), finish_threads = number();
        long long rows = number(), outputs = number(), tiles = number(), stride = number();
        long long count = number(), parts_count = number(), size = number();
        Tensors tensors = read_tensors(number());
        std::vector<Job> jobs = read_jobs(count, tensors);
        std::vector<Part> parts(parts_count);
        read(parts.data(), sizeof(Part) * parts_count);
        Output partial(4 * parts_count * rows * outputs), out(size);
        float* sums = (float*)partial.at;
        if (parts_count)
            launch(grid, threads, shared, [&] {
                MULTIPLIES[kernel](jobs.data(), parts.data(), tensors[0].get(), sums, stride, rows, outputs, tiles);
            });
        launch(finish_grid, finish_threads, 0, [&] {
            FINISHES[finish](out.at, sums, (const float*)tensors[1].get(), tensors[2].get(), parts_count, rows, outputs);
        });
        out.write();
    }
}
