"""Published weights: safetensors files, read into the models of `dl`, and language models written back.

It may import `dl.models`, `dl.system` and the modules at the top of `dl`. Read `hugging_face` first for
language models, and `pretrained` for image models. `family` defines the tables that both directions use.
"""
