"""The experiment behind VDR's claim."""
