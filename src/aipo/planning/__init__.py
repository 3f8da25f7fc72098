"""What a step costs on GPUs that nobody here has: formulas and a small simulation, standard library only."""
