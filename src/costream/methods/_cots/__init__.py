"""The experiment behind the claim of COTS: which runs there are, how one is made, and its tables.

Baseline everywhere is contrast alone (the instance level, filter off), from the same weights, with
the same batches, steps and seed. Three questions:

- Does each interaction add to contrast alone, at equal steps and at equal time?
- Does each interaction do what it is for (is masked prediction really told the partner's vector; do
  the two retrieval tasks agree more)?
- Does the filter help when captions are mismatched, what does it cost when none are, and how much
  could be gained at all by an oracle that knows the mismatched pairs?

The verdicts follow from the numbers (`costream.evaluate.claims`); nothing here knows what they
should be.
"""
