"""The C text that forward and backward share: random numbers, what a spike delivers, evaluation.

A forward step costs what the delivered spikes reach: their rows of weights are added to the
currents, and the neurons reached are evaluated - a whole group in one vector loop, or those of a
list.

Numerics: currents add up in the order of delivery, each product and each sum rounded once, as in
the reference.
"""

from __future__ import annotations

SCRATCH = """
/* Parts of the scratch, each at its own cache line. */
static void *part_of(char **scratch, int64_t bytes)
{
  char *part = *scratch;
  *scratch += (bytes + 63) / 64 * 64;
  return part;
}

static void set_up(const struct network *a, struct work *w, char **scratch)
{
  const int64_t n = a->neurons, reals = n * (int64_t)sizeof(real);
  w->current = part_of(scratch, reals);
  w->potential = part_of(scratch, reals);
  w->spike = part_of(scratch, reals);
  w->queued = part_of(scratch, reals);
  w->emitted = part_of(scratch, reals);
  w->before = part_of(scratch, n * 8);
  w->priority = part_of(scratch, n * 8);
  w->queue = part_of(scratch, n * 4);
  w->place = part_of(scratch, n * 4);
  w->list = part_of(scratch, n * 4);
  w->refractory = part_of(scratch, n);
  w->reached = part_of(scratch, n);
  memset(w->reached, 0, (size_t)n);
}
"""

