/* Gives any bytes to the loader of weights and to the steps of a library "net" of one input and one
   output: clang -fsanitize=fuzzer,address,undefined, or -DOWN_DRIVER for any compiler. */
#include "net.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MOST_STEPS = 6, HEAD = 32 };

static struct net net;

static uint32_t checksum(const unsigned char *data, size_t bytes)
{
  uint32_t sum = 0xFFFFFFFFu;
  for (size_t i = 0; i < bytes; i++) {
    sum ^= data[i];
    for (int bit = 0; bit < 8; bit++) {
      sum = sum & 1u ? sum >> 1 ^ 0xEDB88320u : sum >> 1;
    }
  }
  return ~sum;
}

/* Steps on inputs made of the bytes, over and over. */
static void run(const uint8_t *data, size_t size)
{
  static unsigned char bytes[sizeof(net_number) * NET_X];
  net_number *x = malloc(sizeof bytes), *y = malloc(sizeof(net_number) * NET_Y);
  size_t place = 0;
  net_reset(&net);
  for (int t = 0; t < MOST_STEPS && x != NULL && y != NULL; t++) {
    for (size_t i = 0; i < sizeof bytes && size > 0; i++) {
      bytes[i] = data[place++ % size];
    }
    memcpy(x, bytes, sizeof bytes);
    net_step(&net, x, y);
  }
  free(x);
  free(y);
}

/* Loads a file; a library may step with whatever weights it takes. */
static void load(const unsigned char *file, size_t size, const uint8_t *data, size_t count)
{
  void *copy = malloc(size + 1 - (size > 0)); /* no byte more, so that reads beyond it are seen */
  if (copy == NULL) {
    return;
  }
  memcpy(copy, file, size);
  const void *taken = net_check_weights(copy, size);
  if (taken != NULL) {
    net_init(&net, taken);
    run(data, count);
  }
  free(copy);
}

/* Puts the bytes into an intact file: with a checksum that fits, and without. */
static void damage(const uint8_t *data, size_t size)
{
  const size_t bytes = NET_WEIGHTS * sizeof *net_weights;
  const uint32_t sizes[2] = {sizeof *net_weights, NET_WEIGHTS};
  unsigned char *file = calloc(1, HEAD + bytes);
  if (file == NULL) {
    return;
  }
  memcpy(file, "SNNCCW01", 8);
  memcpy(file + 8, sizes, sizeof sizes);
  memcpy(file + HEAD, net_weights, bytes);
  const size_t start = size > 1 ? ((size_t)data[0] << 8 | data[1]) % bytes : 0;
  memcpy(file + HEAD + start, data, size < bytes - start ? size : bytes - start);
  load(file, HEAD + bytes, data, size);
  const uint32_t sum = checksum(file + HEAD, bytes);
  memcpy(file + 16, &sum, sizeof sum);
  load(file, HEAD + bytes, data, size);
  if (size > 0) {
    file[data[0] % HEAD] ^= data[size - 1];
    load(file, HEAD + bytes - data[0] % 2, data, size);
  }
  free(file);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
  net_init(&net, net_weights);
  run(data, size);
  load(data, size, data, size);
  damage(data, size);
  return 0;
}

#ifdef OWN_DRIVER
int main(int argc, char **argv)
{
  const long count = argc > 1 ? strtol(argv[1], NULL, 10) : 1000;
  uint32_t random = 1;
  for (long n = 0; n < count; n++) {
    uint8_t data[512];
    const size_t size = (size_t)(n * 37 % (long)sizeof data);
    for (size_t i = 0; i < size; i++) {
      random ^= random << 13;
      random ^= random >> 17;
      random ^= random << 5;
      data[i] = (uint8_t)(random >> (n % 24));
    }
    LLVMFuzzerTestOneInput(data, size);
  }
  printf("%ld inputs\n", count);
  return 0;
}
#endif
