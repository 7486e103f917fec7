/*
 * Kernel lif_backward, float32, emitted by snncc.
 *
 * recurrence lif_adjoint(h: step, s: step, s_bar: step, v_bar: lane):
 *   state v_next_bar = v_bar
 *   s_total = s_bar - v_next_bar * h
 *   z = 3.0 * (h - 1.0)
 *   slope = 1.0 / (1.0 + z * z)
 *   through = v_next_bar * (1.0 - s)
 *   h_bar = through + s_total * slope
 *   carried = 0.9 * h_bar
 *   v_next_bar' = carried
 *   out h_bar
 *   final v_next_bar
 *   reverse
 *   form Sequential
 *   saved in scratch: h; evaluated again: fire, s
 *
 * Numerics: each operation is rounded once, as eager torch does.
 */
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#ifdef _OPENMP
#include <omp.h>
#endif
#ifdef __SSE2__
#include <emmintrin.h>
#endif

/* Lanes that one call of a step computes; a step is straight code that becomes vector code. */
#define BLOCK 32

static inline int64_t snncc_smaller(int64_t a, int64_t b)
{
  return a < b ? a : b;
}

static inline int64_t snncc_thread(void)
{
#ifdef _OPENMP
  return omp_get_thread_num();
#else
  return 0;
#endif
}

/* The last lanes of a row, padded with zeros to a block. */
static inline const float *snncc_read(const float *row, float *block, int lanes)
{
  memset(block, 0, BLOCK * sizeof(float));
  memcpy(block, row, (size_t)lanes * sizeof(float));
  return block;
}

/* Write a block to a row; streaming bypasses the caches, for arrays larger than they are. */
static inline void snncc_write(float *row, const float *block, int64_t stream)
{
#ifdef __SSE2__
  if (stream && (uintptr_t)row % sizeof(__m128i) == 0) {
    const __m128i *from = (const __m128i *)(const void *)block;
    __m128i *to = (__m128i *)(void *)row;
    for (size_t i = 0; i < BLOCK * sizeof(float) / sizeof(__m128i); i++) {
      _mm_stream_si128(to + i, _mm_load_si128(from + i));
    }
    return;
  }
#else
  (void)stream;
#endif
  memcpy(row, block, BLOCK * sizeof(float));
}

/* Make streamed writes visible to other threads. */
static inline void snncc_finish(int64_t stream)
{
#ifdef __SSE2__
  if (stream) {
    _mm_sfence();
  }
#else
  (void)stream;
#endif
}

/* The address of an element; a number, because it may lie outside of the array. */
static inline uintptr_t snncc_place(const float *array, int64_t index)
{
  return (uintptr_t)array + (uintptr_t)index * sizeof(float);
}

/* Fetch the block that starts at lane b of a row towards the second-level cache. */
static inline void snncc_fetch(uintptr_t row, int64_t b)
{
#ifdef __GNUC__
  const uintptr_t address = row + (uintptr_t)b * sizeof(float);
  for (size_t byte = 0; byte < BLOCK * sizeof(float); byte += 64) {
    __builtin_prefetch((const void *)(address + byte), 0, 2);
  }
#else
  (void)row, (void)b;
#endif
}

/* The same for a row that will be written: stores that miss the caches wait one for another. */
static inline void snncc_claim(uintptr_t row, int64_t b, int64_t stream)
{
#ifdef __GNUC__
  const uintptr_t address = row + (uintptr_t)b * sizeof(float);
  for (size_t byte = 0; byte < BLOCK * sizeof(float) && !stream; byte += 64) {
    __builtin_prefetch((const void *)(address + byte), 1, 2);
  }
#else
  (void)row, (void)b, (void)stream;
#endif
}

/* Start values of a tile, padded to whole blocks. */
static inline void snncc_fill(float *tile, float value, int64_t width)
{
  for (int64_t n = 0; n < (width + BLOCK - 1) / BLOCK * BLOCK; n++) {
    tile[n] = value;
  }
}

/* Lanes of one tile at most. */
#define TILE 1024

