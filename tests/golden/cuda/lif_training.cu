/*
 * Kernel lif_training, float32, emitted by snncc.
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
 *   form Sequential
 *
 * Numerics: each operation is rounded once, as eager torch does.
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
#endif
typedef TYPE_0 x_in_type;
typedef TYPE_1 v0_in_type;
typedef TYPE_2 s_out_type;
typedef TYPE_3 v_final_type;
typedef TYPE_4 v_checkpoint_type;

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

extern "C" __global__ void __launch_bounds__(THREADS, 1) lif_training(
    const x_in_type *__restrict__ x_in,
    const v0_in_type *__restrict__ v0_in,
    s_out_type *__restrict__ s_out,
    v_final_type *__restrict__ v_final,
    v_checkpoint_type *__restrict__ v_checkpoint,
    int steps,
    LANE lanes,
    long long x_in_t,
    long long s_out_t,
    long long v_checkpoint_t)
{
  const LANE n = LANE_OF(FIRST);
  LANE lane[VECTOR];
  bool live[VECTOR];
  EACH_LANE {
    lane[k] = ALIGNED ? n + k : LANE_OF(FIRST + k * SPREAD);
    live[k] = (ALIGNED ? n : lane[k]) < lanes;
  }
  v0_in_type v0_read[VECTOR];
  float v0_lane[VECTOR];
  snncc_read<false>(v0_read, v0_in, lane, live, true);
  EACH_LANE {
    v0_lane[k] = snncc_real(v0_read[k]);
  }
  float v_carry[VECTOR];
  EACH_LANE {
    v_carry[k] = v0_lane[k];
  }
  for (int first = 0; first < steps; first += GROUP) {
    if (first > 0 && first % CHUNK == 0) {
      snncc_write<true>(v_checkpoint + (first / CHUNK - 1) * v_checkpoint_t, v_carry, lane, live, true);
    }
    x_in_type x_ahead[GROUP][VECTOR];
#pragma unroll
    for (int j = 0; j < GROUP; j++) {
      const int t = first + j;
      snncc_read<true>(x_ahead[j], x_in + t * x_in_t, lane, live, t < steps);
    }
#pragma unroll
    for (int j = 0; j < GROUP; j++) {
      const int t = first + j;
      float s_now[VECTOR];
      EACH_LANE {
        const float x = snncc_real(x_ahead[j][k]);
        const float v = v_carry[k];
        const float h = 0.9f * v + x;
        const bool fire = h >= 1.0f;
        const float s = fire ? 1.0f : 0.0f;
        const float v_next = (1.0f - s) * h;
        s_now[k] = s;
        v_carry[k] = t < steps ? v_next : v;
      }
      snncc_write<true>(s_out + t * s_out_t, s_now, lane, live, t < steps);
    }
  }
  snncc_write<true>(v_final, v_carry, lane, live, true);
}
