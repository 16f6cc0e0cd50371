"""Towers in numpy: a search answers before torch would have been imported.

Only the kinds of towers that our default model has are here; `load_text_encoder` and
`load_image_encoder` hand any other model to the full implementation. Equality with the full towers
is tested.
"""
