"""Files of a C library that hardly depend on the network: a test program and build files."""

from __future__ import annotations

MAIN = """\
/* Runs the test vector and compares: main [test_vector.bin [@NAME@.weights]].
   At the end may stand '--time N', which prints the time of a step, or '--out FILE', which writes
   the outputs.  Exit status 0: the outputs are those of the PyTorch model. */
#define _POSIX_C_SOURCE 199309L
#include "@NAME@.h"

#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#ifndef TOLERANCE
#define TOLERANCE @TOLERANCE@
#endif

enum { INPUTS = @IN_COUNT@, OUTPUTS = @OUT_COUNT@ };

static const size_t input_sizes[] = {@INPUTS@};
static const size_t output_sizes[] = {@OUTPUTS@};
static const int every_step[] = {@EVERY@};

static struct @NAME@ net;

static void *need(void *pointer)
{
  if (pointer == NULL) {
    fprintf(stderr, "no memory, or no such file\\n");
    exit(2);
  }
  return pointer;
}

static void *read_file(const char *path, size_t *bytes)
{
  FILE *file = fopen(path, "rb");
  long size = 0;
  if (file == NULL || fseek(file, 0, SEEK_END) != 0 || (size = ftell(file)) < 0) {
    fprintf(stderr, "cannot read '%s'\\n", path);
    exit(2);
  }
  rewind(file);
  void *data = need(malloc((size_t)size + 1));
  *bytes = fread(data, 1, (size_t)size, file);
  fclose(file);
  if (*bytes != (size_t)size) {
    fprintf(stderr, "cannot read all of '%s'\\n", path);
    exit(2);
  }
  return data;
}

static @REAL@ *numbers(const unsigned char **data, size_t *left, size_t count)
{
  @REAL@ *values = need(malloc(count * sizeof *values + 1));
  if (*left < count * sizeof *values) {
    fprintf(stderr, "the test vector is too short\\n");
    exit(2);
  }
  memcpy(values, *data, count * sizeof *values);
  *data += count * sizeof *values;
  *left -= count * sizeof *values;
  return values;
}

static double seconds(void)
{
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

int main(int argc, char **argv)
{
  long repeat = 0;
  FILE *written = NULL;
  if (argc > 2 && strcmp(argv[argc - 2], "--time") == 0) {
    repeat = strtol(argv[argc - 1], NULL, 10);
    argc -= 2;
  } else if (argc > 2 && strcmp(argv[argc - 2], "--out") == 0) {
    written = need(fopen(argv[argc - 1], "wb"));
    argc -= 2;
  }
  size_t bytes, left;
  unsigned char *file = read_file(argc > 1 ? argv[1] : "test_vector.bin", &left);
  const unsigned char *data = file + 4;
  if (left < 4) {
    fprintf(stderr, "the test vector is too short\\n");
    return 2;
  }
  left -= 4;
  const size_t steps
      = file[0] | (size_t)file[1] << 8 | (size_t)file[2] << 16 | (size_t)file[3] << 24;
  const @TYPE@ *weights = @NAME@_weights;
  void *weight_file = NULL;
  if (argc > 2) {
    weight_file = read_file(argv[2], &bytes);
    weights = @NAME@_check_weights(weight_file, bytes);
    if (weights == NULL) {
      fprintf(stderr, "'%s' is damaged or belongs to another network\\n", argv[2]);
      return 2;
    }
  }
  @REAL@ *x[INPUTS + 1], *expected[OUTPUTS], *y[OUTPUTS], *in[INPUTS + 1], *out[OUTPUTS];
  for (int i = 0; i < INPUTS; i++) {
    in[i] = x[i] = numbers(&data, &left, steps * input_sizes[i]);
  }
  for (int i = 0; i < OUTPUTS; i++) {
    const size_t count = (every_step[i] ? steps : 1) * output_sizes[i];
    expected[i] = numbers(&data, &left, count);
    out[i] = y[i] = need(calloc(count + 1, sizeof(@REAL@)));
  }
  @NAME@_init(&net, weights);
  int status = @NAME@_run(&net, steps, @ARGUMENTS@);
  for (int i = 0; i < OUTPUTS; i++) {
    const size_t count = (every_step[i] ? steps : 1) * output_sizes[i];
    if (written != NULL && fwrite(y[i], sizeof(@REAL@), count, written) != count) {
      status = 1;
    }
    size_t differing = 0;
    double worst = 0, largest = 0;
    for (size_t k = 0; k < count; k++) {
      const double a = (double)y[i][k], b = (double)expected[i][k];
      const int same = a == b || (a != a && b != b);
      const double error = same ? 0 : fabs(a - b);
      differing += !same;
      worst = error > worst || error != error ? error : worst;
      largest = fabs(b) > largest && fabs(b) < INFINITY ? fabs(b) : largest;
    }
    printf("output %d: %zu values, %zu differ, ", i, count, differing);
    printf("largest difference %g\\n", worst);
    status |= !(worst <= TOLERANCE * (largest > 1 ? largest : 1));
  }
  printf("memory: %zu bytes of state and work, %zu bytes of weights\\n", sizeof net,
         sizeof(@TYPE@) * (size_t)@MACRO@_WEIGHTS);
  if (repeat > 0 && steps > 0) {
    const double start = seconds();
    for (long n = 0; n < repeat; n++) {
      @NAME@_reset(&net);
      @NAME@_run(&net, steps, @ARGUMENTS@);
    }
    printf("time: %g us a step\\n", 1e6 * (seconds() - start) / (double)(repeat * (long)steps));
  }
  for (int i = 0; i < INPUTS; i++) {
    free(x[i]);
  }
  for (int i = 0; i < OUTPUTS; i++) {
    free(expected[i]);
    free(y[i]);
  }
  if (written != NULL && fclose(written) != 0) {
    status = 1;
  }
  free(weight_file);
  free(file);
  printf(status ? "NOT the network of the model\\n" : "the network of the model\\n");
  return status ? 1 : 0;
}
"""

