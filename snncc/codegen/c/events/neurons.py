"""The neurons of an event network as C: what follows the charge, and its gradient."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from snncc.codegen.base import FloatType
from snncc.codegen.c.expressions import c_names, dialect
from snncc.codegen.prepare import find_bools, find_live, prepare
from snncc.ir.events.network import EventGroup
from snncc.ir.nodes import Binary, Let, Op, Unary, Var
from snncc.ir.printer import print_recurrence, spell
from snncc.ir.walk import subexpressions

# What the printed functions call their own.
_TAKEN = ("real", "lanes", "i", "after", "spike", "potential", "g_spike", "g_after", "to_u")


@dataclass(frozen=True, slots=True)
class Neuron:
    """A kind of neuron, of one group or of several.

    Attributes:
        number: By which the kernel knows it.
        group: A group of the kind.
    """

    number: int
    group: EventGroup

    @property
    def summed(self) -> tuple[int, ...]:
        """The parameters that have gradients, by position."""
        adjoint = self.group.adjoint
        return tuple(i for i, f in enumerate(adjoint.lane_gradients if adjoint else ()) if f)


def find_kinds(groups: Iterable[EventGroup], *, backward: bool) -> tuple[list[Neuron], list[int]]:
    """Return the kinds of neurons, and for each group the number of its kind, -1 for inputs."""
    kinds: dict[str, Neuron] = {}
    numbers = []
    for group in groups:
        if group.fire is None:
            numbers.append(-1)
            continue
        text = print_recurrence(group.fire)
        if backward and group.adjoint is not None:
            text += print_recurrence(group.adjoint.recurrence)
        kind = kinds.setdefault(text, Neuron(len(kinds), group))
        numbers.append(kind.number)
    return list(kinds.values()), numbers


def operations(neurons: Iterable[Neuron], *, backward: bool) -> Iterator[Op]:
    """Yield the operations that the neurons use."""
    for neuron in neurons:
        for let in (*forward_lets(neuron), *(backward_lets(neuron) if backward else ())):
            for node in subexpressions(let.expr):
                if isinstance(node, Unary | Binary):
                    yield node.op


def forward_lets(neuron: Neuron) -> tuple[Let, ...]:
    """Return the step after the charge, ready for a kernel."""
    fire = neuron.group.fire
    assert fire is not None
    lets = prepare(fire.lets, (*fire.step_inputs, *fire.lane_inputs))
    live = find_live(lets, (), fire.outputs)
    return tuple(let for let in lets if let.name in live)


def backward_lets(neuron: Neuron) -> tuple[Let, ...]:
    """Return what the gradient of that step computes, forward values included."""
    fire, adjoint = neuron.group.fire, neuron.group.adjoint
    if fire is None or adjoint is None:
        return ()
    step = adjoint.recurrence
    given = (neuron.group.potential, *fire.lane_inputs, *(i.name for i in step.inputs))
    lets = prepare((*fire.lets, *step.lets), (*given, *(s.name for s in step.states)))
    live = find_live(lets, (), (*step.outputs, *(s.update for s in step.states)))
    return tuple(let for let in lets if let.name in live)


def neuron_functions(
    neurons: Iterable[Neuron], dtype: FloatType, *, backward: bool, named: bool
) -> str:
    """Return the functions of all kinds, and those that choose among them.

    Args:
        neurons: The kinds.
        dtype: The working type.
        backward: Whether gradients are computed.
        named: Whether values have the names that the user gave them.
    """
    neurons = tuple(neurons)
    text = "".join(_forward(neuron, dtype, named=named) for neuron in neurons)
    text += _choice(_FIRE, _FIRE_CASE, neurons)
    if backward:
        text += "".join(_backward(neuron, dtype, named=named) for neuron in neurons)
        text += _choice(_REVERSE, _REVERSE_CASE, neurons)
    return text


def _choice(template: str, case: str, neurons: tuple[Neuron, ...]) -> str:
    cases = (case.replace("@KIND", str(neuron.number)) for neuron in neurons)
    return template.replace("@CASES\n", "".join(cases))


def _names(values: Iterable[str], *, named: bool) -> dict[str, str]:
    if named:
        values = tuple(values)
        return c_names(values, (*_TAKEN, *(f"to_{n}" for n in range(len(values)))))
    return {name: f"v{position}" for position, name in enumerate(values)}


def _body(lets: Iterable[Let], dtype: FloatType, names: dict[str, str]) -> list[str]:
    lets = tuple(lets)
    bools = find_bools(lets, ())
    return [
        f"  const {'int' if let.name in bools else 'real'} {names[let.name]} ="
        f" {spell(let.expr, dialect(dtype, names))};"
        for let in lets
    ]


def _lane_lines(neuron: Neuron, names: dict[str, str]) -> list[str]:
    lanes = neuron.group.lanes
    return [f"  const real {names[lane]} = lanes[{n}][i];" for n, lane in enumerate(lanes)]


def _forward(neuron: Neuron, dtype: FloatType, *, named: bool) -> str:
    fire, lets = neuron.group.fire, forward_lets(neuron)
    assert fire is not None
    names = _names(
        dict.fromkeys((neuron.group.potential, *neuron.group.lanes, *(let.name for let in lets))),
        named=named,
    )
    spelled = _value(dtype, names, find_bools(lets, ()))
    comment = "".join(f" * {line}\n" for line in print_recurrence(fire).splitlines())
    spike = spelled(fire.outputs[0]) if neuron.group.fires else "0"
    lines = [
        f"\n/*\n{comment} */" if named else "",
        f"INLINE void step_{neuron.number}(",
        f"    const real *const *lanes, int64_t i, const real {names[neuron.group.potential]},",
        "    real *after, real *spike)",
        "{",
        "  (void)lanes, (void)i;",
        *_lane_lines(neuron, names),
        *_body(lets, dtype, names),
        f"  *after = {spelled(fire.outputs[-1])};",
        f"  *spike = {spike};",
        "}",
    ]
    return "\n".join(lines) + _FIRE_LOOPS.replace("@KIND", str(neuron.number))


def _value(dtype: FloatType, names: dict[str, str], bools: frozenset[str]) -> Callable[[str], str]:
    def spelled(name: str) -> str:
        value = Unary(Op.FLOAT, Var(name)) if name in bools else Var(name)
        return spell(value, dialect(dtype, names))

    return spelled


def _backward(neuron: Neuron, dtype: FloatType, *, named: bool) -> str:
    adjoint, lets = neuron.group.adjoint, backward_lets(neuron)
    of_u, of_spike, of_after, sums = "0", "g_spike", "g_after", []
    lines: list[str] = []
    if adjoint is not None:
        step = adjoint.recurrence
        states = [s.name for s in step.states]
        cotangents = adjoint.output_cotangents
        values = (
            neuron.group.potential,
            *neuron.group.lanes,
            *cotangents,
            *states,
            *(x.name for x in lets),
        )
        names = _names(dict.fromkeys(values), named=named)
        of_after = names[cotangents[-1]]
        of_spike = names[cotangents[0]] if neuron.group.fires else "g_spike"
        lines = [
            *_lane_lines(neuron, names),
            f"  const real {names[neuron.group.potential]} = potential;",
        ]
        updates = {s.name: s.update for s in step.states}
        for n in neuron.summed:
            (state,) = adjoint.lane_gradients[n]
            lines.append(f"  const real {names[state]} = *to_{n};")
            sums.append(f"  *to_{n} = {names[updates[state]]};")
        lines += _body(lets, dtype, names)
        gradient = adjoint.step_gradients[0]
        of_u = "0" if gradient is None else names[gradient]
    places = "".join(f", real *to_{n}" for n in neuron.summed)
    text = "\n".join(
        [
            "",
            f"INLINE void reverse_step_{neuron.number}(",
            "    const real *const *lanes, int64_t i, const real potential,",
            f"    const real {of_spike}, const real {of_after}, real *to_u{places})",
            "{",
            f"  (void)lanes, (void)i, (void)potential, (void){of_spike}, (void){of_after};",
            *lines,
            f"  *to_u = {of_u};",
            *sums,
            "}",
        ]
    )
    return text + _reverse_loops(neuron)


def _reverse_loops(neuron: Neuron) -> str:
    def each(layout: str, separator: str = "") -> str:
        return separator.join(layout.format(n=n) for n in neuron.summed)

    return (
        _REVERSE_LOOPS.replace("@KIND", str(neuron.number))
        .replace(
            "@POINTERS", each("  real *restrict sum_{n} = of->to_lanes[{n}] + part * of->size;\n")
        )
        .replace("@VALUES", each(", to_{n} = sum_{n}[i]"))
        .replace("@PLACES", each(", &to_{n}"))
        .replace("@SUMS", each("    sum_{n}[i] = is ? to_{n} : sum_{n}[i];\n"))
    )


_FIRE_LOOPS = """
static void fire_all_@KIND(const struct group *of, real *restrict membrane,
                       const real *restrict current, const uint8_t *restrict refractory,
                       real *restrict potential, real *restrict spikes)
{
#pragma omp simd
  for (int64_t i = 0; i < of->size; i++) {
    const real u = membrane[i] + current[i];
    real after, spike;
    step_@KIND(of->lanes, i, u, &after, &spike);
    potential[i] = u;
    spikes[i] = refractory[i] ? 0 : spike;
    membrane[i] = refractory[i] ? membrane[i] : after;
  }
}

