/*
 * Kernel lif_inference, float32, emitted by snncc.
 *
 * recurrence lif(x: step, v0: lane):
 *   state v = v0
 *   h = 0.9 * v + x
 *   fire = h >= 1.0
 *   s = float(fire)
 *   v_next = (1.0 - s) * h
 *   v' = v_next
 *   out s
 *   final v
 *   form FixedPoint
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

/* One bit for each lane. */
static inline uint32_t snncc_pack(const uint32_t *flags, int lanes)
{
  uint32_t word = 0;
#pragma omp simd reduction(| : word)
  for (int n = 0; n < BLOCK; n++) {
    word |= flags[n] << n;
  }
  return lanes == BLOCK ? word : word & ((UINT32_C(1) << lanes) - 1);
}

/* Keep what a sweep found in place of what it was given; whether that is something else. */
static inline uint32_t snncc_settle(uint32_t *given, uint32_t found)
{
  const uint32_t changed = *given ^ found;
  *given = found;
  return changed;
}

static inline uint32_t snncc_replace(float *given, const float *found, int lanes)
{
  uint32_t changed = 0;
  for (int n = 0; n < lanes; n++) {
    changed |= given[n] != found[n];
    given[n] = found[n];
  }
  return changed;
}

/* Write the number of sweeps for every lane of a tile. */
static inline void snncc_count(float *counts, int64_t sweeps, int64_t width)
{
  for (int64_t n = 0; n < width; n++) {
    counts[n] = (float)sweeps;
  }
}

/* Lanes of one tile at most. */
#define TILE 1024

struct lif_inference_arguments {
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
  float *s_out; int64_t s_out_t, s_out_0, s_out_1;
  float *v_final; int64_t v_final_0, v_final_1;
  float *sweeps_count; int64_t sweeps_count_0, sweeps_count_1;
};

static inline void lif_inference_solve(
    const float *restrict x_in,
    const uint32_t fire_guess_given,
    float *restrict v_state,
    uint32_t *restrict fire_found)
{
#pragma omp simd
  for (int n = 0; n < BLOCK; n++) {
    const float x = x_in[n];
    const int fire_guess = (int)(fire_guess_given >> n & 1u);
    const float v = v_state[n];
    const float h = 0.9f * v + x;
    const int fire = h >= 1.0f;
    const float s_given = fire_guess ? 1.0f : 0.0f;
    const float v_next_given = (1.0f - s_given) * h;
    fire_found[n] = (uint32_t)fire;
    v_state[n] = v_next_given;
  }
}

static inline void lif_inference_main(
    const float *restrict x_in,
    const uint32_t fire_guess_given,
    float *restrict v_state,
    float *restrict s_out)
{
#pragma omp simd
  for (int n = 0; n < BLOCK; n++) {
    const float x = x_in[n];
    const int fire_guess = (int)(fire_guess_given >> n & 1u);
    const float v = v_state[n];
    const float h = 0.9f * v + x;
    const int fire = h >= 1.0f;
    const float s = fire ? 1.0f : 0.0f;
    const float s_given = fire_guess ? 1.0f : 0.0f;
    const float v_next_given = (1.0f - s_given) * h;
    s_out[n] = s;
    v_state[n] = v_next_given;
  }
}

