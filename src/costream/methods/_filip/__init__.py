"""The experiment behind FILIP's claim."""
