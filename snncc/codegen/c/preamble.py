"""The fixed part of emitted C: small inline functions, of which a file gets those it uses."""

from __future__ import annotations

from collections.abc import Iterable

from snncc.codegen.base import BLOCK, FloatType
from snncc.codegen.c.expressions import C_TYPE, HELPERS, MATH
from snncc.ir.nodes import Op

_HEAD = f"""\
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#ifdef _OPENMP
#include <omp.h>
#endif
#ifdef __SSE2__
#include <emmintrin.h>
#endif

/* Lanes that one call of a step computes; a step is straight code that becomes vector code. */
#define BLOCK {BLOCK}
"""

_SMALLER = """
static inline int64_t snncc_smaller(int64_t a, int64_t b)
{
  return a < b ? a : b;
}
"""

_THREAD = """
static inline int64_t snncc_thread(void)
{
#ifdef _OPENMP
  return omp_get_thread_num();
#else
  return 0;
#endif
}
"""

_READ = """
/* The last lanes of a row, padded with zeros to a block. */
static inline const REAL *snncc_read(const REAL *row, REAL *block, int lanes)
{
  memset(block, 0, BLOCK * sizeof(REAL));
  memcpy(block, row, (size_t)lanes * sizeof(REAL));
  return block;
}
"""

_WRITE = """
/* Write a block to a row; streaming bypasses the caches, for arrays larger than they are. */
static inline void snncc_write(REAL *row, const REAL *block, int64_t stream)
{
#ifdef __SSE2__
  if (stream && (uintptr_t)row % sizeof(__m128i) == 0) {
    const __m128i *from = (const __m128i *)(const void *)block;
    __m128i *to = (__m128i *)(void *)row;
    for (size_t i = 0; i < BLOCK * sizeof(REAL) / sizeof(__m128i); i++) {
      _mm_stream_si128(to + i, _mm_load_si128(from + i));
    }
    return;
  }
#else
  (void)stream;
#endif
  memcpy(row, block, BLOCK * sizeof(REAL));
}

/* Make streamed writes visible to other threads. */
static inline void snncc_finish(int64_t stream)
{
#ifdef __SSE2__
  if (stream) {
    _mm_sfence();
  }
#else
  (void)stream;
#endif
}
"""

_PREFETCH = """
/* The address of an element; a number, because it may lie outside of the array. */
static inline uintptr_t snncc_place(const REAL *array, int64_t index)
{
  return (uintptr_t)array + (uintptr_t)index * sizeof(REAL);
}

/* Fetch the block that starts at lane b of a row towards the second-level cache. */
static inline void snncc_fetch(uintptr_t row, int64_t b)
{
#ifdef __GNUC__
  const uintptr_t address = row + (uintptr_t)b * sizeof(REAL);
  for (size_t byte = 0; byte < BLOCK * sizeof(REAL); byte += 64) {
    __builtin_prefetch((const void *)(address + byte), 0, 2);
  }
#else
  (void)row, (void)b;
#endif
}

/* The same for a row that will be written: stores that miss the caches wait one for another. */
static inline void snncc_claim(uintptr_t row, int64_t b, int64_t stream)
{
#ifdef __GNUC__
  const uintptr_t address = row + (uintptr_t)b * sizeof(REAL);
  for (size_t byte = 0; byte < BLOCK * sizeof(REAL) && !stream; byte += 64) {
    __builtin_prefetch((const void *)(address + byte), 1, 2);
  }
#else
  (void)row, (void)b, (void)stream;
#endif
}
"""

_PACK = """
/* One bit for each lane. */
static inline uint32_t snncc_pack(const uint32_t *flags, int lanes)
{
  uint32_t word = 0;
#pragma omp simd reduction(| : word)
  for (int n = 0; n < BLOCK; n++) {
    word |= flags[n] << n;
  }
  return lanes == BLOCK ? word : word & ((UINT32_C(1) << lanes) - 1);
}
"""

_SOLVE = """
/* Keep what a sweep found in place of what it was given; whether that is something else. */
static inline uint32_t snncc_settle(uint32_t *given, uint32_t found)
{
  const uint32_t changed = *given ^ found;
  *given = found;
  return changed;
}

static inline uint32_t snncc_replace(REAL *given, const REAL *found, int lanes)
{
  uint32_t changed = 0;
  for (int n = 0; n < lanes; n++) {
    changed |= given[n] != found[n];
    given[n] = found[n];
  }
  return changed;
}

/* Write the number of sweeps for every lane of a tile. */
static inline void snncc_count(REAL *counts, int64_t sweeps, int64_t width)
{
  for (int64_t n = 0; n < width; n++) {
    counts[n] = (REAL)sweeps;
  }
}
"""

