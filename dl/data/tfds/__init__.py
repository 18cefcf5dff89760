"""The format of TensorFlow Datasets on disk, read and written without TensorFlow.

It may import the rest of `dl.data`, `dl.system` and the words at the top of `dl`. Read `find` first, then
`records`.
"""
