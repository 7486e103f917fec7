"""The fixed part of a library in whole numbers; a library gets the functions it uses.

Layers are the nests of `c.nests`.
No sum leaves its type: that was proven at export, for the weights that the library accepts and any
input.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from snncc.export.c.nests import NESTS, Types, nests_before
from snncc.export.quantized.formats import Arithmetic

# For each function what it calls.
_CALLS = {
    "scale": ("shift",),
    "right": ("shift",),
    "floor": ("shift",),
    "linear": ("rows", "scale"),
    "convolution": ("spread", "scale"),
    "dense": ("scale",),
    "mean_pool": ("divided", "narrow"),
    "divide": ("divided",),
    "even": ("right",),
}
_SIZED = ("shift", "scale", "divided", "right", "narrow", *NESTS)

# In the order in which C needs them; the nests stand between these and the layers.
_FUNCTIONS = {
    "limit": """
/* The nearest number of a state. */
static inline WIDE PREFIX_limit(WIDE x)
{
  return x > HIGH ? HIGH : x < -HIGH - 1 ? -HIGH - 1 : x;
}
""",
    "shift": """
/* x / 2^bits, rounded down: shifting what is not negative means the same to every compiler. */
static inline SUM PREFIX_shiftBITS(SUM x, int bits)
{
  const SUM mask = -(SUM)(x < 0);
  return ((x ^ mask) >> bits) ^ mask;
}
""",
    "floor": """
/* x / 2^bits, rounded down. */
static inline WIDE PREFIX_floor(WIDE x, int bits)
{
  return PREFIX_shiftWBITS(x, bits);
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
  return PREFIX_shiftBITS(x + ((SUM)1 << (bits - 1)), bits);
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
  const int down = shift > 0 ? shift : 0, up = shift < 0 ? -shift : 0;
  const SUM near = PREFIX_shiftBITS(x + (down ? (SUM)1 << (down - 1) : 0), down);
  const STATE most = (STATE)(HIGH >> up);
  return near > most ? HIGH : near < -most ? -HIGH - 1 : (STATE)(near * ((SUM)1 << up));
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
}
_LAYERS = {
    "linear": """
/* y = limit((bias + x w) / 2^shift) for rows of x; sums holds one row of outputs. */
static void PREFIX_linearENDING(const STATE *x, const WEIGHT *w, const WIDE *bias,
                                const int8_t *shift, STATE *y, int rows, int in, int out,
                                SUM *restrict sums)
{
  for (int r = 0; r < rows; r++, x += in, y += out) {
    for (int o = 0; o < out; o++) {
      sums[o] = bias ? bias[o] : 0;
    }
    PREFIX_rowsENDING(x, w, sums, in, out);
    for (int o = 0; o < out; o++) {
      y[o] = PREFIX_scaleBITS(sums[o], shift[o]);
    }
  }
}
""",
    "dense": """
/* y = limit((bias + x w) / 2^shift) for rows of x of which few are zero; w is [out, in]. */
static void PREFIX_denseENDING(const STATE *x, const WEIGHT *w, const WIDE *bias,
                               const int8_t *shift, STATE *y, int rows, int in, int out,
                               SUM *restrict sums)
{
  const int whole = out - out % 4;
  for (int r = 0; r < rows; r++, x += in, y += out) {
    for (int o = 0; o < whole; o += 4) {
      const WEIGHT *w0 = w + (size_t)o * (size_t)in, *w1 = w0 + in, *w2 = w1 + in, *w3 = w2 + in;
      SUM sum0 = 0, sum1 = 0, sum2 = 0, sum3 = 0;
      for (int i = 0; i < in; i++) {
        sum0 += (SUM)x[i] * w0[i];
        sum1 += (SUM)x[i] * w1[i];
        sum2 += (SUM)x[i] * w2[i];
        sum3 += (SUM)x[i] * w3[i];
      }
      sums[o] = sum0;
      sums[o + 1] = sum1;
      sums[o + 2] = sum2;
      sums[o + 3] = sum3;
    }
    for (int o = whole; o < out; o++) {
      const WEIGHT *row = w + (size_t)o * (size_t)in;
      SUM sum = 0;
      for (int i = 0; i < in; i++) {
        sum += (SUM)x[i] * row[i];
      }
      sums[o] = sum;
    }
    for (int o = 0; o < out; o++) {
      y[o] = PREFIX_scaleBITS(bias ? bias[o] + sums[o] : sums[o], shift[o]);
    }
  }
}
""",
    "convolution": """
/* A convolution of a batch of images, limit((bias + sum) / 2^shift); sums holds one image. */
static void PREFIX_convolutionENDING(const STATE *x, const WEIGHT *w, const WIDE *bias,
                                     const int8_t *shift, STATE *y, const int *n,
                                     SUM *restrict sums)
{
  const int outs = n[4], places = n[5] * n[6];
  for (int b = 0; b < n[0]; b++, x += n[1] * n[2] * n[3]) {
    for (int p = 0; p < places; p++) {
      for (int o = 0; o < outs; o++) {
        sums[p * outs + o] = bias ? bias[o] : 0;
      }
    }
    PREFIX_spreadENDING(x, w, sums, n);
    for (int o = 0; o < outs; o++) {
      for (int p = 0; p < places; p++) {
        *y++ = PREFIX_scaleBITS(sums[p * outs + o], shift[o]);
      }
    }
  }
}
""",
}


