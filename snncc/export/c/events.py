"""A queue of spikes in a C library: the text of the kernels, on memory of the library.

Names start with that of the library, counts and indices are of 32 bits, and nothing is global.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from snncc.codegen.base import FloatType
from snncc.codegen.c.events.delivery import DELIVERY
from snncc.codegen.c.events.forward import FORWARD
from snncc.codegen.c.events.network import most_lanes
from snncc.codegen.c.events.neurons import find_kinds, neuron_functions, operations
from snncc.codegen.c.events.queue import QUEUE
from snncc.codegen.c.events.structures import STRUCTURES
from snncc.codegen.c.expressions import C_TYPE
from snncc.export.c.parts import Parts
from snncc.export.network.nodes import Array, Queue
from snncc.ir.events.run import COUNTS

_TAGS = ("edge", "group", "network", "work")
_BYTES = {"double": 8, "int32_t": 4, "uint8_t": 1}
_EXTENTS = 4  # what kernels note besides counts
_WORDS = {
    "forward_steps": "rounds of evaluating and picking",
    "events": "neurons that delivered their spikes",
    "spikes": "neurons that fired",
    "operations": "weights that spikes passed",
    "evaluations": "potentials compared with a threshold",
}


@dataclass
class Interface:
    """What a library has besides states, work and a step.

    Attributes:
        members: Of the structure.
        resets: The statements that reset them.
        declarations: Of the header.
        definitions: Of the source.
        extra_bytes: How large the members are.
    """

    members: list[str] = field(default_factory=list)
    resets: list[str] = field(default_factory=list)
    declarations: str = ""
    definitions: str = ""
    extra_bytes: int = 0


@dataclass(frozen=True)
class QueueWriter:
    """Writes the queue of spikes of a library.

    Attributes:
        queue: The queue.
        parts: The parts of the library.
        float_type: Its numbers.
    """

    queue: Queue
    parts: Parts
    float_type: FloatType

    @property
    def prefix(self) -> str:
        """What all names start with."""
        return self.parts.prefix

    @property
    def sizes(self) -> list[int]:
        """The sizes of the groups."""
        return [x.shape[1] for x in self.queue.standing]

    @property
    def samples(self) -> int:
        """The batch."""
        return self.queue.standing[0].shape[0]

    def statements(self) -> list[str]:
        """Return the statements of a step, and write the functions that they call."""
        kinds, numbers = find_kinds(self.queue.network.groups, backward=False)
        self.parts.used |= {op.value for op in operations(kinds, backward=False)}
        self.parts.functions.append(self._functions(kinds))
        first, lines = 0, list[str]()
        spans = []
        for group in range(len(self.sizes)):
            own = [self._leaving(group, is_delayed=late) for late in (False, True)]
            starts = [first, first + len(own[0])]
            first += len(own[0]) + len(own[1])
            lines += [self._edge(n) for n in (*own[0], *own[1])]
            spans.append([(s, len(n)) for s, n in zip(starts, own, strict=True)])
        groups = [self._group(g, numbers[g], spans[g]) for g in range(len(self.sizes))]
        body = []
        if lines:
            body += [f"const struct {self.prefix}_edge edges[] = {{", *lines, "};"]
        body += [f"const struct {self.prefix}_group groups[] = {{", *groups, "};"]
        steps = "net->steps - 1" if self.queue.network.order.draws else "0"
        return [
            "{",
            *(f"  {x}" for x in body),
            f"  {self.prefix}_queue(net, groups, {steps});",
            "}",
        ]

    def interface(self) -> Interface:
        """Return what the library has for its queue."""
        neurons, real = sum(self.sizes), C_TYPE[self.float_type]
        arrays = [
            *((real, name, neurons) for name in ("current", "potential", "spike", "queued")),
            (real, "emitted", neurons),
            *(("double", name, neurons) for name in ("before", "priority")),
            *(("int32_t", name, neurons) for name in ("queue", "place", "list")),
            *(("uint8_t", name, neurons) for name in ("refractory", "reached")),
            ("int32_t", "counts", self.samples * len(COUNTS)),
            ("int32_t", "extents", self.samples * _EXTENTS),
        ]
        sizes = _BYTES | {"float": 4}
        members = [f"{kind} events_{name}[{count}];" for kind, name, count in arrays]
        resets = ["memset(net->events_counts, 0, sizeof net->events_counts);"]
        if self.queue.network.order.draws:
            members.insert(0, "uint64_t seed; /* of the random numbers; a reset puts it back */")
            resets.append(f"net->seed = UINT64_C({self.queue.seed});")
        words = "".join(
            f"unsigned long {self.prefix}_last_{name}(const struct {self.prefix} *net);"
            f" /* {_WORDS[name]} */\n"
            for name in COUNTS
        )
        return Interface(
            members,
            resets,
            "\n/* What the queue of spikes took in the last step, all samples together. */\n"
            + words,
            "".join(map(self._reader, range(len(COUNTS)))),
            sum(sizes[kind] * count for kind, _, count in arrays),
        )

    def _reader(self, position: int) -> str:
        return f"""
