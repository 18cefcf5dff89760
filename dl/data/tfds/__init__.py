"""The format of TensorFlow Datasets on disk, read and written without TensorFlow.

The folder may import the rest of `dl.data`, `dl.system` and the modules at the top of `dl`. Read `find`
first, then `records`.
"""