struct lif_backward_arguments {
  int64_t steps; /* time steps */
  int64_t rows0; /* the lanes of all arrays are [rows0, rows1, lanes] */
  int64_t rows1;
  int64_t lanes;
  int64_t tile; /* lanes of one tile, a multiple of BLOCK */
  int64_t ahead; /* steps between a row that is fetched and the row that is computed */
  int64_t chunk; /* steps that are recomputed at a time */
  int64_t threads;
  int64_t stream; /* whether outputs bypass the caches */
  int64_t thread_scratch; /* values of scratch for each thread */
  float *scratch;
  const float *x_in; int64_t x_in_t, x_in_0, x_in_1;
  const float *v0_in; int64_t v0_in_0, v0_in_1;
  const float *s_bar_in; int64_t s_bar_in_t, s_bar_in_0, s_bar_in_1;
  const float *v_bar_in; int64_t v_bar_in_0, v_bar_in_1;
  float *h_bar_out; int64_t h_bar_out_t, h_bar_out_0, h_bar_out_1;
  float *v_next_bar_final; int64_t v_next_bar_final_0, v_next_bar_final_1;
};

static inline void lif_backward_advance(
    const float *restrict x_in,
    float *restrict v_state)
{
#pragma omp simd
  for (int n = 0; n < BLOCK; n++) {
    const float x = x_in[n];
    const float v = v_state[n];
    const float h = 0.9f * v + x;
    const int fire = h >= 1.0f;
    const float s = fire ? 1.0f : 0.0f;
    const float v_next = (1.0f - s) * h;
    v_state[n] = v_next;
  }
}

static inline void lif_backward_recompute(
    const float *restrict x_in,
    float *restrict v_state,
    float *restrict h_scratch)
{
#pragma omp simd
  for (int n = 0; n < BLOCK; n++) {
    const float x = x_in[n];
    const float v = v_state[n];
    const float h = 0.9f * v + x;
    const int fire = h >= 1.0f;
    const float s = fire ? 1.0f : 0.0f;
    const float v_next = (1.0f - s) * h;
    h_scratch[n] = h;
    v_state[n] = v_next;
  }
}

static inline void lif_backward_main(
    const float *restrict s_bar_in,
    const float *restrict h_scratch,
    float *restrict v_next_bar_state,
    float *restrict h_bar_out)
{
#pragma omp simd
  for (int n = 0; n < BLOCK; n++) {
    const float s_bar = s_bar_in[n];
    const float h = h_scratch[n];
    const float v_next_bar = v_next_bar_state[n];
    const int fire = h >= 1.0f;
    const float s = fire ? 1.0f : 0.0f;
    const float s_total = s_bar - v_next_bar * h;
    const float z = 3.0f * (h - 1.0f);
    const float slope = 1.0f / (1.0f + z * z);
    const float through = v_next_bar * (1.0f - s);
    const float h_bar = through + s_total * slope;
    const float carried = 0.9f * h_bar;
    h_bar_out[n] = h_bar;
    v_next_bar_state[n] = carried;
  }
}