unsigned long {self.prefix}_last_{COUNTS[position]}(const struct {self.prefix} *net)
{{
  unsigned long sum = 0;
  for (int b = 0; b < {self.samples}; b++) {{
    sum += (unsigned long)net->events_counts[b * {len(COUNTS)} + {position}];
  }}
  return sum;
}}
"""

    def _functions(self, kinds: Sequence[object]) -> str:
        network, order = self.queue.network, self.queue.network.order
        neurons = neuron_functions(kinds, self.float_type, backward=False, named=True)  # type: ignore[arg-type]
        structures = STRUCTURES.replace("LANES", str(most_lanes(network)))
        text = _SMALLER + structures + neurons + DELIVERY + QUEUE + FORWARD + _RUN
        words = {
            "GROUP_COUNT": str(len(network.groups)),
            "@samples": str(self.samples),
            "@neurons": str(sum(self.sizes)),
            "@size": str(min(order.group_size, 2**31 - 1)),
            "@random": str(int(order.policy == "random")),
            "@stop": str(-1 if order.stop is None else min(order.stop, 2**31 - 2)),
            "@noise": repr(float(order.noise)),
            "@dropout": repr(float(order.refractory_dropout)),
            "@seed": "net->seed" if order.draws else "0",
            "@net": self.prefix,
        }
        text = own_names(text, self.prefix, C_TYPE[self.float_type])
        for word, value in words.items():
            text = text.replace(word, value)
        return text

    def _leaving(self, group: int, *, is_delayed: bool) -> list[int]:
        edges = enumerate(self.queue.network.edges)
        return [n for n, e in edges if e.source == group and e.is_delayed is is_delayed]

    def _edge(self, n: int) -> str:
        edge, base = self.queue.edges[n], self.parts.base
        target = self.queue.network.edges[n].target
        fields = [f".target = {target}", f".fans = {self._table(edge.fans)}"]
        if edge.starts:
            fields += [f".starts = {self._table(edge.starts)}", f".weights = {base(edge.weights)}"]
            fields.append(f".places = {self._table(edge.places or (0,))}")
        else:
            full = all(fan == self.sizes[target] for fan in edge.fans)
            fields += [f".rows = {base(edge.weights)}", f".full = {int(full)}"]
        return f"  {{{', '.join(fields)}}},"

    def _table(self, numbers: Sequence[int]) -> str:
        return self.parts.table(numbers, "int32_t")

    def _group(self, g: int, kind: int, spans: Sequence[tuple[int, int]]) -> str:
        queue, base = self.queue, self.parts.base
        known = queue.network.groups[g]
        fields = [
            f".kind = {kind}",
            f".fires = {int(known.fires)}",
            f".first = {sum(self.sizes[:g])}",
            f".size = {self.sizes[g]}",
            f".starts = {int(known.starts)}",
            f".is_output = {int(known.is_output)}",
            f".standing = {base(queue.standing[g])}",
            f".standing_b = {self.sizes[g]}",
        ]
        for name, (first, count) in zip(("edge", "late"), spans, strict=True):
            if count:
                fields += [f".{name}s = {count}", f".{name} = edges + {first}"]
        pairs: Iterable[tuple[str, Array | None]] = (
            ("decay", queue.decay[g]),
            ("initial", queue.membranes[g]),
            ("membrane", queue.membranes[g]),
            ("emitted", queue.emitted[g]),
            ("spikes", queue.spikes[g]),
        )
        fields += [f".{name} = {base(array)}" for name, array in pairs if array is not None]
        if queue.lanes[g]:
            fields.append(f".lanes = {{{', '.join(map(base, queue.lanes[g]))}}}")
        return f"  {{{', '.join(fields)}}},"


def own_names(text: str, prefix: str, real: str) -> str:
    """Return the text of kernels with the names and the types of a library."""
    text = re.sub(r"^#(pragma omp|define INLINE).*\n", "", text, flags=re.MULTILINE)
    defined = _defined(text)
    listed = re.findall(r"^enum {([^}]*)}", text, re.MULTILINE)
    constants = {name for each in listed for name in re.findall(r"[A-Z_]{3,}", each)}
    text = re.sub(rf"\b({'|'.join(sorted(defined))})\(", rf"{prefix}_\1(", text)
    text = re.sub(rf"\b({'|'.join(sorted(constants))})\b", rf"{prefix}_\1", text)
    text = re.sub(rf"\bstruct ({'|'.join(_TAGS)})\b", rf"struct {prefix}_\1", text)
    text = re.sub(r"\bint64_t\b", "int32_t", text.replace("INLINE", "static inline"))
    return re.sub(r"\breal\b", real, text)


def queue_names() -> set[str]:
    """Return the names, without the prefix, of what a queue brings into a library."""
    kinds = ("step", "fire_all", "fire_some", "fire")
    numbered = {f"{name}_{n}" for name in kinds for n in range(100)}
    readers = {f"last_{name}" for name in COUNTS}
    return _defined(DELIVERY + QUEUE + FORWARD + _RUN) | {"fire"} | numbered | readers


def _defined(text: str) -> set[str]:
    """Return the names of the functions that a text defines."""
    return set(re.findall(r"^(?:static|INLINE)\b[^;(=]*?\b(\w+)\(", text, re.MULTILINE))


_SMALLER = """
static inline int64_t snncc_smaller(int64_t a, int64_t b)
{
  return a < b ? a : b;
}
"""

_RUN = """
/* A time step of all samples, each with a queue of its own. */
static void queue(struct @net *net, const struct group *groups, uint64_t before)
{
  int32_t tape = 0; /* none is kept */
  const struct network a = {
    .steps = 1, .samples = @samples, .groups = GROUP_COUNT, .neurons = @neurons,
    .group_size = @size, .is_random = @random, .stop = @stop, .seed = @seed, .before = before,
    .noise = @noise, .dropout = @dropout, .group = groups, .counts = net->events_counts,
    .extents = net->events_extents, .tape = &tape
  };
  struct work w = {
    .current = net->events_current, .potential = net->events_potential,
    .spike = net->events_spike, .queued = net->events_queued, .emitted = net->events_emitted,
    .before = net->events_before, .priority = net->events_priority, .queue = net->events_queue,
    .place = net->events_place, .list = net->events_list,
    .refractory = net->events_refractory, .reached = net->events_reached
  };
  for (int64_t b = 0; b < @samples; b++)
    run_sample(&a, &w, b);
}
"""
