"""C code of gradients of 3 x 3 convolutions by Winograd's method.

Four outputs of a filter of three taps are a product of two polynomials, and six of their values
say which: with g three taps, d six inputs, and fixed matrices A, B and G,

    y = A^T ((G g) * (B^T d))

takes 6 products in place of 12, in two directions 36 in place of 144.  The values are taken at
0, sqrt(1/2), -sqrt(1/2), sqrt(2), -sqrt(2) and infinity, where roundings grow least.

The gradient of the input is such a convolution of the cotangent, with turned filters.  Tiles of the
cotangent are transformed first, for all channels; then each thread transforms filters of some
channels, multiplies value by value, and transforms the sums.

Numerics: equal over the reals.  A rounding is relative to the largest value of a tile rather than
to the terms of a sum, and one value that is not finite spoils its tile: the kernel says so.
"""

from __future__ import annotations

from snncc.codegen.base import FloatType, KernelSource, Signature
from snncc.codegen.c.vectors import FLAGS, vectors

# The fields of the argument structure, in order; the runtime packs them.
SIZES = (
    "images", "channels", "height", "width", "filters", "out_height", "out_width", "pad_y",
    "pad_x", "threads", "bands", "parts", "thread_bytes",
)  # fmt: skip
ARRAYS = ("cotangent", "weight", "input", "values", "scratch", "unfit")
# Tiles and channels that a thread multiplies at a time, and filters whose transforms it keeps.
TILES, VECTORS, KEPT = 8, 2, 64


def emit_winograd(dtype: FloatType) -> KernelSource:
    """Write the kernel of the gradient of the input as one translation unit.

    Its argument structure holds `SIZES`, then the addresses of `ARRAYS`.
    """
    head = _HEAD.format(
        fields="\n".join(f"  int64_t {field};" for field in SIZES),
        tiles=TILES,
        vectors=VECTORS,
        kept=KEPT,
    )
    text = vectors(dtype) + head + _TRANSFORMS + _INPUT
    return KernelSource("winograd_input", "c", text, text, Signature(dtype, ()), FLAGS)


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
  const REAL *weight;
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
"""

_INPUT = """
/* The tiles of a call, and where things lie: tiles of one row of an image are a band. */
typedef struct {
  int64_t across, down, inner, plane;
} layout;

/* Transform one band of LANES filters: values[36][tile][inner]. */
static void transform_band(const arguments *a, layout l, int64_t band, int64_t k, REAL *lines,
                           REAL *to)
{
  const int64_t length = 4 * l.across + 2, pixels = a->out_height * a->out_width;
  const int64_t left = larger(0, 2 - a->pad_x);
  const int64_t right = smaller(length, a->out_width + 2 - a->pad_x);
  const REAL *planes = a->cotangent + (band / l.down * a->filters + k) * pixels;
  memset(lines, 0, (size_t)(6 * length * LANES) * sizeof(REAL));
  for (int64_t i = 0; i < 6 && left < right; i++) {
    const int64_t y = band % l.down * 4 + a->pad_y - 2 + i;
    if (y >= 0 && y < a->out_height) {
      transpose(planes + y * a->out_width + left + a->pad_x - 2, pixels,
                lines + (i * length + left) * LANES, LANES, smaller(LANES, a->filters - k),
                right - left);
    }
  }
  for (int64_t tile = 0; tile < l.across; tile++) {
    vector d[6], half[36], value[6];
    for (int j = 0; j < 6; j++) {
      for (int i = 0; i < 6; i++) {
        d[i] = load(lines + (i * length + 4 * tile + j) * LANES);
      }
      values_of_signal(d, 1, half + 6 * j);
    }
    for (int i = 0; i < 6; i++) {
      values_of_signal(half + i, 6, value);
      for (int j = 0; j < 6; j++) {
        store(to + (6 * i + j) * l.plane + tile * l.inner + k, value[j]);
      }
    }
  }
}

/* Distances that are no power of two, so that planes do not share the places of a cache. */
#define FILTER_PLANE (KEPT * ROW + LANES)

/* Transform the turned taps of some filters for a row of channels: to[36][filter][ROW]. */
static void transform_filters(const arguments *a, int64_t c, int64_t k, int64_t filters, REAL *to)
{
  const REAL *end = a->weight + a->filters * a->channels * 9;
  for (int64_t n = 0; n < filters * VECTORS; n++) {
    const int64_t channel = c + n % VECTORS * LANES;
    const REAL *from = a->weight + ((k + n / VECTORS) * a->channels + channel) * 9;
    const int64_t channels = larger(0, smaller(LANES, a->channels - channel));
    REAL taps[16 * LANES];
    vector g[3], half[18], value[6];
    if (LANES == 16 && channels == LANES && from + 9 * (LANES - 1) + 16 <= end) {
      transpose_square(from, 9, taps, LANES); /* seven of sixteen rows are not used */
    } else {
      memset(taps, 0, sizeof taps);
      transpose(from, 9, taps, LANES, channels, 9);
    }
    for (int j = 0; j < 3; j++) {
      for (int i = 0; i < 3; i++) {
        g[i] = load(taps + (8 - 3 * i - j) * LANES);
      }
      values_of_filter(g, 1, half + 6 * j);
    }
    for (int i = 0; i < 6; i++) {
      values_of_filter(half + i, 6, value);
      for (int j = 0; j < 6; j++) {
        store(to + (6 * i + j) * FILTER_PLANE + n * LANES, value[j]);
      }
    }
  }
}

