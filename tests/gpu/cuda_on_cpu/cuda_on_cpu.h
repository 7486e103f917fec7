/* CUDA C++ on the CPU: runs the very text of a kernel, one thread after another.

   Threads of a block are fibers that run up to the next barrier in turn, so that shared memory and
   barriers mean what they mean on a GPU.  Blocks run one after another. */
#pragma once
#include <math.h>
#include <stdlib.h>
#include <ucontext.h>

#include <utility>

#define __global__
#define __device__
#define __forceinline__ inline
#define __shared__ static
#define __launch_bounds__(threads, blocks)

struct Index
{
  unsigned x;
};

Index threadIdx, blockIdx, gridDim;

namespace emulation
{

constexpr unsigned MOST_THREADS = 1024;
constexpr size_t STACK = 1 << 16;

static ucontext_t scheduler, fibers[MOST_THREADS];
static bool ended[MOST_THREADS];
static void (*thread_body)();

static void run_fiber()
{
  thread_body();
  ended[threadIdx.x] = true;
}

/* Run all threads of a block up to their next barrier, until all have ended. */
static void run_block(unsigned threads, char *stacks)
{
  for (unsigned thread = 0; thread < threads; thread++) {
    ucontext_t &fiber = fibers[thread];
    getcontext(&fiber);
    fiber.uc_stack.ss_sp = stacks + thread * STACK;
    fiber.uc_stack.ss_size = STACK;
    fiber.uc_link = &scheduler;
    makecontext(&fiber, run_fiber, 0);
    ended[thread] = false;
  }
  for (bool running = true; running;) {
    running = false;
    for (unsigned thread = 0; thread < threads; thread++) {
      if (!ended[thread]) {
        threadIdx.x = thread;
        swapcontext(&scheduler, &fibers[thread]);
        running = running || !ended[thread];
      }
    }
  }
}

static void **given;

template <typename... P, size_t... I>
static void call(void (*kernel)(P...), std::index_sequence<I...>)
{
  kernel(*static_cast<P *>(given[I])...);
}

template <typename... P> static void call(void (*kernel)(P...))
{
  call(kernel, std::index_sequence_for<P...>());
}

/* Run a whole grid; the parameters are given as cuLaunchKernel takes them. */
static void run_grid(void (*body)(), unsigned blocks, unsigned threads, void **parameters)
{
  given = parameters;
  gridDim.x = blocks;
  thread_body = body;
  char *stacks = static_cast<char *>(malloc(threads * STACK));
  for (blockIdx.x = 0; blockIdx.x < blocks; blockIdx.x++) {
    run_block(threads, stacks);
  }
  free(stacks);
}

}  // namespace emulation

static void __syncthreads()
{
  swapcontext(&emulation::fibers[threadIdx.x], &emulation::scheduler);
}
