"""The fixed part of a library in whole numbers; a library gets the functions it uses.

No sum leaves its type: that was proven at export, for the weights that the library accepts and any
input.
"""

from __future__ import annotations

from collections.abc import Iterable

from snncc.export.quantized.formats import Arithmetic

# For each function what it calls; texts stand in the order in which C needs them.
_CALLS = {
    "scale": ("right",),
    "linear": ("scale",),
    "convolution": ("scale",),
    "mean_pool": ("divided", "narrow"),
    "divide": ("divided",),
    "even": ("right",),
}
_SIZED = ("scale", "linear", "convolution", "divided", "mean_pool", "right", "narrow")

_FUNCTIONS = {
    "limit": """
/* The nearest number of a state. */
static inline WIDE PREFIX_limit(WIDE x)
{
  return x > HIGH ? HIGH : x < -HIGH - 1 ? -HIGH - 1 : x;
}
""",
    "floor": """
/* x / 2^bits, rounded down. */
static inline WIDE PREFIX_floor(WIDE x, int bits)
{
  return x >= 0 ? x >> bits : ~(~x >> bits);
}
""",
    "min": """
static inline WIDE PREFIX_min(WIDE x, WIDE y)
{
  return x < y ? x : y;
}
""",
    "max": """
static inline WIDE PREFIX_max(WIDE x, WIDE y)
{
  return x > y ? x : y;
}
""",
    "abs": """
static inline WIDE PREFIX_abs(WIDE x)
{
  return x < 0 ? -x : x;
}
""",
    "right": """
/* x / 2^bits, rounded to the nearest, halves up. */
static inline SUM PREFIX_rightBITS(SUM x, int bits)
{
  const SUM sum = x + ((SUM)1 << (bits - 1));
  return sum >= 0 ? sum >> bits : ~(~sum >> bits);
}
""",
    "even": """
/* The whole number nearest to x / 2^bits, of two the even one. */
static inline WIDE PREFIX_even(WIDE x, int bits)
{
  const WIDE nearest = PREFIX_rightWBITS(x, bits), half = (WIDE)1 << (bits - 1);
  return nearest - (nearest * 2 * half - x == half && nearest % 2 != 0);
}
""",
    "narrow": """
/* The nearest number of a state. */
static inline STATE PREFIX_narrowBITS(SUM x)
{
  return (STATE)(x > HIGH ? HIGH : x < -HIGH - 1 ? -HIGH - 1 : x);
}
""",
    "scale": """
/* The number of a state nearest to x / 2^shift, halves up; a shift below zero multiplies. */
static inline STATE PREFIX_scaleBITS(SUM x, int shift)
{
  if (shift > 0) {
    x = PREFIX_rightBITS(x, shift);
    shift = 0;
  }
  const STATE most = (STATE)(HIGH >> -shift);
  if (x > most) {
    return HIGH;
  }
  return x < -(WIDE)most - 1 ? -HIGH - 1 : PREFIX_narrow64(x * ((int64_t)1 << -shift));
}
""",
    "divided": """
/* x / y for a positive y, rounded to the nearest, halves up. */
static inline SUM PREFIX_dividedBITS(SUM x, SUM y)
{
  SUM quotient = x / y, rest = x % y;
  if (rest < 0) {
    quotient--;
    rest += y;
  }
  return quotient + (rest >= y - rest);
}
""",
    "divide": """
/* x / y, rounded to the nearest, halves up; the limit of states where y is zero. */
static inline WIDE PREFIX_divide(WIDE x, WIDE y)
{
  if (y == 0) {
    return x > 0 ? HIGH : x < 0 ? -HIGH - 1 : 0;
  }
  return y > 0 ? PREFIX_dividedWBITS(x, y) : PREFIX_dividedWBITS(-x, -y);
}
""",
    "linear": """
/* Add rows of w to the sums: four at a time, so that sums are read and written once for them. */
static void PREFIX_rowsBITS(const STATE *x, const WEIGHT *w, SUM *restrict sums, int out,
                            const int *active, int count)
{
  const size_t stride = (size_t)out;
  if (count == 4) {
    const WEIGHT *restrict r0 = w + (size_t)active[0] * stride;
    const WEIGHT *restrict r1 = w + (size_t)active[1] * stride;
    const WEIGHT *restrict r2 = w + (size_t)active[2] * stride;
    const WEIGHT *restrict r3 = w + (size_t)active[3] * stride;
    const SUM v0 = x[active[0]], v1 = x[active[1]], v2 = x[active[2]], v3 = x[active[3]];
    for (int o = 0; o < out; o++) {
      sums[o] = sums[o] + v0 * r0[o] + v1 * r1[o] + v2 * r2[o] + v3 * r3[o];
    }
    return;
  }
  for (int k = 0; k < count; k++) {
    const WEIGHT *restrict row = w + (size_t)active[k] * stride;
    const SUM value = x[active[k]];
    for (int o = 0; o < out; o++) {
      sums[o] += value * row[o];
    }
  }
}

/* y = x w + bias for rows of x; w is [in, out].  The rows of w at which x is zero are not read. */
static void PREFIX_linearBITS(const STATE *x, const WEIGHT *w, const WIDE *bias,
                              const int8_t *shift, STATE *y, int rows, int in, int out,
                              SUM *restrict sums)
{
  for (int r = 0; r < rows; r++, x += in, y += out) {
    int active[4], count = 0;
    for (int o = 0; o < out; o++) {
      sums[o] = bias ? bias[o] : 0;
    }
    for (int i = 0; i < in; i++) {
      active[count] = i;
      count += x[i] != 0;
      if (count == 4) {
        PREFIX_rowsBITS(x, w, sums, out, active, count);
        count = 0;
      }
    }
    PREFIX_rowsBITS(x, w, sums, out, active, count);
    for (int o = 0; o < out; o++) {
      y[o] = PREFIX_scaleBITS(sums[o], shift[o]);
    }
  }
}
""",
    "convolution": """
/* A convolution that spreads each input that is not zero over the outputs it reaches.
   n: batch, channels, height, width, out channels, out height, out width, kernel height and width,
   stride, padding and dilation of both, groups.  w is [channels, kernel, out channels / groups];
   sums holds one image of outputs, channels last. */
static void PREFIX_convolutionBITS(const STATE *x, const WEIGHT *w, const WIDE *bias,
                                   const int8_t *shift, STATE *y, const int *n,
                                   SUM *restrict sums)
{
  const int channels = n[1], height = n[2], width = n[3], outs = n[4];
  const int out_height = n[5], out_width = n[6], kernel_height = n[7], kernel_width = n[8];
  const int each = outs / n[15], shared = channels / n[15], places = out_height * out_width;
  for (int b = 0; b < n[0]; b++) {
    for (int p = 0; p < places; p++) {
      for (int o = 0; o < outs; o++) {
        sums[p * outs + o] = bias ? bias[o] : 0;
      }
    }
    for (int c = 0; c < channels; c++) {
      for (int iy = 0; iy < height; iy++) {
        for (int ix = 0; ix < width; ix++) {
          const SUM value = *x++;
          if (value == 0) {
            continue;
          }
          for (int ky = 0; ky < kernel_height; ky++) {
            const int ty = iy + n[11] - ky * n[13];
            if (ty < 0 || ty % n[9] != 0 || ty / n[9] >= out_height) {
              continue;
            }
            for (int kx = 0; kx < kernel_width; kx++) {
              const int tx = ix + n[12] - kx * n[14];
              if (tx < 0 || tx % n[10] != 0 || tx / n[10] >= out_width) {
                continue;
              }
              const int place = ty / n[9] * out_width + tx / n[10];
              SUM *restrict sum = sums + place * outs + c / shared * each;
              const WEIGHT *restrict row
                  = w + ((c * kernel_height + ky) * kernel_width + kx) * each;
              for (int o = 0; o < each; o++) {
                sum[o] += value * row[o];
              }
            }
          }
        }
      }
    }
    for (int o = 0; o < outs; o++) {
      for (int p = 0; p < places; p++) {
        *y++ = PREFIX_scaleBITS(sums[p * outs + o], shift[o]);
      }
    }
  }
}
""",
    "max_pool": """
/* The maximum of each window.
   n: planes, height, width, out height, out width, then first and end of each window's rows, and
   of its columns. */
static void PREFIX_max_pool(const STATE *x, STATE *y, const int *n)
{
  const int *rows = n + 5, *columns = rows + 2 * n[3];
  for (int plane = 0; plane < n[0]; plane++, x += n[1] * n[2]) {
    for (int oy = 0; oy < n[3]; oy++) {
      for (int ox = 0; ox < n[4]; ox++) {
        STATE most = -HIGH - 1;
        for (int iy = rows[2 * oy]; iy < rows[2 * oy + 1]; iy++) {
          for (int ix = columns[2 * ox]; ix < columns[2 * ox + 1]; ix++) {
            const STATE value = x[iy * n[2] + ix];
            most = value > most ? value : most;
          }
        }
        *y++ = most;
      }
    }
  }
}
""",
    "mean_pool": """
/* The sum of each window times a power of two over its divisor.
   n: as for the maximum, then the divisor of each output of a plane. */
static void PREFIX_mean_poolBITS(const STATE *x, STATE *y, const int *n, int left)
{
  const int *rows = n + 5, *columns = rows + 2 * n[3], *divisors = columns + 2 * n[4];
  for (int plane = 0; plane < n[0]; plane++, x += n[1] * n[2]) {
    for (int oy = 0; oy < n[3]; oy++) {
      for (int ox = 0; ox < n[4]; ox++) {
        SUM sum = 0;
        for (int iy = rows[2 * oy]; iy < rows[2 * oy + 1]; iy++) {
          for (int ix = columns[2 * ox]; ix < columns[2 * ox + 1]; ix++) {
            sum += x[iy * n[2] + ix];
          }
        }
        const SUM divisor = divisors[oy * n[4] + ox];
        *y++ = PREFIX_narrowBITS(PREFIX_dividedBITS(sum * ((SUM)1 << left), divisor));
      }
    }
  }
}
""",
}


