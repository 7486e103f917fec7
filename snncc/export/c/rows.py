"""The nest of linear layers in C: rows of weights, added where an input is not zero.

There are two texts of one function, and both add the same terms in the same order.  The one for
compilers that know vectors lists which of 128 inputs are not zero, eight at a time, and goes
through the list once for each few vectors of columns, whose sums stay in registers.  The plain one
adds eight rows at a time.
"""

from __future__ import annotations

from collections.abc import Sequence

_TOGETHER = 8  # rows of weights that are added while a sum stays in a register
_EACH = range(_TOGETHER)

# How wide vectors are.  A library that is optimised for its size has none.
VECTORS = """
/* The bytes of a vector, or 0: plain C, which gives the same bits. */
#ifndef MACRO_VECTOR
#if !defined(__GNUC__) || defined(__OPTIMIZE_SIZE__)
#define MACRO_VECTOR 0
#elif defined(__AVX512BW__) && defined(__AVX512DQ__)
#define MACRO_VECTOR 64
#elif defined(__AVX2__)
#define MACRO_VECTOR 32
#elif defined(__SSE2__) || (defined(__aarch64__) && !defined(__AARCH64EB__)) \\
    || defined(__wasm_simd128__)
#define MACRO_VECTOR 16
#else
#define MACRO_VECTOR 0
#endif
#endif
"""


def rows_text(*, of_spikes: bool) -> str:
    """Return the nest, with words for its types.

    Args:
        of_spikes: Whether inputs are one or zero: weights are added without a product.
    """
    plain = "\n".join(_plain_spikes() if of_spikes else _plain_factors())
    wide, single = ("\n".join(_block(count, of_spikes=of_spikes)) for count in (4, 1))
    words = {
        "ADDITION": plain,
        "WIDE_BLOCK": wide,
        "SINGLE_BLOCK": single,
        "POINTERS": "\n".join(f"  const WEIGHT *restrict r{k} = w + {_row(k)};" for k in _EACH),
        "VALUE": "" if of_spikes else "const SUM value = x[active[k]];\n    ",
        "REST": "" if of_spikes else "const SUM value = part[active[k]];\n      ",
        "TERM": "row[o]" if of_spikes else "value * row[o]",
    }
    text = _ROWS
    for word, value in words.items():
        text = text.replace(word, value)
    return text


def _row(k: int) -> str:
    return f"(size_t)active[{k}] * (size_t)out"


def _plain_factors() -> Sequence[str]:
    return [
        *(f"  const SUM v{k} = x[active[{k}]];" for k in _EACH),
        "  for (int o = 0; o < out; o++) {",
        "    SUM sum = sums[o];",
        *(f"    sum += v{k} * r{k}[o];" for k in _EACH),
        "    sums[o] = sum;",
        "  }",
    ]


def _plain_spikes() -> Sequence[str]:
    return [
        "  (void)x;",
        "  for (int o = 0; o < out; o++) {",
        "    PARTIAL sum = r0[o];",
        *(f"    sum = (PARTIAL)(sum + r{k}[o]);" for k in _EACH[1:]),
        "    sums[o] += sum;",
        "  }",
    ]


def _block(count: int, *, of_spikes: bool) -> Sequence[str]:
    """Return a loop over columns, so many vectors at a time."""
    each = range(count)
    places = ["", *(f" + {k} * LANES" for k in range(1, count))]
    started = [f"      memcpy(&sum{k}, sums + o{places[k]}, sizeof sum{k});" for k in each]
    stored = [f"      memcpy(sums + o{places[k]}, &sum{k}, sizeof sum{k});" for k in each]
    joined = [
        f"      ADDEND part_sums[{count} * LANES];",
        *(f"      memcpy(part_sums{places[k]}, &sum{k}, sizeof sum{k});" for k in each),
        f"      for (int j = 0; j < {count} * LANES; j++) {{",
        "        sums[o + j] += part_sums[j];",
        "      }",
    ]
    return [
        f"    for (; o + {count} * LANES <= out; o += {count} * LANES) {{",
        f"      vector {', '.join(f'sum{k} = {{0}}' for k in each)};",
        *([] if of_spikes else started),
        "      for (int k = 0; k < count; k++) {",
        *([] if of_spikes else ["        const ADDEND value = part[active[k]];"]),
        "        const WEIGHT *row = rows + (size_t)active[k] * (size_t)out + o;",
        f"        vector {', '.join(f'row{k} = {{0}}' for k in each)};",
        "        for (int j = 0; j < LANES; j++) {",
        *(f"          row{k}[j] = row[j{places[k]}];" for k in each),
        "        }",
        *(f"        sum{k} += {'' if of_spikes else 'value * '}row{k};" for k in each),
        "      }",
        *(joined if of_spikes else stored),
        "    }",
    ]


_ROWS = """
#if MACRO_VECTOR >= NARROWEST
/* List which of up to 128 numbers are not zero; return how many. */
static int PREFIX_activeENDING(const NUMBER *x, int count, uint8_t *active)
{
  uint8_t flags[128];
  int found = 0;
  for (int i = 0; i < count; i++) {
    flags[i] = x[i] != 0;
  }
  for (int i = count; i % 8 != 0; i++) {
    flags[i] = 0;
  }
  for (int i = 0; i < count; i += 8) {
    uint64_t some;
    memcpy(&some, flags + i, sizeof some);
    for (; some != 0; some &= some - 1) {
      active[found++] = (uint8_t)(i + (__builtin_ctzll(some) >> 3));
    }
  }
  return found;
}

/* sums += x w; w is [in, out].  The rows of w at which x is zero are not read. */
static void PREFIX_rowsENDING(const NUMBER *x, const WEIGHT *w, SUM *restrict sums, int in, int out)
{
  enum { LANES = WIDTH / (int)sizeof(ADDEND) };
  typedef ADDEND vector __attribute__((vector_size(WIDTH)));
  for (int start = 0; start < in; start += 128) {
    uint8_t active[128];
    const NUMBER *part = x + start;
    const WEIGHT *rows = w + (size_t)start * (size_t)out;
    const int count = PREFIX_activeENDING(part, in - start < 128 ? in - start : 128, active);
    int o = 0;
WIDE_BLOCK
SINGLE_BLOCK
    for (int k = 0, first = o; k < count && first < out; k++) {
      RESTconst WEIGHT *restrict row = rows + (size_t)active[k] * (size_t)out;
      for (o = first; o < out; o++) {
        sums[o] += TERM;
      }
    }
  }
}
#else
/* Add eight rows of w to sums, which are read and written once for all of them. */
static void PREFIX_eightENDING(const NUMBER *x, const WEIGHT *w, SUM *restrict sums, int out,
                               const int *active)
{
POINTERS
ADDITION
}

/* sums += x w; w is [in, out].  The rows of w at which x is zero are not read. */
static void PREFIX_rowsENDING(const NUMBER *x, const WEIGHT *w, SUM *restrict sums, int in, int out)
{
  int active[8], count = 0;
  for (int i = 0; i < in; i++) {
    active[count] = i;
    count += x[i] != 0;
    if (count == 8) {
      PREFIX_eightENDING(x, w, sums, out, active);
      count = 0;
    }
  }
  for (int k = 0; k < count; k++) {
    VALUEconst WEIGHT *restrict row = w + (size_t)active[k] * (size_t)out;
    for (int o = 0; o < out; o++) {
      sums[o] += TERM;
    }
  }
}
#endif
"""
