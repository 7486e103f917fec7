"""The loop nests of layers in C, written once for floats and for whole numbers.

A nest works on numbers of any types: `Types` fills them in.  Products add into sums, in order of
the inputs, one rounding after another where there is any, so that every compiler and every level
of optimisation gives the same bits; what sums start from and what becomes of them is up to who
calls.  Inputs that are zero are skipped: where neurons are silent, weights are not read.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from snncc.export.c.rows import VECTORS, rows_text


@dataclass(frozen=True)
class Types:
    """The C types of a nest, and its expressions where floats and whole numbers differ.

    Attributes:
        number: Of what it reads and writes.
        weight: Of a weight.
        sum: Of a sum.
        ending: What its name ends in.
        partial: For inputs that are one or zero the type that the sum of 128 weights fits; or
            nothing: inputs are factors.
        vectors: Between which widths, in bytes, vectors are faster than what compilers make of C.
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
    vectors: tuple[int, int] = (16, 64)

    def fill(self, name: str, prefix: str) -> str:
        """Return the text of a nest.

        Args:
            name: The nest.
            prefix: What names of functions start with.
        """
        narrowest, widest = self.vectors
        words = {
            "TERM": "row[o]" if self.partial else "value * row[o]",
            "NARROWEST": str(narrowest),
            "WIDTH": f"(MACRO_VECTOR < {widest} ? MACRO_VECTOR : {widest})",
            "MACRO": prefix.upper(),
            "ADDEND": self.partial or "SUM",
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
        text = rows_text(of_spikes=bool(self.partial)) if name == "rows" else _TEXTS[name]
        for word, value in words.items():
            text = text.replace(word, value)
        return text


_TEXTS = {
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

# In the order in which a library has them.
NESTS = ("rows", *_TEXTS)


def nests_before(names: Iterable[str], prefix: str) -> str:
    """Return what stands before nests of these names."""
    return VECTORS.replace("MACRO", prefix.upper()) if "rows" in names else ""
