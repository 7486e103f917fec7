"""The C code that runs all steps of a recurrent loop for one block of batch rows after another.

Rows of a batch do not see one another in matrix products and elementwise operators, so a thread
takes some rows through all of time and waits for nobody.  Two functions do that:

``product``: ``y = x W + b`` for the rows of a block.  Each element is a chain of fused
multiply-adds over ascending ``k``, cut into sums of ``chunk`` terms that are added to the bias in
turn; that is how matrix libraries with one accumulator for each element add.  A value that is zero
adds nothing, so where few values of ``x`` are not zero only their rows of ``W`` are read: the bits
are the same.  ``W`` is packed in panels of 256 bytes of columns.

``rows``: for each block and step the calls of the loop.  The argument structure of a call is that
of the whole batch, shifted by what the first row of the block and its number of rows change.
"""

from __future__ import annotations

from snncc.codegen.base import FloatType, KernelSource, Signature
from snncc.codegen.c.expressions import C_TYPE

NAME = "snncc_rows"
# Bytes of the columns that a panel of packed weights holds.
PANEL_BYTES = 256
# The fields of an argument structure at most; a call with more does not fit the driver's copy.
MOST_VALUES = 512
# The longest rows of x whose zeros are looked for.
MOST_INNER = 1024
# The fields of the argument structure of a product that are addresses, and all of its fields.
ADDRESSES = ("x", "weight", "bias", "out")
FIELDS = (*ADDRESSES, "x_row", "out_row", "rows", "inner", "columns", "chunk", "skip")

# Contraction makes the chains of fused multiply-adds; nothing else is computed in this file.
FLAGS = (
    "-std=c11",
    "-O3",
    "-march=native",
    "-ffp-contract=fast",
    "-fno-math-errno",
    "-fno-trapping-math",
)


def rows_source(dtype: FloatType) -> KernelSource:
    """Return the translation unit for one working type."""
    text = _TEXT.replace("@REAL", C_TYPE[dtype]).replace("@NAME", NAME)
    text = text.replace("@PANEL", str(PANEL_BYTES)).replace("@VALUES", str(MOST_VALUES))
    text = text.replace("@INNER", str(MOST_INNER))
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
 * Recurrent loops by blocks of batch rows, emitted by snncc.
 *
 * Numerics: an element of a product is a chain of multiply-adds over ascending k, cut into chunks.
 */
#include <stdint.h>
#include <string.h>
#ifdef __AVX512VL__
#include <immintrin.h>
#endif

typedef @REAL real;

/* Bytes of a vector, and rows whose sums fit the registers together with four vectors of W. */
#if defined __AVX512F__
enum { BYTES = 64, ROWS = 6 };
#elif defined __AVX__
enum { BYTES = 32, ROWS = 3 };
#else
enum { BYTES = 16, ROWS = 3 };
#endif
/* Columns of a panel, of a vector, and of the four vectors that are computed together. */
enum { PANEL = @PANEL / sizeof(real), WIDTH = BYTES / sizeof(real), PART = 4 * WIDTH };
/* Zeros are looked for in rows of x up to this length. */
enum { MOST_INNER = @INNER };

typedef real vector __attribute__((vector_size(BYTES), aligned(sizeof(real)), may_alias));

struct product {
  const real *x, *weight, *bias;
  real *out;
  int64_t x_row, out_row, rows, inner, columns, chunk;
  int64_t skip; /* whether all weights are finite, so that zeros of x add nothing */
};

struct call {
  void (*function)(const void *); /* NULL: a product */
  const int64_t *steps;           /* the argument structure of each step, for all rows */
  const int64_t *shifts;          /* for each block what is added to it */
  int64_t values;                 /* fields of the structure */
};

struct loop {
  int64_t steps, blocks, threads, calls;
  const struct call *call;
};

#define INLINE static inline __attribute__((always_inline))

INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

/* The packed weights of the four vectors of columns that start at a column. */
INLINE const real *columns_of(const struct product *a, int64_t column)
{
  return a->weight + column / PANEL * PANEL * a->inner + column % PANEL;
}

/* Add the sums of a chunk to what is there: the bias, or the chunks before. */
INLINE void add_chunk(
    const struct product *a, int64_t column, int64_t first, vector *total, const vector *sum)
{
  for (int v = 0; v < 4; v++)
    if (first)
      total[v] += sum[v];
    else if (a->bias)
      total[v] = *(const vector *)(a->bias + column + v * WIDTH) + sum[v];
    else
      total[v] = sum[v];
}

INLINE void write_part(const struct product *a, int64_t row, int64_t column, const vector *total)
{
  real *out = a->out + row * a->out_row + column;
  const int64_t left = a->columns - column;
  if (left < PART)
    memcpy(out, total, (size_t)left * sizeof *out);
  else
    for (int v = 0; v < 4; v++)
      *(vector *)(out + v * WIDTH) = total[v];
}

