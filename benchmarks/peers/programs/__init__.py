"""Programs of other frameworks as their users write them, each of which runs by itself."""
