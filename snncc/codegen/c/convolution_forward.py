"""The part of a convolution's C code that lists active inputs and adds up their weights."""

FORWARD = """
/* Weights [filters][channels][taps] to [block][channels][taps][ROW], padded with zeros. */
static void pack_weights(const arguments *a)
{
  const int64_t columns = a->channels * a->taps_y * a->taps_x;
  const int64_t blocks = (a->filters + ROW - 1) / ROW;
#pragma omp parallel for collapse(2) num_threads((int)a->threads)
  for (int64_t block = 0; block < blocks; block++) {
    for (int64_t j = 0; j < columns; j += STRIP) {
      const int64_t rows = smaller(ROW, a->filters - block * ROW);
      const int64_t strip = smaller(STRIP, columns - j);
      REAL *to = a->packed + (block * columns + j) * ROW;
      if (rows < ROW) {
        memset(to, 0, (size_t)(strip * ROW) * sizeof(REAL));
      }
      transpose(a->weight + block * ROW * columns + j, columns, to, ROW, rows, strip);
    }
  }
}

/* List the active inputs of some images pixel by pixel; starts[p] is the first one of pixel p. */
static void list_active(const arguments *a, const REAL *input, int64_t images, entry *entries,
                        int32_t *starts, int32_t *columns)
{
  const int64_t pixels = a->height * a->width, taps = a->taps_y * a->taps_x;
  int32_t *counts = starts + 1;
  /* The column of the pixel is part of an entry: it tells which tap reads it. */
  for (int64_t p = 0; p < pixels; p++) {
    columns[p] = (int32_t)(p % a->width);
  }
  memset(starts, 0, (size_t)(images * pixels + 1) * sizeof(int32_t));
  for (int64_t m = 0; m < images; m++) {
    for (int64_t c = 0; c < a->channels; c++) {
      const REAL *plane = input + (m * a->channels + c) * pixels;
      for (int64_t p = 0; p < pixels; p++) {
        counts[m * pixels + p] += plane[p] != 0;
      }
    }
  }
  /* counts[p] becomes the start of pixel p, and filling moves it to the start of p + 1. */
  int32_t total = 0;
  for (int64_t p = 0; p < images * pixels; p++) {
    int32_t count = counts[p];
    counts[p] = total;
    total += count;
  }
  for (int64_t m = 0; m < images; m++) {
    int32_t *next = counts + m * pixels;
    for (int64_t c = 0; c < a->channels; c++) {
      const REAL *plane = input + (m * a->channels + c) * pixels;
      const int32_t row = (int32_t)(c * taps);
      int64_t p = 0;
      for (; p + LANES <= pixels; p += LANES) {
        for (unsigned bits = active(plane + p); bits; bits &= bits - 1) {
          const int64_t q = p + __builtin_ctz(bits);
          entries[next[q]++] = (entry){(row + columns[q]) * ROW, plane[q]};
        }
      }
      for (; p < pixels; p++) {
        if (plane[p] != 0) {
          entries[next[p]++] = (entry){(row + columns[p]) * ROW, plane[p]};
        }
      }
    }
  }
}

/* Add what taps first_y to last_y give to the output pixels of some images. */
static void accumulate(const arguments *a, const REAL *packed, int64_t images,
                       const entry *entries, const int32_t *starts, REAL *sums, int64_t first_y,
                       int64_t last_y)
{
  REAL *sum = sums;
  for (int64_t m = 0; m < images; m++) {
    for (int64_t oy = 0; oy < a->out_height; oy++) {
      const int64_t y0 = oy * a->stride_y - a->pad_y;
      for (int64_t ox = 0; ox < a->out_width; ox++, sum += ROW) {
        const int64_t x0 = ox * a->stride_x - a->pad_x;
        const int64_t left = larger(x0, 0), right = smaller(x0 + a->taps_x, a->width);
        vector s[VECTORS];
        for (int v = 0; v < VECTORS; v++) {
          s[v] = first_y ? load(sum + v * LANES) : (vector){0};
        }
        for (int64_t ty = first_y; left < right && ty < last_y; ty++) {
          const int64_t y = y0 + ty;
          if (y < 0 || y >= a->height) {
            continue;
          }
          const int32_t *start = starts + (m * a->height + y) * a->width;
          const int64_t shift = (ty * a->taps_x - x0) * ROW;
          const entry *end = entries + start[right];
          for (const entry *e = entries + start[left]; e < end; e++) {
            for (int v = 0; v < VECTORS; v++) {
              s[v] += load(packed + (shift + e->row) + v * LANES) * e->value;
            }
          }
        }
        for (int v = 0; v < VECTORS; v++) {
          store(sum + v * LANES, s[v]);
        }
      }
    }
  }
}

/* Weights of some rows of taps stay in a second-level cache while all pixels read them. */
#define CACHED_BYTES (448 * 1024)

void convolve_active(const arguments *a)
{
  const int64_t pixels = a->height * a->width, outputs = a->out_height * a->out_width;
  const int64_t taps = a->taps_y * a->taps_x;
  const int64_t line = a->channels * a->taps_x * ROW * (int64_t)sizeof(REAL);
  const int64_t lines = larger(1, smaller(a->taps_y, CACHED_BYTES / line));
  pack_weights(a);
#pragma omp parallel for schedule(dynamic) num_threads((int)a->threads)
  for (int64_t first = 0; first < a->images; first += a->group) {
    const int64_t images = smaller(a->group, a->images - first);
    REAL *sums = (REAL *)(void *)(a->scratch + thread() * a->thread_bytes);
    entry *entries = (entry *)(void *)(sums + a->group * outputs * ROW);
    int32_t *starts = (int32_t *)(void *)(entries + a->group * pixels * a->channels);
    int32_t *columns = starts + a->group * pixels + 1;
    list_active(a, a->input + first * a->channels * pixels, images, entries, starts, columns);
    for (int64_t k = 0; k < a->filters; k += ROW) {
      const REAL *packed = a->packed + k * a->channels * taps;
      for (int64_t ty = 0; ty < a->taps_y; ty += lines) {
        accumulate(a, packed, images, entries, starts, sums, ty, smaller(a->taps_y, ty + lines));
      }
      for (int64_t m = 0; m < images; m++) {
        REAL *to = a->output + ((first + m) * a->filters + k) * outputs;
        transpose(sums + m * outputs * ROW, ROW, to, outputs, outputs,
                  smaller(ROW, a->filters - k));
      }
    }
  }
}
"""
