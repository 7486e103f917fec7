/* Plays CUDA's driver: memory is that of the CPU, and a module is a library that nvcc.py made. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <elf.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum { CONTEXT = 7, MEMORY = 2, NOT_FOUND = 500, NO_CONTEXT = 201 };

static int depth;
static long allocated;

/* What the environment asks to fail. */
static int refuses(const char *name)
{
  const char *chosen = getenv("FAKE_CUDA_REFUSES");
  return chosen != NULL && strcmp(chosen, name) == 0;
}

int cuInit(unsigned flags)
{
  return flags != 0 || refuses("cuInit") ? 100 : 0;
}

int cuDeviceGet(int *device, int ordinal)
{
  *device = ordinal;
  return ordinal == 0 ? 0 : 101;
}

int cuDeviceGetAttribute(int *value, int attribute, int device)
{
  const char *chosen = getenv("FAKE_CUDA_COMPUTE");
  const int compute = chosen == NULL ? 90 : atoi(chosen);
  (void)device;
  *value = attribute == 75 ? compute / 10 : compute % 10;
  return attribute == 75 || attribute == 76 ? 0 : 1;
}

int cuDevicePrimaryCtxRetain(void **context, int device)
{
  (void)device;
  *context = (void *)(size_t)CONTEXT;
  return 0;
}

int cuDevicePrimaryCtxRelease_v2(int device)
{
  (void)device;
  if (allocated != 0 || depth != 0) {
    fprintf(stderr, "%ld blocks and %d contexts are left\n", allocated, depth);
    return 1;
  }
  return 0;
}

int cuCtxPushCurrent_v2(void *context)
{
  depth++;
  return context == (void *)(size_t)CONTEXT ? 0 : NO_CONTEXT;
}

int cuCtxPopCurrent_v2(void **context)
{
  *context = (void *)(size_t)CONTEXT;
  return --depth < 0 ? NO_CONTEXT : 0;
}

int cuModuleLoadData(void **module, const void *image)
{
  const Elf64_Ehdr *head = image;
  const size_t size = head->e_shoff + (size_t)head->e_shnum * head->e_shentsize;
  char path[64];
  const int file = memfd_create("module", 0);
  if (depth == 0 || file < 0 || write(file, image, size) != (ssize_t)size) {
    return NO_CONTEXT;
  }
  snprintf(path, sizeof path, "/proc/self/fd/%d", file);
  *module = dlopen(path, RTLD_NOW | RTLD_LOCAL);
  return *module == NULL ? 200 : 0;
}

int cuModuleUnload(void *module)
{
  return dlclose(module);
}

int cuModuleGetFunction(void **function, void *module, const char *name)
{
  char symbol[512];
  snprintf(symbol, sizeof symbol, "snncc_emulate_%s", name);
  *function = dlsym(module, symbol);
  return *function == NULL ? NOT_FOUND : 0;
}

int cuMemAlloc_v2(unsigned long long *address, size_t bytes)
{
  void *memory = bytes == 0 || refuses("cuMemAlloc") ? NULL : malloc(bytes);
  if (memory == NULL) {
    return MEMORY;
  }
  memset(memory, 0xFF, bytes); /* NaN, to be seen where it is read before it is written */
  *address = (unsigned long long)(size_t)memory;
  allocated++;
  return 0;
}

int cuMemFree_v2(unsigned long long address)
{
  free((void *)(size_t)address);
  allocated--;
  return 0;
}

int cuMemcpyHtoD_v2(unsigned long long to, const void *from, size_t bytes)
{
  memcpy((void *)(size_t)to, from, bytes);
  return depth > 0 ? 0 : NO_CONTEXT;
}

int cuMemcpyDtoH_v2(void *to, unsigned long long from, size_t bytes)
{
  memcpy(to, (const void *)(size_t)from, bytes);
  return depth > 0 ? 0 : NO_CONTEXT;
}

int cuLaunchKernel(void *function, unsigned blocks, unsigned blocks_y, unsigned blocks_z,
                   unsigned threads, unsigned threads_y, unsigned threads_z, unsigned shared,
                   void *stream, void **parameters, void **extra)
{
  if (depth == 0 || blocks_y * blocks_z * threads_y * threads_z != 1 || shared != 0 || extra != NULL
      || stream != NULL) {
    return NO_CONTEXT;
  }
  ((void (*)(unsigned, unsigned, void **))function)(blocks, threads, parameters);
  return 0;
}
