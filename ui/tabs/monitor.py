"""Monitor: numbers, curves, the last error, and the log as it grows."""

from __future__ import annotations

import gradio as gr

from ..monitor import log_tail, monitor
from ..watch import Moment, Watch


def monitor_tab(watch: Watch) -> None:
    """Build the tab; all of it follows the chosen run."""
    watch.add(gr.HTML(elem_id="monitor"), lambda moment: monitor(moment.status, moment.events))
    gr.HTML("<h3>Log</h3>")
    watch.add(gr.HTML(elem_id="log"), _log)


def _log(moment: Moment) -> str:
    return log_tail(moment.status.run.log_path if moment.status else None)
