"""What a command sets up in its process before it computes: the allocator."""

from dl.cli.options import ComputeOptions
from dl.system.allocator import keep_memory


def set_up_process(options: ComputeOptions) -> None:
    """Follows the options of a command. Called before anything large is allocated."""
    if options.keep_memory:
        keep_memory()
