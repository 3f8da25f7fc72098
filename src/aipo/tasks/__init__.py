"""Tasks: problems with checkable answers. `base` is the interface, each other module one task."""
