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
 * Numerics: quotients of gradients are within two such units; each operation is rounded once, as eager torch does.
 * Compile it with -std=c++17 -fmad=false.
 */

/* Sizes and types that a binary is made for; these suit any arrays. */
#ifndef VARIANT
#define LANE long long
#define BLOCK 128
#define VECTOR 1
#define ALIGNED 0
#define GROUP 8
#define CHUNK 8
#define TYPE_0 float
#define TYPE_1 float
#define TYPE_2 float
#define TYPE_3 float
#define TYPE_4 float
#define TYPE_5 float
#define FOLD_5 1
#define TYPE_6 float
#endif
typedef TYPE_0 x_in_type;
typedef TYPE_1 v0_in_type;
typedef TYPE_2 s_bar_in_type;
typedef TYPE_3 v_bar_in_type;
typedef TYPE_4 h_bar_out_type;
typedef TYPE_5 v_next_bar_final_type;
typedef TYPE_6 v_checkpoint_type;

/* Lanes of one block are BLOCK; those of a thread lie side by side, or THREADS apart. */
#define THREADS (BLOCK / VECTOR)
#if ALIGNED
#define FIRST (threadIdx.x * VECTOR)
#define SPREAD 1
#else
#define FIRST threadIdx.x
#define SPREAD THREADS
#endif

#define INLINE static __device__ __forceinline__
#define EACH_LANE _Pragma("unroll") for (int k = 0; k < VECTOR; k++)

#ifdef __CUDACC_RTC__
#define INFINITY __int_as_float(0x7f800000)
#define NAN __int_as_float(0x7fffffff)
#endif

/* Convert an element to the working type. */
template <typename T> INLINE float snncc_real(const T &element)
{
  return (float)element;
}

/* Round a value to an element. */
template <typename T, typename V> INLINE void snncc_set(T &element, V value)
{
  element = (T)value;
}

/* Lanes of one block are one piece. */
#define WIDTH BLOCK
#define LANE_OF(i) ((LANE)blockIdx.x * BLOCK + (i))
#define FIRST_SUM(count) ((LANE)blockIdx.x * (count))
#define NEXT_SUM 1

#ifdef HALVES
INLINE float snncc_real(const __half &element)
{
  return (float)__half2float(element);
}

INLINE float snncc_real(const __nv_bfloat16 &element)
{
  return (float)__bfloat162float(element);
}

INLINE void snncc_set(__half &element, float value)
{
  element = __float2half_rn((float)value);
}

INLINE void snncc_set(__nv_bfloat16 &element, float value)
{
  element = __float2bfloat16_rn((float)value);
}
#endif

/* Elements that a thread moves at once, 16 bytes at a time. */
template <typename T> struct alignas(sizeof(T) * VECTOR < 16 ? sizeof(T) * VECTOR : 16) snncc_pack
{
  T at[VECTOR];
};

/* Read the lanes of a thread from a row; dense rows have neighbours side by side. */
template <bool DENSE, typename T, typename A>
INLINE void snncc_read(
    T (&value)[VECTOR], const T *row, const A (&at)[VECTOR], const bool (&live)[VECTOR], bool now)
{
  if (DENSE && ALIGNED) {
    snncc_pack<T> pack = {};
    if (live[0] && now) {
      pack = *reinterpret_cast<const snncc_pack<T> *>(row + at[0]);
    }
    EACH_LANE {
      value[k] = pack.at[k];
    }
  } else {
    EACH_LANE {
      value[k] = T();
      if (live[k] && now) {
        value[k] = row[at[k]];
      }
    }
  }
}

/* Write them. */
template <bool DENSE, typename T, typename V, typename A>
INLINE void snncc_write(
    T *row, const V (&value)[VECTOR], const A (&at)[VECTOR], const bool (&live)[VECTOR], bool now)
{
  if (DENSE && ALIGNED) {
    snncc_pack<T> pack;
    EACH_LANE {
      snncc_set(pack.at[k], value[k]);
    }
    if (live[0] && now) {
      *reinterpret_cast<snncc_pack<T> *>(row + at[0]) = pack;
    }
  } else {
    EACH_LANE {
      if (live[k] && now) {
        snncc_set(row[at[k]], value[k]);
      }
    }
  }
}

/* Divide, within two units in the last place. */
INLINE float snncc_quotient(float x, float y)
{
#ifdef __CUDA_ARCH__
  float quotient;
  asm("div.full.f32 %0, %1, %2;" : "=f"(quotient) : "f"(x), "f"(y));
  return quotient;
#else
  return x / y;
#endif
}

/* Write the sums over the rows of a block, and then of every FOLD neighbouring lanes.  Halves are
   added to halves in a fixed order, so that equal calls give equal bits. */
template <int FOLD, typename T>
INLINE void snncc_fold(
    T *sums, const float (&value)[VECTOR], const bool (&live)[VECTOR], LANE first, LANE next)
{
  __shared__ float part[BLOCK];
  __syncthreads();
  EACH_LANE {
    part[FIRST + k * SPREAD] = live[k] ? value[k] : (float)0;
  }
#pragma unroll 1
  for (int size = BLOCK / 2; size >= WIDTH; size /= 2) {
    __syncthreads();
    EACH_LANE {
      const int i = threadIdx.x + k * THREADS;
      if (i < size) {
        part[i] += part[i + size];
      }
    }
  }
#pragma unroll 1
  for (int width = FOLD / 2; width > 0; width /= 2) {
    __syncthreads();
    EACH_LANE {
      const int i = threadIdx.x + k * THREADS;
      if (i < WIDTH / FOLD * width) {
        const int at = i / width * FOLD + i % width;
        part[at] += part[at + width];
      }
    }
  }
  __syncthreads();
  EACH_LANE {
    const int i = threadIdx.x + k * THREADS;
    if (i < WIDTH / FOLD) {
      snncc_set(sums[first + i * next], part[i * FOLD]);
    }
  }
}