static void lif_backward_tile(
    const struct lif_backward_arguments *a,
    int64_t row0, int64_t row1, int64_t first, int64_t width)
{
  const float *x_in = a->x_in + row0 * a->x_in_0 + row1 * a->x_in_1 + first;
  const float v0_in = a->v0_in[row0 * a->v0_in_0 + row1 * a->v0_in_1];
  const float *s_bar_in = a->s_bar_in + row0 * a->s_bar_in_0 + row1 * a->s_bar_in_1 + first;
  const float *v_bar_in = a->v_bar_in + row0 * a->v_bar_in_0 + row1 * a->v_bar_in_1 + first;
  float *h_bar_out = a->h_bar_out + row0 * a->h_bar_out_0 + row1 * a->h_bar_out_1 + first;
  float *v_next_bar_final = a->v_next_bar_final + row0 * a->v_next_bar_final_0 + row1 * a->v_next_bar_final_1 + first;
  const int64_t stream = a->stream;
  const int64_t ahead = a->ahead;
  float *checkpoint = a->scratch + snncc_thread() * a->thread_scratch;
  const int64_t chunks = (a->steps + a->chunk - 1) / a->chunk;
  float *kept = checkpoint + chunks * 1 * a->tile;
  _Alignas(64) float v_state[TILE];
  snncc_fill(v_state, v0_in, width);
  for (int64_t c = 0; c + 1 < chunks; c++) {
    const int64_t begin = c * a->chunk, end = begin + a->chunk;
    memcpy(checkpoint + (c * 1 + 0) * a->tile, v_state, (size_t)a->tile * sizeof(float));
    for (int64_t t = begin; t < end; t++) {
      const float *x_in_row = x_in + t * a->x_in_t;
      const uintptr_t fetch0 = snncc_place(x_in, (t + ahead) * a->x_in_t);
      int64_t b = 0;
      for (; b + BLOCK <= width; b += BLOCK) {
        snncc_fetch(fetch0, b);
        lif_backward_advance(
            x_in_row + b,
            v_state + b);
      }
      if (b < width) {
        const int lanes = (int)(width - b);
        _Alignas(64) float x_in_block[BLOCK];
        lif_backward_advance(
            snncc_read(x_in_row + b, x_in_block, lanes),
            v_state + b);
      }
    }
  }
  _Alignas(64) float v_next_bar_state[TILE];
  snncc_fill(v_next_bar_state, 0, width);
  memcpy(v_next_bar_state, v_bar_in, (size_t)width * sizeof(float));
  for (int64_t c = chunks; c-- > 0;) {
    const int64_t begin = c * a->chunk, end = snncc_smaller(begin + a->chunk, a->steps);
    if (c + 1 < chunks) {
      memcpy(v_state, checkpoint + (c * 1 + 0) * a->tile, (size_t)a->tile * sizeof(float));
    }
    for (int64_t t = begin; t < end; t++) {
      const float *x_in_row = x_in + t * a->x_in_t;
      float *h_scratch_row = kept + ((t - begin) * 1 + 0) * a->tile;
      const int64_t over = t + ahead - end;
      const uintptr_t fetch0 = over < 0 ? snncc_place(x_in, (t + ahead) * a->x_in_t)
              : snncc_place(s_bar_in, (end - 1 - over) * a->s_bar_in_t);
      int64_t b = 0;
      for (; b + BLOCK <= width; b += BLOCK) {
        snncc_fetch(fetch0, b);
        lif_backward_recompute(
            x_in_row + b,
            v_state + b,
            h_scratch_row + b);
      }
      if (b < width) {
        const int lanes = (int)(width - b);
        _Alignas(64) float x_in_block[BLOCK];
        lif_backward_recompute(
            snncc_read(x_in_row + b, x_in_block, lanes),
            v_state + b,
            h_scratch_row + b);
      }
    }
    for (int64_t t = end; t-- > begin;) {
      const float *s_bar_in_row = s_bar_in + t * a->s_bar_in_t;
      const float *h_scratch_row = kept + ((t - begin) * 1 + 0) * a->tile;
      float *h_bar_out_row = h_bar_out + t * a->h_bar_out_t;
      const uintptr_t claim0 = snncc_place(h_bar_out, (t - ahead) * a->h_bar_out_t);
      const int64_t over = begin - 1 - t + ahead;
      const uintptr_t fetch0 = over < 0 ? snncc_place(s_bar_in, (t - ahead) * a->s_bar_in_t)
              : snncc_place(x_in, over * a->x_in_t + width);
      int64_t b = 0;
      for (; b + BLOCK <= width; b += BLOCK) {
        snncc_claim(claim0, b, stream);
        snncc_fetch(fetch0, b);
        _Alignas(64) float h_bar_out_block[BLOCK];
        lif_backward_main(
            s_bar_in_row + b,
            h_scratch_row + b,
            v_next_bar_state + b,
            h_bar_out_block);
        snncc_write(h_bar_out_row + b, h_bar_out_block, stream);
      }
      if (b < width) {
        const int lanes = (int)(width - b);
        _Alignas(64) float s_bar_in_block[BLOCK];
        _Alignas(64) float h_bar_out_block[BLOCK];
        lif_backward_main(
            snncc_read(s_bar_in_row + b, s_bar_in_block, lanes),
            h_scratch_row + b,
            v_next_bar_state + b,
            h_bar_out_block);
        memcpy(h_bar_out_row + b, h_bar_out_block, (size_t)lanes * sizeof *h_bar_out_block);
      }
    }
  }
  memcpy(v_next_bar_final, v_next_bar_state, (size_t)width * sizeof(float));
  snncc_finish(stream);
}

void lif_backward(const struct lif_backward_arguments *a)
{
  const int64_t tiles = (a->lanes + a->tile - 1) / a->tile;
  const int64_t jobs = a->rows0 * a->rows1 * tiles;
#ifdef _OPENMP
#pragma omp parallel for schedule(static) num_threads((int)a->threads) \
    if (a->threads > 1)
#endif
  for (int64_t job = 0; job < jobs; job++) {
    const int64_t row = job / tiles, first = job % tiles * a->tile;
    const int64_t width = snncc_smaller(a->tile, a->lanes - first);
    lif_backward_tile(a, row / a->rows1, row % a->rows1, first, width);
  }
}
