"""Parts of `costream.methods.xbt`: maps between spaces, what an upgrade gains, the experiment."""
