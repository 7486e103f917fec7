"""The loop nests of layers in C, written once for floats and for whole numbers.

A nest works on numbers of any types: `Types` fills them in.  Products add into sums, in order of
the inputs, one rounding after another where there is any, so that every compiler and every level
of optimisation gives the same bits; what sums start from and what becomes of them is up to who
calls.  Inputs that are zero are skipped: where neurons are silent, weights are not read.
"""

from __future__ import annotations

from dataclasses import dataclass

_TOGETHER = 8  # rows of weights that are added while a sum stays in a register
_EACH = range(_TOGETHER)


@dataclass(frozen=True)
class Types:
    """The C types of a nest, and its expressions where floats and whole numbers differ.

    Attributes:
        number: Of what it reads and writes.
        weight: Of a weight.
        sum: Of a sum.
        ending: What its name ends in.
        partial: For inputs that are one or zero the type that the sum of eight weights fits; or
            nothing: inputs are factors.
        least: What no number is below.
        beats: When ``value`` is the maximum of itself and ``most``.
        mean: What a mean is, of ``sum`` and ``divisor``.
        settings: Further parameters of a mean, each after a comma.
    """

    number: str
    weight: str
    sum: str
    ending: str = ""
    partial: str = ""
    least: str = "-INFINITY"
    beats: str = "value > most || value != value"
    mean: str = "sum / (NUMBER)divisor"
    settings: str = ""

    def fill(self, name: str, prefix: str) -> str:
        """Return the text of a nest.

        Args:
            name: The nest.
            prefix: What names of functions start with.
        """
        words = {
            "ADDITION": _SPIKES if self.partial else _FACTORS,
            "VALUE": "" if self.partial else "const SUM value = x[active[k]];\n    ",
            "TERM": "row[o]" if self.partial else "value * row[o]",
            "ROWS": "\n".join(f"  const WEIGHT *restrict r{k} = w + {_row(k)};" for k in _EACH),
            "PARTIAL": self.partial,
            "BEATS": self.beats,
            "LEAST": self.least,
            "MEAN": self.mean,
            "SETTINGS": self.settings,
            "PREFIX": prefix,
            "NUMBER": self.number,
            "WEIGHT": self.weight,
            "SUM": self.sum,
            "ENDING": self.ending,
        }
        text = NESTS[name]
        for word, value in words.items():
            text = text.replace(word, value)
        return text


def _row(k: int) -> str:
    return f"(size_t)active[{k}] * (size_t)out"


_FACTORS = "\n".join(
    [
        *(f"  const SUM v{k} = x[active[{k}]];" for k in _EACH),
        "  for (int o = 0; o < out; o++) {",
        "    SUM sum = sums[o];",
        *(f"    sum += v{k} * r{k}[o];" for k in _EACH),
        "    sums[o] = sum;",
        "  }",
    ]
)
_SPIKES = "\n".join(
    [
        "  (void)x;",
        "  for (int o = 0; o < out; o++) {",
        "    PARTIAL sum = r0[o];",
        *(f"    sum = (PARTIAL)(sum + r{k}[o]);" for k in _EACH[1:]),
        "    sums[o] += sum;",
        "  }",
    ]
)

NESTS = {
    "rows": """
/* Add eight rows of w to sums, which are read and written once for all of them. */
static void PREFIX_eightENDING(const NUMBER *x, const WEIGHT *w, SUM *restrict sums, int out,
                               const int *active)
{
ROWS
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
""",
    "spread": """
/* Add a convolution of one image, each input that is not zero spread over the outputs it reaches.
   n: batch, channels, height, width, out channels, out height, out width, kernel height and width,
   stride, padding and dilation of both, groups.  w is [channels, kernel, out channels / groups];
   sums are channels last. */
static void PREFIX_spreadENDING(const NUMBER *x, const WEIGHT *w, SUM *restrict sums, const int *n)
{
  const int channels = n[1], height = n[2], width = n[3], outs = n[4];
  const int out_height = n[5], out_width = n[6], kernel_height = n[7], kernel_width = n[8];
  const int each = outs / n[15], shared = channels / n[15];
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
            const WEIGHT *restrict row = w + ((c * kernel_height + ky) * kernel_width + kx) * each;
            for (int o = 0; o < each; o++) {
              sum[o] += TERM;
            }
          }
        }
      }
    }
  }
}
""",
    "max_pool": """
/* The maximum of each window; NaN if there is one.
   n: planes, height, width, out height, out width, then first and end of each window's rows, and
   of its columns. */
static void PREFIX_max_pool(const NUMBER *x, NUMBER *y, const int *n)
{
  const int *rows = n + 5, *columns = rows + 2 * n[3];
  for (int plane = 0; plane < n[0]; plane++, x += n[1] * n[2]) {
    for (int oy = 0; oy < n[3]; oy++) {
      for (int ox = 0; ox < n[4]; ox++) {
        NUMBER most = LEAST;
        for (int iy = rows[2 * oy]; iy < rows[2 * oy + 1]; iy++) {
          for (int ix = columns[2 * ox]; ix < columns[2 * ox + 1]; ix++) {
            const NUMBER value = x[iy * n[2] + ix];
            most = BEATS ? value : most;
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
static void PREFIX_mean_poolENDING(const NUMBER *x, NUMBER *y, const int *nSETTINGS)
{
  const int *rows = n + 5, *columns = rows + 2 * n[3], *divisors = columns + 2 * n[4];
  for (int plane = 0; plane < n[0]; plane++, x += n[1] * n[2]) {
    for (int oy = 0; oy < n[3]; oy++) {
      for (int ox = 0; ox < n[4]; ox++) {
        const int divisor = divisors[oy * n[4] + ox];
        SUM sum = 0;
        for (int iy = rows[2 * oy]; iy < rows[2 * oy + 1]; iy++) {
          for (int ix = columns[2 * ox]; ix < columns[2 * ox + 1]; ix++) {
            sum += x[iy * n[2] + ix];
          }
        }
        *y++ = MEAN;
      }
    }
  }
}
""",
    "matmul": """
/* y += a b for one pair of matrices.  n: rows, inner size, columns, strides of a, strides of b. */
static void PREFIX_matmulENDING(const NUMBER *a, const NUMBER *b, SUM *restrict y, const int *n)
{
  for (int i = 0; i < n[0]; i++, y += n[2]) {
    for (int k = 0; k < n[1]; k++) {
      const SUM value = a[i * n[3] + k * n[4]];
      if (value != 0) {
        for (int j = 0; j < n[2]; j++) {
          y[j] += value * b[k * n[5] + j * n[6]];
        }
      }
    }
  }
}
""",
}
