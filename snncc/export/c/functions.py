"""The fixed part of an exported C library: functions on arrays; a library gets those it uses.

Sums are taken in one order, one rounding after another, so that every compiler and every level of
optimisation gives the same bits.  Inputs that are zero are skipped: where neurons are silent, their
row of the weights is not read.
"""

from __future__ import annotations

from collections.abc import Iterable

from snncc.codegen.c.preamble import helper_text
from snncc.ir.nodes import Op

_FUNCTIONS = {
    "linear": """
/* Add eight rows of w to y, one after another: y is read and written once for all of them. */
static void PREFIX_eight(const REAL *x, const REAL *w, REAL *restrict y, int out, const int *active)
{
  const size_t stride = (size_t)out;
  const REAL *restrict r0 = w + (size_t)active[0] * stride;
  const REAL *restrict r1 = w + (size_t)active[1] * stride;
  const REAL *restrict r2 = w + (size_t)active[2] * stride;
  const REAL *restrict r3 = w + (size_t)active[3] * stride;
  const REAL *restrict r4 = w + (size_t)active[4] * stride;
  const REAL *restrict r5 = w + (size_t)active[5] * stride;
  const REAL *restrict r6 = w + (size_t)active[6] * stride;
  const REAL *restrict r7 = w + (size_t)active[7] * stride;
  const REAL v0 = x[active[0]], v1 = x[active[1]], v2 = x[active[2]], v3 = x[active[3]];
  const REAL v4 = x[active[4]], v5 = x[active[5]], v6 = x[active[6]], v7 = x[active[7]];
  for (int o = 0; o < out; o++) {
    REAL sum = y[o];
    sum += v0 * r0[o];
    sum += v1 * r1[o];
    sum += v2 * r2[o];
    sum += v3 * r3[o];
    sum += v4 * r4[o];
    sum += v5 * r5[o];
    sum += v6 * r6[o];
    sum += v7 * r7[o];
    y[o] = sum;
  }
}

/* y = x w + bias for rows of x; w is [in, out].  The rows of w at which x is zero are not read. */
static void PREFIX_linear(const REAL *x, const REAL *w, const REAL *bias, REAL *y,
                          int rows, int in, int out, int *active)
{
  for (int r = 0; r < rows; r++, x += in, y += out) {
    int count = 0;
    for (int i = 0; i < in; i++) {
      if (x[i] != 0) {
        active[count++] = i;
      }
    }
    for (int o = 0; o < out; o++) {
      y[o] = bias ? bias[o] : 0;
    }
    int k = 0;
    for (; k + 8 <= count; k += 8) {
      PREFIX_eight(x, w, y, out, active + k);
    }
    for (; k < count; k++) {
      const REAL value = x[active[k]];
      const REAL *restrict row = w + (size_t)active[k] * (size_t)out;
      for (int o = 0; o < out; o++) {
        y[o] += value * row[o];
      }
    }
  }
}
""",
    "convolution": """
/* A convolution that spreads each input that is not zero over the outputs it reaches.
   n: batch, channels, height, width, out channels, out height, out width, kernel height and width,
   stride, padding and dilation of both, groups.  w is [channels, kernel, out channels / groups];
   sums holds one image of outputs, channels last. */
static void PREFIX_convolution(const REAL *x, const REAL *w, const REAL *bias, REAL *y,
                               const int *n, REAL *sums)
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
          const REAL value = *x++;
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
              REAL *restrict sum = sums + place * outs + c / shared * each;
              const REAL *restrict row = w + ((c * kernel_height + ky) * kernel_width + kx) * each;
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
        *y++ = sums[p * outs + o];
      }
    }
  }
}
""",
    "max_pool": """
/* The maximum of each window; NaN if there is one.
   n: planes, height, width, out height, out width, then first and end of each window's rows, and
   of its columns. */
static void PREFIX_max_pool(const REAL *x, REAL *y, const int *n)
{
  const int *rows = n + 5, *columns = rows + 2 * n[3];
  for (int plane = 0; plane < n[0]; plane++, x += n[1] * n[2]) {
    for (int oy = 0; oy < n[3]; oy++) {
      for (int ox = 0; ox < n[4]; ox++) {
        REAL most = -INFINITY;
        for (int iy = rows[2 * oy]; iy < rows[2 * oy + 1]; iy++) {
          for (int ix = columns[2 * ox]; ix < columns[2 * ox + 1]; ix++) {
            const REAL value = x[iy * n[2] + ix];
            most = value > most || value != value ? value : most;
          }
        }
        *y++ = most;
      }
    }
  }
}
""",
    "mean_pool": """
/* The sum of each window over its divisor.
   n: as for the maximum, then the divisor of each output of a plane. */
static void PREFIX_mean_pool(const REAL *x, REAL *y, const int *n)
{
  const int *rows = n + 5, *columns = rows + 2 * n[3], *divisors = columns + 2 * n[4];
  for (int plane = 0; plane < n[0]; plane++, x += n[1] * n[2]) {
    for (int oy = 0; oy < n[3]; oy++) {
      for (int ox = 0; ox < n[4]; ox++) {
        REAL sum = 0;
        for (int iy = rows[2 * oy]; iy < rows[2 * oy + 1]; iy++) {
          for (int ix = columns[2 * ox]; ix < columns[2 * ox + 1]; ix++) {
            sum += x[iy * n[2] + ix];
          }
        }
        *y++ = sum / (REAL)divisors[oy * n[4] + ox];
      }
    }
  }
}
""",
    "matmul": """
/* y = a b for one pair of matrices.  n: rows, inner size, columns, strides of a, strides of b. */
static void PREFIX_matmul(const REAL *a, const REAL *b, REAL *y, const int *n)
{
  for (int i = 0; i < n[0]; i++, y += n[2]) {
    memset(y, 0, (size_t)n[2] * sizeof(REAL));
    for (int k = 0; k < n[1]; k++) {
      const REAL value = a[i * n[3] + k * n[4]];
      if (value != 0) {
        for (int j = 0; j < n[2]; j++) {
          y[j] += value * b[k * n[5] + j * n[6]];
        }
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


def fixed_part(used: Iterable[str], prefix: str, real: str) -> str:
    """Return the functions that a library uses.

    Args:
        used: Names of functions, and of scalar operations.
        prefix: What the names of functions start with.
        real: ``float`` or ``double``.
    """
    wanted = set(used)
    scalars = [helper_text(op, real) for op in Op if op.value in wanted]
    suffix = "f" if real == "float" else ""
    texts = []
    for name, text in _FUNCTIONS.items():
        if name in wanted:
            for word in ("EXP", "LOG", "SQRT"):
                text = text.replace(f"{word}(", f"{word.lower()}{suffix}(")
            texts.append(text.replace("PREFIX", prefix).replace("REAL", real))
    return "".join([*scalars, *texts])