extern "C" __global__ void __launch_bounds__(THREADS, 1) lif_backward(
    const x_in_type *__restrict__ x_in,
    const v0_in_type *__restrict__ v0_in,
    const s_bar_in_type *__restrict__ s_bar_in,
    const v_bar_in_type *__restrict__ v_bar_in,
    h_bar_out_type *__restrict__ h_bar_out,
    v_next_bar_final_type *__restrict__ v_next_bar_final,
    const v_checkpoint_type *__restrict__ v_checkpoint,
    int steps,
    LANE lanes,
    LANE extent1,
    long long x_in_t,
    long long v0_in_0,
    long long s_bar_in_t,
    long long h_bar_out_t,
    long long v_checkpoint_t)
{
  const LANE n = LANE_OF(FIRST);
  LANE lane[VECTOR];
  bool live[VECTOR];
  long long v0_in_at[VECTOR];
  EACH_LANE {
    lane[k] = ALIGNED ? n + k : LANE_OF(FIRST + k * SPREAD);
    live[k] = (ALIGNED ? n : lane[k]) < lanes;
    LANE lane0 = lane[k];
    lane0 /= extent1;
    v0_in_at[k] = lane0 * v0_in_0;
  }
  v0_in_type v0_read[VECTOR];
  float v0_lane[VECTOR];
  snncc_read<false>(v0_read, v0_in, v0_in_at, live, true);
  EACH_LANE {
    v0_lane[k] = snncc_real(v0_read[k]);
  }
  v_bar_in_type v_bar_read[VECTOR];
  float v_bar_lane[VECTOR];
  snncc_read<false>(v_bar_read, v_bar_in, lane, live, true);
  EACH_LANE {
    v_bar_lane[k] = snncc_real(v_bar_read[k]);
  }
  float v_next_bar_carry[VECTOR];
  EACH_LANE {
    v_next_bar_carry[k] = v_bar_lane[k];
  }
  for (int first = (steps + CHUNK - 1) / CHUNK * CHUNK - CHUNK; first >= 0; first -= CHUNK) {
    x_in_type x_ahead[CHUNK][VECTOR];
#pragma unroll
    for (int j = 0; j < CHUNK; j++) {
      const int t = first + j;
      snncc_read<true>(x_ahead[j], x_in + t * x_in_t, lane, live, t < steps);
    }
    v_checkpoint_type v_restored[VECTOR];
    float v_carry[VECTOR];
    snncc_read<true>(v_restored, v_checkpoint + (first / CHUNK - 1) * v_checkpoint_t, lane, live, first > 0);
    EACH_LANE {
      v_carry[k] = first > 0 ? snncc_real(v_restored[k]) : v0_lane[k];
    }
    float h_kept[CHUNK][VECTOR];
#pragma unroll
    for (int j = 0; j < CHUNK; j++) {
      EACH_LANE {
        const float x = snncc_real(x_ahead[j][k]);
        const float v = v_carry[k];
        const float h = 0.9f * v + x;
        const bool fire = h >= 1.0f;
        const float s = fire ? 1.0f : 0.0f;
        const float v_next = (1.0f - s) * h;
        h_kept[j][k] = h;
        v_carry[k] = v_next;
      }
    }
#pragma unroll
    for (int group = CHUNK - GROUP; group >= 0; group -= GROUP) {
      if (first + group < steps) {
        s_bar_in_type s_bar_ahead[GROUP][VECTOR];
#pragma unroll
        for (int j = 0; j < GROUP; j++) {
          const int t = first + group + j;
          snncc_read<true>(s_bar_ahead[j], s_bar_in + t * s_bar_in_t, lane, live, t < steps);
        }
#pragma unroll
        for (int j = GROUP - 1; j >= 0; j--) {
          const int t = first + group + j;
          float h_bar_now[VECTOR];
          EACH_LANE {
            const float s_bar = snncc_real(s_bar_ahead[j][k]);
            const float h = h_kept[group + j][k];
            const float v_next_bar = v_next_bar_carry[k];
            const bool fire = h >= 1.0f;
            const float s = fire ? 1.0f : 0.0f;
            const float s_total = s_bar - v_next_bar * h;
            const float z = 3.0f * (h - 1.0f);
            const float slope = snncc_quotient(1.0f, 1.0f + z * z);
            const float through = v_next_bar * (1.0f - s);
            const float h_bar = through + s_total * slope;
            const float carried = 0.9f * h_bar;
            h_bar_now[k] = h_bar;
            v_next_bar_carry[k] = t < steps ? carried : v_next_bar;
          }
          snncc_write<true>(h_bar_out + t * h_bar_out_t, h_bar_now, lane, live, t < steps);
        }
      }
    }
  }
  snncc_fold<FOLD_5>(v_next_bar_final, v_next_bar_carry, live, FIRST_SUM(WIDTH / FOLD_5), NEXT_SUM);
}
