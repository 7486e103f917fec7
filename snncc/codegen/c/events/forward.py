"""The C text of the forward kernel of event networks.

A sample runs through all of its time steps on one thread.
"""

from __future__ import annotations

FORWARD = """
/* Queue the spikes of the neurons that were just evaluated; returns how many there are. */
static int64_t collect(const struct network *a, struct work *w, int64_t g)
{
  const struct group *of = a->group + g;
  const uint64_t draws = a->dropout ? draws_of(a, w, 1) : 0;
  const int64_t count = w->count[g] == ALL ? of->size : w->count[g];
  const int32_t *list = w->count[g] == ALL ? NULL : w->list + of->first;
  const real *spike = w->spike + of->first;
  int64_t fired = 0;
  for (int64_t k = 0; k < count; k += 16) {
    const int64_t last = snncc_smaller(count, k + 16);
    int any = 0;
    for (int64_t e = k; e < last; e++)
      any |= spike[list ? list[e] : e] != 0;
    for (int64_t e = k; e < last && any; e++) {
      const int64_t i = list ? list[e] : e;
      const int32_t neuron = (int32_t)(of->first + i);
      if (spike[i] == 0)
        continue;
      fired++;
      w->emitted[neuron] += spike[i];
      w->refractory[neuron] |= (uint8_t)stays(a, draws, neuron);
      enqueue(w, g, neuron, spike[i], (double)w->potential[neuron]);
    }
  }
  return fired;
}

/* How many of the neurons that were reached are evaluated. */
static int64_t evaluated(const struct network *a, const struct work *w, int64_t g)
{
  const struct group *of = a->group + g;
  const uint8_t *refractory = w->refractory + of->first;
  const int32_t *list = w->list + of->first;
  int64_t count = 0;
  if (w->count[g] == ALL)
    for (int64_t i = 0; i < of->size; i++)
      count += !refractory[i];
  else
    for (int64_t k = 0; k < w->count[g]; k++)
      count += !refractory[list[k]];
  return count;
}

/* Deliver the spikes of the highest priority; returns how many. */
static int64_t pick(const struct network *a, struct work *w, int64_t *counts, int64_t *extents,
                    int32_t *tape)
{
  const int64_t picked = snncc_smaller(a->group_size, w->waiting);
  if (picked && (a->is_random || a->noise > 0))
    draw_priorities(a, w);
  for (int64_t k = 0; k < picked; k++) {
    const int32_t neuron = w->queue[0];
    drop(w, neuron);
    const struct group *from = a->group + group_of(a, neuron);
    const int64_t j = neuron - from->first;
    if (extents[TAPE] + k < a->capacity)
      tape[extents[TAPE] + k] = neuron;
    deliver_all(a, w, from, j, w->queued[neuron]);
    w->queued[neuron] = 0;
    w->waits[from - a->group]--;
    for (const struct edge *e = from->edge; e < from->edge + from->edges; e++)
      counts[OPERATIONS] += e->fans[j];
  }
  extents[TAPE] += picked;
  counts[EVENTS] += picked;
  return picked;
}

/* Evaluate all groups that were reached; returns whether an output group has fired. */
static int evaluate_reached(const struct network *a, struct work *w, int64_t *counts,
                            int64_t *extents)
{
  int output = 0;
  for (int64_t g = 0; g < a->groups; g++)
    if (w->count[g]) {
      extents[NEURONS] += w->count[g] == ALL ? a->group[g].size : w->count[g];
      extents[GROUPS]++;
      counts[EVALUATIONS] += evaluated(a, w, g);
      evaluate(a, w, g);
      const int64_t fired = collect(a, w, g);
      counts[SPIKES] += fired;
      output |= fired && a->group[g].is_output;
      clear(a, w, g);
    }
  counts[FORWARD_STEPS]++;
  extents[STEPS]++;
  return output;
}

static void queue_inputs(const struct network *a, struct work *w)
{
  for (const struct group *of = a->group; of < a->group + a->groups; of++)
    for (int64_t i = of->first; i < of->first + of->size && of->kind < 0; i++) {
      const real height = w->queued[i];
      w->queued[i] = 0;
      if (height != 0)
        enqueue(w, of - a->group, (int32_t)i, height, (double)height);
    }
}

static void run_step(const struct network *a, struct work *w, int64_t *counts, int64_t *extents,
                     int32_t *tape)
{
  int64_t left = -1;
  queue_inputs(a, w);
  for (;; w->forward_step++) {
    const int output = evaluate_reached(a, w, counts, extents);
    if (left < 0 && output && a->stop >= 0)
      left = a->stop + 1;
    if (left > 0 && --left == 0)
      break;
    const int64_t at = extents[TAPE]++, picked = pick(a, w, counts, extents, tape);
    if (!reach_quiet(a, w) && !picked) {
      extents[TAPE]--;
      break;
    }
    if (at < a->capacity)
      tape[at] = (int32_t)picked;
  }
  if (extents[TAPE] < a->capacity)
    tape[extents[TAPE]] = END;
  extents[TAPE]++;
}

/* Where the membranes of a group are after a time step; an input has none. */
INLINE real *membrane_of(const struct group *of, int64_t b, int64_t t)
{
  return of->kind < 0 ? NULL : of->membrane + t * of->membrane_t + b * of->size;
}

static void run_sample(const struct network *a, struct work *w, int64_t b)
{
  int64_t *counts = a->counts + b * COUNTS, *extents = a->extents + b * EXTENTS;
  int32_t *tape = a->tape + b * a->capacity;
  int64_t most[EXTENTS] = {0};
  memset(counts, 0, COUNTS * sizeof *counts);
  memset(extents, 0, EXTENTS * sizeof *extents);
  extents[TAPE] = a->steps;
  for (int64_t t = 0; t < a->steps; t++) {
    for (int64_t g = 0; g < a->groups; g++)
      w->membrane[g] = membrane_of(a->group + g, b, t);
    if (t < a->capacity)
      tape[t] = (int32_t)extents[TAPE];
    for (int e = NEURONS; e < EXTENTS; e++)
      extents[e] = 0;
    start_step(a, w, b, t);
    counts[OPERATIONS] += deliver_late(a, w, b, t);
    run_step(a, w, counts, extents, tape);
    for (int e = NEURONS; e < EXTENTS; e++)
      most[e] = larger(most[e], extents[e]);
    for (int64_t g = 0; g < a->groups; g++) {
      const struct group *of = a->group + g;
      if (of->spikes)
        memcpy(of->spikes + t * of->spikes_t + b * of->size, w->emitted + of->first,
               (size_t)of->size * sizeof *w->emitted);
    }
  }
  memcpy(extents + NEURONS, most + NEURONS, sizeof most - sizeof *most);
}
"""

ENTRY = """
void @NAME(const struct network *a)
{
#ifdef _OPENMP
#pragma omp parallel for schedule(dynamic) num_threads((int)a->threads) if (a->threads > 1)
#endif
  for (int64_t b = 0; b < a->samples; b++) {
    struct work work;
    char *scratch = a->scratch + snncc_thread() * a->scratch_bytes;
    set_up(a, &work, &scratch);
    run_sample(a, &work, b);
  }
}
"""
