"""The fixed part of emitted CUDA C++: what a binary is made for, and small device functions."""

from __future__ import annotations

from collections.abc import Iterable

from snncc.codegen.base import Access, Argument, Slot, SlotKind
from snncc.codegen.c.expressions import C_TYPE, HELPERS
from snncc.codegen.c.preamble import helper_text
from snncc.codegen.kernel_ir import Kernel
from snncc.ir.nodes import HALF_ROUNDINGS, Op, Rank

# Sizes that any arrays can be run with.
_DEFAULTS = {SlotKind.WIDTH: "32", SlotKind.GROUP: "8", SlotKind.CHUNK: "8"}
# Holds eight steps of a bool.
WORD = "signed char"
# The elements of half types, to which values are rounded.
HALF_ELEMENTS = {Op.FLOAT16: "__half", Op.BFLOAT16: "__nv_bfloat16"}

_LANES = """
/* Lanes of one block are BLOCK; those of a thread lie side by side, or THREADS apart. */
#define THREADS (BLOCK / VECTOR)
#if ALIGNED
#define FIRST (threadIdx.x * VECTOR)
#define SPREAD 1
#else
#define FIRST threadIdx.x
#define SPREAD THREADS
#endif

#define INLINE static __device__ __forceinline__
#define EACH_LANE _Pragma("unroll") for (int k = 0; k < VECTOR; k++)

#ifdef __CUDACC_RTC__
#define INFINITY __int_as_float(0x7f800000)
#define NAN __int_as_float(0x7fffffff)
#endif

/* Convert an element to the working type. */
template <typename T> INLINE REAL snncc_real(const T &element)
{
  return (REAL)element;
}

/* Round a value to an element. */
template <typename T, typename V> INLINE void snncc_set(T &element, V value)
{
  element = (T)value;
}
"""

_HALVES = """
#ifdef HALVES
INLINE REAL snncc_real(const __half &element)
{
  return (REAL)__half2float(element);
}

INLINE REAL snncc_real(const __nv_bfloat16 &element)
{
  return (REAL)__bfloat162float(element);
}

INLINE void snncc_set(__half &element, REAL value)
{
  element = __float2half_rn((float)value);
}

INLINE void snncc_set(__nv_bfloat16 &element, REAL value)
{
  element = __float2bfloat16_rn((float)value);
}
#endif
"""

_ROUND = """
/* Round a value to a half type. */
template <typename T> INLINE REAL snncc_round(REAL value)
{
  T element;
  snncc_set(element, value);
  return snncc_real(element);
}
"""

_QUOTIENT = """
/* Divide, within two units in the last place. */
INLINE float snncc_quotient(float x, float y)
{
#ifdef __CUDA_ARCH__
  float quotient;
  asm("div.full.f32 %0, %1, %2;" : "=f"(quotient) : "f"(x), "f"(y));
  return quotient;
#else
  return x / y;
#endif
}
"""

_MOVE = """
/* Elements that a thread moves at once, 16 bytes at a time. */
template <typename T> struct alignas(sizeof(T) * VECTOR < 16 ? sizeof(T) * VECTOR : 16) snncc_pack
{
  T at[VECTOR];
};

/* Read the lanes of a thread from a row; dense rows have neighbours side by side. */
template <bool DENSE, typename T, typename A>
INLINE void snncc_read(
    T (&value)[VECTOR], const T *row, const A (&at)[VECTOR], const bool (&live)[VECTOR], bool now)
{
  if (DENSE && ALIGNED) {
    snncc_pack<T> pack = {};
    if (live[0] && now) {
      pack = *reinterpret_cast<const snncc_pack<T> *>(row + at[0]);
    }
    EACH_LANE {
      value[k] = pack.at[k];
    }
  } else {
    EACH_LANE {
      value[k] = T();
      if (live[k] && now) {
        value[k] = row[at[k]];
      }
    }
  }
}

/* Write them. */
template <bool DENSE, typename T, typename V, typename A>
INLINE void snncc_write(
    T *row, const V (&value)[VECTOR], const A (&at)[VECTOR], const bool (&live)[VECTOR], bool now)
{
  if (DENSE && ALIGNED) {
    snncc_pack<T> pack;
    EACH_LANE {
      snncc_set(pack.at[k], value[k]);
    }
    if (live[0] && now) {
      *reinterpret_cast<snncc_pack<T> *>(row + at[0]) = pack;
    }
  } else {
    EACH_LANE {
      if (live[k] && now) {
        snncc_set(row[at[k]], value[k]);
      }
    }
  }
}
"""

