"""The experiment behind the claim of X-Pool: clips of which some frames show what the text says."""
