"""The code that is copied to other machines: the files that git tracks, as they are in the working folder."""

import subprocess
import tarfile
from pathlib import Path

from launch.errors import UserError


def tracked_files(folder: Path) -> list[str]:
    """Returns the paths of the files that git tracks in a folder and that exist, relative to it.

    Raises:
      UserError: the folder is not the top of a checkout of the project.
    """
    git = ["git", "-C", str(folder), "ls-files", "-z", "--cached"]
    done = subprocess.run(git, capture_output=True, text=True, check=False)
    paths = [path for path in done.stdout.split("\0") if path and (folder / path).is_file()]
    if done.returncode or "pyproject.toml" not in paths:
        raise UserError(
            f"{folder} is not the top folder of a git checkout of this project; change to that folder"
        )
    return paths


def write_archive(folder: Path, archive: Path) -> None:
    """Writes the tracked files of a folder as a compressed tar file, without the owners of the files."""
    archive.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(archive, "w:gz") as tar:
        for path in tracked_files(folder):
            tar.add(folder / path, path, recursive=False, filter=_without_owner)


def _without_owner(info: tarfile.TarInfo) -> tarfile.TarInfo:
    info.uid = info.gid = 0
    info.uname = info.gname = ""
    return info
