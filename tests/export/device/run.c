/* Runs a library on the numbers of "vector.h" and prints each output in hexadecimal digits.
   It needs no operating system: on a Cortex-M it talks to the emulator alone. */
#include "vector.h"

#include <stdint.h>
#include <string.h>

#ifdef CORTEX_M
static void semihost(unsigned int operation, const void *argument)
{
  register unsigned int r0 __asm__("r0") = operation;
  register const void *r1 __asm__("r1") = argument;
  __asm__ volatile("bkpt 0xab" : "+r"(r0) : "r"(r1) : "memory");
}

static void put(const char *text)
{
  semihost(4, text); /* SYS_WRITE0 */
}

int main(void);

void start(void)
{
#ifdef __ARM_FP
  *(volatile uint32_t *)0xE000ED88u |= 0xFu << 20; /* switch the floating-point unit on */
  __asm__ volatile("dsb\n isb");
#endif
  main();
  semihost(0x18, (const void *)0x20026); /* SYS_EXIT: the application is done */
  for (;;) {
  }
}

extern char stack_end[];
static const struct {
  char *stack;
  void (*reset)(void);
} vectors __attribute__((section(".vectors"), used)) = {stack_end, start};
#else
#include <stdio.h>

static void put(const char *text)
{
  fputs(text, stdout);
}
#endif

static void print(const NUMBER *values, size_t count)
{
  unsigned char bytes[sizeof(NUMBER)];
  char text[2 * sizeof(NUMBER) + 2];
  for (size_t i = 0; i < count; i++) {
    memcpy(bytes, values + i, sizeof bytes);
    for (size_t k = 0; k < sizeof bytes; k++) {
      text[2 * k] = "0123456789abcdef"[bytes[k] >> 4];
      text[2 * k + 1] = "0123456789abcdef"[bytes[k] & 15];
    }
    text[2 * sizeof bytes] = '\n';
    text[2 * sizeof bytes + 1] = 0;
    put(text);
  }
}

static struct NETWORK net;

int main(void)
{
  INIT(&net, WEIGHTS);
  for (int t = 0; t < STEPS; t++) {
    if (STEP) {
      put("stopped\n");
    }
    PRINT
  }
  return 0;
}
