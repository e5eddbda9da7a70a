"""Statistics of a study. `moments`: what results vary by. `family`: several comparisons at once. `rule`: what is
better, and how sure that is. `power`: what a design sees. `latent`, `trial`: made-up studies, on which the rule is
tried. `checks`: what stands beside it. docs/statistics.md has the formulas, their sources, and what was checked
against what.
"""
