"""What a command sets up in its process before it computes: the allocator and the compilation cache."""

import sys

from dl.cli.options import ComputeOptions
from dl.data.tfds.folders import user_cache
from dl.system.allocator import keep_memory
from dl.system.compilation_cache import use_compilation_cache
from dl.system.text import printable


def set_up_process(options: ComputeOptions) -> None:
    """Follows the options of a command. Called before anything large is allocated or compiled."""
    if options.keep_memory:
        keep_memory()
    if not options.compilation_cache:
        return
    try:
        reason = use_compilation_cache(user_cache())
    except RuntimeError:  # of `expanduser`
        reason = "there is no home folder; set XDG_CACHE_HOME"
    if reason:
        print(f"compiled programs are not kept: {printable(reason)}", file=sys.stderr)
