"""C code of batch norms that take statistics of each step, over all steps, forward and backward.

A channel of a step [images][pixels] is normalised by its mean and variance,

    y = x * alpha + beta    where alpha = w / sqrt(var + eps), beta = b - mean * alpha,

and with g the cotangent of y, n values, and a line above a letter for its mean, the gradient is

    alpha * (g - g - (x - mean) * dot(x - mean, g) / (n * (var + eps))).

Forward, sums add in the order that torch has for planes in memory, one value after another in
double precision; a vector holds one value of each of several channels, so planes are transposed.

Numerics: forward bitwise, where the runtime saw torch agree; backward reassociated.
"""

from __future__ import annotations

from snncc.codegen.base import FloatType, KernelSource, Signature
from snncc.codegen.c.vectors import FLAGS, vectors

# The fields of the argument structure, in order; the runtime packs them.
SIZES = ("steps", "images", "channels", "pixels", "threads")
SCALARS = ("momentum", "epsilon")
ARRAYS = (
    "input", "output", "weight", "bias", "running_mean", "running_var", "means", "deviations",
    "sums", "cotangent",
)  # fmt: skip


def emit_norm(dtype: FloatType, *, backward: bool) -> KernelSource:
    """Write a kernel as one translation unit.

    Its argument structure holds `SIZES`, `SCALARS` as doubles, then the addresses of `ARRAYS`.
    An address of 0 says that there is none.  The gradient writes "output" if there is one, and
    leaves the sums of cotangents and their products with x - mean in "sums".
    """
    fields = [
        *(f"  int64_t {name};" for name in SIZES),
        *(f"  double {name};" for name in SCALARS),
        *(f"  REAL *{name};" for name in ARRAYS),
    ]
    head = _HEAD.format(
        fields="\n".join(fields), fma="__builtin_fma" + ("f" if dtype.size == 4 else "")
    )
    name = "norm_gradient" if backward else "norm_steps"
    text = vectors(dtype) + head + (_BACKWARD if backward else _FORWARD)
    flags = tuple("-ffp-contract=off" if "contract" in flag else flag for flag in FLAGS)
    return KernelSource(name, "c", text, text, Signature(dtype, ()), flags)


_HEAD = """
#define FMA {fma}

typedef struct {{
{fields}
}} arguments;
"""

