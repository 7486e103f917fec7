"""What was compiled, in words: the plan, and the explanation as text, data and a page."""
