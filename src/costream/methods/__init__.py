"""One file a published system; see the cards with `costream methods`."""
