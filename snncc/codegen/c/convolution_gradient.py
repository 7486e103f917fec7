"""The part of a convolution's C code that adds up cotangents to the gradient of the weights."""

GRADIENT = """
/* Registers for this many rows at once. */
#ifdef __AVX512VL__
#define TOGETHER (VECTORS <= 8 ? 3 : 1)
#else
#define TOGETHER 1
#endif

/* Padded sizes of the cotangent: rows above and columns to the left that taps reach, and behind. */
typedef struct {
  int64_t above, left, height, width;
} border;

static border border_of(const arguments *a)
{
  border b;
  b.above = (a->taps_y - 1) / a->stride_y;
  b.left = (a->taps_x - 1) / a->stride_x;
  b.height = b.above + larger(a->out_height, (a->height - 1 + a->pad_y) / a->stride_y + 1);
  b.width = b.left + larger(a->out_width, (a->width - 1 + a->pad_x) / a->stride_x + 1);
  return b;
}

/* One row of a cotangent [filters][out] to [width][ROW], with the border. */
static void pack_row(const arguments *a, border b, const REAL *cotangent, int64_t filters,
                     int64_t y, REAL *to)
{
  const int64_t outputs = a->out_height * a->out_width, behind = b.left + a->out_width;
  const int64_t row = y - b.above;
  if (row < 0 || row >= a->out_height || filters < ROW) {
    memset(to, 0, (size_t)(b.width * ROW) * sizeof(REAL));
  }
  if (row >= 0 && row < a->out_height) {
    memset(to, 0, (size_t)(b.left * ROW) * sizeof(REAL));
    transpose(cotangent + row * a->out_width, outputs, to + b.left * ROW, ROW, filters,
              a->out_width);
    memset(to + behind * ROW, 0, (size_t)((b.width - behind) * ROW) * sizeof(REAL));
  }
}

/* Add rows of cotangents of `count` neighbouring taps. */
static inline __attribute__((always_inline)) void add_rows(const entry *e, const entry *end,
                                                           const REAL *rows, int64_t shift,
                                                           REAL *sums, int count)
{
  vector s[3][VECTORS];
  for (int t = 0; t < count; t++) {
    for (int v = 0; v < VECTORS; v++) {
      s[t][v] = load(sums + t * ROW + v * LANES);
    }
  }
  for (; e < end; e++) {
    const REAL *row = rows + (shift + e->row), value = e->value;
    for (int t = 0; t < count; t++) {
      for (int v = 0; v < VECTORS; v++) {
        s[t][v] += load(row - t * ROW + v * LANES) * value;
      }
    }
  }
  for (int t = 0; t < count; t++) {
    for (int v = 0; v < VECTORS; v++) {
      store(sums + t * ROW + v * LANES, s[t][v]);
    }
  }
}

/* List the active pixels of one channel by the taps that can read them. */
static void list_channel(const arguments *a, const REAL *input, int64_t images,
                         const int32_t *places_, const int32_t *kinds, int64_t step,
                         entry *const *lists, entry **ends)
{
  const int64_t pixels = a->height * a->width;
  for (int64_t k = 0; k < a->stride_y * a->stride_x; k++) {
    ends[k] = lists[k];
  }
  entry *only = lists[0];
  for (int64_t m = 0; m < images; m++) {
    const REAL *plane = input + m * a->channels * pixels;
    const int32_t base = (int32_t)(m * step);
    int64_t p = 0;
    for (; p + LANES <= pixels; p += LANES) {
      unsigned bits = active(plane + p);
      for (; bits && a->stride_y * a->stride_x == 1; bits &= bits - 1) {
        const int64_t q = p + __builtin_ctz(bits);
        *only++ = (entry){base + places_[q], plane[q]};
      }
      for (; bits; bits &= bits - 1) {
        const int64_t q = p + __builtin_ctz(bits);
        *ends[kinds[q]]++ = (entry){base + places_[q], plane[q]};
      }
    }
    for (; p < pixels; p++) {
      if (plane[p] != 0 && a->stride_y * a->stride_x == 1) {
        *only++ = (entry){base + places_[p], plane[p]};
      } else if (plane[p] != 0) {
        *ends[kinds[p]]++ = (entry){base + places_[p], plane[p]};
      }
    }
  }
  if (a->stride_y * a->stride_x == 1) {
    ends[0] = only;
  }
}

/* Sum the rows of all taps of one channel, block by block. */
static void add_taps(const arguments *a, border b, const REAL *cotangent, entry *const *lists,
                     entry *const *ends, REAL *sums, int64_t block_sums)
{
  const int64_t blocks = (a->filters + ROW - 1) / ROW;
  for (int64_t block = 0; block < blocks; block++) {
    for (int64_t ty = 0; ty < a->taps_y; ty++) {
      int64_t tx = 0;
      while (tx < a->taps_x) {
        const int64_t kind = ty % a->stride_y * a->stride_x + tx % a->stride_x;
        const int64_t up = ty / a->stride_y, back = tx / a->stride_x;
        const int64_t shift = (block * b.height * b.width - up * b.width - back) * ROW;
        REAL *sum = sums + block * block_sums + (ty * a->taps_x + tx) * ROW;
        if (TOGETHER == 3 && a->stride_x == 1 && tx + 3 <= a->taps_x) {
          add_rows(lists[kind], ends[kind], cotangent, shift, sum, 3);
          tx += 3;
        } else {
          add_rows(lists[kind], ends[kind], cotangent, shift, sum, 1);
          tx += 1;
        }
      }
    }
  }
}

/* Where the cotangent of tap (0, 0) of each pixel is, and which taps read that pixel. */
static void find_places(const arguments *a, border b, int32_t *places_, int32_t *kinds)
{
  for (int64_t y = 0; y < a->height; y++) {
    for (int64_t x = 0; x < a->width; x++) {
      const int64_t py = y + a->pad_y, px = x + a->pad_x, p = y * a->width + x;
      const int64_t row = b.above + py / a->stride_y, column = b.left + px / a->stride_x;
      places_[p] = (int32_t)((row * b.width + column) * ROW);
      kinds[p] = (int32_t)(py % a->stride_y * a->stride_x + px % a->stride_x);
    }
  }
}

void convolve_gradient(const arguments *a)
{
  const border b = border_of(a);
  const int64_t pixels = a->height * a->width, taps = a->taps_y * a->taps_x;
  const int64_t blocks = (a->filters + ROW - 1) / ROW, columns = a->channels * taps;
  const int64_t line = b.width * ROW, plane = b.height * line, step = blocks * plane;
  const int64_t kinds_ = a->stride_y * a->stride_x, outputs = a->out_height * a->out_width;
  REAL *sums = a->packed + a->chunk * step;
#pragma omp parallel num_threads((int)a->threads)
  {
    entry *lists[MOST_KINDS], *ends[MOST_KINDS];
    char *own = a->scratch + thread() * a->thread_bytes;
    for (int64_t k = 0; k < kinds_; k++) {
      lists[k] = (entry *)(void *)own + k * a->group * pixels;
    }
    int32_t *places_ = (int32_t *)(void *)((entry *)(void *)own + kinds_ * a->group * pixels);
    find_places(a, b, places_, places_ + pixels);
    for (int64_t chunk = 0; chunk < a->images; chunk += a->chunk) {
      const int64_t last = smaller(chunk + a->chunk, a->images);
      /* [images][block][height][width][ROW] of this chunk: all threads read all of it. */
#pragma omp for collapse(3)
      for (int64_t m = chunk; m < last; m++) {
        for (int64_t block = 0; block < blocks; block++) {
          for (int64_t y = 0; y < b.height; y++) {
            pack_row(a, b, a->output + (m * a->filters + block * ROW) * outputs,
                     smaller(ROW, a->filters - block * ROW), y,
                     a->packed + (m - chunk) * step + block * plane + y * line);
          }
        }
      }
      for (int64_t first = chunk; first < last; first += a->group) {
        const int64_t images = smaller(a->group, last - first);
        /* A channel belongs to one thread: the order of its sums is always the same. */
#pragma omp for schedule(static) nowait
        for (int64_t c = 0; c < a->channels; c++) {
          REAL *sum = sums + c * taps * ROW;
          for (int64_t block = 0; block < blocks && first == 0; block++) {
            memset(sum + block * columns * ROW, 0, (size_t)(taps * ROW) * sizeof(REAL));
          }
          list_channel(a, a->input + (first * a->channels + c) * pixels, images, places_,
                       places_ + pixels, step, lists, ends);
          add_taps(a, b, a->packed + (first - chunk) * step, lists, ends, sum, columns * ROW);
        }
      }
#pragma omp barrier
    }
#pragma omp for collapse(2)
    for (int64_t block = 0; block < blocks; block++) {
      for (int64_t j = 0; j < columns; j += STRIP) {
        transpose(sums + (block * columns + j) * ROW, ROW, a->weight + block * ROW * columns + j,
                  columns, smaller(STRIP, columns - j), smaller(ROW, a->filters - block * ROW));
      }
    }
  }
}
"""
