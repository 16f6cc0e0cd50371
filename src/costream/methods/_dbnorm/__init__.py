"""The experiment behind the claim of DBNorm.

Two worlds: vectors of a toy space whose hubs are put there on purpose, and photographs with the
vectors of the shipped model. Inverse temperatures are picked on queries that are not measured, 0
always among the choices, so that a bank that does not help can be left out; for a query bank of
another domain also as picked for the right one, as somebody would who does not know. Baselines
beside the raw scores: the query bank alone, both modalities less the mean of their banks, and
nearest-neighbour normalisation (NNN). Control: biases given to other items must not help.
"""
