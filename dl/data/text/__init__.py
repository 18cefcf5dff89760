"""Text: tokenizers, sources of text, and data for language models, classification and translation.

The data sets are in `dl.data`, such as `dl.data.language_modeling`. It may import the modules of `dl.data`
beside it, but not `dl.data.images`. Read `tokenizer` first, then `language_modeling`.
"""

from typing import TYPE_CHECKING

from dl.system.lazy import on_first_use

if TYPE_CHECKING:
    from dl.data.text.masking import mask_tokens
    from dl.data.text.packing import pack
    from dl.data.text.span_corruption import corrupt_spans
    from dl.data.text.token_files import read_tokens
    from dl.data.text.token_writer import write_tokens
    from dl.data.text.windows import TokenWindows
else:
    __getattr__, __dir__ = on_first_use(__name__)

__all__ = ["TokenWindows", "corrupt_spans", "mask_tokens", "pack", "read_tokens", "write_tokens"]
