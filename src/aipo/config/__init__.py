"""Typed settings: the schema, its defaults, loading of TOML recipes and dotted overrides. A leaf."""