static void fire_some_@KIND(const struct group *of, real *restrict membrane, int64_t count,
                        const int32_t *restrict list, const real *restrict current,
                        const uint8_t *restrict refractory, real *restrict potential,
                        real *restrict spikes)
{
  for (int64_t k = 0; k < count; k++) {
    const int64_t i = list[k];
    const real u = membrane[i] + current[i];
    real after, spike;
    step_@KIND(of->lanes, i, u, &after, &spike);
    potential[i] = u;
    spikes[i] = refractory[i] ? 0 : spike;
    membrane[i] = refractory[i] ? membrane[i] : after;
  }
}

INLINE void fire_@KIND(const struct group *of, real *membrane, int64_t count, const int32_t *list,
                   const real *current, const uint8_t *refractory, real *potential, real *spikes)
{
  if (count == ALL)
    fire_all_@KIND(of, membrane, current, refractory, potential, spikes);
  else
    fire_some_@KIND(of, membrane, count, list, current, refractory, potential, spikes);
}
"""

_FIRE = """
/* Evaluate neurons of a group: all, or those of a list. */
static void fire(const struct group *of, real *membrane, int64_t count, const int32_t *list,
                 const real *current, const uint8_t *refractory, real *potential, real *spikes)
{
  switch (of->kind) {
@CASES
  }
}
"""

_SUM = "  real *restrict sum_{n} = of->to_lanes[{n}] + part * of->size;\n"
_REVERSE_LOOPS = """

