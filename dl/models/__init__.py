"""Models as Linen modules, one family a file. None of them mentions devices, data sets or optimizers."""
