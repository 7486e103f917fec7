"""L4: neuron programs as kernel IR, and kernel IR as source text.

``lower`` is shared by all targets, ``emit`` is per target.  Both are pure: no files, no compiler.
"""