static void lif_inference_tile(
    const struct lif_inference_arguments *a,
    int64_t row0, int64_t row1, int64_t first, int64_t width)
{
  const float *x_in = a->x_in + row0 * a->x_in_0 + row1 * a->x_in_1 + first;
  const float v0_in = a->v0_in[row0 * a->v0_in_0 + row1 * a->v0_in_1];
  float *s_out = a->s_out + row0 * a->s_out_0 + row1 * a->s_out_1 + first;
  float *v_final = a->v_final + row0 * a->v_final_0 + row1 * a->v_final_1 + first;
  float *sweeps_count = a->sweeps_count + row0 * a->sweeps_count_0 + row1 * a->sweeps_count_1 + first;
  const int64_t stream = a->stream;
  const int64_t ahead = a->ahead;
  float *kept = a->scratch + snncc_thread() * a->thread_scratch;
  uint32_t *bits = (uint32_t *)(void *)(kept + a->chunk * 0 * a->tile);
  _Alignas(64) float v_state[TILE];
  snncc_fill(v_state, v0_in, width);
  _Alignas(64) float v_state_before[TILE];
  int64_t most = 0;
  for (int64_t begin = 0; begin < a->steps; begin += a->chunk) {
    const int64_t end = snncc_smaller(begin + a->chunk, a->steps);
    memset(kept, 0, (size_t)((end - begin) * 0 * a->tile) * sizeof *kept);
    memset(bits, 0, (size_t)((end - begin) * 1 * a->tile / BLOCK) * sizeof *bits);
    memcpy(v_state_before, v_state, (size_t)a->tile * sizeof(float));
    int64_t count = 0;
    for (uint32_t changed = 1; changed && count <= end - begin; count++) {
      changed = 0;
      for (int64_t t = begin; t < end; t++) {
        const float *x_in_row = x_in + t * a->x_in_t;
        uint32_t *fire_guess_given_row = bits + ((t - begin) * 1 + 0) * a->tile / BLOCK;
        uint32_t *fire_found_row = bits + ((t - begin) * 1 + 0) * a->tile / BLOCK;
        const uintptr_t fetch0 = snncc_place(x_in, (t + ahead) * a->x_in_t);
        int64_t b = 0;
        for (; b + BLOCK <= width; b += BLOCK) {
          snncc_fetch(fetch0, b);
          _Alignas(64) uint32_t fire_found_block[BLOCK];
          lif_inference_solve(
              x_in_row + b,
              fire_guess_given_row[b / BLOCK],
              v_state + b,
              fire_found_block);
          changed |= snncc_settle(fire_found_row + b / BLOCK, snncc_pack(fire_found_block, BLOCK));
        }
        if (b < width) {
          const int lanes = (int)(width - b);
          _Alignas(64) float x_in_block[BLOCK];
          _Alignas(64) uint32_t fire_found_block[BLOCK];
          lif_inference_solve(
              snncc_read(x_in_row + b, x_in_block, lanes),
              fire_guess_given_row[b / BLOCK],
              v_state + b,
              fire_found_block);
          changed |= snncc_settle(fire_found_row + b / BLOCK, snncc_pack(fire_found_block, lanes));
        }
      }
      memcpy(v_state, v_state_before, (size_t)a->tile * sizeof(float));
    }
    most = count > most ? count : most;
    for (int64_t t = begin; t < end; t++) {
      const float *x_in_row = x_in + t * a->x_in_t;
      uint32_t *fire_guess_given_row = bits + ((t - begin) * 1 + 0) * a->tile / BLOCK;
      float *s_out_row = s_out + t * a->s_out_t;
      const uintptr_t claim0 = snncc_place(s_out, (t + ahead) * a->s_out_t);
      const int64_t over = t + ahead - end;
      const uintptr_t fetch0 = over < 0 ? snncc_place(x_in, (t + ahead) * a->x_in_t)
              : snncc_place(x_in, over * a->x_in_t + width);
      int64_t b = 0;
      for (; b + BLOCK <= width; b += BLOCK) {
        snncc_claim(claim0, b, stream);
        snncc_fetch(fetch0, b);
        _Alignas(64) float s_out_block[BLOCK];
        lif_inference_main(
            x_in_row + b,
            fire_guess_given_row[b / BLOCK],
            v_state + b,
            s_out_block);
        snncc_write(s_out_row + b, s_out_block, stream);
      }
      if (b < width) {
        const int lanes = (int)(width - b);
        _Alignas(64) float x_in_block[BLOCK];
        _Alignas(64) float s_out_block[BLOCK];
        lif_inference_main(
            snncc_read(x_in_row + b, x_in_block, lanes),
            fire_guess_given_row[b / BLOCK],
            v_state + b,
            s_out_block);
        memcpy(s_out_row + b, s_out_block, (size_t)lanes * sizeof *s_out_block);
      }
    }
  }
  snncc_count(sweeps_count, most, width);
  memcpy(v_final, v_state, (size_t)width * sizeof(float));
  snncc_finish(stream);
}

void lif_inference(const struct lif_inference_arguments *a)
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
    lif_inference_tile(a, row / a->rows1, row % a->rows1, first, width);
  }
}
