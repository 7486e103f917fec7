"""C code of gradients of 3 x 3 convolutions by Winograd's method.

Four outputs of a filter of three taps are a product of two polynomials, and six of their values
say which: with g three taps, d six inputs, and fixed matrices A, B and G,

    y = A^T ((G g) * (B^T d))

takes 6 products in place of 12, in two directions 36 in place of 144.  The values are taken at
0, sqrt(1/2), -sqrt(1/2), sqrt(2), -sqrt(2) and infinity, where roundings grow least.

The gradient of the input is such a convolution of the cotangent, with turned filters.  Tiles of the
cotangent are transformed first, for all channels; then each thread transforms filters of some
channels, multiplies value by value, and transforms the sums.  The gradient of the filters is what
the chain rule makes of the equation: tiles of input and cotangent are transformed, and multiplied
value by value,

    dg = G^T (sum over tiles of (B^T d) * (A dy))

Numerics: equal over the reals.  A rounding is relative to the largest value of a tile rather than
to the terms of a sum, and one value that is not finite spoils its tile: the kernel says so.
"""

from __future__ import annotations

from snncc.codegen.base import FloatType, KernelSource, Signature
from snncc.codegen.c.vectors import FLAGS, vectors
from snncc.codegen.c.winograd_input import INPUT
from snncc.codegen.c.winograd_weight import WEIGHT

# The fields of the argument structure, in order; the runtime packs them.
SIZES = (
    "images", "channels", "height", "width", "filters", "out_height", "out_width", "pad_y",
    "pad_x", "threads", "bands", "parts", "thread_bytes",
)  # fmt: skip
ARRAYS = ("cotangent", "weight", "input", "values", "scratch", "unfit")
# Tiles and channels that a thread multiplies at a time, and filters whose transforms it keeps.
TILES, VECTORS, KEPT = 8, 2, 64


def emit_winograd(dtype: FloatType, of: str) -> KernelSource:
    """Write the kernel of the gradient of the "input" or of the "weight" as one translation unit.

    Its argument structure holds `SIZES`, then the addresses of `ARRAYS`.
    """
    head = _HEAD.format(
        fields="\n".join(f"  int64_t {field};" for field in SIZES),
        tiles=TILES,
        vectors=VECTORS,
        kept=KEPT,
    )
    text = vectors(dtype) + head + _TRANSFORMS + (INPUT if of == "input" else WEIGHT)
    return KernelSource(f"winograd_{of}", "c", text, text, Signature(dtype, ()), FLAGS)


_HEAD = """
/* Tiles of which registers hold sums, and vectors of channels. */
#define TILES {tiles}
#define VECTORS {vectors}
#define ROW (VECTORS * LANES)
/* Filters whose transforms stay in a second-level cache. */
#define KEPT {kept}

typedef struct {{
{fields}
  const REAL *cotangent;
  REAL *weight;
  REAL *input;
  REAL *values;
  char *scratch;
  int64_t *unfit;
}} arguments;
"""

