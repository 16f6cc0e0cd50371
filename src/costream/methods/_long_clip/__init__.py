"""The experiment behind the claim of Long-CLIP."""
