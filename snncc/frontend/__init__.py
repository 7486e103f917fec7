"""From the user's code to time loops: capture by execution, re-rolling with proof."""
