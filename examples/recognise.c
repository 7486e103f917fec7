/* Reads recordings from standard input and prints which speaker each is of.
   A recording is its number of steps, 32 bits, and for each step its channels as floats. */
#include "net.h"

#include <math.h>
#include <stdio.h>

static net_number from_float(float x)
{
#ifdef NET_X_FRACTION /* the library computes in whole numbers of 16 bits */
  const float q = floorf(ldexpf(x, NET_X_FRACTION) + 0.5f);
  return (net_number)(q > 32767.0f ? 32767.0f : q < -32768.0f ? -32768.0f : q);
#else
  return x;
#endif
}

static struct net net;

int main(void)
{
  uint32_t steps;
  net_init(&net, net_weights);
  while (fread(&steps, sizeof steps, 1, stdin) == 1) {
    net_number x[NET_X], y[NET_Y];
    net_reset(&net);
    for (uint32_t t = 0; t < steps; t++) {
      float channels[NET_X];
      if (fread(channels, sizeof channels, 1, stdin) != 1) {
        return 1;
      }
      for (int i = 0; i < NET_X; i++) {
        x[i] = from_float(channels[i]);
      }
      net_step(&net, x, y);
    }
    int best = 0;
    for (int i = 1; i < NET_Y; i++) {
      best = y[i] > y[best] ? i : best;
    }
    printf("%d\n", best);
  }
  return 0;
}
