"""One HTML file of a run or an evaluation: figures, charts, the best and the worst images."""
