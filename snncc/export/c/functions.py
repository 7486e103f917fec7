"""The fixed part of a C library in floats: functions on arrays; a library gets those it uses.

Layers are the nests of `nests`.  Sums are taken in one order, one rounding after another, so that
every compiler and every level of optimisation gives the same bits.
"""

from __future__ import annotations

from collections.abc import Iterable

from snncc.codegen.c.preamble import helper_text
from snncc.export.c.nests import NESTS, Types, nests_before
from snncc.ir.nodes import Op

# For each function the nest that it calls.
_CALLS = {"linear": "rows", "convolution": "spread"}
_FUNCTIONS = {
    "linear": """
/* y = x w + bias for rows of x. */
static void PREFIX_linear(const REAL *x, const REAL *w, const REAL *bias, REAL *y, int rows, int in,
                          int out)
{
  for (int r = 0; r < rows; r++, x += in, y += out) {
    for (int o = 0; o < out; o++) {
      y[o] = bias ? bias[o] : 0;
    }
    PREFIX_rows(x, w, y, in, out);
  }
}
""",
    "convolution": """
/* A convolution of a batch of images; sums holds one image of outputs. */
static void PREFIX_convolution(const REAL *x, const REAL *w, const REAL *bias, REAL *y,
                               const int *n, REAL *sums)
{
  const int outs = n[4], places = n[5] * n[6];
  for (int b = 0; b < n[0]; b++, x += n[1] * n[2] * n[3]) {
    for (int p = 0; p < places; p++) {
      for (int o = 0; o < outs; o++) {
        sums[p * outs + o] = bias ? bias[o] : 0;
      }
    }
    PREFIX_spread(x, w, sums, n);
    for (int o = 0; o < outs; o++) {
      for (int p = 0; p < places; p++) {
        *y++ = sums[p * outs + o];
      }
    }
  }
}
""",
    "softmax": """
/* The softmax of n values that lie apart. */
static void PREFIX_softmax(const REAL *x, REAL *y, int n, int from, int to)
{
  REAL most = -INFINITY, sum = 0;
  for (int i = 0; i < n; i++) {
    most = x[i * from] > most ? x[i * from] : most;
  }
  for (int i = 0; i < n; i++) {
    y[i * to] = EXP(x[i * from] - most);
    sum += y[i * to];
  }
  for (int i = 0; i < n; i++) {
    y[i * to] /= sum;
  }
}
""",
    "log_softmax": """
/* The logarithm of the softmax of n values that lie apart. */
static void PREFIX_log_softmax(const REAL *x, REAL *y, int n, int from, int to)
{
  REAL most = -INFINITY, sum = 0;
  for (int i = 0; i < n; i++) {
    most = x[i * from] > most ? x[i * from] : most;
  }
  for (int i = 0; i < n; i++) {
    sum += EXP(x[i * from] - most);
  }
  sum = LOG(sum);
  for (int i = 0; i < n; i++) {
    y[i * to] = x[i * from] - most - sum;
  }
}
""",
    "normalize": """
/* Zero mean and unit variance of each group of values. */
static void PREFIX_normalize(const REAL *x, REAL *y, int groups, int size, REAL epsilon)
{
  for (int g = 0; g < groups; g++, x += size, y += size) {
    REAL mean = 0, square = 0;
    for (int i = 0; i < size; i++) {
      mean += x[i];
    }
    mean /= (REAL)size;
    for (int i = 0; i < size; i++) {
      square += (x[i] - mean) * (x[i] - mean);
    }
    const REAL scale = 1 / SQRT(square / (REAL)size + epsilon);
    for (int i = 0; i < size; i++) {
      y[i] = (x[i] - mean) * scale;
    }
  }
}
""",
}


def fixed_names() -> set[str]:
    """Return the names, without the prefix, of all functions that a library may have."""
    return {*_FUNCTIONS, *NESTS, "eight", "active"}


def fixed_part(used: Iterable[str], prefix: str, real: str) -> str:
    """Return the functions that a library uses.

    Args:
        used: Names of functions, and of scalar operations.
        prefix: What the names of functions start with.
        real: ``float`` or ``double``.
    """
    wanted = set(used)
    wanted |= {_CALLS[name] for name in wanted & _CALLS.keys()}
    scalars = [helper_text(op, real) for op in Op if op.value in wanted]
    types = Types(real, real, real)
    nests = [types.fill(name, prefix) for name in NESTS if name in wanted]
    suffix = "f" if real == "float" else ""
    texts = []
    for name, text in _FUNCTIONS.items():
        if name in wanted:
            for word in ("EXP", "LOG", "SQRT"):
                text = text.replace(f"{word}(", f"{word.lower()}{suffix}(")
            texts.append(text.replace("PREFIX", prefix).replace("REAL", real))
    return "".join([*scalars, nests_before(wanted, prefix), *nests, *texts])
