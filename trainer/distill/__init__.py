"""Motion consistency distillation: what a step computes, and the loop that repeats it."""
