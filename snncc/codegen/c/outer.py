"""The C code of ``x^T g`` over many rows, most values of ``x`` being zero: gradients of weights.

Each thread adds up its share of the rows in sums of its own::

    sums[k, :] += x[row, k] g[row, :]        for each k with x[row, k] != 0

The values of ``x`` are given, or, where each is 0 or 1, which of them are 1: as bits, one row after
another without a gap.

A zero adds nothing unless ``g`` is infinite or NaN, so ``0 g`` is summed for each column as well:
where that is no zero the caller has to multiply in another way.
"""

from __future__ import annotations

from snncc.codegen.base import FloatType, KernelSource, Signature
from snncc.codegen.c.expressions import C_TYPE
from snncc.codegen.c.rows import FLAGS

NAME = "snncc_outer"
# The fields of the argument structure.
FIELDS = ("x", "bits", "g", "sums", "rows", "inner", "columns", "x_row", "g_row", "parts")
# Rows of sums are filled up to whole multiples of these bytes, and hold so many values at most.
ROW_BYTES = 256
MOST_COLUMNS = 2048


def outer_source(dtype: FloatType) -> KernelSource:
    """Return the translation unit for one working type."""
    text = _TEXT.replace("@REAL", C_TYPE[dtype]).replace("@NAME", NAME)
    text = text.replace("@BYTES", str(ROW_BYTES)).replace("@MOST", str(MOST_COLUMNS))
    return KernelSource(
        name=NAME,
        target="c",
        text=text,
        anonymous=text,
        signature=Signature(dtype, ()),
        flags=FLAGS,
    )


_TEXT = """\
/*
 * Sums of outer products over rows that are mostly zero, emitted by snncc.
 *
 * Numerics: each thread adds up its rows in order, with fused multiply-adds.
 */
#include <stddef.h>
#include <stdint.h>
#include <string.h>

typedef @REAL real;

#if defined __AVX512F__
enum { BYTES = 64 };
#elif defined __AVX__
enum { BYTES = 32 };
#else
enum { BYTES = 16 };
#endif
enum { WIDTH = BYTES / sizeof(real), FILL = @BYTES / sizeof(real) };

typedef real vector __attribute__((vector_size(BYTES), aligned(sizeof(real)), may_alias));

struct outer {
  const real *x;        /* NULL: there are bits */
  const uint64_t *bits;
  const real *g;
  real *sums; /* [parts, inner + 1, columns filled up]; the last row is 0 g */
  int64_t rows, inner, columns, x_row, g_row, parts;
};

static inline void add_row(real *sum, const real *g, real factor, int64_t columns)
{
  for (int64_t n = 0; n < columns; n += WIDTH)
    *(vector *)(sum + n) += factor * *(const vector *)(g + n);
}

/* Which of some values, 32 at most, are not zero. */
static inline uint32_t of_values(const real *x, int64_t some)
{
  uint32_t here = 0;
  for (int64_t k = 0; k < some; k++)
    here |= (uint32_t)(x[k] != 0) << k;
  return here;
}

static inline uint32_t of_bits(const uint64_t *bits, int64_t first, int64_t some)
{
  const int64_t word = first / 64, shift = first % 64;
  uint64_t here = bits[word] >> shift;
  if (shift + some > 64)
    here |= bits[word + 1] << (64 - shift);
  return (uint32_t)(here & ((UINT64_C(1) << some) - 1));
}

static inline __attribute__((always_inline)) void add_rows(
    const struct outer *a, int64_t part, const int packed)
{
  const int64_t columns = (a->columns + FILL - 1) / FILL * FILL;
  real *sums = a->sums + part * (a->inner + 1) * columns;
  real g[@MOST] = {0};
  memset(sums, 0, (size_t)((a->inner + 1) * columns) * sizeof *sums);
  for (int64_t row = a->rows * part / a->parts; row < a->rows * (part + 1) / a->parts; row++) {
    const real *x = packed ? NULL : a->x + row * a->x_row;
    memcpy(g, a->g + row * a->g_row, (size_t)a->columns * sizeof *g);
    add_row(sums + a->inner * columns, g, 0, columns);
    for (int64_t first = 0; first < a->inner; first += 32) {
      const int64_t some = a->inner - first < 32 ? a->inner - first : 32;
      uint32_t here = packed ? of_bits(a->bits, row * a->inner + first, some)
                             : of_values(x + first, some);
      for (; here; here &= here - 1) {
        const int64_t k = first + __builtin_ctz(here);
        add_row(sums + k * columns, g, packed ? 1 : x[k], columns);
      }
    }
  }
}

void @NAME(const struct outer *a)
{
#ifdef _OPENMP
#pragma omp parallel for schedule(static) num_threads((int)a->parts) if (a->parts > 1)
#endif
  for (int64_t part = 0; part < a->parts; part++)
    if (a->x)
      add_rows(a, part, 0);
    else
      add_rows(a, part, 1);
}
"""