/* Multiply TILES rows of values with some filters, and add the sums to what is there. */
static inline void multiply(const REAL *values, int64_t inner, const REAL *filters, int64_t count,
                            REAL *sums, int is_first)
{
  vector s[TILES][VECTORS] = {0};
  for (int64_t k = 0; k < count; k++) {
    for (int t = 0; t < TILES; t++) {
      for (int v = 0; v < VECTORS; v++) {
        s[t][v] += load(filters + k * ROW + v * LANES) * values[t * inner + k];
      }
    }
  }
  for (int t = 0; t < TILES; t++) {
    for (int v = 0; v < VECTORS; v++) {
      REAL *to = sums + t * ROW + v * LANES;
      store(to, is_first ? s[t][v] : load(to) + s[t][v]);
    }
  }
}

/* Transform the sums of one band back, and write them; zero if all are finite. */
static vector write_band(const arguments *a, layout l, const REAL *sums, int64_t plane,
                         int64_t band, int64_t c, REAL *lines)
{
  const int64_t pixels = a->height * a->width, y = band % l.down * 4;
  vector check = {0};
  for (int64_t v = 0; v < VECTORS && c + v * LANES < a->channels; v++) {
    const int64_t channel = c + v * LANES;
    for (int64_t tile = 0; tile < l.across; tile++) {
      vector m[6], half[24], out[4];
      for (int j = 0; j < 6; j++) {
        for (int i = 0; i < 6; i++) {
          m[i] = load(sums + (6 * i + j) * plane + tile * ROW + v * LANES);
        }
        outputs_of(m, 1, half + 4 * j);
      }
      for (int i = 0; i < 4; i++) {
        outputs_of(half + i, 4, out);
        for (int j = 0; j < 4; j++) {
          check += out[j] * 0;
          store(lines + ((i * l.across + tile) * 4 + j) * LANES, out[j]);
        }
      }
    }
    for (int64_t i = 0; i < smaller(4, a->height - y); i++) {
      transpose(lines + i * l.across * 4 * LANES, LANES,
                a->input + (band / l.down * a->channels + channel) * pixels + (y + i) * a->width,
                pixels, a->width, smaller(LANES, a->channels - channel));
    }
  }
  return check;
}

/* Compute a row of channels of the bands first + begin to first + end. */
static int is_unfit(const arguments *a, layout l, int64_t first, int64_t begin, int64_t end,
                    int64_t c, REAL *lines)
{
  const int64_t tiles = (end - begin) * l.across;
  const int64_t plane = (tiles + TILES) * ROW + LANES;
  REAL *filters = lines + 6 * (4 * l.across + 2) * LANES, *sums = filters + 36 * FILTER_PLANE;
  vector check = {0};
  for (int64_t k = 0; k < a->filters; k += KEPT) {
    const int64_t count = smaller(KEPT, a->filters - k);
    transform_filters(a, c, k, count, filters);
    for (int64_t n = 0; n < 36; n++) {
      const REAL *values = a->values + n * l.plane + begin * l.across * l.inner + k;
      for (int64_t tile = 0; tile < tiles; tile += TILES) {
        multiply(values + tile * l.inner, l.inner, filters + n * FILTER_PLANE, count,
                 sums + n * plane + tile * ROW, k == 0);
      }
    }
  }
  for (int64_t band = begin; band < end; band++) {
    check += write_band(a, l, sums + (band - begin) * l.across * ROW, plane, first + band, c,
                        lines);
  }
  for (int i = 0; i < LANES; i++) {
    if (!(check[i] == 0)) {
      return 1;
    }
  }
  return 0;
}

void winograd_input(const arguments *a)
{
  layout l;
  l.across = (a->width + 3) / 4;
  l.down = (a->height + 3) / 4;
  l.inner = (a->filters + LANES - 1) / LANES * LANES;
  l.plane = (a->bands * l.across + TILES) * l.inner + LANES;
  const int64_t bands = a->images * l.down;
  int64_t unfit = 0;
#pragma omp parallel num_threads((int)a->threads) reduction(| : unfit)
  {
    REAL *lines = (REAL *)(void *)(a->scratch + thread() * a->thread_bytes);
    for (int64_t first = 0; first < bands; first += a->bands) {
      const int64_t count = smaller(a->bands, bands - first);
#pragma omp for collapse(2) schedule(static)
      for (int64_t band = 0; band < count; band++) {
        for (int64_t k = 0; k < l.inner; k += LANES) {
          transform_band(a, l, first + band, k, lines, a->values + band * l.across * l.inner);
        }
      }
#pragma omp for collapse(2) schedule(static)
      for (int64_t c = 0; c < a->channels; c += ROW) {
        for (int64_t part = 0; part < a->parts; part++) {
          unfit |= is_unfit(a, l, first, count * part / a->parts, count * (part + 1) / a->parts, c,
                            lines);
        }
      }
    }
  }
  *a->unfit = unfit;
}
"""
