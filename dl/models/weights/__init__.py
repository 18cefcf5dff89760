"""Published weights: safetensors files, read into the models of `dl`.

It may import `dl.system` and the modules at the top of `dl`. Read `pretrained` first.
"""
