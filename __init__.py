"""MCM few-step video for ComfyUI: motion consistency distillation students as native models.

Inside ComfyUI this folder is a package of nodes; everywhere else it only holds ``trainer``.
"""

from __future__ import annotations

import logging
from pathlib import Path

WEB_DIRECTORY = "./web"


async def comfy_entrypoint():
    """ComfyUI's door to the pack (V3).

    Whatever is wrong with the installation costs lines in the log, never ComfyUI's start.
    """
    import folder_paths

    from .nodes import McmExtension
    from .nodes.install import load_remarks

    folders = [Path(each) for each in folder_paths.get_folder_paths("custom_nodes")]
    for remark in load_remarks(folders):
        logging.getLogger(__name__).error(remark)
    return McmExtension()
