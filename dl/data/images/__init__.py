"""Images: data sets of images, and functions of images that run inside the compiled step.

`classification` finds a data set by name or folder. `decoding`, `augment` and others are functions of arrays.
The folder may import the rest of `dl.data`, `dl.system` and the modules at the top of `dl`. Read
`classification` first.
"""
