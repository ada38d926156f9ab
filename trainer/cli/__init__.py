"""Commands of ``python -m trainer``: each is a function whose docstring is its help."""