_PIECE = """
/* Lanes of one block are one piece. */
#define WIDTH BLOCK
#define LANE_OF(i) ((LANE)blockIdx.x * BLOCK + (i))
#define FIRST_SUM(count) ((LANE)blockIdx.x * (count))
#define NEXT_SUM 1
"""

_ROWS = """
/* Lanes of one block are pieces of several rows; `across` blocks share a row. */
#define ROW_OF(i) ((LANE)blockIdx.x / across * (BLOCK / WIDTH) + (i) / WIDTH)
#define LANE_OF(i) ((ROW_OF(i) * across + (LANE)blockIdx.x % across) * WIDTH + (i) % WIDTH)
/* Sums of one column lie side by side, in the order of the rows. */
#define NEXT_SUM ((LANE)gridDim.x / across)
#define FIRST_SUM(count) \\
  ((LANE)blockIdx.x % across * (count) * NEXT_SUM + (LANE)blockIdx.x / across)
"""

_FOLD = """
/* Write the sums over the rows of a block, and then of every FOLD neighbouring lanes.  Halves are
   added to halves in a fixed order, so that equal calls give equal bits. */
template <int FOLD, typename T>
INLINE void snncc_fold(
    T *sums, const REAL (&value)[VECTOR], const bool (&live)[VECTOR], LANE first, LANE next)
{
  __shared__ REAL part[BLOCK];
  __syncthreads();
  EACH_LANE {
    part[FIRST + k * SPREAD] = live[k] ? value[k] : (REAL)0;
  }
#pragma unroll 1
  for (int size = BLOCK / 2; size >= WIDTH; size /= 2) {
    __syncthreads();
    EACH_LANE {
      const int i = threadIdx.x + k * THREADS;
      if (i < size) {
        part[i] += part[i + size];
      }
    }
  }
#pragma unroll 1
  for (int width = FOLD / 2; width > 0; width /= 2) {
    __syncthreads();
    EACH_LANE {
      const int i = threadIdx.x + k * THREADS;
      if (i < WIDTH / FOLD * width) {
        const int at = i / width * FOLD + i % width;
        part[at] += part[at + width];
      }
    }
  }
  __syncthreads();
  EACH_LANE {
    const int i = threadIdx.x + k * THREADS;
    if (i < WIDTH / FOLD) {
      snncc_set(sums[first + i * next], part[i * FOLD]);
    }
  }
}
"""


def element_type(argument: Argument) -> str:
    """Return the name of the type of an argument's elements."""
    return f"{argument.name}_type"


def macros(argument: Argument, kernel: Kernel) -> tuple[str, str, str]:
    """Return the names that an argument takes: its type in the text and before it, its fold."""
    position = kernel.arguments.index(argument)
    return element_type(argument), f"TYPE_{position}", f"FOLD_{position}"


def is_dense(argument: Argument) -> bool:
    """Tell whether lanes that lie side by side in a thread do so in an argument, too.

    Inputs without a time axis are read once, so that they may start at any address.
    """
    moved = argument.rank is Rank.STEP or argument.written
    return moved and argument.access in (Access.FLAT, Access.ROWS)


def preamble(kernel: Kernel, slots: Iterable[Slot], operations: Iterable[Op]) -> str:
    """Return the head of an emitted file, without its comment."""
    used = set(operations)
    real = C_TYPE[kernel.dtype]
    parts = [_LANES, _ROWS if kernel.tiled else _PIECE, _HALVES, _MOVE]
    if not used.isdisjoint(HALF_ROUNDINGS):
        parts.append(_ROUND)
    if Op.QUOTIENT in used:
        parts.append(_QUOTIENT)
    if any(argument.folded for argument in kernel.arguments):
        parts.append(_FOLD)
    text = "".join(parts).replace("REAL", real)
    helpers = "".join(helper_text(op, real, "INLINE") for op in HELPERS if op in used)
    return _variant(kernel, slots, real) + text + helpers


def _variant(kernel: Kernel, slots: Iterable[Slot], real: str) -> str:
    """Return what a binary is made for where nothing is said before the text."""
    sizes = {"LANE": "long long", "BLOCK": "128", "VECTOR": "1", "ALIGNED": "0"}
    sizes |= {slot.name: _DEFAULTS[slot.kind] for slot in slots if slot.kind in _DEFAULTS}
    types = []
    for argument in kernel.arguments:
        own, given, fold = macros(argument, kernel)
        sizes[given] = WORD if argument.packed else real
        types.append(f"typedef {given} {own};")
        if argument.folded:
            sizes[fold] = "1"
    defined = [f"#define {name} {value}" for name, value in sizes.items()]
    lines = ["/* Sizes and types that a binary is made for; these suit any arrays. */"]
    return "\n".join(["", *lines, "#ifndef VARIANT", *defined, "#endif", *types, ""])
