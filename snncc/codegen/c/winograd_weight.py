"""The part of the C code of Winograd's method that computes gradients of filters."""

WEIGHT = """
/* Multiply the transforms of some tiles, TILES filters with ROW channels: sums[filter][ROW]. */
static inline void multiply(const REAL *outputs, int64_t filters, const REAL *values,
                            int64_t channels, int64_t tiles, REAL *sums, int is_first)
{
  vector s[TILES][VECTORS] = {0};
  for (int64_t tile = 0; tile < tiles; tile++) {
    for (int k = 0; k < TILES; k++) {
      for (int v = 0; v < VECTORS; v++) {
        s[k][v] += load(values + tile * channels + v * LANES) * outputs[tile * filters + k];
      }
    }
  }
  for (int k = 0; k < TILES; k++) {
    for (int v = 0; v < VECTORS; v++) {
      REAL *to = sums + k * ROW + v * LANES;
      store(to, is_first ? s[k][v] : load(to) + s[k][v]);
    }
  }
}

/* [9][LANES] to [channels][9]. */
static void write_taps(const REAL *taps, int64_t channels, REAL *to)
{
  if (LANES != 16 || channels < LANES) {
    transpose(taps, LANES, to, 9, 9, channels);
    return;
  }
  /* The last seven of sixteen values are overwritten by the next channel, or not written. */
  REAL turned[16 * LANES];
  transpose_square(taps, LANES, turned, LANES);
  for (int i = 0; i < LANES - 1; i++) {
    store(to + 9 * i, load(turned + i * LANES));
  }
  memcpy(to + 9 * (LANES - 1), turned + (LANES - 1) * LANES, 9 * sizeof(REAL));
}

/* Transform sums[36][TILES][ROW] back; zero if all are finite. */
static vector write_filters(const arguments *a, const REAL *sums, int64_t k, int64_t c)
{
  vector check = {0};
  for (int64_t n = 0; n < TILES && k + n < a->filters; n++) {
    for (int64_t v = 0; v < VECTORS && c + v * LANES < a->channels; v++) {
      const int64_t channel = c + v * LANES;
      REAL taps[16 * LANES] = {0};
      vector p[6], half[18], out[3];
      for (int j = 0; j < 6; j++) {
        for (int i = 0; i < 6; i++) {
          p[i] = load(sums + (6 * i + j) * TILES * ROW + n * ROW + v * LANES);
        }
        taps_of(p, 1, half + 3 * j);
      }
      for (int i = 0; i < 3; i++) {
        taps_of(half + i, 3, out);
        for (int j = 0; j < 3; j++) {
          check += out[j] * 0;
          store(taps + (3 * i + j) * LANES, out[j]);
        }
      }
      write_taps(taps, smaller(LANES, a->channels - channel),
                 a->weight + ((k + n) * a->channels + channel) * 9);
    }
  }
  return check;
}

void winograd_weight(const arguments *a)
{
  const layout x = layout_of(a->out_height, a->out_width, a->bands, a->channels);
  const layout y = layout_of(a->out_height, a->out_width, a->bands, a->filters);
  const signal input = {a->input, a->channels, a->height, a->width, a->pad_y, a->pad_x};
  const signal cotangent = {a->cotangent, a->filters, a->out_height, a->out_width, 0, 0};
  const int64_t bands = a->images * x.down, blocks = (a->channels + ROW - 1) / ROW;
  const int64_t rows = (a->filters + TILES - 1) / TILES, size = 36 * TILES * ROW;
  const int64_t is_whole = a->bands >= bands;
  REAL *outputs = a->values + 36 * x.plane, *sums = outputs + 36 * y.plane;
  int64_t unfit = 0;
#pragma omp parallel num_threads((int)a->threads) reduction(| : unfit)
  {
    REAL *lines = (REAL *)(void *)(a->scratch + thread() * a->thread_bytes);
    REAL *own = lines + 6 * (4 * x.across + 2) * LANES;
    for (int64_t first = 0; first < bands; first += a->bands) {
      const int64_t count = smaller(a->bands, bands - first);
#pragma omp for collapse(2) schedule(static) nowait
      for (int64_t band = 0; band < count; band++) {
        for (int64_t c = 0; c < x.inner; c += LANES) {
          transform_band(input, x, first + band, c, lines,
                         a->values + band * x.across * x.inner, 6);
        }
      }
#pragma omp for collapse(2) schedule(static)
      for (int64_t band = 0; band < count; band++) {
        for (int64_t k = 0; k < y.inner; k += LANES) {
          transform_band(cotangent, y, first + band, k, lines,
                         outputs + band * y.across * y.inner, 4);
        }
      }
#pragma omp for collapse(2) schedule(static)
      for (int64_t block = 0; block < blocks; block++) {
        for (int64_t k = 0; k < a->filters; k += TILES) {
          /* Sums of several rounds have a place of their own. */
          REAL *to = is_whole ? own : sums + (block * rows + k / TILES) * size;
          for (int64_t n = 0; n < 36; n++) {
            multiply(outputs + n * y.plane + k, y.inner, a->values + n * x.plane + block * ROW,
                     x.inner, count * x.across, to + n * TILES * ROW, first == 0);
          }
          if (first + count == bands) {
            unfit |= !is_zero(write_filters(a, to, k, block * ROW));
          }
        }
      }
    }
  }
  *a->unfit = unfit;
}
"""
