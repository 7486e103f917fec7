"""The C text of the queue: a binary heap that knows where each neuron is."""

from __future__ import annotations

QUEUE = """
INLINE int precedes(const struct work *w, int32_t i, int32_t j)
{
  return w->priority[i] > w->priority[j] || (w->priority[i] == w->priority[j] && i < j);
}

/* A potential as a priority: what is no number, or infinitely low, comes last. */
INLINE double ordered(double potential)
{
  const double lowest = -0x1.fffffffffffffp1023;
  return potential >= lowest ? potential : lowest;
}

INLINE void put(struct work *w, int64_t place, int32_t neuron)
{
  w->queue[place] = neuron;
  w->place[neuron] = (int32_t)place;
}

static void rise(struct work *w, int64_t at)
{
  const int32_t neuron = w->queue[at];
  for (; at && precedes(w, neuron, w->queue[(at - 1) / 2]); at = (at - 1) / 2)
    put(w, at, w->queue[(at - 1) / 2]);
  put(w, at, neuron);
}

static void sink(struct work *w, int64_t at)
{
  const int32_t neuron = w->queue[at];
  for (int64_t child; (child = 2 * at + 1) < w->waiting; at = child) {
    child += child + 1 < w->waiting && precedes(w, w->queue[child + 1], w->queue[child]);
    if (!precedes(w, w->queue[child], neuron))
      break;
    put(w, at, w->queue[child]);
  }
  put(w, at, neuron);
}

/* Take a neuron out of the queue. */
static void drop(struct work *w, int32_t neuron)
{
  const int64_t at = w->place[neuron];
  w->waiting--;
  if (at < w->waiting) {
    put(w, at, w->queue[w->waiting]);
    rise(w, at);
    sink(w, w->place[w->queue[at]]);
  }
}

/* Queue a spike; the neuron may be queued already, and heights may add up to nothing. */
static void enqueue(struct work *w, int64_t g, int32_t neuron, real height, double potential)
{
  if (w->queued[neuron] == 0) {
    put(w, w->waiting++, neuron);
    w->waits[g]++;
  }
  w->queued[neuron] += height;
  w->before[neuron] = potential;
  w->priority[neuron] = ordered(potential);
  rise(w, w->place[neuron]);
  sink(w, w->place[neuron]);
  if (w->queued[neuron] == 0) {
    drop(w, neuron);
    w->waits[g]--;
  }
}

/* Order the queue by priorities that are drawn anew. */
static void draw_priorities(const struct network *a, struct work *w)
{
  const uint64_t draws = draws_of(a, w, 0);
  for (int64_t k = 0; k < w->waiting; k++) {
    const int32_t i = w->queue[k];
    const double drawn = uniform(draws, i);
    w->priority[i] = a->is_random ? drawn : ordered(w->before[i] + a->noise * drawn);
  }
  for (int64_t k = w->waiting / 2; k-- > 0;)
    sink(w, k);
}
"""
