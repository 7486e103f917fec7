"""The C code that packs values into bits, and makes zeros and ones of them again.

``pack``: bit k of word w is set where value 64 w + k is not zero.  ``unpack``: that value is 1
where the bit is set and 0 elsewhere.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

from snncc.codegen.base import FloatType, KernelSource, Signature
from snncc.codegen.c.vectors import FLAGS, vectors

# The fields of the argument structure.
FIELDS = ("values", "words", "count", "threads")
WORD_BITS = 64

Way: TypeAlias = Literal["pack", "unpack"]


def bits_source(dtype: FloatType, way: Way) -> KernelSource:
    """Return the translation unit for one type of values."""
    name = f"snncc_{way}"
    text = vectors(dtype) + _TEXT.replace("@NAME", name).replace("@WAY", way)
    return KernelSource(name, "c", text, text, Signature(dtype, ()), FLAGS)


_TEXT = """
struct bits {
  REAL *values;
  uint64_t *words;
  int64_t count, threads;
};

static inline void pack(REAL *values, uint64_t *word, int64_t count)
{
  uint64_t found = 0;
  int64_t k = 0;
  for (; k + LANES <= count; k += LANES) {
    found |= (uint64_t)active(values + k) << k;
  }
  for (; k < count; k++) {
    found |= (uint64_t)(values[k] != 0) << k;
  }
  *word = found;
}

static inline void unpack(REAL *values, uint64_t *word, int64_t count)
{
  const uint64_t given = *word;
  int64_t k = 0;
#ifdef __AVX512VL__
  for (; k + LANES <= count; k += LANES) {
    if (sizeof(REAL) == 4) {
      _mm512_storeu_ps((void *)(values + k),
                       _mm512_maskz_mov_ps((__mmask16)(given >> k), _mm512_set1_ps(1)));
    } else {
      _mm512_storeu_pd((void *)(values + k),
                       _mm512_maskz_mov_pd((__mmask8)(given >> k), _mm512_set1_pd(1)));
    }
  }
#endif
  for (; k < count; k++) {
    values[k] = (REAL)(given >> k & 1);
  }
}

void @NAME(const struct bits *a)
{
  const int64_t words = (a->count + 63) / 64;
#ifdef _OPENMP
#pragma omp parallel for schedule(static) num_threads((int)a->threads) if (a->threads > 1)
#endif
  for (int64_t w = 0; w < words; w++) {
    /* Known counts make the loops of whole words straight code. */
    if (64 * (w + 1) <= a->count) {
      @WAY(a->values + 64 * w, a->words + w, 64);
    } else {
      @WAY(a->values + 64 * w, a->words + w, a->count - 64 * w);
    }
  }
}
"""
