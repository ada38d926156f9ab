"""Notices: a sentence on the node that is being executed, shown by ``web/js``, and in the log."""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping
from typing import Any

log = logging.getLogger(__name__)

NOTICE, PREVIEW_END = "mcm.notice", "mcm.preview_end"
"""Events that the pack's frontend extension listens to."""

_told: dict[str, set[tuple[str, str]]] = {}
"""Prompt id of the current run -> (node, text) pairs already shown."""


def tell(text: str, settings: Mapping[str, Any] | None = None) -> None:
    """Show ``text`` on the node that is being executed, and as a warning in the log.

    ``settings`` maps names of widgets to values that would be right; the notice then has a button
    that sets them. A text is shown once per run of a node. Outside a run it is only logged.
    """
    node = executed_node()
    if node is not None:
        prompt, name = node["prompt_id"], node["node"]
        if prompt not in _told:
            _told.clear()
        told = _told.setdefault(prompt, set())
        if (name, text) in told:
            return
        told.add((name, text))
    log.warning("%s%s", f"Node {node['node']}: " if node else "", text)
    if node is not None:
        send(NOTICE, {**node, "text": text, "settings": dict(settings or {})})


def executed_node() -> dict[str, str] | None:
    """``prompt_id``, the ``node`` on the canvas and the ``workflow`` id of the node that is being
    executed; None outside a run.

    A node created by another node during the run is not on the canvas; its creator is named
    instead.
    """
    from comfy_execution.progress import get_progress_state
    from comfy_execution.utils import get_executing_context

    context = get_executing_context()
    if context is None:
        return None
    shown = get_progress_state().dynprompt.get_display_node_id(context.node_id)
    return {
        "prompt_id": context.prompt_id,
        "node": str(shown),
        "workflow": _workflow_id(context.prompt_id),
    }


def send(event: str, data: dict[str, Any]) -> None:
    """Send ``event`` to the browser that queued the run; a run that no browser queued has none."""
    server = comfy_server()
    client = getattr(server, "client_id", None)
    if client is not None:
        server.send_sync(event, data, client)


def comfy_server() -> Any:
    """ComfyUI's server; None if ComfyUI is used without one (it is not imported for this)."""
    prompt_server = getattr(sys.modules.get("server"), "PromptServer", None)
    return getattr(prompt_server, "instance", None)


def _workflow_id(prompt: str) -> str:
    """The id of the workflow behind run ``prompt``, "" where the run does not say it.

    Several workflows can be open in a browser, each with a node 3.
    """
    queue = getattr(comfy_server(), "prompt_queue", None)
    for item in list(getattr(queue, "currently_running", {}).values()):
        if len(item) > 3 and item[1] == prompt and isinstance(item[3], dict):
            workflow = (item[3].get("extra_pnginfo") or {}).get("workflow") or {}
            return str(workflow.get("id") or "")
    return ""
