"""What runs and evaluations look like to a person: names of figures and phases, charts, pages."""
