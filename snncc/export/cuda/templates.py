"""The files of a CUDA library, with places for what depends on the network."""

from __future__ import annotations

KERNELS = """\
/* The kernels of the network '{name}', exported by snncc: one an operation, in the order of a step.
   A thread computes one element, and adds in the order of the inputs.
   Compile it with {flags}. */

/* Where everything lies on the device: what a kernel gets. */
struct {name}_arguments {{
  const {real} *weights;
  {real} *states;
  {real} *work;
  unsigned long long steps; /* taken since the reset, this one included */
{members}
}};
{fixed}
{functions}
{kernels}
"""

HEADER = """\
/* The network '{name}' on a GPU of NVIDIA, exported by snncc.
 *
 * It needs the driver (link with -lcuda) and nothing else of CUDA.  Functions return 0, or the
 * CUresult of what failed in the driver; {no_binary} says that no binary is for this GPU.
 *
 *   struct {name} net;
 *   if ({name}_init(&net, {name}_weights, 0) == 0) {{
 *     {name}_run(&net, steps, ...);
 *     {name}_free(&net);
 *   }}
 *
 * A network belongs to the thread that uses it; several networks may share a GPU.
 */
#ifndef {macro}_H
#define {macro}_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {{
#endif

{macros}

typedef unsigned long long {name}_address; /* an address on the device: a CUdeviceptr */

struct {name} {{
  int device;
  unsigned long steps; /* taken since the reset */
  void *context, *module;
  void *kernels[{macro}_N_KERNELS];
  {name}_address weights, states, work;
  {name}_address buffers[{macro}_N_BUFFERS]; /* inputs and outputs of a run from the host */
  size_t room; /* for how many steps they are */
}};

/* A binary for one kind of GPU; they are in {name}_images.c. */
struct {name}_image {{
  int major, minor;
  const unsigned char *data;
}};
extern const struct {name}_image {name}_images[{macro}_N_IMAGES];

/* The weights, in {name}_weights.c; not needed where they are read from a file. */
extern const {real} {name}_weights[{macro}_WEIGHTS];

/* Check the contents of '{name}.weights', aligned for {real}; return its numbers, or NULL if it is
   damaged or belongs to another network. */
const {real} *{name}_check_weights(const void *data, size_t bytes);

/* Load the kernels, copy the weights to the GPU of this number, and go to the state before the
   first step.  On failure nothing is kept. */
int {name}_init(struct {name} *net, const {real} *weights, int device);

/* Give back all memory on the device. */
int {name}_free(struct {name} *net);

/* Go back to the state before the first step. */
int {name}_reset(struct {name} *net);

/* Take one step on numbers of the host, and wait for it.
{outputs} */
int {name}_step(struct {name} *net, {parameters});

/* Take several steps: inputs, and outputs of each step, lie one step after another.  They are
   copied to the GPU and back once, and the CPU waits at the end. */
int {name}_run(struct {name} *net, size_t count, {parameters});

/* Put one step on numbers of the device into a stream (a CUstream, or NULL), and return at once. */
int {name}_launch(struct {name} *net, {device_parameters}, void *stream);

#ifdef __cplusplus
}}
#endif

#endif
"""

