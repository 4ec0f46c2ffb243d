"""`chain`: recipes, merges, evaluations and exports one after another, each fed by those before."""
