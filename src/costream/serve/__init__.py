"""Search over HTTP with a page for people, and over MCP for assistants.

Arrows go one way: `serve` answers with what `index` and the models give and has no search logic of
its own. Needs `pip install costream[serve]`.
"""