static void reverse_all_@KIND(const struct group *of, int64_t part, const uint8_t *restrict state,
                          const real *restrict potential, const real *restrict of_spike,
                          real *restrict of_membrane, real *restrict arriving)
{
  (void)part;
@POINTERS#pragma omp simd
  for (int64_t i = 0; i < of->size; i++) {
    real to_u@VALUES;
    reverse_step_@KIND(of->lanes, i, potential[i], of_spike[i], of_membrane[i], &to_u@PLACES);
    const int is = state[i] != 0;
    arriving[i] = is ? to_u : 0;
    of_membrane[i] = is ? to_u : of_membrane[i];
@SUMS  }
}

static void reverse_some_@KIND(const struct group *of, int64_t part, int64_t count,
                           const int32_t *restrict neuron, const uint8_t *restrict state,
                           const real *restrict potential, const real *restrict of_spike,
                           real *restrict of_membrane, real *restrict arriving)
{
  (void)part;
@POINTERS  for (int64_t k = 0; k < count; k++) {
    const int64_t i = neuron[k];
    real to_u@VALUES;
    reverse_step_@KIND(of->lanes, i, potential[k], of_spike[i], of_membrane[i], &to_u@PLACES);
    const int is = state[k] != 0;
    arriving[i] = is ? to_u : 0;
    of_membrane[i] = is ? to_u : of_membrane[i];
@SUMS  }
}

INLINE void reverse_@KIND(const struct group *of, int64_t part, int64_t count,
                      const int32_t *neuron, const uint8_t *state, const real *potential,
                      const real *of_spike, real *of_membrane, real *arriving)
{
  if (count == ALL)
    reverse_all_@KIND(of, part, state, potential, of_spike, of_membrane, arriving);
  else
    reverse_some_@KIND(of, part, count, neuron, state, potential, of_spike, of_membrane, arriving);
}
"""

_REVERSE = """
/* Go back through an evaluation; `neuron`, `state` and `potential` are those of the visit. */
static void reverse_fire(const struct group *of, int64_t part, int64_t count, const int32_t *neuron,
                         const uint8_t *state, const real *potential, const real *of_spike,
                         real *of_membrane, real *arriving)
{
  switch (of->kind) {
@CASES
  }
}
"""

_FIRE_CASE = """\
  case @KIND:
    fire_@KIND(of, membrane, count, list, current, refractory, potential, spikes);
    break;
"""
_REVERSE_CASE = """\
  case @KIND:
    reverse_@KIND(of, part, count, neuron, state, potential, of_spike, of_membrane, arriving);
    break;
"""
