"""The three agents. `base` is the interface; `scripted` wraps a task's own oracle, exact or failing."""
