"""The command line: thin verbs over the library. `main` lists them."""
