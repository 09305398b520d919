"""Importers: what other tools and data sets hold becomes a preference folder."""
