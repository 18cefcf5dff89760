"""Reading and decoding of photographs from disk, beside other libraries, and the memory of a large set."""
