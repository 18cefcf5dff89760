"""Channels of a traced model: what is removed together with a channel, and the smaller model.

`labels` gives every index of every axis of every intermediate array a label, and unites the labels of indices
that can only be removed together. `rules` and `products` state this for each operation. `trace` applies them
to a function. `groups` collects the labels of the parameters. `narrow` evaluates the traced function
with fewer channels. Read `labels` first. The package imports what a method may import.
"""
