"""The tabs of the page; each function builds one and wires its buttons."""