SOURCE = """\
/* The network '{name}', exported by snncc: what launches its kernels, by CUDA's driver. */
#include "{name}.h"

#include <math.h>
#include <string.h>

/* The part of the driver's interface that is needed, as it has been since CUDA 4. */
extern int cuInit(unsigned flags);
extern int cuDeviceGet(int *device, int ordinal);
extern int cuDeviceGetAttribute(int *value, int attribute, int device);
extern int cuDevicePrimaryCtxRetain(void **context, int device);
extern int cuDevicePrimaryCtxRelease_v2(int device);
extern int cuCtxPushCurrent_v2(void *context);
extern int cuCtxPopCurrent_v2(void **context);
extern int cuModuleLoadData(void **module, const void *image);
extern int cuModuleUnload(void *module);
extern int cuModuleGetFunction(void **function, void *module, const char *name);
extern int cuMemAlloc_v2({name}_address *address, size_t bytes);
extern int cuMemFree_v2({name}_address address);
extern int cuMemcpyHtoD_v2({name}_address to, const void *from, size_t bytes);
extern int cuMemcpyDtoH_v2(void *to, {name}_address from, size_t bytes);
extern int cuLaunchKernel(void *function, unsigned blocks, unsigned blocks_y, unsigned blocks_z,
                          unsigned threads, unsigned threads_y, unsigned threads_z,
                          unsigned shared, void *stream, void **parameters, void **extra);

enum {{ MAJOR = 75, MINOR = 76 }}; /* CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_... */

struct {name}_arguments {{
  {name}_address weights, states, work;
  unsigned long long steps;
  {name}_address given[{macro}_N_BUFFERS];
}};

static const struct {{
  const char *name;
  unsigned blocks;
}} {name}_kernels[{macro}_N_KERNELS] = {{
{kernels}
}};

/* What the states start from. */
static const {real} {name}_start[{macro}_N_STATES] = {{
  {start}}};

/* For each input, then for each output: its bytes, and whether it has a row for each step. */
static const size_t {name}_bytes[{macro}_N_BUFFERS] = {{{bytes}}};
static const int {name}_every_step[{macro}_N_BUFFERS] = {{{every}}};

{check}
/* Return the binary for a GPU: of the same major version, and the newest minor that it knows. */
static const unsigned char *{name}_image_for(int major, int minor)
{{
  const unsigned char *found = NULL;
  int newest = -1;
  for (int i = 0; i < {macro}_N_IMAGES; i++) {{
    const struct {name}_image *image = &{name}_images[i];
    if (image->major == major && image->minor <= minor && image->minor > newest) {{
      found = image->data;
      newest = image->minor;
    }}
  }}
  return found;
}}

/* Load the kernels and reserve memory; the context is current. */
static int {name}_load(struct {name} *net, const {real} *weights)
{{
  int major = 0, minor = 0;
  int error = cuDeviceGetAttribute(&major, MAJOR, net->device);
  if (!error) {{
    error = cuDeviceGetAttribute(&minor, MINOR, net->device);
  }}
  const unsigned char *image = {name}_image_for(major, minor);
  if (!error && image == NULL) {{
    error = {no_binary};
  }}
  if (!error) {{
    error = cuModuleLoadData(&net->module, image);
  }}
  for (int i = 0; !error && i < {macro}_N_KERNELS; i++) {{
    error = cuModuleGetFunction(&net->kernels[i], net->module, {name}_kernels[i].name);
  }}
  const size_t size = (size_t){macro}_WEIGHTS * sizeof({real});
  if (!error) {{
    error = cuMemAlloc_v2(&net->weights, size);
  }}
  if (!error) {{
    error = cuMemcpyHtoD_v2(net->weights, weights, size);
  }}
  if (!error) {{
    error = cuMemAlloc_v2(&net->states, sizeof {name}_start);
  }}
  if (!error) {{
    error = cuMemAlloc_v2(&net->work, (size_t){macro}_N_WORK * sizeof({real}));
  }}
  return error;
}}

int {name}_init(struct {name} *net, const {real} *weights, int device)
{{
  memset(net, 0, sizeof *net);
  int error = cuInit(0);
  if (!error) {{
    error = cuDeviceGet(&net->device, device);
  }}
  if (!error) {{
    error = cuDevicePrimaryCtxRetain(&net->context, net->device);
  }}
  if (error) {{
    return error;
  }}
  error = cuCtxPushCurrent_v2(net->context);
  if (!error) {{
    void *before = NULL;
    error = {name}_load(net, weights);
    cuCtxPopCurrent_v2(&before);
  }}
  if (!error) {{
    error = {name}_reset(net);
  }}
  if (error) {{
    {name}_free(net);
  }}
  return error;
}}

int {name}_free(struct {name} *net)
{{
  void *before = NULL;
  int error = net->context == NULL ? 0 : cuCtxPushCurrent_v2(net->context);
  if (net->context == NULL || error) {{
    return error;
  }}
  {name}_address *const all[] = {{&net->weights, &net->states, &net->work}};
  for (int i = 0; i < 3; i++) {{
    error |= *all[i] ? cuMemFree_v2(*all[i]) : 0;
  }}
  for (int i = 0; i < {macro}_N_BUFFERS; i++) {{
    error |= net->buffers[i] ? cuMemFree_v2(net->buffers[i]) : 0;
  }}
  error |= net->module != NULL ? cuModuleUnload(net->module) : 0;
  error |= cuCtxPopCurrent_v2(&before);
  error |= cuDevicePrimaryCtxRelease_v2(net->device);
  memset(net, 0, sizeof *net);
  return error;
}}

int {name}_reset(struct {name} *net)
{{
  void *before = NULL;
  int error = cuCtxPushCurrent_v2(net->context);
  if (!error) {{
    net->steps = 0;
    error = cuMemcpyHtoD_v2(net->states, {name}_start, sizeof {name}_start);
    cuCtxPopCurrent_v2(&before);
  }}
  return error;
}}

/* Launch the kernels of one step; the context is current. */
static int {name}_advance(struct {name} *net, const {name}_address *given, void *stream)
{{
{limit}  struct {name}_arguments arguments = {{net->weights, net->states, net->work, 0, {{0}}}};
  void *parameters[] = {{&arguments}};
  int error = 0;
  {count}
  arguments.steps = net->steps;
  memcpy(arguments.given, given, sizeof arguments.given);
{span}  for (int i = begin; !error && i < end; i++) {{
    error = cuLaunchKernel(net->kernels[i], {name}_kernels[i].blocks, 1, 1, {threads}, 1, 1, 0,
                           stream, parameters, NULL);
  }}
  return error;
}}

int {name}_launch(struct {name} *net, {device_parameters}, void *stream)
{{
  const {name}_address given[{macro}_N_BUFFERS] = {{{names}}};
  void *before = NULL;
  int error = cuCtxPushCurrent_v2(net->context);
  if (!error) {{
    error = {name}_advance(net, given, stream);
    cuCtxPopCurrent_v2(&before);
  }}
  return error;
}}

/* Make room for the inputs and outputs of some steps. */
static int {name}_make_room(struct {name} *net, size_t count)
{{
  int error = 0;
  for (int i = 0; count > net->room && !error && i < {macro}_N_BUFFERS; i++) {{
    if (net->buffers[i]) {{
      error = cuMemFree_v2(net->buffers[i]);
      net->buffers[i] = 0;
    }}
    if (!error) {{
      const size_t rows = {name}_every_step[i] ? count : 1;
      error = cuMemAlloc_v2(&net->buffers[i], rows * {name}_bytes[i]);
    }}
  }}
  if (!error && count > net->room) {{
    net->room = count;
  }} else if (error) {{
    net->room = 0;
  }}
  return error;
}}

/* Copy inputs, take the steps, copy outputs; the context is current. */
static int {name}_take(struct {name} *net, size_t count, const void *const *in, void *const *out)
{{
  {name}_address at[{macro}_N_BUFFERS];
  int error = {name}_make_room(net, count);
  memcpy(at, net->buffers, sizeof at);
  for (int i = 0; !error && i < {macro}_N_INPUTS; i++) {{
    error = cuMemcpyHtoD_v2(at[i], in[i], count * {name}_bytes[i]);
  }}
  for (size_t t = 0; !error && t < count; t++) {{
    error = {name}_advance(net, at, NULL);
    for (int i = 0; i < {macro}_N_BUFFERS; i++) {{
      at[i] += {name}_every_step[i] ? {name}_bytes[i] : 0;
    }}
  }}
  for (int i = {macro}_N_INPUTS; !error && i < {macro}_N_BUFFERS; i++) {{
    const size_t rows = {name}_every_step[i] ? count : 1;
    error = cuMemcpyDtoH_v2(out[i - {macro}_N_INPUTS], net->buffers[i], rows * {name}_bytes[i]);
  }}
  return error;
}}

int {name}_run(struct {name} *net, size_t count, {parameters})
{{
  const void *const in[] = {{{ins}}};
  void *const out[] = {{{outs}}};
  void *before = NULL;
  int error = count == 0 ? 0 : cuCtxPushCurrent_v2(net->context);
  if (!error && count > 0) {{
    error = {name}_take(net, count, in, out);
    cuCtxPopCurrent_v2(&before);
  }}
  return error;
}}

int {name}_step(struct {name} *net, {parameters})
{{
  return {name}_run(net, 1, {names});
}}
"""

MAKEFILE = """\
# make test: compare with the PyTorch model on the first GPU.  make cubins: compile the kernels.
CC ?= cc
NVCC ?= nvcc
CFLAGS ?= -O2
CUDA ?= -lcuda
ALL = -std=c11 -Wall -Wextra -pedantic $(CFLAGS)

all: lib@NAME@.a

lib@NAME@.a: @NAME@.o @NAME@_images.o @NAME@_weights.o
\t$(AR) rcs $@ $^

%.o: %.c @NAME@.h
\t$(CC) $(ALL) -c $< -o $@

main: main.o lib@NAME@.a
\t$(CC) $(ALL) main.o lib@NAME@.a $(CUDA) -lm -o $@

test: main
\t./main test_vector.bin
\t./main test_vector.bin @NAME@.weights

cubins: @NAME@.cu
@CUBINS@

clean:
\trm -f *.o *.a main

.PHONY: all test cubins clean
"""