_FORWARD = """
/* A vector in double precision takes so many registers. */
#define PARTS (LANES / 8)

typedef REAL part __attribute__((vector_size(8 * sizeof(REAL))));
typedef double wide __attribute__((vector_size(64)));

static inline part load_part(const REAL *from)
{
  part v;
  memcpy(&v, from, sizeof v);
  return v;
}

/* Add up all values of some channels, or with means the squares of their distances from these. */
static inline __attribute__((always_inline)) void add_up(const arguments *a, const REAL *planes,
                                                         int64_t channels, const REAL *means,
                                                         double *sums)
{
  REAL values[LANES * LANES] = {0};
  wide sum[PARTS] = {0};
  for (int64_t n = 0; n < a->images; n++) {
    const REAL *from = planes + n * a->channels * a->pixels;
    for (int64_t p = 0; p < a->pixels; p += LANES) {
      const int64_t pixels = smaller(LANES, a->pixels - p);
      transpose(from + p, a->pixels, values, LANES, channels, pixels);
      for (int64_t i = 0; i < pixels; i++) {
        for (int k = 0; k < PARTS; k++) {
          part x = load_part(values + i * LANES + 8 * k);
          if (means) {
            x -= load_part(means + 8 * k);
            x *= x;
          }
          sum[k] += __builtin_convertvector(x, wide);
        }
      }
    }
  }
  memcpy(sums, sum, sizeof sum);
}

/* Statistics of some channels of one step, and their values normalised. */
static void normalize(const arguments *a, int64_t t, int64_t c)
{
  const int64_t channels = smaller(LANES, a->channels - c), n = a->images * a->pixels;
  const int64_t start = (t * a->images * a->channels + c) * a->pixels;
  REAL means[LANES] = {0};
  double sums[LANES];
  add_up(a, a->input + start, channels, 0, sums);
  for (int64_t i = 0; i < channels; i++) {
    means[i] = (REAL)(sums[i] / (double)n);
  }
  add_up(a, a->input + start, channels, means, sums);
  for (int64_t i = 0; i < channels; i++) {
    const int64_t place = t * a->channels + c + i;
    const REAL squares = (REAL)sums[i];
    const double variance = (double)(squares / (REAL)n);
    const REAL deviation =
      variance != 0 || a->epsilon != 0 ? (REAL)(1 / __builtin_sqrt(variance + a->epsilon)) : 0;
    const REAL alpha = a->weight ? deviation * a->weight[c + i] : deviation;
    const REAL beta = FMA(-means[i], alpha, a->bias ? a->bias[c + i] : 0);
    a->means[place] = means[i];
    a->deviations[place] = deviation;
    a->sums[place] = squares;
    for (int64_t m = 0; m < a->images; m++) {
      const int64_t plane = start + (m * a->channels + i) * a->pixels;
      for (int64_t p = 0; p < a->pixels; p++) {
        a->output[plane + p] = FMA(a->input[plane + p], alpha, beta);
      }
    }
  }
}

void norm_steps(const arguments *a)
{
  const REAL momentum = (REAL)a->momentum, n = (REAL)(a->images * a->pixels - 1);
#pragma omp parallel for collapse(2) num_threads((int)a->threads)
  for (int64_t t = 0; t < a->steps; t++) {
    for (int64_t c = 0; c < a->channels; c += LANES) {
      normalize(a, t, c);
    }
  }
  for (int64_t t = 0; t < a->steps; t++) {
    for (int64_t c = 0; c < a->channels; c++) {
      const int64_t place = t * a->channels + c;
      if (a->running_mean) {
        a->running_mean[c] = momentum * a->means[place] + (1 - momentum) * a->running_mean[c];
      }
      if (a->running_var) {
        const double variance = (double)(a->sums[place] / n);
        const REAL before = (1 - momentum) * a->running_var[c];
        a->running_var[c] = (REAL)((double)momentum * variance + (double)before);
      }
    }
  }
}
"""

_BACKWARD = """
static inline double total(vector v)
{
  double sum = 0;
  for (int i = 0; i < LANES; i++) {
    sum += (double)v[i];
  }
  return sum;
}

/* The gradient of one channel of one step. */
static void differentiate(const arguments *a, int64_t t, int64_t c)
{
  const int64_t place = t * a->channels + c, whole = a->pixels / LANES * LANES;
  const REAL mean = a->means[place], deviation = a->deviations[place];
  const double n = (double)(a->images * a->pixels);
  double sum = 0, product = 0;
  for (int64_t m = 0; m < a->images; m++) {
    const int64_t plane = ((t * a->images + m) * a->channels + c) * a->pixels;
    const REAL *x = a->input + plane, *g = a->cotangent + plane;
    vector sums = {0}, products = {0};
    for (int64_t p = 0; p < whole; p += LANES) {
      sums += load(g + p);
      products += (load(x + p) - mean) * load(g + p);
    }
    for (int64_t p = whole; p < a->pixels; p++) {
      sum += (double)g[p];
      product += (double)((x[p] - mean) * g[p]);
    }
    sum += total(sums);
    product += total(products);
  }
  a->sums[2 * place] = (REAL)sum;
  a->sums[2 * place + 1] = (REAL)product;
  if (!a->output) {
    return;
  }
  const REAL level = (REAL)(sum / n), slope = (REAL)(product * deviation * deviation / n);
  const REAL alpha = a->weight ? deviation * a->weight[c] : deviation;
  for (int64_t m = 0; m < a->images; m++) {
    const int64_t plane = ((t * a->images + m) * a->channels + c) * a->pixels;
    for (int64_t p = 0; p < a->pixels; p++) {
      a->output[plane + p] =
        (a->cotangent[plane + p] - level - (a->input[plane + p] - mean) * slope) * alpha;
    }
  }
}

void norm_gradient(const arguments *a)
{
#pragma omp parallel for collapse(2) num_threads((int)a->threads)
  for (int64_t t = 0; t < a->steps; t++) {
    for (int64_t c = 0; c < a->channels; c++) {
      differentiate(a, t, c);
    }
  }
}
"""
