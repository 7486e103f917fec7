"""C code that kernels of convolutions share: vectors of channels, and planes transposed to them."""

from __future__ import annotations

from snncc.codegen.base import FloatType

FLAGS = (
    "-std=gnu11",
    "-O3",
    "-march=native",
    "-mprefer-vector-width=512",
    "-ffp-contract=fast",
    "-fno-math-errno",
    "-fno-trapping-math",
)


def vectors(dtype: FloatType) -> str:
    """Return the start of a translation unit: its types, and what loads and transposes them."""
    head = _HEAD.format(
        real="double" if dtype is FloatType.FLOAT64 else "float",
        integer="int64_t" if dtype is FloatType.FLOAT64 else "int32_t",
    )
    return head + _COMMON.replace("INTERLEAVE", _interleave(dtype))


def _interleave(dtype: FloatType) -> str:
    """Return the statements that interleave vectors ``a`` and ``b``."""
    lanes = 64 // dtype.size
    halves = [
        ", ".join(f"{i}, {i + lanes}" for i in range(start, start + lanes // 2))
        for start in (0, lanes // 2)
    ]
    return "\n    ".join(
        f"to[2 * i + {n}] = SHUFFLE(a, b, {half});" for n, half in enumerate(halves)
    )


_HEAD = """\
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#ifdef _OPENMP
#include <omp.h>
#endif
#ifdef __AVX512VL__
#include <immintrin.h>
#endif

typedef {real} REAL;
typedef {integer} INTEGER;
"""

_COMMON = """
#define LANES ((int)(64 / sizeof(REAL)))

typedef REAL vector __attribute__((vector_size(64)));
typedef INTEGER places __attribute__((vector_size(64)));

static inline int64_t smaller(int64_t a, int64_t b)
{
  return a < b ? a : b;
}

static inline int64_t larger(int64_t a, int64_t b)
{
  return a > b ? a : b;
}

static inline int64_t thread(void)
{
#ifdef _OPENMP
  return omp_get_thread_num();
#else
  return 0;
#endif
}

static inline vector load(const REAL *from)
{
  vector v;
  memcpy(&v, from, sizeof v);
  return v;
}

static inline void store(REAL *to, vector v)
{
  memcpy(to, &v, sizeof v);
}

/* Which of LANES values are not zero, as bits. NaN is not zero. */
static inline unsigned active(const REAL *from)
{
#ifdef __AVX512VL__
  if (sizeof(REAL) == 4) {
    return _mm512_cmp_ps_mask(_mm512_loadu_ps((const void *)from), _mm512_setzero_ps(), 4);
  }
  return _mm512_cmp_pd_mask(_mm512_loadu_pd((const void *)from), _mm512_setzero_pd(), 4);
#else
  unsigned bits = 0;
  for (int i = 0; i < LANES; i++) {
    bits |= (unsigned)(from[i] != 0) << i;
  }
  return bits;
#endif
}

#if defined(__clang__)
#define SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define SHUFFLE(a, b, ...) __builtin_shuffle(a, b, (places){__VA_ARGS__})
#endif

/* Interleave the lower and the upper halves of rows i and i + LANES / 2: log2(LANES) times that
   transposes a square. */
static inline void interleave(const vector *from, vector *to)
{
  for (int i = 0; i < LANES / 2; i++) {
    vector a = from[i], b = from[i + LANES / 2];
    INTERLEAVE
  }
}

static inline void transpose_square(const REAL *from, int64_t from_row, REAL *to, int64_t to_row)
{
  vector a[LANES], b[LANES];
  for (int i = 0; i < LANES; i++) {
    a[i] = load(from + i * from_row);
  }
  interleave(a, b);
  interleave(b, a);
  interleave(a, b);
  if (LANES == 16) {
    interleave(b, a);
  }
  for (int i = 0; i < LANES; i++) {
    store(to + i * to_row, LANES == 16 ? a[i] : b[i]);
  }
}

/* to[j][i] = from[i][j] for i < rows, j < columns. */
static void transpose(const REAL *from, int64_t from_row, REAL *to, int64_t to_row, int64_t rows,
                      int64_t columns)
{
  int64_t i = 0;
  for (; i + LANES <= rows; i += LANES) {
    int64_t j = 0;
    for (; j + LANES <= columns; j += LANES) {
      transpose_square(from + i * from_row + j, from_row, to + j * to_row + i, to_row);
    }
    for (; j < columns; j++) {
      for (int k = 0; k < LANES; k++) {
        to[j * to_row + i + k] = from[(i + k) * from_row + j];
      }
    }
  }
  for (; i < rows; i++) {
    for (int64_t j = 0; j < columns; j++) {
      to[j * to_row + i] = from[i * from_row + j];
    }
  }
}
"""