_TILE = """
/* Start values of a tile, padded to whole blocks. */
static inline void snncc_fill(REAL *tile, REAL value, int64_t width)
{
  for (int64_t n = 0; n < (width + BLOCK - 1) / BLOCK * BLOCK; n++) {
    tile[n] = value;
  }
}
"""

_INLINE = "static inline"
_HELPER_TEXT = {
    Op.MIN: """
/* As torch.minimum: NaN if either is NaN. */
static inline REAL snncc_min(REAL a, REAL b)
{
  return a != a ? a : a < b ? a : b;
}
""",
    Op.MAX: """
/* As torch.maximum: NaN if either is NaN. */
static inline REAL snncc_max(REAL a, REAL b)
{
  return a != a ? a : a > b ? a : b;
}
""",
    Op.SIGN: """
/* As torch.sign. */
static inline REAL snncc_sign(REAL a)
{
  return (REAL)((a > 0) - (a < 0));
}
""",
    Op.SIGMOID: """
/* As torch.sigmoid. */
static inline REAL snncc_sigmoid(REAL a)
{
  return 1 / (1 + EXP(-a));
}
""",
}

# glibc declares its vector functions (libmvec) only under -ffast-math, which would change results.
_VECTOR_MATH = """
/* glibc has vector versions of these, but announces them only under -ffast-math. */
#if defined(__x86_64__) && defined(__GLIBC__) && defined(_OPENMP)
#if __GLIBC_PREREQ(2, MINOR)
DECLARATIONS
#endif
#endif
"""
_VECTOR_MINOR = {
    **dict.fromkeys((Op.EXP, Op.LOG, Op.SIN, Op.COS, Op.POW), 22),
    **dict.fromkeys((Op.TANH, Op.EXPM1, Op.LOG1P), 35),
}


def preamble(
    operations: Iterable[Op], dtype: FloatType, *, packed: bool, solves: bool = False
) -> str:
    """Return the head of an emitted file.

    Args:
        operations: The operations that the kernel uses.
        dtype: The working type.
        packed: Whether the kernel writes packed bools.
        solves: Whether it repeats sweeps until nothing changes.
    """
    used = set(operations)
    real = C_TYPE[dtype]
    parts = [_HEAD, _vector_math(used, dtype), _SMALLER, _THREAD, _READ, _WRITE, _PREFETCH, _TILE]
    if packed:
        parts.append(_PACK)
    if solves:
        parts.append(_SOLVE)
    parts += [_HELPER_TEXT[op] for op in HELPERS if op in used]
    exp = "expf" if dtype is FloatType.FLOAT32 else "exp"
    return "".join(parts).replace("REAL", real).replace("EXP(", f"{exp}(")


def helper_text(operation: Op, real: str, qualifiers: str = _INLINE) -> str:
    """Return the function of a scalar operation that needs one of its own; else nothing."""
    exp = "expf" if real == "float" else "exp"
    text = _HELPER_TEXT.get(operation, "").replace(_INLINE, qualifiers)
    return text.replace("REAL", real).replace("EXP(", f"{exp}(")


def _vector_math(used: set[Op], dtype: FloatType) -> str:
    needed = (used | {Op.EXP}) if Op.SIGMOID in used else used
    text = ""
    for minor in sorted(set(_VECTOR_MINOR.values())):
        ops = [op for op, since in _VECTOR_MINOR.items() if since == minor and op in needed]
        if ops:
            lines = "\n".join(_declaration(op, dtype) for op in ops)
            text += _VECTOR_MATH.replace("MINOR", str(minor)).replace("DECLARATIONS", lines)
    return text


def _declaration(op: Op, dtype: FloatType) -> str:
    real = C_TYPE[dtype]
    suffix = "f" if dtype is FloatType.FLOAT32 else ""
    arguments = ", ".join([real] * (2 if op is Op.POW else 1))
    return f"#pragma omp declare simd notinbranch\nextern {real} {MATH[op]}{suffix}({arguments});"