DELIVERY = """
INLINE int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

INLINE uint64_t mixed(uint64_t z)
{
  z = (z ^ z >> 30) * UINT64_C(0xBF58476D1CE4E5B9);
  z = (z ^ z >> 27) * UINT64_C(0x94D049BB133111EB);
  return z ^ z >> 31;
}

INLINE uint64_t with(uint64_t state, uint64_t number)
{
  return mixed(state + (number + 1) * UINT64_C(0x9E3779B97F4A7C15));
}

/* What all draws for a purpose have in common in one forward step. */
static uint64_t draws_of(const struct network *a, const struct work *w, uint64_t purpose)
{
  const uint64_t sample = with(with(a->seed, purpose), (uint64_t)w->sample);
  return with(with(sample, a->before + (uint64_t)w->step), (uint64_t)w->forward_step);
}

INLINE double uniform(uint64_t draws, int64_t neuron)
{
  return (double)(with(draws, (uint64_t)neuron) >> 11) * 0x1p-53;
}

/* Add the weights of one neuron of a group to the currents; note what is reached. */
static void deliver(const struct network *a, struct work *w, const struct edge *e, int64_t j,
                    real height)
{
  const struct group *to = a->group + e->target;
  real *restrict current = w->current + to->first;
  int32_t *list = w->list + to->first;
  uint8_t *reached = w->reached + to->first;
  int64_t count = w->count[e->target];
  if (!w->seen[e->target])
    count = ALL;
  if (e->rows) {
    const real *restrict row = e->rows + j * to->size;
    if (isfinite(height)) {
#pragma omp simd
      for (int64_t i = 0; i < to->size; i++)
        current[i] += height * row[i];
    } else
      for (int64_t i = 0; i < to->size; i++)
        if (row[i] != 0)
          current[i] += height * row[i];
    if (e->full)
      count = ALL;
    for (int64_t i = 0; i < to->size && count != ALL; i++)
      if (row[i] != 0 && !reached[i]) {
        reached[i] = 1;
        list[count++] = (int32_t)i;
      }
  } else {
    for (int64_t k = e->starts[j]; k < e->starts[j + 1]; k++) {
      const int32_t i = e->places[k];
      current[i] += height * e->weights[k];
      if (count != ALL && !reached[i]) {
        reached[i] = 1;
        list[count++] = i;
      }
    }
  }
  w->count[e->target] = count;
}

INLINE void deliver_all(const struct network *a, struct work *w, const struct group *from,
                        int64_t j, real height)
{
  for (const struct edge *e = from->edge; e < from->edge + from->edges; e++)
    deliver(a, w, e, j, height);
}

/* Evaluate what was reached of a group; potentials and spikes are left in the work. */
static void evaluate(const struct network *a, struct work *w, int64_t g)
{
  const struct group *of = a->group + g;
  fire(of, w->membrane[g], w->count[g], w->list + of->first, w->current + of->first,
       w->refractory + of->first, w->potential + of->first, w->spike + of->first);
}

/* Forget what arrived at a group. */
static void clear(const struct network *a, struct work *w, int64_t g)
{
  const struct group *of = a->group + g;
  real *current = w->current + of->first;
  if (w->count[g] == ALL) {
    memset(current, 0, (size_t)of->size * sizeof *current);
    memset(w->reached + of->first, 0, (size_t)of->size);
  } else {
    for (int64_t k = 0; k < w->count[g]; k++) {
      const int32_t i = w->list[of->first + k];
      current[i] = 0;
      w->reached[of->first + i] = 0;
    }
  }
  w->count[g] = 0;
  w->seen[g] = 1;
}

/* Leak, and put in place what waits for the first event of each group. */
static void start_step(const struct network *a, struct work *w, int64_t b, int64_t t)
{
  const size_t n = (size_t)a->neurons;
  w->sample = b, w->step = t, w->forward_step = 0, w->waiting = 0;
  memset(w->refractory, 0, n);
  memset(w->queued, 0, n * sizeof(real));
  memset(w->emitted, 0, n * sizeof(real));
  for (int64_t g = 0; g < a->groups; g++) {
    const struct group *of = a->group + g;
    const real *standing = of->standing + t * of->standing_t + b * of->standing_b;
    w->count[g] = of->starts ? ALL : 0;
    w->seen[g] = of->kind < 0;
    w->waits[g] = 0;
    if (of->kind < 0) {
      memset(w->current + of->first, 0, (size_t)of->size * sizeof *standing);
      memcpy(w->queued + of->first, standing, (size_t)of->size * sizeof *standing);
      memcpy(w->emitted + of->first, standing, (size_t)of->size * sizeof *standing);
      continue;
    }
    memcpy(w->current + of->first, standing, (size_t)of->size * sizeof *standing);
    memset(w->reached + of->first, 0, (size_t)of->size);
    const real *last = t ? of->membrane + (t - 1) * of->membrane_t : of->initial;
    last += b * of->size;
    real *now = w->membrane[g];
    for (int64_t i = 0; i < of->size; i++)
      now[i] = of->decay[i] * last[i];
  }
}

/* What a group emitted in the time step before; NULL where nothing reads that. */
INLINE const real *emitted_before(const struct group *of, int64_t b, int64_t t)
{
  return (t ? of->spikes + (t - 1) * of->spikes_t : of->emitted) + b * of->size;
}

/* Let the spikes of the time step before arrive, and count the weights. */
static int64_t deliver_late(const struct network *a, struct work *w, int64_t b, int64_t t)
{
  int64_t operations = 0;
  for (const struct group *from = a->group; from < a->group + a->groups; from++) {
    const real *heights = from->lates ? emitted_before(from, b, t) : NULL;
    for (int64_t j = 0; j < from->size && heights; j++)
      for (int64_t k = 0; k < from->lates && heights[j] != 0; k++) {
        const struct edge *e = from->late + k;
        const int64_t count = w->count[e->target];
        deliver(a, w, e, j, heights[j]);
        w->count[e->target] = count; /* it arrives with the first event */
        operations += e->fans[j];
      }
  }
  return operations;
}

/* The group of a neuron. */
INLINE int64_t group_of(const struct network *a, int32_t neuron)
{
  int64_t g = 0;
  while (g + 1 < a->groups && a->group[g + 1].first <= neuron)
    g++;
  return g;
}

/* Reach the groups that no spike can reach any more; returns whether there are any. */
static int reach_quiet(const struct network *a, struct work *w)
{
  uint8_t blocked[GROUP_COUNT] = {0};
  int found = 0;
  for (int64_t g = 0; g < a->groups; g++) {
    const struct group *of = a->group + g;
    const int may_fire = w->waits[g] || w->count[g] || !w->seen[g];
    for (const struct edge *e = of->edge; e < of->edge + of->edges; e++)
      blocked[e->target] |= (uint8_t)(may_fire || blocked[g]);
    if (!w->seen[g] && !w->count[g] && !blocked[g]) {
      w->count[g] = ALL;
      found = 1;
    }
  }
  return found;
}

/* Whether a neuron that fires becomes refractory. */
INLINE int stays(const struct network *a, uint64_t draws, int64_t neuron)
{
  return a->dropout == 0 || uniform(draws, neuron) >= a->dropout;
}
"""
