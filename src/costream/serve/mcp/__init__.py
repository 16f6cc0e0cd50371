"""An index as tools of a language model, by the Model Context Protocol (MCP)."""
