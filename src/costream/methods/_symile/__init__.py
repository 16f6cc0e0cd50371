"""The experiment behind the claim of Symile: worlds in which pairs of modalities tell nothing."""