_TRANSFORMS = """
/* The points at which polynomials are evaluated, besides 0 and infinity. */
#define P ((REAL)0.70710678118654752440)
#define Q ((REAL)1.41421356237309504880)

/* B^T d of six values that are `step` apart. */
static inline void values_of_signal(const vector *d, int step, vector *to)
{
  const vector even_p = d[4 * step] - d[2 * step] * 2, odd_p = (d[3 * step] - d[step] * 2) * P;
  const vector even_q = d[4 * step] - d[2 * step] / 2, odd_q = (d[3 * step] - d[step] / 2) * Q;
  to[0] = d[0] - d[2 * step] * (REAL)2.5 + d[4 * step];
  to[1] = even_p + odd_p;
  to[2] = even_p - odd_p;
  to[3] = even_q + odd_q;
  to[4] = even_q - odd_q;
  to[5] = d[step] - d[3 * step] * (REAL)2.5 + d[5 * step];
}

/* G g of three taps that are `step` apart. */
static inline void values_of_filter(const vector *g, int step, vector *to)
{
  const vector even_p = (g[0] * 2 + g[2 * step]) * (REAL)(-1. / 3);
  const vector even_q = (g[0] + g[2 * step] * 2) * (REAL)(1. / 6);
  const vector odd_p = g[step] * (REAL)(-2. / 3) * P, odd_q = g[step] * (REAL)(1. / 6) * Q;
  to[0] = g[0];
  to[1] = even_p + odd_p;
  to[2] = even_p - odd_p;
  to[3] = even_q + odd_q;
  to[4] = even_q - odd_q;
  to[5] = g[2 * step];
}

/* A^T m: four outputs from six products that are `step` apart. */
static inline void outputs_of(const vector *m, int step, vector *to)
{
  const vector even_p = m[step] + m[2 * step], odd_p = (m[step] - m[2 * step]) * P;
  const vector even_q = m[3 * step] + m[4 * step], odd_q = (m[3 * step] - m[4 * step]) * Q;
  to[0] = m[0] + even_p + even_q;
  to[1] = odd_p + odd_q;
  to[2] = even_p / 2 + even_q * 2;
  to[3] = odd_p / 2 + odd_q * 2 + m[5 * step];
}

/* A y of four outputs that are `step` apart. */
static inline void values_of_outputs(const vector *y, int step, vector *to)
{
  const vector even_p = y[0] + y[2 * step] / 2, odd_p = (y[step] + y[3 * step] / 2) * P;
  const vector even_q = y[0] + y[2 * step] * 2, odd_q = (y[step] + y[3 * step] * 2) * Q;
  to[0] = y[0];
  to[1] = even_p + odd_p;
  to[2] = even_p - odd_p;
  to[3] = even_q + odd_q;
  to[4] = even_q - odd_q;
  to[5] = y[3 * step];
}

/* G^T p: three taps from six sums that are `step` apart. */
static inline void taps_of(const vector *p, int step, vector *to)
{
  const vector even_p = (p[step] + p[2 * step]) * (REAL)(1. / 3);
  const vector even_q = (p[3 * step] + p[4 * step]) * (REAL)(1. / 6);
  to[0] = p[0] - even_p * 2 + even_q;
  to[1] = (p[step] - p[2 * step]) * (REAL)(-2. / 3) * P +
          (p[3 * step] - p[4 * step]) * (REAL)(1. / 6) * Q;
  to[2] = even_q * 2 - even_p + p[5 * step];
}

/* Images [images][channels][height][width] with zeros around them, from row -up, column -left. */
typedef struct {
  const REAL *images;
  int64_t channels, height, width, up, left;
} signal;

/* Where transforms lie, [36][tiles][inner]: the tiles of one row of an image are a band. */
typedef struct {
  int64_t across, down, inner, plane;
} layout;

static layout layout_of(int64_t height, int64_t width, int64_t bands, int64_t channels)
{
  layout l;
  l.across = (width + 3) / 4;
  l.down = (height + 3) / 4;
  l.inner = (channels + LANES - 1) / LANES * LANES;
  /* Distances are no power of two, so that planes do not share the places of a cache. */
  l.plane = (bands * l.across + TILES) * l.inner + LANES;
  return l;
}

/* Some rows of LANES channels to [row][length][LANES]. */
static void read_lines(signal s, int64_t image, int64_t y, int64_t c, int64_t rows, int64_t length,
                       REAL *lines)
{
  const int64_t first = larger(0, s.left), last = smaller(length, s.width + s.left);
  const REAL *planes = s.images + (image * s.channels + c) * s.height * s.width;
  memset(lines, 0, (size_t)(rows * length * LANES) * sizeof(REAL));
  for (int64_t i = 0; i < rows && first < last; i++) {
    const int64_t row = y + i - s.up;
    if (row >= 0 && row < s.height) {
      transpose(planes + row * s.width + first - s.left, s.height * s.width,
                lines + (i * length + first) * LANES, LANES, smaller(LANES, s.channels - c),
                last - first);
    }
  }
}

/* Transform LANES channels of one band: tiles of `side` x `side`, 4 apart. */
static inline __attribute__((always_inline)) void transform_band(
  signal s, layout l, int64_t band, int64_t c, REAL *lines, REAL *to, int side)
{
  const int64_t length = 4 * l.across + side - 4;
  read_lines(s, band / l.down, band % l.down * 4, c, side, length, lines);
  for (int64_t tile = 0; tile < l.across; tile++) {
    vector d[6], half[36], value[6];
    for (int j = 0; j < side; j++) {
      for (int i = 0; i < side; i++) {
        d[i] = load(lines + (i * length + 4 * tile + j) * LANES);
      }
      if (side == 6) {
        values_of_signal(d, 1, half + 6 * j);
      } else {
        values_of_outputs(d, 1, half + 6 * j);
      }
    }
    for (int i = 0; i < 6; i++) {
      if (side == 6) {
        values_of_signal(half + i, 6, value);
      } else {
        values_of_outputs(half + i, 6, value);
      }
      for (int j = 0; j < 6; j++) {
        store(to + (6 * i + j) * l.plane + tile * l.inner + c, value[j]);
      }
    }
  }
}

static inline int is_zero(vector v)
{
  for (int i = 0; i < LANES; i++) {
    if (!(v[i] == 0)) {
      return 0;
    }
  }
  return 1;
}
"""
