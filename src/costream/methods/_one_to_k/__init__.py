"""How consistency over languages is measured, and the experiment behind the claim of 1-to-K."""
