"""costream inside other libraries: one module each, which needs that library."""
