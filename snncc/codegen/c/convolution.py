"""C code of convolutions that skip the zeros of their input.

Spikes are 2 to 30 % dense.  With the weights laid out as rows of `width` output channels,

    y[m, :, o] = sum of x[m, c, i] * w[c, tap, :]   over the (c, i) with x != 0 that reach o

is a sum of as many rows as inputs are active, held in registers; and each row of the gradient of
the weights is a sum of rows of the cotangent,

    dw[c, tap, :] = sum of x[m, c, i] * g[m, :, o]  over the (m, i) with x != 0.

Forward, the active inputs of an image are listed pixel by pixel: those that one row of taps reads
lie behind one another, and an entry holds the place of its weights.  In the gradient they are
listed channel by channel, and an entry holds the place of its cotangents.  These have a border of
zeros, so that a tap is a constant distance.

Numerics: reassociated; a product and its addition round once where the machine has such an
instruction.  Weights and cotangents have to be finite.
"""

from __future__ import annotations

from dataclasses import dataclass

from snncc.codegen.base import FloatType, KernelSource, Signature
from snncc.codegen.c.convolution_forward import FORWARD
from snncc.codegen.c.convolution_gradient import GRADIENT
from snncc.codegen.c.vectors import FLAGS, vectors

# The fields of the argument structure, in order; the runtime packs them.
SIZES = (
    "images", "channels", "height", "width", "filters", "taps_y", "taps_x", "out_height",
    "out_width", "stride_y", "stride_x", "pad_y", "pad_x", "threads", "group", "chunk",
    "thread_bytes",
)  # fmt: skip
ARRAYS = ("input", "weight", "output", "packed", "scratch")
MOST_KINDS = 16


@dataclass(frozen=True, slots=True)
class ConvolutionSpec:
    """Which kernel is wanted.

    Attributes:
        dtype: The working type.
        lanes: Output channels of a row, a multiple of 16.
        backward: Whether it computes the gradient of the weights rather than the output.
    """

    dtype: FloatType
    lanes: int
    backward: bool


def emit_convolution(spec: ConvolutionSpec) -> KernelSource:
    """Write a kernel as one translation unit.

    Its argument structure holds `SIZES`, then the addresses of `ARRAYS`.  The gradient reads the
    cotangent in place of "output" and writes "weight".
    """
    name = "convolve_gradient" if spec.backward else "convolve_active"
    head = _HEAD.format(
        lanes=spec.lanes,
        kinds=MOST_KINDS,
        fields="\n".join(f"  int64_t {field};" for field in SIZES),
    )
    text = vectors(spec.dtype) + head + (GRADIENT if spec.backward else FORWARD)
    return KernelSource(name, "c", text, text, Signature(spec.dtype, ()), FLAGS)


_HEAD = """
/* Output channels of a row of weights or cotangents. */
#define ROW {lanes}
#define VECTORS (ROW / LANES)
/* Columns that one thread transposes at a time. */
#define STRIP 128
/* The most steps of the filter, down times across. */
#define MOST_KINDS {kinds}

typedef struct {{
{fields}
  const REAL *input;
  REAL *weight;
  REAL *output;
  REAL *packed;
  char *scratch;
}} arguments;

/* An active input: where its row starts, and its value. */
typedef struct {{
  int32_t row;
  REAL value;
}} entry;
"""
