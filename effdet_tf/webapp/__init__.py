"""A local web app: drop images, see their cells outlined, move the score threshold, take the files."""
