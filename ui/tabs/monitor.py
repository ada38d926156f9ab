"""Monitor: numbers, curves, the last error, and the log as it grows."""

from __future__ import annotations

import gradio as gr

from ..monitor import log_tail, losses, monitor
from ..site import heading
from ..watch import Moment, Watch


def monitor_tab(watch: Watch) -> None:
    """Build the tab; all of it follows the chosen run."""
    watch.add(gr.HTML(elem_id="monitor"), lambda moment: monitor(moment.status, moment.events))
    # As part of the HTML above it would close with every update.
    with gr.Accordion("Losses, for experts", open=False):
        watch.add(gr.HTML(elem_id="losses"), lambda moment: losses(moment.status, moment.events))
    heading("Log", level=3)
    watch.add(gr.HTML(elem_id="log"), _log)


def _log(moment: Moment) -> str:
    return log_tail(moment.status.run.log_path if moment.status else None)
