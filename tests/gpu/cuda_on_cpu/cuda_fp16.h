/* Half precision as the compiler of the CPU has it; it rounds to the nearest. */
#pragma once

struct __half
{
  _Float16 value;
};

static inline float __half2float(__half a)
{
  return static_cast<float>(a.value);
}

static inline __half __float2half_rn(float a)
{
  return {static_cast<_Float16>(a)};
}