@dataclass(frozen=True, order=True)
class _Wanted:
    """A function: of what bits its sums are, 0 if it has none, and whether inputs are spikes."""

    name: str
    bits: int
    of_spikes: bool

    @property
    def ending(self) -> str:
        """What its name ends in."""
        return f"{'_spikes' if self.of_spikes else ''}{self.bits or ''}"

    def calls(self, wide: int) -> list[_Wanted]:
        """Return what it calls."""
        return [
            _Wanted(n, (self.bits or wide) if n in _SIZED else 0, self.of_spikes and n in NESTS)
            for n in _CALLS.get(self.name, ())
        ]


def fixed_names() -> set[str]:
    """Return the names, without the prefix, of all functions that a library may have."""
    endings = ("", "32", "64", "_spikes32", "_spikes64")
    return {
        f"{n}{end}" for n in (*_FUNCTIONS, *NESTS, "eight", "active", *_LAYERS) for end in endings
    }


def fixed_part(used: Iterable[str], prefix: str, arithmetic: Arithmetic) -> str:
    """Return the functions that a library uses.

    Args:
        used: Names of functions, those on sums with their bits, as ``linear32``.
        prefix: What the names of functions start with.
        arithmetic: The sizes of numbers.
    """
    wanted: set[_Wanted] = set()
    todo = [_parsed(name) for name in used]
    while todo:
        item = todo.pop()
        if item not in wanted:
            wanted.add(item)
            todo += item.calls(arithmetic.wide_bits)
    texts = [nests_before({item.name for item in wanted}, prefix)]
    for name in (*_FUNCTIONS, *NESTS, *_LAYERS):
        for item in sorted(w for w in wanted if w.name == name):
            texts.append(_filled(item, prefix, arithmetic))
    return "".join(texts)


def _parsed(name: str) -> _Wanted:
    bits = int(name[-2:]) if name[-2:] in ("32", "64") else 0
    stem = name.removesuffix(str(bits))
    return _Wanted(stem.removesuffix("_spikes"), bits, stem.endswith("_spikes"))


def _vectors(item: _Wanted, arithmetic: Arithmetic) -> tuple[int, int]:
    """Return from which width of vectors on a nest gains by them, and at which it gains most.

    Narrow vectors have no multiplication of 64 bits, or no widening of weights to their sums.
    """
    if item.of_spikes:
        return 32, 32 if arithmetic.weight_bits == 8 else 64
    return item.bits, 64


def _filled(item: _Wanted, prefix: str, arithmetic: Arithmetic) -> str:
    words = {
        "WBITS": str(arithmetic.wide_bits),
        "BITS": str(item.bits),
        "ENDING": item.ending,
        "PREFIX": prefix,
        "WEIGHT": f"int{arithmetic.weight_bits}_t",
        "STATE": f"int{arithmetic.state_bits}_t",
        "WIDE": f"int{arithmetic.wide_bits}_t",
        "SUM": f"int{item.bits}_t",
        "HIGH": str(arithmetic.state_high),
    }
    if item.name in NESTS:
        types = Types(
            number=words["STATE"],
            weight=words["WEIGHT"],
            sum=words["SUM"],
            ending=item.ending,
            partial=f"int{2 * arithmetic.weight_bits}_t" if item.of_spikes else "",
            least=f"-{arithmetic.state_high} - 1",
            beats="value > most",
            mean="PREFIX_narrowENDING(PREFIX_dividedENDING(sum * ((SUM)1 << left), divisor))",
            settings=", int left",
            vectors=_vectors(item, arithmetic),
        )
        return types.fill(item.name, prefix)
    text = _FUNCTIONS.get(item.name) or _LAYERS[item.name]
    for word, value in words.items():
        text = text.replace(word, value)
    return text
