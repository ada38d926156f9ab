"""Motion modules in ComfyUI's model folders: their names for the node, and the paths of these
names.
"""

from __future__ import annotations

import os
from pathlib import Path

from ...trainer.models.motion_module import is_adapter_folder

FOLDERS = ("animatediff_models", "motion_modules")  # as other AnimateDiff packs name them
ADAPTER_FOLDERS = (*FOLDERS, "diffusers")
DEPTH = 3  # levels below a model folder at which a MotionAdapter is looked for


def list_motion_modules() -> list[str]:
    """Names of all motion modules: files first, then folders of diffusers' `MotionAdapter`.

    Relative POSIX paths below the model folders, each once. Reads no weights.
    """
    import folder_paths

    register_folders()
    files = {
        name.replace(os.sep, "/")
        for folder in FOLDERS
        for name in folder_paths.get_filename_list(folder)
    }
    adapters = {
        path.relative_to(root).as_posix() for root in _roots() for path in _adapters(root, DEPTH)
    }
    inside = tuple(f"{name}/" for name in adapters)
    return sorted(name for name in files if not name.startswith(inside)) + sorted(adapters)


def resolve_motion_module(name: str) -> Path:
    """The file or folder that `list_motion_modules` called `name`.

    Raises ValueError for a name that is not there, or that leads out of the model folders.
    """
    import folder_paths

    register_folders()
    parts = Path(name.replace("\\", "/")).parts
    if not name or ".." in parts or Path(name).is_absolute():
        raise ValueError(
            f"`motion_module`='{name}' is not in the model folders; choose one from the list."
        )
    for folder in FOLDERS:
        path = folder_paths.get_full_path(folder, name)
        if path is not None:
            return Path(path)
    for root in _roots():
        if is_adapter_folder(root / name):
            return root / name
    raise ValueError(
        f"Motion module '{name}' was not found. Put it into models/{FOLDERS[0]} and press R; "
        f"there are {len(list_motion_modules())} others."
    )


def register_folders() -> None:
    """Register the two folder types, in addition to folders from other packs and
    extra_model_paths.
    """
    import folder_paths

    for folder in FOLDERS:
        folder_paths.add_model_folder_path(folder, os.path.join(folder_paths.models_dir, folder))
        paths, extensions = folder_paths.folder_names_and_paths[folder]
        if not extensions:  # so it is after extra_model_paths.yaml, and then every file counts
            known = (paths, folder_paths.supported_pt_extensions)
            folder_paths.folder_names_and_paths[folder] = known


def _roots() -> list[Path]:
    import folder_paths

    return [
        Path(path) for folder in ADAPTER_FOLDERS for path in folder_paths.get_folder_paths(folder)
    ]


def _adapters(root: Path, depth: int) -> list[Path]:
    """Folders of a MotionAdapter up to `depth` levels below `root`."""
    if not root.is_dir() or depth == 0:
        return []
    found = []
    for folder in sorted(path for path in root.iterdir() if path.is_dir()):
        found += [folder] if is_adapter_folder(folder) else _adapters(folder, depth - 1)
    return found
