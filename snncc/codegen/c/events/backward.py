"""The C text of the backward kernel of event networks.

Forward leaves a tape: for each time step of a sample the neurons that were picked, in order.
Backward takes the time steps in reverse.  It runs each once more along the tape, which needs no
queue, and notes the potentials; then it walks back through the forward steps.  With ``g`` the
cotangents of what arrived at forward step k + 1, neuron j of a picked or silent spike gets W[j] g,
and a spike of height e adds e g to the gradient of W[j].

Gradients of weights and parameters are sums over parts of the batch, which do not depend on the
number of threads; no two threads write to one place.
"""

from __future__ import annotations

BACKWARD = """
/* A group that was evaluated in a forward step. */
struct visit {
  int64_t group, is_first, begin, count; /* where its neurons are noted, and how many, or ALL */
};

/* A forward step: its visits, and the spikes picked after it. */
struct round {
  int64_t begin, end, picks, first;
};

/* What was noted of a time step, and the cotangents. */
struct reverse {
  real *potential;  /* of each neuron evaluated */
  int32_t *neuron;  /* which one of the group */
  uint8_t *state;   /* what became of it */
  struct visit *visit;
  struct round *round;
  real *height;     /* of the spikes that were picked */
  int64_t noted, visits, rounds, picks;
  real *of_membrane, *of_queued, *of_emitted, *before; /* cotangents; `before`: last time step */
  real *arriving;   /* cotangent of what arrives in the forward step that follows */
  real *first;      /* cotangent of what arrived with the first event of each group */
  real *of_spike;   /* cotangents of the spikes of one visit */
  uint8_t live[GROUP_COUNT]; /* evaluated in the forward step that follows */
  int64_t part;
};

/* What becomes of a neuron in a forward step. */
enum { REFRACTORY, SILENT, QUEUED };

static void set_up_reverse(const struct network *a, struct reverse *r, char **scratch)
{
  const int64_t n = a->neurons, reals = n * (int64_t)sizeof(real);
  r->potential = part_of(scratch, a->most_neurons * (int64_t)sizeof(real));
  r->neuron = part_of(scratch, a->most_neurons * 4);
  r->state = part_of(scratch, a->most_neurons);
  r->visit = part_of(scratch, a->most_groups * (int64_t)sizeof *r->visit);
  r->round = part_of(scratch, a->most_steps * (int64_t)sizeof *r->round);
  r->height = part_of(scratch, (a->most_neurons + n) * (int64_t)sizeof(real));
  r->of_membrane = part_of(scratch, reals);
  r->of_queued = part_of(scratch, reals);
  r->of_emitted = part_of(scratch, reals);
  r->before = part_of(scratch, reals);
  r->arriving = part_of(scratch, reals);
  r->first = part_of(scratch, reals);
  r->of_spike = part_of(scratch, reals);
  memset(r->arriving, 0, (size_t)reals);
}

/* Evaluate a group once more, and note what happens. */
static void visit(const struct network *a, struct work *w, struct reverse *r, int64_t g)
{
  const struct group *of = a->group + g;
  const uint64_t draws = a->dropout ? draws_of(a, w, 1) : 0;
  const int64_t whole = w->count[g] == ALL, count = whole ? of->size : w->count[g];
  const int32_t *list = w->list + of->first;
  r->visit[r->visits++] = (struct visit){g, !w->seen[g], r->noted, whole ? ALL : count};
  for (int64_t k = 0; k < count; k++)
    r->state[r->noted + k] = !w->refractory[of->first + (whole ? k : list[k])];
  evaluate(a, w, g);
  for (int64_t k = 0; k < count; k++) {
    const int64_t i = whole ? k : list[k], neuron = of->first + i;
    const real spike = w->spike[neuron];
    r->neuron[r->noted + k] = (int32_t)i;
    r->potential[r->noted + k] = w->potential[neuron];
    if (spike != 0) {
      w->waits[g] -= w->queued[neuron] != 0;
      w->queued[neuron] += spike;
      w->waits[g] += w->queued[neuron] != 0;
      w->refractory[neuron] |= (uint8_t)stays(a, draws, neuron);
    }
    if (r->state[r->noted + k] && w->queued[neuron] != 0)
      r->state[r->noted + k] = QUEUED;
  }
  r->noted += count;
  clear(a, w, g);
}

/* Run a time step once more along the tape. */
static void replay(const struct network *a, struct work *w, struct reverse *r, const int32_t *tape)
{
  int64_t at = tape[w->step];
  r->noted = r->visits = r->rounds = r->picks = 0;
  for (;; w->forward_step++) {
    struct round *round = r->round + r->rounds++;
    round->begin = r->visits;
    for (int64_t g = 0; g < a->groups; g++)
      if (w->count[g])
        visit(a, w, r, g);
    round->end = r->visits;
    const int32_t picks = tape[at++];
    round->picks = larger(picks, 0);
    round->first = at;
    if (picks == END)
      return;
    for (int32_t k = 0; k < picks; k++) {
      const int32_t neuron = tape[at++];
      const struct group *from = a->group + group_of(a, neuron);
      deliver_all(a, w, from, neuron - from->first, w->queued[neuron]);
      r->height[r->picks++] = w->queued[neuron];
      w->queued[neuron] = 0;
      w->waits[from - a->group]--;
    }
    reach_quiet(a, w);
  }
}

/* The product of a row of weights with the cotangents of what arrived at its targets. */
static real product(const struct network *a, const struct edge *e, int64_t j, const real *arriving)
{
  const struct group *to = a->group + e->target;
  const real *restrict g = arriving + to->first;
  real sum = 0;
  if (e->rows) {
    const real *restrict row = e->rows + j * to->size;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < to->size; i++)
      sum += row[i] * g[i];
  } else
    for (int64_t k = e->starts[j]; k < e->starts[j + 1]; k++)
      sum += e->weights[k] * g[e->places[k]];
  return sum;
}

/* The cotangent of a spike that is delivered to the next forward step. */
INLINE real of_delivery(const struct network *a, const struct reverse *r, const struct group *from,
                        int64_t j)
{
  real sum = 0;
  for (const struct edge *e = from->edge; e < from->edge + from->edges; e++)
    if (r->live[e->target])
      sum += product(a, e, j, r->arriving);
  return sum;
}

/* Add to the gradient of a row of weights. */
static void add_outer(const struct network *a, const struct reverse *r, const struct edge *e,
                      int64_t sources, int64_t j, real height, const real *arriving)
{
  const struct group *to = a->group + e->target;
  const real *restrict g = arriving + to->first;
  real *restrict gradient = e->gradient + (r->part * sources + j) * to->size;
#pragma omp simd
  for (int64_t i = 0; i < to->size; i++)
    gradient[i] += height * g[i];
}

/* Go back through what was picked after a forward step. */
static void reverse_picks(const struct network *a, struct reverse *r, const struct round *round,
                          const int32_t *tape)
{
  r->picks -= round->picks;
  for (int64_t k = 0; k < round->picks; k++) {
    const int32_t neuron = tape[round->first + k];
    const struct group *from = a->group + group_of(a, neuron);
    const int64_t j = neuron - from->first;
    r->of_queued[neuron] = of_delivery(a, r, from, j);
    for (const struct edge *e = from->edge; e < from->edge + from->edges; e++)
      if (e->gradient && r->live[e->target])
        add_outer(a, r, e, from->size, j, r->height[r->picks + k], r->arriving);
  }
}

/* Write the cotangents of the spikes of a visit. */
static void reverse_spikes(const struct network *a, struct reverse *r, const struct visit *v)
{
  const struct group *of = a->group + v->group;
  const int64_t count = v->count == ALL ? of->size : v->count;
  for (int64_t k = v->begin; k < v->begin + count; k++) {
    const int64_t i = r->neuron[k], neuron = of->first + i;
    real g = r->of_emitted[neuron];
    if (r->state[k] == SILENT)
      g += of_delivery(a, r, of, i);
    else
      g += r->of_queued[neuron];
    r->of_spike[neuron] = g;
  }
}

/* Forget the cotangents of what arrived at the visits of a forward step. */
static void forget(const struct network *a, struct reverse *r, const struct round *round)
{
  for (const struct visit *v = r->visit + round->begin; v < r->visit + round->end; v++) {
    const struct group *of = a->group + v->group;
    r->live[v->group] = 0;
    if (v->count == ALL)
      memset(r->arriving + of->first, 0, (size_t)of->size * sizeof(real));
    else
      for (int64_t k = v->begin; k < v->begin + v->count; k++)
        r->arriving[of->first + r->neuron[k]] = 0;
  }
}

/* Go back through a forward step; then `arriving` is that of what arrived in it. */
static void reverse_round(const struct network *a, struct reverse *r, int64_t k,
                          const int32_t *tape)
{
  const struct round *round = r->round + k;
  reverse_picks(a, r, round, tape);
  for (const struct visit *v = r->visit + round->begin; v < r->visit + round->end; v++)
    if (a->group[v->group].fires)
      reverse_spikes(a, r, v);
  for (const struct group *of = a->group; of < a->group + a->groups && k == 0; of++)
    for (int64_t i = 0; i < of->size && of->kind < 0 && of->to_standing; i++) {
      /* A silent input delivers its zero after the first forward step. */
      const int64_t neuron = of->first + i;
      if (r->first[neuron] != 0)
        r->of_queued[neuron] = of_delivery(a, r, of, i);
    }
  if (k + 1 < r->rounds)
    forget(a, r, round + 1);
  for (const struct visit *v = r->visit + round->begin; v < r->visit + round->end; v++) {
    const struct group *of = a->group + v->group;
    real *arriving = r->arriving + of->first;
    reverse_fire(of, r->part, v->count, r->neuron + v->begin, r->state + v->begin,
                 r->potential + v->begin, r->of_spike + of->first, r->of_membrane + of->first,
                 arriving);
    r->live[v->group] = 1;
    if (v->is_first)
      memcpy(r->first + of->first, arriving, (size_t)of->size * sizeof *arriving);
  }
}

/* Go back through the spikes of the time step before that arrived in this one. */
static void reverse_late(const struct network *a, struct reverse *r, int64_t b, int64_t t)
{
  memset(r->before, 0, (size_t)a->neurons * sizeof(real));
  for (const struct group *from = a->group; from < a->group + a->groups; from++) {
    const real *heights = from->lates ? emitted_before(from, b, t) : NULL;
    for (int64_t j = 0; j < from->size && heights; j++)
      for (const struct edge *e = from->late; e < from->late + from->lates; e++) {
        r->before[from->first + j] += product(a, e, j, r->first);
        if (e->gradient && heights[j] != 0)
          add_outer(a, r, e, from->size, j, heights[j], r->first);
      }
    if (from->to_emitted && t == 0)
      memcpy(from->to_emitted + b * from->size, r->before + from->first,
             (size_t)from->size * sizeof(real));
  }
}

/* Go back through leak and standing currents of a group. */
static void reverse_start(const struct network *a, struct reverse *r, const struct group *of,
                          int64_t b, int64_t t)
{
  const real *last = t ? of->membrane + (t - 1) * of->membrane_t : of->initial;
  const real *first = r->first + of->first;
  real *g = r->of_membrane + of->first, *to_decay = of->to_decay;
  last += b * of->size;
  if (of->to_standing) {
    real *to = of->to_standing + (t * a->samples + b) * of->size;
    for (int64_t i = 0; i < of->size && of->kind < 0; i++)
      to[i] = r->of_queued[of->first + i] + r->of_emitted[of->first + i];
    if (of->kind >= 0)
      memcpy(to, first, (size_t)of->size * sizeof *to);
  }
  if (of->kind < 0)
    return;
  for (int64_t i = 0; i < of->size && to_decay; i++)
    to_decay[r->part * of->size + i] += last[i] * g[i];
  for (int64_t i = 0; i < of->size; i++)
    g[i] *= of->decay[i];
  if (t == 0 && of->to_initial)
    memcpy(of->to_initial + b * of->size, g, (size_t)of->size * sizeof *g);
}

/* Add the cotangents of what a time step gave. */
static void add_results(const struct network *a, struct reverse *r, int64_t b, int64_t t)
{
  memset(r->of_queued, 0, (size_t)a->neurons * sizeof(real));
  for (const struct group *of = a->group; of < a->group + a->groups; of++)
    for (int64_t i = 0; i < of->size; i++) {
      const int64_t neuron = of->first + i, place = (t * a->samples + b) * of->size + i;
      r->of_emitted[neuron] = r->before[neuron] + (of->of_spikes ? of->of_spikes[place] : 0);
      if (of->of_membrane)
        r->of_membrane[neuron] += of->of_membrane[place];
    }
}

static void reverse_sample(const struct network *a, struct work *w, struct reverse *r, int64_t b)
{
  const int32_t *tape = a->tape + b * a->capacity;
  memset(r->before, 0, (size_t)a->neurons * sizeof(real));
  for (const struct group *of = a->group; of < a->group + a->groups; of++)
    for (int64_t i = 0; i < of->size; i++)
      r->of_membrane[of->first + i] = of->of_last ? of->of_last[b * of->size + i] : 0;
  for (int64_t t = a->steps; t-- > 0;) {
    start_step(a, w, b, t);
    for (const struct group *of = a->group; of < a->group + a->groups; of++)
      for (int64_t i = of->first; i < of->first + of->size && of->kind < 0; i++)
        w->waits[of - a->group] += w->queued[i] != 0;
    deliver_late(a, w, b, t);
    memset(r->first, 0, (size_t)a->neurons * sizeof(real));
    for (const struct group *of = a->group; of < a->group + a->groups; of++)
      for (int64_t i = of->first; i < of->first + of->size && of->kind < 0; i++)
        r->first[i] = w->queued[i] == 0; /* which inputs are silent */
    replay(a, w, r, tape);
    add_results(a, r, b, t);
    for (int64_t k = r->rounds; k-- > 0;)
      reverse_round(a, r, k, tape);
    forget(a, r, r->round);
    reverse_late(a, r, b, t);
    for (const struct group *of = a->group; of < a->group + a->groups; of++)
      reverse_start(a, r, of, b, t);
  }
}

void @NAME(const struct network *a)
{
#ifdef _OPENMP
#pragma omp parallel for schedule(static) num_threads((int)a->threads) if (a->threads > 1)
#endif
  for (int64_t part = 0; part < a->parts; part++) {
    struct work work;
    struct reverse reverse = {.part = part};
    char *scratch = a->scratch + snncc_thread() * a->scratch_bytes;
    set_up(a, &work, &scratch);
    set_up_reverse(a, &reverse, &scratch);
    for (int64_t g = 0; g < a->groups; g++)
      work.membrane[g] = part_of(&scratch, a->group[g].size * (int64_t)sizeof(real));
    const int64_t first = part * a->samples / a->parts, last = (part + 1) * a->samples / a->parts;
    for (int64_t b = first; b < last; b++)
      reverse_sample(a, &work, &reverse, b);
  }
}
"""
