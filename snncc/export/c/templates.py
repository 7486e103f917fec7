"""The header and the source of a C library, with places for what depends on the network."""

from __future__ import annotations

HEADER = """\
/* The network '{name}', exported by snncc.
 *
 * A network is one structure, as large as its state; nothing is allocated, nothing is global, and
 * any number of networks can share the weights.
 *
 *   struct {name} net;
 *   {name}_init(&net, {name}_weights);
 *   {name}_step(&net, ...);
 */
#ifndef {macro}_H
#define {macro}_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {{
#endif

{macros}

/* An input, a state or an output. */
typedef {real} {name}_number;

{declaration}struct {name} {{
  const {type} *weights;
  unsigned long steps; /* taken since the reset */
{members}
}};

/* The weights, in {name}_weights.c; not needed where they are read from a file. */
extern const {type} {name}_weights[{macro}_WEIGHTS];

/* Check the contents of '{name}.weights', aligned for {type}; return its numbers, or NULL if it is
   damaged or belongs to another network. */
const {type} *{name}_check_weights(const void *data, size_t bytes);

/* Start with these weights, which are not copied, in the state before the first step. */
void {name}_init(struct {name} *net, const {type} *weights);

/* Go back to the state before the first step. */
void {name}_reset(struct {name} *net);

/* Take one step; return 0{step_error}.
{outputs} */
int {name}_step(struct {name} *net, {parameters});

/* Take several steps: inputs, and outputs of each step, lie one step after another. */
int {name}_run(struct {name} *net, size_t count, {run_parameters});
{own}
#ifdef __cplusplus
}}
#endif

#endif
"""

CHECK_WEIGHTS = """\
static uint32_t {name}_checksum(const unsigned char *data, size_t bytes)
{{
  uint32_t sum = 0xFFFFFFFFu;
  for (size_t i = 0; i < bytes; i++) {{
    sum ^= data[i];
    for (int bit = 0; bit < 8; bit++) {{
      sum = sum & 1u ? sum >> 1 ^ 0xEDB88320u : sum >> 1;
    }}
  }}
  return ~sum;
}}

static uint32_t {name}_word(const unsigned char *data)
{{
  return data[0] | (uint32_t)data[1] << 8 | (uint32_t)data[2] << 16 | (uint32_t)data[3] << 24;
}}

const {type} *{name}_check_weights(const void *data, size_t bytes)
{{
  static const char magic[8] = {{{magic}}};
  const unsigned char *start = data;
  const size_t size = (size_t){macro}_WEIGHTS * sizeof({type});
  if (data == NULL || bytes != size + 32 || memcmp(start, magic, sizeof magic) != 0
      || {name}_word(start + 8) != sizeof({type}) || {name}_word(start + 12) != {macro}_WEIGHTS) {{
    return NULL;
  }}
  const uint32_t found = {name}_checksum(start + 32, size);
  if ({name}_word(start + 16) != found{own}) {{
    return NULL;
  }}
  return (const {type} *)(const void *)(start + 32);
}}
"""

SOURCE = """\
/* The network '{name}', exported by snncc.  Each operation is rounded once, in one order. */
#include "{name}.h"

#include <math.h>
#include <stdint.h>
#include <string.h>

#ifdef __clang__
#pragma STDC FP_CONTRACT OFF
#endif
{fixed}
{functions}
{check}

void {name}_init(struct {name} *net, const {type} *weights)
{{
  net->weights = weights;
  {name}_reset(net);
}}

void {name}_reset(struct {name} *net)
{{
  net->steps = 0;
{resets}
}}

int {name}_step(struct {name} *net, {parameters})
{{
{limit}{weights}{count}{step}
  return 0;
}}

int {name}_run(struct {name} *net, size_t count, {run_parameters})
{{
  for (size_t i = 0; i < count; i++) {{
    const int error = {name}_step(net, {arguments});
    if (error) {{
      return error;
    }}
{advance}
  }}
  return 0;
}}
{own}"""