def fixed_part(used: Iterable[str], prefix: str, arithmetic: Arithmetic) -> str:
    """Return the functions that a library uses.

    Args:
        used: Names of functions, those on sums with their bits, as ``linear32``.
        prefix: What the names of functions start with.
        arithmetic: The sizes of numbers.
    """
    wide = arithmetic.wide_bits
    wanted: set[tuple[str, int]] = set()
    todo = [_split(name) for name in used]
    while todo:
        item = todo.pop()
        if item in wanted:
            continue
        wanted.add(item)
        name, bits = item
        todo += [(n, (bits or wide) if n in _SIZED else 0) for n in _CALLS.get(name, ())]
        todo += [("narrow", 64)] if name == "scale" else []
    texts = []
    for name, text in _FUNCTIONS.items():
        for bits in (0, 32, 64):
            if (name, bits) in wanted:
                texts.append(_filled(text, prefix, arithmetic, bits))
    return "".join(texts)


def _split(name: str) -> tuple[str, int]:
    bits = name[-2:]
    return (name[:-2], int(bits)) if bits in ("32", "64") else (name, 0)


def _filled(text: str, prefix: str, arithmetic: Arithmetic, bits: int) -> str:
    words = {
        "WBITS": str(arithmetic.wide_bits),
        "BITS": str(bits),
        "PREFIX": prefix,
        "WEIGHT": f"int{arithmetic.weight_bits}_t",
        "STATE": f"int{arithmetic.state_bits}_t",
        "WIDE": f"int{arithmetic.wide_bits}_t",
        "SUM": f"int{bits}_t",
        "HIGH": str(arithmetic.state_high),
    }
    for word, value in words.items():
        text = text.replace(word, value)
    return text
