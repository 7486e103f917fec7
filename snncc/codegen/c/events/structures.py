"""The C structures of event kernels, in the layout that the runtime packs."""

from __future__ import annotations

# The fields of the structures, in order; each takes 8 bytes.
EDGE = ("target", "rows", "starts", "places", "weights", "fans", "full", "gradient")
GROUP = (
    "kind", "fires", "first", "size", "starts", "is_output", "edges", "edge", "lates", "late",
    "standing", "standing_t", "standing_b", "decay", "initial", "emitted", "membrane",
    "membrane_t", "spikes", "spikes_t", "of_membrane", "of_last", "of_spikes", "to_standing",
    "to_decay", "to_initial", "to_emitted",
)  # fmt: skip
NETWORK = (
    "steps", "samples", "groups", "neurons", "threads", "parts", "group_size", "is_random", "stop",
    "seed", "before", "noise", "dropout", "group", "scratch", "scratch_bytes", "counts", "extents",
    "tape", "capacity", "most_neurons", "most_groups", "most_steps",
)  # fmt: skip
EXTENTS = ("tape", "neurons", "groups", "steps")

STRUCTURES = """
#define INLINE static inline __attribute__((always_inline))

/* What the spikes of one group add to the potentials of another. */
struct edge {
  int64_t target;
  const real *rows;       /* [sources][targets]; NULL where most weights are zero: */
  const int64_t *starts;  /* [sources + 1]: where the weights of a source start, those not zero */
  const int32_t *places;  /* the neurons of the target */
  const real *weights;
  const int32_t *fans;    /* [sources]: how many weights are not zero */
  int64_t full;           /* whether no weight is zero */
  real *gradient;         /* [parts][sources][targets], or NULL */
};

struct group {
  int64_t kind;           /* which neuron it is; -1: an input */
  int64_t fires, first, size, starts, is_output;
  int64_t edges;
  const struct edge *edge; /* what its spikes reach in the same time step */
  int64_t lates;
  const struct edge *late; /* what they reach in the next */
  const real *standing;
  int64_t standing_t, standing_b;
  const real *decay, *initial, *emitted;
  real *membrane;
  int64_t membrane_t;
  real *spikes;
  int64_t spikes_t;
  /* The cotangents of results and the gradients, in backward; NULL where there is none. */
  const real *of_membrane, *of_last, *of_spikes;
  real *to_standing, *to_decay, *to_initial, *to_emitted;
  const real *lanes[LANES];
  real *to_lanes[LANES];   /* [parts][size] */
};

struct network {
  int64_t steps, samples, groups, neurons, threads, parts;
  int64_t group_size, is_random, stop; /* stop: -1 runs until nothing is queued */
  uint64_t seed, before;   /* before: how many time steps were taken before these */
  double noise, dropout;
  const struct group *group;
  char *scratch;
  int64_t scratch_bytes;   /* of each thread */
  int64_t *counts;         /* [samples][COUNTS] */
  int64_t *extents;        /* [samples][EXTENTS]: entries of the tape; then the most that a time
                              step has of neurons and groups evaluated, and of forward steps */
  int32_t *tape;           /* [samples][capacity] */
  int64_t capacity, most_neurons, most_groups, most_steps;
};

enum { FORWARD_STEPS, EVENTS, SPIKES, OPERATIONS, EVALUATIONS, COUNTS };
enum { TAPE, NEURONS, GROUPS, STEPS, EXTENTS };
/* Entries of the tape that are no number of picked neurons. */
enum { NONE = 0, END = -1 };
/* Instead of how many neurons of a group are reached. */
enum { ALL = -1 };

/* The state of a sample within a time step; neurons are counted over all groups. */
struct work {
  real *membrane[GROUP_COUNT];
  real *current;     /* what arrives */
  real *potential, *spike; /* of the last evaluation */
  real *queued;      /* the height that waits */
  real *emitted;     /* in this time step */
  double *before;    /* potential of the neuron when it fired */
  double *priority;
  int32_t *queue, *place; /* a heap, and where in it a neuron is; -1: not queued */
  int32_t *list;     /* the neurons of a group that are reached */
  uint8_t *refractory, *reached;
  int64_t waiting;   /* how many neurons are queued */
  int64_t count[GROUP_COUNT]; /* how many of a group are reached, or ALL */
  int64_t waits[GROUP_COUNT]; /* how many of a group are queued */
  uint8_t seen[GROUP_COUNT];  /* evaluated in this time step */
  int64_t sample, step, forward_step;
};
"""
