"""The part of the C code of Winograd's method that computes gradients of inputs."""

INPUT = """
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
  return !is_zero(check);
}

void winograd_input(const arguments *a)
{
  const layout l = layout_of(a->height, a->width, a->bands, a->filters);
  /* The taps are turned: where the convolution has padding, this one has what is left of it. */
  const signal cotangent = {a->cotangent, a->filters, a->out_height, a->out_width, 2 - a->pad_y,
                            2 - a->pad_x};
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
          transform_band(cotangent, l, first + band, k, lines,
                         a->values + band * l.across * l.inner, 6);
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
