"""Generation: a trained language model writes text, by sampling or by beam search.

`dl.load_run(folder).generate(prompts)` and `python -m dl generate` use it, with the options of
`sampling.Sampling`.

It may import `dl.data.text` and the modules at the top of `dl`. Read `writer` first, then `slots`, which
holds the compiled programs and the loop.
"""
