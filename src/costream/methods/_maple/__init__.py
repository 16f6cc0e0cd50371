"""The experiment behind the claim of MaPLe."""
