"""Training in several processes and on other machines: Cloud TPU, SLURM, Kubernetes and Docker.

A launcher, such as `python -m launch.tpu`, starts `python -m experiments.NAME …` or `python -m dl …` on other
machines; `launch.local` starts several processes on this one. With `--dry-run` it prints what it would run.
The package imports only the standard library, so that it starts at once on a machine without JAX. Read
`command` first, which says what may run, then `steps`.
"""
