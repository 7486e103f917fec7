"""From a recording to a program: the stages, and which program serves a call."""
