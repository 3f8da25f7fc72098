"""Comparing methods: which runs a comparison has, running what is missing, records of finished runs."""
