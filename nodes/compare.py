"""Side by Side: see what a LoRA, a step count or a strength changes."""

from __future__ import annotations

from comfy_api.latest import io

from .native.core import found_by

COLUMNS = 5


class SideBySide(io.ComfyNode):
    """Shows clips of different length and size in sync, with labels above them."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        inputs: list[io.Input] = []
        for number in range(1, COLUMNS + 1):
            inputs += [
                io.Image.Input(
                    f"images_{number}", optional=True, tooltip=f"Frames of column {number}."
                ),
                io.String.Input(
                    f"label_{number}",
                    default="",
                    optional=True,
                    tooltip=f"Text above column {number}, such as '4 steps'.",
                ),
            ]
        return io.Schema(
            node_id="MCM_SideBySide",
            display_name="Side by Side",
            category="MCM/utils",
            **found_by("compare", "comparison", "video grid", "labels"),
            description=(
                "Puts up to five clips side by side with labels, as one image batch for Create "
                "Video or Preview Image. Shorter clips repeat until the longest ends."
            ),
            inputs=inputs,
            outputs=[io.Image.Output(tooltip="The comparison, one image per frame.")],
        )

    @classmethod
    def execute(cls, **columns: object) -> io.NodeOutput:
        from .native.compare import compare

        numbers = range(1, COLUMNS + 1)
        shown = [(columns.get(f"label_{n}") or "", columns.get(f"images_{n}")) for n in numbers]
        return io.NodeOutput(compare([pair for pair in shown if pair[1] is not None]))


NODES = (SideBySide,)