MAKEFILE = """\
# make test: compare with the PyTorch model.  ARCH= builds for any machine of this kind.
CC ?= cc
CFLAGS ?= -O3
ARCH ?= -march=native
ALL = -std=c11 -Wall -Wextra -pedantic -ffp-contract=off $(CFLAGS) $(ARCH)

all: lib@NAME@.a

lib@NAME@.a: @NAME@.o @NAME@_weights.o
\t$(AR) rcs $@ $^

%.o: %.c @NAME@.h
\t$(CC) $(ALL) -c $< -o $@

main: main.o lib@NAME@.a
\t$(CC) $(ALL) main.o lib@NAME@.a -lm -o $@

test: main
\t./main test_vector.bin
\t./main test_vector.bin @NAME@.weights

clean:
\trm -f *.o *.a main

.PHONY: all test clean
"""

CMAKE = """\
cmake_minimum_required(VERSION 3.10)
project(@NAME@ C)
set(CMAKE_C_STANDARD 11)
set(CMAKE_C_EXTENSIONS OFF)
if(NOT CMAKE_BUILD_TYPE)
  set(CMAKE_BUILD_TYPE Release)
endif()
add_library(@NAME@ @NAME@.c @NAME@_weights.c)
target_include_directories(@NAME@ PUBLIC ${CMAKE_CURRENT_SOURCE_DIR})
target_compile_options(@NAME@ PRIVATE -Wall -Wextra -pedantic -ffp-contract=off)
target_link_libraries(@NAME@ PUBLIC m)
add_executable(main main.c)
target_link_libraries(main @NAME@)
enable_testing()
add_test(NAME model COMMAND main ${CMAKE_CURRENT_SOURCE_DIR}/test_vector.bin)
"""