/* Some rows of the product, four vectors of columns, all of x. */
INLINE void dense(const struct product *a, int64_t row, int64_t column, const int rows)
{
  vector total[ROWS][4], sum[ROWS][4];
  const real *x = a->x + row * a->x_row, *weight = columns_of(a, column);
  int64_t first = 0;
  do {
    const int64_t last = smaller(first + a->chunk, a->inner);
    for (int r = 0; r < rows; r++)
      for (int v = 0; v < 4; v++)
        sum[r][v] = (vector){0};
    for (int64_t k = first; k < last; k++) {
      vector w[4];
      for (int v = 0; v < 4; v++)
        w[v] = *(const vector *)(weight + k * PANEL + v * WIDTH);
      for (int r = 0; r < rows; r++)
        for (int v = 0; v < 4; v++)
          sum[r][v] += x[r * a->x_row + k] * w[v];
    }
    for (int r = 0; r < rows; r++)
      add_chunk(a, column, first, total[r], sum[r]);
    first = last;
  } while (first < a->inner);
  for (int r = 0; r < rows; r++)
    write_part(a, row + r, column, total[r]);
}

/* One row of the product, some times four vectors of columns, the values of x that are not 0. */
INLINE void sparse(
    const struct product *a, int64_t row, int64_t column, const int parts,
    const int32_t *places, int count)
{
  vector total[2][4], sum[2][4];
  const real *x = a->x + row * a->x_row;
  const real *weight[2] = {columns_of(a, column), columns_of(a, column + (parts - 1) * PART)};
  int64_t first = 0;
  int i = 0;
  do {
    const int64_t last = smaller(first + a->chunk, a->inner);
    for (int p = 0; p < parts; p++)
      for (int v = 0; v < 4; v++)
        sum[p][v] = (vector){0};
    for (; i < count && places[i] < last; i++)
      for (int p = 0; p < parts; p++)
        for (int v = 0; v < 4; v++)
          sum[p][v] +=
              x[places[i]] * *(const vector *)(weight[p] + places[i] * PANEL + v * WIDTH);
    for (int p = 0; p < parts; p++)
      add_chunk(a, column + p * PART, first, total[p], sum[p]);
    first = last;
  } while (first < a->inner);
  for (int p = 0; p < parts; p++)
    write_part(a, row, column + p * PART, total[p]);
}

/* Write where the values of a row of x are not zero and return how many there are. */
INLINE int find_places(const struct product *a, int64_t row, int32_t *places)
{
  const real *x = a->x + row * a->x_row;
  int count = 0;
  int32_t k = 0;
#ifdef __AVX512VL__
  for (; k + 8 <= a->inner; k += 8) {
    const __m256i here = _mm256_add_epi32(
        _mm256_set1_epi32(k), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
    const __mmask8 mask = sizeof(real) == 4
        ? _mm256_cmp_ps_mask(_mm256_loadu_ps((const void *)(x + k)), _mm256_setzero_ps(), 4)
        : _mm512_cmp_pd_mask(_mm512_loadu_pd((const void *)(x + k)), _mm512_setzero_pd(), 4);
    _mm256_storeu_si256((void *)(places + count), _mm256_maskz_compress_epi32(mask, here));
    count += __builtin_popcount(mask);
  }
#endif
  for (; k < a->inner; k++) {
    places[count] = k;
    count += x[k] != 0;
  }
  return count;
}

static void product(const struct product *a)
{
  int32_t places[ROWS][MOST_INNER + 8];
  int counts[ROWS];
  for (int64_t row = 0; row < a->rows; row += ROWS) {
    const int rows = (int)smaller(ROWS, a->rows - row);
    int skip = a->skip && a->inner <= MOST_INNER;
    if (skip) {
      int64_t found = 0;
      for (int r = 0; r < rows; r++)
        found += counts[r] = find_places(a, row + r, places[r]);
      skip = 2 * found < rows * a->inner;
    }
    int64_t column = 0;
    if (skip)
      for (; column + PART < a->columns; column += 2 * PART)
        for (int r = 0; r < rows; r++)
          sparse(a, row + r, column, 2, places[r], counts[r]);
    for (; column < a->columns; column += PART)
      if (skip)
        for (int r = 0; r < rows; r++)
          sparse(a, row + r, column, 1, places[r], counts[r]);
      else if (rows == ROWS)
        dense(a, row, column, ROWS);
      else
        for (int r = 0; r < rows; r++)
          dense(a, row + r, column, 1);
  }
}

void @NAME(const struct loop *a)
{
#ifdef _OPENMP
#pragma omp parallel for schedule(static) num_threads((int)a->threads) if (a->threads > 1)
#endif
  for (int64_t block = 0; block < a->blocks; block++)
    for (int64_t step = 0; step < a->steps; step++)
      for (const struct call *call = a->call; call < a->call + a->calls; call++) {
        int64_t values[@VALUES];
        const int64_t *own = call->steps + step * call->values;
        const int64_t *shifts = call->shifts + block * call->values;
        for (int64_t v = 0; v < call->values; v++)
          values[v] = own[v] + shifts[v];
        if (call->function)
          call->function(values);
        else
          product((const struct product *)values);
      }
}
"""
