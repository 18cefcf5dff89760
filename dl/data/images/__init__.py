"""Images: data sets of images, and what happens to images inside the compiled step.

`classification` finds a set by name or folder; `decoding`, `augment` and their like are functions of arrays.
It may import the rest of `dl.data`, `dl.system` and the words at the top of `dl`. Read `classification`
first.
"""
